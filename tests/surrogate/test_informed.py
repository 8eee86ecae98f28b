"""Short runs in the surrogate: coordinates of their own, learnt from where they are there, and a start by them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, rankdata, spearmanr

from aqx.errors import InputError
from aqx.surrogate import PRESETS, Features, embed, fit, predict, suggest, undescribed
from aqx.surrogate.embeddings import fit_scores, scores_on
from aqx.surrogate.gaussian_process import gaussian_process
from aqx.surrogate.prediction import ENOUGH, Known, Results, poor_by_runs

ENSEMBLE = PRESETS["ensemble"]
CLASSES, LOSSES = 120, 4
WITHOUT = ENSEMBLE.without_runs
assert WITHOUT is not None


@pytest.fixture(scope="module")
def features() -> Features:
    """Candidates whose outputs and spectra are noise, and whose short runs decide."""
    rng = np.random.default_rng(0)
    runs = np.exp(rng.normal(size=(CLASSES, 1)) + rng.normal(size=(CLASSES, LOSSES), scale=0.2))
    outputs, spectra = rng.normal(size=(CLASSES, 24)), rng.normal(size=(CLASSES, 12))
    return Features([f"f{i}" for i in range(CLASSES)], outputs, spectra, runs=runs)


@pytest.fixture(scope="module")
def coordinates(features: Features) -> np.ndarray:
    return embed(features)


def test_features_say_who_has_short_runs(features: Features):
    runs = features.runs.copy()
    runs[3, 1] = np.nan
    some = Features(features.names, features.outputs, runs=runs)
    assert some.has_runs.sum() == CLASSES - 1 and not some.has_runs[3]
    assert not Features(["a"], np.zeros((1, 2))).has_runs.any()
    with pytest.raises(InputError, match=r"runs has the shape \(3, 4\)"):
        Features(features.names, features.outputs, runs=runs[:3])


def test_without_short_runs_the_coordinates_are_those_of_before(features: Features, coordinates: np.ndarray):
    bare = embed(Features(features.names, features.outputs, features.spectra))
    assert bare.shape == (CLASSES, WITHOUT)
    np.testing.assert_array_equal(coordinates[:, :WITHOUT], bare)
    scores = -norm.ppf((np.apply_along_axis(rankdata, 0, features.runs) - 0.5) / CLASSES)
    np.testing.assert_allclose(coordinates[:, WITHOUT:], scores, atol=1e-4)


def test_scores_go_by_order_alone_and_equal_losses_score_alike():
    losses = np.array([[1.0], [1.0], [2.0], [1e30], [1e30]])
    scores = scores_on(fit_scores(losses), losses).ravel()
    assert scores[0] == scores[1] > scores[2] > scores[3] == scores[4] and np.isfinite(scores).all()
    assert (np.abs(scores_on(fit_scores(losses), np.array([[-5.0], [9e30]]))) < 4).all()
    assert fit_scores(np.empty((0, 3))).size == 0


def test_who_has_no_short_runs_has_no_coordinates_of_them(features: Features):
    runs = features.runs.copy()
    runs[::3] = np.nan
    mixed = embed(Features(features.names, features.outputs, features.spectra, runs=runs))
    assert np.isnan(mixed[::3, WITHOUT:]).all() and np.isfinite(mixed[1::3]).all()


def test_each_is_predicted_from_what_is_known_of_it(features: Features, coordinates: np.ndarray):
    """Of four kinds of candidates those with short runs are predicted well, all others at all."""
    known = coordinates.copy()
    kind = np.arange(CLASSES) % 4  # outputs alone, with a spectrum, with short runs, with both
    known[np.isin(kind, (0, 2)), ENSEMBLE.outputs_alone : WITHOUT] = np.nan
    known[np.isin(kind, (0, 1)), WITHOUT:] = np.nan
    truth, rows = -np.log(features.runs[:, 0]), np.arange(60, CLASSES)
    mean, spread = predict(known, np.arange(60), truth[:60], rows)
    assert np.isfinite(mean).all() and (spread > 0).all()
    for has_runs in (2, 3):
        here = kind[rows] == has_runs
        assert spearmanr(mean[here], truth[rows][here])[0] > 0.7
    # What is known of a candidate is all that its prediction depends on.
    alone, _ = predict(known[:, : ENSEMBLE.outputs_alone], np.arange(60), truth[:60], rows)
    np.testing.assert_allclose(mean[kind[rows] == 0], alone[kind[rows] == 0], rtol=1e-4, atol=1e-5)
    both, _ = predict(known[:, :WITHOUT], np.arange(60), truth[:60], rows)
    np.testing.assert_allclose(mean[kind[rows] == 1], both[kind[rows] == 1], rtol=1e-4, atol=1e-5)


def test_too_few_results_with_short_runs_leave_them_out(features: Features, coordinates: np.ndarray):
    known = coordinates.copy()
    known[:12, WITHOUT:] = np.nan  # all that is observed
    truth = -np.log(features.runs[:, 0])
    mean, _ = predict(known, np.arange(12), truth[:12], np.arange(12, CLASSES))
    without, _ = predict(known[:, :WITHOUT], np.arange(12), truth[:12], np.arange(12, CLASSES))
    np.testing.assert_allclose(mean, without, rtol=1e-4, atol=1e-5)


def test_what_more_coordinates_there_are_is_one_group():
    rng = np.random.default_rng(1)
    x, query = rng.normal(size=(30, 5)), rng.normal(size=(9, 5))
    open_, closed = gaussian_process((2,)), gaussian_process((2, 3))
    np.testing.assert_array_equal(open_(x, x[:, 4], query, 0), closed(x, x[:, 4], query, 0))


def test_the_start_takes_the_best_by_mixtures_and_then_the_model_chooses(features: Features, coordinates: np.ndarray):
    truth = -np.log(features.runs[:, 0])
    rows: list[int] = [5, 9]  # baselines, which nobody chose
    for step in range(ENSEMBLE.informed + 3):
        chosen = suggest(coordinates, rows, truth[rows], seed=step, given=2)
        if step < ENSEMBLE.informed:
            better = (coordinates[:, WITHOUT:] > coordinates[chosen.index[0], WITHOUT:]).all(axis=1)
            assert set(np.flatnonzero(better)) <= set(rows), "a better one by every mixture was left"
            assert np.isnan(chosen.mean).all()
        else:
            assert np.isfinite(chosen.mean).all()
        rows += chosen.index.tolist()
    assert len(set(rows)) == len(rows)
    first = {int(suggest(coordinates, [], [], seed=seed).index[0]) for seed in range(8)}
    assert len(first) > 1  # not the same one in every search
    together = suggest(coordinates, [], [], n=ENSEMBLE.informed + 2)
    assert len(set(together.index)) == ENSEMBLE.informed + 2


def test_results_enough_that_nobody_chose_spare_the_start(features: Features, coordinates: np.ndarray):
    """Such as imported ones: a model that knows many results is not blind to any part of the space."""
    truth = -np.log(features.runs[:, 0])
    for count, start in ((ENOUGH - 1, True), (ENOUGH, False)):
        chosen = suggest(coordinates, np.arange(count), truth[:count], given=count)
        assert np.isnan(chosen.mean).all() == start


def test_who_breaks_the_model_or_is_taken_is_not_in_the_start(coordinates: np.ndarray):
    order = np.argsort(-coordinates[:, WITHOUT:].mean(axis=1))
    usable = np.ones(CLASSES, bool)
    usable[order[:40]] = False
    for seed in range(4):
        assert usable[suggest(coordinates, [], [], order[40:50], seed=seed, candidates=usable).index].all()


def test_without_short_runs_nothing_of_it_shows(features: Features, coordinates: np.ndarray):
    bare, truth = coordinates[:, :WITHOUT], -np.log(features.runs[:, 0])
    rows = np.arange(20)
    plain = replace(ENSEMBLE, informed=0, without_runs=None)
    for observed in (rows[:0], rows[:3], rows):
        one = suggest(bare, observed, truth[observed], seed=3, given=1)
        other = suggest(bare, observed, truth[observed], seed=3, preset=plain)
        np.testing.assert_array_equal(one.index, other.index)


def test_spectra_are_wanted_of_the_best_by_short_runs_before_there_is_a_prediction(coordinates: np.ndarray):
    known = coordinates.copy()
    known[:, ENSEMBLE.outputs_alone : WITHOUT] = np.nan
    order = np.argsort(-known[:, WITHOUT:].mean(axis=1), kind="stable")
    wanted = undescribed(known, [], [], np.zeros(CLASSES, bool), 10)
    assert wanted.tolist() == order[:10].tolist()
    known[wanted] = coordinates[wanted]
    for seed in range(5):  # and the start is among those that have them
        assert suggest(known, [], [], seed=seed).index[0] in wanted
    assert fit(known, wanted[:1], [1.0]).undescribed(np.isfinite(known).all(axis=1), 10).size == 0


def test_after_a_start_of_good_ones_the_worst_by_short_runs_are_not_looked_at(
    features: Features, coordinates: np.ndarray
):
    """The short runs of this table are right, but nothing that was observed tells so: the best ones alone were."""
    order = np.argsort(-coordinates[:, WITHOUT:].mean(axis=1))
    for seed in range(4):
        rows = order[: ENSEMBLE.informed].tolist()
        truth = np.random.default_rng(seed).random(CLASSES)  # so that results have nothing to do with the runs
        for step in range(6):
            rows += suggest(coordinates, rows, truth[rows], seed=step).index.tolist()
        assert not set(rows) & set(order[-CLASSES // 4 :])


def test_those_believed_to_be_poor_are_neither_results_nor_taken(coordinates: np.ndarray):
    order = np.argsort(-coordinates[:, WITHOUT:].mean(axis=1))
    known = Known.of(coordinates, ENSEMBLE)
    poor = poor_by_runs(coordinates, known, ENSEMBLE, order[:5])
    assert len(poor) and set(poor) <= set(order[CLASSES // 2 - 1 :])
    for observed in (np.arange(20), np.arange(60)):  # enough to know better
        assert not len(poor_by_runs(coordinates, known, ENSEMBLE, observed))
    assert not len(
        poor_by_runs(coordinates[:, :WITHOUT], Known.of(coordinates[:, :WITHOUT], ENSEMBLE), ENSEMBLE, order[:5])
    )
    few = coordinates.copy()
    few[order[10:], WITHOUT:] = np.nan
    assert not len(poor_by_runs(few, Known.of(few, ENSEMBLE), ENSEMBLE, order[:5]))
    values = np.arange(4.0)  # fewer than the model needs, those believed to be poor notwithstanding
    results = Results.of(order[:4], values, known, True, poor)
    assert not results.suffice(ENSEMBLE) and results.observed == 4 and len(results.rows) == 4 + len(poor)
    assert set(results.targets[4:]) == {results.targets.min()} and (results.values[4:] == 0).all()
    assert not Results.of(order[:6], np.full(6, np.nan), known, True, poor).suffice(ENSEMBLE)
    left = np.isin(np.arange(CLASSES), poor)
    chosen = suggest(coordinates, order[:6], np.arange(6.0), candidates=left)  # where nothing else is left, they go
    assert chosen.index[0] in poor and np.isfinite(chosen.mean).all()
