"""Replayed searches with short runs, with the baselines first, and by local search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy

from aqx import surrogate
from aqx.benchmark import ResultTable, landscape_of, replay, replay_policies
from aqx.benchmark.descriptors import Descriptors
from aqx.benchmark.local import neighbours
from aqx.errors import InputError
from aqx.store import Database, count_spectra
from aqx.store.kinds import RUNS
from aqx.surrogate import PRESETS, Features

pytestmark = pytest.mark.usefixtures("quick_to_compile")

CLASSES = 60


@pytest.fixture(scope="module")
def features() -> Features:
    rng = np.random.default_rng(0)
    runs = np.exp(rng.normal(size=(CLASSES, 1)) + rng.normal(size=(CLASSES, 3), scale=0.1))
    operators = ("sin", "tanh", "relu", "square", "abs", "cos", "erf", "swish")
    names = [f"{outer}({inner}(x))" for outer in operators for inner in operators][:CLASSES]
    return Features(names, rng.normal(size=(CLASSES, 12)), runs=runs)


def test_with_short_runs_a_search_starts_by_them(features: Features):
    values = -np.log(features.runs[:, 0])
    curves = replay(features, values, seeds=5, evaluations=12)
    blind = Features(features.names, features.outputs)
    assert curves.regret[:, 7].mean() < replay(blind, values, seeds=5, evaluations=12).regret[:, 7].mean() / 2
    assert len({tuple(order) for order in curves.evaluated.tolist()}) == 5  # each in its own way
    short = replay(features, values, seeds=2, evaluations=6, start=2)
    assert len(set(short.evaluated[0])) == 6


def test_baselines_come_first_and_nothing_at_random_after_them(features: Features):
    values, baselines = -np.log(features.runs[:, 0]), [7, 3, 21, 40, 41, 42]
    for policy in ("ensemble", "random", "local"):
        curves = replay(features, values, policy, seeds=3, evaluations=9, baselines=baselines)
        assert (curves.evaluated[:, :6] == baselines).all()
        assert all(len(set(order)) == 9 for order in curves.evaluated.tolist())
    for wrong in ([1, 1], [99], list(range(20))):
        with pytest.raises(InputError, match="baselines="):
            replay(features, values, "random", seeds=1, evaluations=9, baselines=wrong)


def test_local_search_goes_to_neighbours_of_the_best(features: Features):
    near = neighbours(features.names)
    for row, name in enumerate(features.names):
        outer, inner, _ = name.split("(")
        expected = [
            other
            for other, text in enumerate(features.names)
            if ((text.split("(")[0] == outer) != (text.split("(")[1] == inner))
        ]
        assert near[row].tolist() == expected
    values = np.random.default_rng(3).normal(size=CLASSES)
    curves = replay(features, values, "local", seeds=6, evaluations=30, start=3)
    for order in curves.evaluated.tolist():
        for k in range(3, 12):
            left = [row for row in sorted(order[:k], key=lambda r: -values[r]) if set(near[row]) - set(order[:k])]
            assert order[k] in near[left[0]]
    everything = replay(features, values, "local", seeds=1, evaluations=CLASSES)
    assert sorted(everything.evaluated[0]) == list(range(CLASSES))


@pytest.mark.slow
def test_a_landscape_has_short_runs_that_are_kept(tmp_path: Path):
    names = ["relu(x)", "tanh(x)", "sin(x)", "cos(x)", "erf(x)", "square(x)"]
    table = ResultTable(tuple(names), np.zeros(6, np.int64), {"val_acc": np.arange(6.0)}, (None,) * 6)
    path = tmp_path / "features.duckdb"
    land = landscape_of(table, toy.task, features=path, presets=(PRESETS["ensemble"],))
    assert land.features.has_runs.all()
    assert land.embeddings["ensemble"].shape[1] > (PRESETS["ensemble"].without_runs or 0)
    assert [land.features.names[row] for row in land.baselines] == ["relu(x)", "tanh(x)"]
    again = landscape_of(table, toy.task, features=path, presets=(PRESETS["ensemble"],))
    np.testing.assert_array_equal(again.embeddings["ensemble"], land.embeddings["ensemble"])
    bare = landscape_of(table, toy.task, features=path, presets=(PRESETS["ensemble"],), runs=False)
    assert bare.features.runs.size == 0 and bare.embeddings["ensemble"].shape[1] == PRESETS["ensemble"].without_runs
    assert count_spectra(Database(path), 1, RUNS)["valid"] == 6
    (curves,) = replay_policies(land, ["ensemble"], seeds=2, evaluations=4, start=1, baselines=True)
    assert (curves.evaluated[:, :2] == land.baselines).all()
    other = tmp_path / "other.duckdb"
    landscape_of(table, toy.task, features=other, presets=(PRESETS["paper"],))
    assert count_spectra(Database(other), 1, RUNS)["valid"] == 0  # no preset uses them


def test_short_runs_and_spectra_come_as_a_search_computes_them():
    rng = np.random.default_rng(1)
    count, most = 200, 60
    good = rng.normal(size=count)
    outputs = np.hstack([good[:, None] + rng.normal(size=(count, 4), scale=0.3), rng.normal(size=(count, 8))])
    spectra, runs = outputs[:, :6] + 0.1, np.exp(-good[:, None] + rng.normal(size=(count, 3), scale=0.1))
    features = Features([f"f{i}" for i in range(count)], outputs, spectra, runs=runs)
    preset = PRESETS["ensemble"]
    whole, usable = surrogate.embed(features, preset, 0), np.arange(count) % 7 > 0
    descriptors = Descriptors.of(whole, usable, preset, 20, most)

    def known(columns: slice) -> set[int]:
        return set(np.flatnonzero(np.isfinite(descriptors.known[:, columns]).all(axis=1)).tolist())

    of_runs, of_spectra = slice(preset.without_runs, None), slice(preset.outputs_alone, preset.without_runs)
    assert known(of_runs) == set(range(0, count, 10)) and not known(of_spectra)  # a third of them, evenly
    rows = [int(descriptors.fitted([], np.empty(0), 0, given=0).suggest(1, usable).index[0])]
    while len(rows) < 12:
        fitted = descriptors.fitted(rows, good[rows], len(rows), given=0)
        rows += fitted.suggest(1, usable).index.tolist()
    later = known(of_runs) - set(range(0, count, 10))
    assert {row for row in rows if row % 10} <= later and 20 <= len(later) <= most
    assert good[list(later)].mean() > good.mean() and not {row for row in later if row % 7 == 0}
    assert 20 <= len(known(of_spectra)) <= most

    for numbers in ({"spectra": 20, "runs": most}, {"spectra": 20}, {"runs": most}):
        curves = replay(features, good, seeds=2, evaluations=12, usable=usable, **numbers)
        assert (curves.evaluated % 7 > 0).all() and curves.regret[:, -1].max() < np.ptp(good) / 4
    everything = replay(features, good, seeds=2, evaluations=12, spectra=count, runs=count)
    np.testing.assert_array_equal(
        everything.evaluated[:, :5], replay(features, good, seeds=2, evaluations=12).evaluated[:, :5]
    )
    without = replay(features, good, seeds=2, evaluations=12, embedding=whole[:, : preset.without_runs])
    np.testing.assert_array_equal(replay(features, good, seeds=2, evaluations=12, runs=0).evaluated, without.evaluated)
    outputs_alone = replay(Features(features.names, outputs), good, seeds=2, evaluations=12)
    nothing = replay(features, good, seeds=2, evaluations=12, spectra=0, runs=0)
    np.testing.assert_array_equal(nothing.evaluated[:, :8], outputs_alone.evaluated[:, :8])
    assert nothing.regret[:, -1].mean() < np.ptp(good) / 2
    for numbers in ({"spectra": -1}, {"runs": -1}):
        with pytest.raises(InputError, match="is too few"):
            replay(features, good, seeds=1, evaluations=12, **numbers)


def test_an_incumbent_by_the_posterior_is_not_the_luckiest():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=150)
    outputs = np.hstack([truth[:, None] + rng.normal(size=(150, 6), scale=0.1), rng.normal(size=(150, 2))])
    features = Features([f"f{i}" for i in range(150)], outputs)
    values = truth[:, None] + rng.normal(size=(150, 8), scale=0.7)  # a search sees one of eight trainings of a class
    values[np.argsort(truth)[:5]] = np.nan
    settings = {"seeds": 8, "evaluations": 40}
    luckiest, believed = (replay(features, values, posterior=posterior, **settings) for posterior in (False, True))
    np.testing.assert_array_equal(believed.evaluated, luckiest.evaluated)
    np.testing.assert_array_equal(believed.incumbents[:, :19], luckiest.incumbents[:, :19])  # too few to tell noise
    assert believed.regret[:, 19:].mean() < 0.95 * luckiest.regret[:, 19:].mean()
    assert all(row in order for row, order in zip(believed.incumbents[:, -1], believed.evaluated, strict=True))
    drawn = [replay(features, values, "random", posterior=posterior, **settings) for posterior in (False, True)]
    np.testing.assert_array_equal(drawn[0].regret, drawn[1].regret)
