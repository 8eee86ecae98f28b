"""Functions of two inputs among the best of a search: maps below the curves in the figure of functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy import candidates, make_task

import aqx
from aqx.report import write_figure
from aqx.report.curves import PLANE, curves_of_best, maps_of_best
from aqx.search import load_results

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture
def both(tmp_path: Path) -> Path:
    path = candidates(tmp_path / "both.duckdb", ["unary(x)", "mul(unary(x),y)"], ["tanh", "sin", "reciprocal"])
    study = aqx.Study(path, make_task())
    for name, value in {"sin(x)": 0.5, "mul(tanh(x),y)": 0.9, "mul(reciprocal(x),y)": 0.8}.items():
        study.add(name, val_acc=value)
    return path


def test_a_map_has_the_values_of_the_plane(both: Path):
    results = load_results(both, "toy")
    first, second = maps_of_best(results, None)
    assert (first.name, first.result) == ("mul(tanh(x),y)", 0.9)
    np.testing.assert_allclose(first.values, np.tanh(PLANE) * PLANE[:, None], rtol=1e-5, atol=1e-6)
    assert second.name == "mul(reciprocal(x),y)" and np.isnan(second.values[:, PLANE == 0]).all()
    assert {one.name for one in curves_of_best(results, None)} == {"sin(x)", "relu(x)", "gelu(x)", "swish(x)"}


def test_the_figure_of_functions_shows_curves_and_maps(both: Path, tmp_path: Path):
    drawn = write_figure(both, "functions", tmp_path / "functions.svg").read_text()
    assert drawn.count("<image") >= 2, "a map is an image, and so is its scale"
    assert all(f"<!-- {name} -->" in drawn for name in ("sin(x)", "mul(tanh(x),y)"))
