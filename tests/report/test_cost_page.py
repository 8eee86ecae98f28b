"""The report tells which functions are the best for what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from browser import PHONE, WIDE, browser_pages
from hypothesis import given
from hypothesis import strategies as st
from toy import candidates, make_task

import aqx
from aqx.costs import compute_costs
from aqx.report import write_report
from aqx.report.cost import on_front, result_and_cost
from aqx.search import load_results
from aqx.tree import parse

pytestmark = pytest.mark.usefixtures("quick_to_compile", "quick_map")


def sizes(names: Sequence[str]) -> list[float]:
    """As if each operator took a nanosecond, and a multiplication a tenth."""
    return [1.0 + sum(0.1 if node.name == "mul" else 1.0 for node in parse(name).nodes) for name in names]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = candidates(
        tmp_path_factory.mktemp("cost") / "found.duckdb", ["unary(x)", "unary(unary(x))"], ["abs", "tanh"]
    )
    study = aqx.Study(path, make_task())
    for name, result in {
        "relu(x)": 0.5,
        "tanh(x)": 0.7,
        "abs(x)": 0.6,
        "tanh(abs(x))": 0.8,
        "tanh(tanh(x))": 0.4,
    }.items():
        study.add(name, val_acc=result)
    return path


def is_beaten(points: list[tuple[int, int]], one: tuple[int, int]) -> bool:
    return any(cost <= one[0] and gain >= one[1] and (cost, gain) != one for cost, gain in points)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_the_front_is_what_nobody_beats(points: list[tuple[int, int]]):
    costs, gains = np.array(points, float).T
    assert on_front(costs, gains).tolist() == [not is_beaten(points, one) for one in points]


def test_a_point_for_each_function_with_a_result(searched: Path):
    assert result_and_cost(load_results(searched)) is None
    compute_costs(str(searched), measure=sizes)
    found = result_and_cost(load_results(searched))
    assert found is not None
    front = {point["name"] for point in found["points"] if point["front"]}
    assert len(found["points"]) == 5 and front == {"tanh(x)", "tanh(abs(x))"}
    assert [point["cost"] for point in found["points"]] == sorted(point["cost"] for point in found["points"])


@pytest.mark.parametrize("size", [pytest.param(WIDE, marks=pytest.mark.slow), PHONE], ids=["wide", "phone"])
def test_the_page_draws_it(searched: Path, size: tuple[int, int]):
    compute_costs(str(searched), measure=sizes)
    out = write_report(searched, searched.parent / "report.html")
    with browser_pages() as opened:
        seen = opened(out, size)
        seen.page.locator("#cost-section").scroll_into_view_if_needed()
        assert seen.page.locator("#cost .scatterlayer .point").count() == 5
        assert "relative to ReLU's" in seen.page.locator("#cost-note").inner_text()
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert not seen.messages and not seen.requests
