"""The tables of the built-in tasks: whole, small, and that the default surrogate finds what is best in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

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


@pytest.mark.parametrize("path", sorted(TABLES.glob("*-3-seeds.parquet")), ids=lambda path: path.stem)
def test_tables_of_noisy_tasks_have_three_seeds(path: Path):
    table, one = load_table(path), load_table(TABLES / f"{path.stem.removesuffix('-3-seeds')}.parquet")
    objective = load_task(one.task).objective
    assert path.stat().st_size < 2**21 and table.task == one.task
    seeds = Counter(table.names)
    assert set(seeds) == set(one.names) and set(seeds.values()) == {1, 3}  # who breaks the model is trained once
    assert list(seeds.values()).count(3) > 800
    first = table.seeds == 0
    assert dict(zip(np.array(table.names)[first], table.metrics[objective][first].tolist(), strict=True)) == (
        pytest.approx(dict(zip(one.names, one.metrics[objective].tolist(), strict=True)), nan_ok=True)
    )
    matrix = {
        seed: dict(
            zip(np.array(table.names)[table.seeds == seed], table.metrics[objective][table.seeds == seed], strict=True)
        )
        for seed in (1, 2)
    }
    again = np.array([[matrix[1][name], matrix[2][name]] for name in matrix[1]])
    again = again[np.isfinite(again).all(axis=1)]
    assert (again[:, 0] != again[:, 1]).mean() > 0.9 and spearmanr(*again.T)[0] > 0.8


def test_a_table_of_the_paper_s_space_is_large():
    table = load_table(TABLES / "sine-paper.parquet")
    assert table.task == "sine" and len(set(table.names)) == len(table) > 20_000
    assert {parse(name).size for name in table.names} == {4} and np.isfinite(table.metrics["val_loss"]).mean() > 0.8


@pytest.mark.parametrize(("name", "metric"), [("fashion-cnn", "val_acc"), ("text", "val_bpb")])
def test_large_tasks_have_tables_of_a_sample(name: str, metric: str):
    table = load_table(TABLES / f"{name}.parquet")
    assert table.task.startswith(name) and len(set(table.names)) == len(table) > 60
    assert np.isfinite(table.metrics[metric]).mean() > 0.5
    assert (name == "text") == any(parse(each).inputs == 2 for each in table.names)


@pytest.mark.slow
def test_the_default_surrogate_is_far_ahead_of_chance():
    landscape = landscape_of(load_table(TABLES / "sine.parquet"), load_task("sine"))
    ensemble, random = replay_policies(landscape, ["ensemble", "random"], seeds=4, evaluations=60)
    assert (ensemble.evaluated[:, :8] == random.evaluated[:, :8]).all()
    assert ensemble.regret[:, -1].mean() < 0.2 * random.regret[:, -1].mean()
