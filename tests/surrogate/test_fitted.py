"""One fit of the surrogate answers all that a round asks: as the functions do, and with as few fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aqx.errors import Exhausted, InputError
from aqx.surrogate import PRESETS, Features, Preset, embed, fit, fitted, rank, suggest, undescribed
from aqx.surrogate.models import nearest_neighbours

ENSEMBLE = PRESETS["ensemble"]
OBSERVED, DESCRIBED_EVERY = np.arange(0, 60, 2), 3


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of 200 candidates, two thirds of them without a spectrum's, and their results."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 200, 1))
    x = np.linspace(-2.5, 2.5, 24)
    features = Features([f"f{i}" for i in range(200)], a * np.tanh(x) + b * x**2, np.hstack([a, b, a * b, a + b]))
    coordinates = embed(features).copy()
    coordinates[np.arange(200) % DESCRIBED_EVERY > 0, ENSEMBLE.outputs_alone :] = np.nan
    return coordinates, -((a - 0.4) ** 2 + (b + 0.3) ** 2)[:, 0]


@pytest.fixture
def fits(monkeypatch) -> list[int]:
    """Collect how many rows each fit of the surrogate predicts."""
    seen: list[int] = []
    predict_rows = fitted.predict_rows

    def counted(*args):
        seen.append(len(args[5]))
        return predict_rows(*args)

    monkeypatch.setattr(fitted, "predict_rows", counted)
    return seen


PRESETS_HERE = {
    "ensemble": ENSEMBLE,
    "random": PRESETS["random"],
    "knn": Preset("knn", ENSEMBLE.embed, nearest_neighbours, outputs_alone=ENSEMBLE.outputs_alone),
}


@pytest.mark.parametrize("preset", PRESETS_HERE.values(), ids=PRESETS_HERE)
@pytest.mark.parametrize("pending", [[], [61, 62]], ids=["alone", "with others"])
@pytest.mark.parametrize("results", [0, 3, len(OBSERVED)])
def test_a_fitted_surrogate_suggests_what_the_function_does(planted, preset, pending, results):
    coordinates, values = planted
    observed = OBSERVED[:results]
    usable = np.arange(200) % 7 > 0
    for n in (1, 3):
        one = fit(coordinates, observed, values[observed], pending, preset=preset, seed=4)
        one.undescribed(np.zeros(200, bool), 20)  # whatever was asked before
        expected = suggest(
            coordinates, observed, values[observed], pending, preset=preset, seed=4, candidates=usable, n=n
        )
        for found in (one.suggest(n, candidates=usable), one.suggest(n, usable)):
            np.testing.assert_array_equal(found.index, expected.index)
            np.testing.assert_array_equal(found.mean, expected.mean)
            np.testing.assert_array_equal(found.spread, expected.spread)


def test_further_suggestions_count_the_first_as_pending(planted):
    coordinates, values = planted
    first, second = fit(coordinates, OBSERVED, values[OBSERVED], seed=4).suggest(2).index
    assert first == fit(coordinates, OBSERVED, values[OBSERVED], seed=4).suggest().index[0]
    draws = np.random.default_rng(4)
    _, _, again = draws.integers(2**31), draws.choice(1), int(draws.integers(2**31))
    later = fitted.fit_with(coordinates, OBSERVED, values[OBSERVED], [first], ENSEMBLE, 4, again)
    assert second == later.rank()[~np.isin(later.rank(), [*OBSERVED, first])][0]


def test_all_questions_of_a_round_are_answered_by_one_fit(planted, fits):
    coordinates, values = planted
    one = fit(coordinates, OBSERVED, values[OBSERVED], seed=4)
    assert not fits, "nothing is computed before it is asked for"
    assert not len(one.undescribed(np.ones(200, bool), 20))
    assert len(one.undescribed(np.zeros(200, bool), 20))
    order, chosen = one.rank(), one.suggest()
    assert fits == [200]
    assert chosen.index[0] == order[~np.isin(order, OBSERVED)][0]


def test_pending_rows_take_one_fit_more(planted, fits):
    coordinates, values = planted
    one = fit(coordinates, OBSERVED, values[OBSERVED], [61, 63], seed=4)
    one.undescribed(np.ones(200, bool), 20)
    assert one.suggest().index[0] not in (61, 63)
    assert fits == [2, 200]


@pytest.mark.parametrize("results", [0, 4])
def test_a_draw_takes_no_fit(planted, fits, results):
    coordinates, values = planted
    one = fit(coordinates, OBSERVED[:results], values[OBSERVED[:results]], [61], seed=4)
    assert not len(one.undescribed(np.zeros(200, bool), 20)) and not len(one.rank())
    assert np.isnan(one.suggest(2).mean).all()
    assert not fits


@pytest.mark.parametrize("among", [5, 20, 170])
def test_the_undescribed_are_those_of_the_ranking(planted, among):
    coordinates, values = planted
    described = np.isfinite(coordinates).all(axis=1)
    one = fit(coordinates, OBSERVED, values[OBSERVED], [61], seed=4)
    order = [row for row in one.rank() if row not in OBSERVED]
    expected = {row for row in [*OBSERVED, *order[:among]] if not described[row]}
    assert set(one.undescribed(described, among)) == expected and 5 * len(expected) >= among
    assert set(one.undescribed(described, 1000)) == set(np.flatnonzero(~described))
    few = np.ones(200, bool)
    few[order[0]] = False
    assert set(one.undescribed(few, 5)) == {order[0]} and not len(one.undescribed(few, 6))


def test_the_functions_seed_their_models_with_the_seed_itself(planted):
    """As they always have, so that the same seeds give the same spectra and rankings."""
    coordinates, values = planted
    seeds: list[int] = []

    def noted(x, y, query, seed):
        seeds.append(seed)
        return nearest_neighbours(x, y, query, seed)

    preset = Preset("noted", ENSEMBLE.embed, noted, outputs_alone=1)
    one_kind = coordinates[:, :1]
    rank(one_kind, OBSERVED, values[OBSERVED], preset=preset, seed=4)
    undescribed(one_kind, OBSERVED, values[OBSERVED], np.zeros(200, bool), 5, preset, 4)
    suggest(one_kind, OBSERVED, values[OBSERVED], preset=preset, seed=4)
    fit(one_kind, OBSERVED, values[OBSERVED], preset=preset, seed=4).rank()
    drawn = int(np.random.default_rng(4).integers(2**31))
    assert seeds == [4, 4, drawn, drawn]


def test_a_surrogate_without_such_a_division_wants_no_spectra(planted):
    coordinates, values = planted
    whole = replace(ENSEMBLE, outputs_alone=None)
    described = np.isfinite(coordinates).all(axis=1)
    one = fit(coordinates, OBSERVED, values[OBSERVED], preset=whole)
    assert not len(one.undescribed(np.zeros(200, bool), 20))
    assert described[one.suggest(30).index].all()


def test_what_cannot_be_asked_is_refused(planted):
    coordinates, values = planted
    one = fit(coordinates, OBSERVED, values[OBSERVED])
    with pytest.raises(Exhausted, match="no candidate is left"):
        one.suggest(candidates=np.isin(np.arange(200), OBSERVED))
    with pytest.raises(InputError, match="n=0"):
        one.suggest(0)
    with pytest.raises(InputError, match="candidates has the shape"):
        one.suggest(candidates=np.ones(3, bool))
    with pytest.raises(InputError, match="values has 1 entries for 2"):
        fit(coordinates, [0, 1], [1.0])
