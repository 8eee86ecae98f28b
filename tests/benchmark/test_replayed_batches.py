"""A replayed batch is that of `search(together=…)`: the same functions, in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy
from sklearn.neighbors import KNeighborsRegressor

from aqx import candidates
from aqx.activation import Activation, activation
from aqx.benchmark import replay
from aqx.search import Study
from aqx.store import functions
from aqx.surrogate import PRESETS, Features, embed, suggest

OPERATORS = ["sin", "tanh", "relu", "square", "abs", "cos", "erf", "swish"]
BASELINES = ("relu(x)", "tanh(x)", "sin(x)", "swish(x)", "square(x)", "erf(x)")
# Nothing that it predicts, and no tie, depends on a seed: those of a search are not those of a replayed one.
NEAREST = KNeighborsRegressor(3, weights="distance")
ENSEMBLE = PRESETS["ensemble"]


def train(act: Activation, seed: int) -> dict[str, float]:
    return {"val_acc": 1 - toy.distance(act)}


@pytest.mark.parametrize("together", [1, 4])
def test_a_replayed_batch_is_that_of_a_search(tmp_path: Path, together: int):
    path = toy.candidates(tmp_path / "toy.duckdb", ["unary(unary(x))", "unary(x)"], OPERATORS)
    task = toy.make_task(train=train, baselines=BASELINES)
    study = Study(path, task, surrogate=NEAREST)
    study.search(budget=9, spectra=0, together=together)
    searched = [record.class_id or "" for record in sorted(study.records(), key=lambda record: record.id)]
    table = candidates.of_database(study.db, study.task_id, ENSEMBLE, 0, keep=False)
    ids = table.class_ids(np.arange(len(table)))
    names = functions.class_names(study.db, ids)
    values = np.array([train(activation(name), 0)["val_acc"] for name in names])
    curves = replay(
        Features(names, np.zeros((len(names), 1))),
        values,
        NEAREST,
        seeds=1,
        evaluations=len(searched),
        baselines=[ids.index(class_id) for class_id in searched[: len(BASELINES)]],
        embedding=table.coordinates,
        batch=together,
    )
    assert [ids[row] for row in curves.evaluated[0]] == searched
    assert len(searched) == len(BASELINES) + 9


def test_a_batch_of_a_start_goes_by_short_runs_as_long_as_nothing_is_known():
    rng = np.random.default_rng(0)
    runs = np.exp(rng.normal(size=(80, 1)) + rng.normal(size=(80, 3), scale=0.1))
    features = Features([f"f{i}" for i in range(80)], rng.normal(size=(80, 12)), runs=runs)
    coordinates, better = embed(features), np.argsort(runs.mean(axis=1))
    chosen = suggest(coordinates, [], [], n=ENSEMBLE.informed + 7, seed=1).index
    assert set(chosen) <= set(better[:30])
    failed = suggest(coordinates, better[:9], np.full(9, np.nan), seed=1).index  # which tells nothing either
    assert set(failed) <= set(better[9:30])
