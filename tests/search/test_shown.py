"""How a study shows itself in Python and in notebooks, and how long it goes on."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import toy

import aqx
from aqx.errors import InputError
from aqx.store.functions import count_functions

OPERATORS = ["relu", "tanh", "sin", "cos", "square", "sigmoid", "erf"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], OPERATORS)


def test_a_space_is_enumerated_where_it_is_missing(tmp_path: Path):
    space = aqx.Space(["unary(x)"], ["tanh", "erf", "square"])
    study = aqx.Study(tmp_path / "new.duckdb", toy.task, space=space)
    assert count_functions(study.db)["functions"] == 3
    assert count_functions(aqx.Study(study.db, toy.task, space=space).db)["functions"] == 3
    wider = aqx.Study(study.db, toy.task, space=aqx.Space(["unary(x)"], ["tanh", "sin"]))
    assert count_functions(wider.db)["functions"] == 4
    with pytest.raises(InputError, match="space='act' is none; give paper or act_bench"):
        aqx.Study(study.db, toy.task, space="act")


def test_a_search_ends_in_time_and_goes_on(path: Path):
    def slow(act, seed):
        time.sleep(0.05)
        return toy.train(act, seed)

    study = aqx.Study(path, toy.make_task(train=slow))
    assert study.search(budget=5, spectra=0, timeout=0) == []
    begun = study.search(budget=5, spectra=0, timeout=0.01)
    assert len(begun) < 7
    assert len(begun) + len(study.search(budget=5, spectra=0, timeout="1h")) == 7
    for wrong in (-1, float("nan"), "soon", True):
        with pytest.raises(InputError, match="is not a time"):
            study.search(budget=1, timeout=wrong)


def test_progress_is_a_bar_or_a_function(path: Path, capsys: pytest.CaptureFixture[str]):
    study = aqx.Study(path, toy.task)
    seen: list[tuple[int, int]] = []
    study.search(budget=2, spectra=0, progress=lambda done, total, note: seen.append((done, total)))
    assert seen[-1] == (4, 4)
    study.search(budget=3, spectra=0, progress=True)
    study.confirm(top=1, seeds=2, progress=True)
    assert "search" in (out := capsys.readouterr().out) and "confirm" in out


def test_the_bar_of_a_notebook_needs_no_widgets(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A kernel of the test's own, whose pages are texts."""
    pages: list[str] = []

    class ZMQInteractiveShell:
        pass

    class Handle:
        def update(self, page: str) -> None:
            pages[-1] = page

    def display(page: str, display_id: bool) -> Handle:
        assert display_id, "it is drawn over"
        pages.append(page)
        return Handle()

    ipython, its_display = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython)["get_ipython"] = ZMQInteractiveShell
    vars(its_display).update(display=display, HTML=str)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", its_display)
    study = aqx.Study(path, toy.task)
    study.search(budget=2, spectra=0, progress=True)
    study.confirm(top=1, seeds=2, progress=True)
    searched, confirmed = pages
    assert searched.startswith('<progress value="4" max="4"></progress> search: 4 of 4, ') and "best 0." in searched
    assert confirmed.startswith('<progress value="8" max="8"></progress> confirm: 8 of 8, ')


def test_results_as_a_table(path: Path):
    study = aqx.Study(path, toy.task)
    study.search(budget=2, spectra=0)
    study.add("erf(x)", val_acc=float("nan"))
    table = study.to_dataframe()
    records = study.records()
    assert list(table["name"]) == [record.name for record in records]
    assert list(table["status"]) == [str(record.status) for record in records]
    np.testing.assert_array_equal(
        np.asarray(table["objective"], float),
        [np.nan if record.objective is None else record.objective for record in records],
    )
    np.testing.assert_array_equal(
        np.asarray(table["test_acc"], float)[:4], [r.metrics["test_acc"] for r in records[:4]]
    )
    assert isinstance(table, dict) == (importlib.util.find_spec("pandas") is None)


def test_a_notebook_shows_studies_verdicts_and_functions(path: Path):
    study = aqx.Study(path, toy.task)
    assert "no trials yet" in study._repr_html_()
    study.search(budget=3, spectra=0)
    assert "5 done" in study._repr_html_() and f"<code>{study.best().name}</code>" in study._repr_html_()
    verdict = study.confirm(top=1, seeds=2)
    shown = verdict._repr_html_()
    assert all(row.name in shown for row in verdict.rows) and shown.count("◆") == 1
    assert "reference" in shown and verdict.metric in shown
    curve = aqx.activation("mul(x,tanh(x))")._repr_html_()
    assert "<polyline" in curve and "tanh" in curve and "nan" not in curve
    assert aqx.activation("reciprocal(x)")._repr_html_().count("<polyline") == 2  # not through infinity
    assert aqx.stack([aqx.activation("relu(x)"), aqx.activation("tanh(x)")])._repr_html_() is None


@pytest.mark.usefixtures("quick_map")
def test_a_report_in_its_place(path: Path, tmp_path: Path):
    study = aqx.Study(path, toy.task)
    study.add("tanh(x)", val_acc=0.5)
    page = study.report(tmp_path / "report.html")
    assert page.path == tmp_path / "report.html" and page.path.exists()
    assert page._repr_html_().startswith("<iframe srcdoc=") and "&lt;!doctype html&gt;" in page._repr_html_()
