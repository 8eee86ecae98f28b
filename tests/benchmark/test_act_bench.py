"""The tables of the built-in tasks: whole, small, and that the default surrogate finds what is best in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aqx.benchmark import landscape_of, load_table, replay_policies
from aqx.tasks import builtin_tasks, load_task
from aqx.tree import parse

TABLES = Path(__file__).parents[1] / "tables"


@pytest.mark.parametrize("name", builtin_tasks())
def test_every_task_has_its_table(name: str):
    path = TABLES / f"{name}.parquet"
    table, task = load_table(path), load_task(name)
    assert path.stat().st_size < 2**21
    assert table.task == name
    assert len(set(table.names)) == len(table) > 1000
    assert {parse(each).size for each in table.names} == {3}, "functions of act_bench"
    values = table.metrics[task.objective]
    assert np.isfinite(values).mean() > 0.4
    test = task.objective.replace("val", "test")
    assert np.isfinite(table.metrics[test]).mean() > 0.4


@pytest.mark.slow
def test_the_default_surrogate_is_far_ahead_of_chance():
    landscape = landscape_of(load_table(TABLES / "sine.parquet"), load_task("sine"))
    ensemble, random = replay_policies(landscape, ["ensemble", "random"], seeds=4, evaluations=60)
    assert (ensemble.evaluated[:, :8] == random.evaluated[:, :8]).all()
    assert ensemble.regret[:, -1].mean() < 0.2 * random.regret[:, -1].mean()
