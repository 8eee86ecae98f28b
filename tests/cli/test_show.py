"""`aqx show`: its facts against their sources, and its curve against the function."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import toy
from click.testing import CliRunner, Result

import aqx
from aqx.cli import main
from aqx.cli.curve import draw_curve
from aqx.export import formula, latex
from aqx.search import Study, describe
from aqx.store.claims import Wanted

DOT_ROWS = {0: 0, 3: 0, 1: 1, 4: 1, 2: 2, 5: 2, 6: 3, 7: 3}  # of the bits of a braille character
DOT_COLUMNS = {0: 0, 1: 0, 2: 0, 6: 0, 3: 1, 4: 1, 5: 1, 7: 1}
X = np.linspace(-4, 4, 481, dtype=np.float32)


def show(*arguments: str | Path, columns: int = 80, charset: str = "utf-8") -> Result:
    result = CliRunner(charset=charset).invoke(main, ["show", *map(str, arguments)], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two tasks: of the first with confirmations."""
    path = toy.candidates(tmp_path_factory.mktemp("show") / "toy.duckdb", ["unary(unary(x))"], ["relu", "tanh", "abs"])
    study = Study(path, toy.make_task())
    for name, seed, value in [("relu(x)", 1, 0.5), ("relu(x)", 2, 0.7), ("tanh(x)", 1, 0.9), ("abs(x)", 1, 0.1)]:
        study.add(name, seed, val_acc=value, test_acc=value / 2)
    study.confirm(top=1, seeds=3)
    wanted = Wanted(study.class_id("tanh(tanh(x))"), "tanh(tanh(x))", "search", seed=0)
    (claimed,) = study.queue.claim_these([wanted], 60.0)
    study.fail(claimed.id, "boom")
    other = toy.make_task(name="other", direction="minimize")
    Study(path, other).add("relu(x)", val_acc=0.25)
    return path


# --- facts


def test_scores_are_those_of_the_trials(searched: Path):
    known = describe("relu(x)", searched)
    first, second = known.scores
    assert (first.task, first.objective, first.trials, first.failed) == ("toy", "val_acc", 2, 0)
    assert first.searched == pytest.approx(0.6) and (first.rank, first.ranked) == (2, 3)
    fresh = [trial for trial in Study(searched, toy.task).records("confirm") if trial.name == "relu(x)"]
    assert first.seeds == len(fresh) == 3
    assert first.confirmed == {"val_acc": pytest.approx(statistics.fmean(t.metrics["val_acc"] for t in fresh))}
    assert (second.task, second.searched, second.rank, second.ranked, second.confirmed) == ("other", 0.25, 1, 1, {})
    assert describe("tanh(tanh(x))", searched).scores[0].failed == 1


@pytest.mark.slow
def test_the_metric_that_is_reported_is_confirmed_too(db_path: Path):
    """Where all trainings of the search returned a test metric, `aqx confirm` reports that."""
    toy.candidates(db_path, ["unary(x)"], ["relu", "tanh", "abs"])
    study = Study(db_path, toy.make_task())
    study.search(budget=1, spectra=0)
    study.confirm(top=1, seeds=2)
    fresh = [trial for trial in study.records("confirm") if trial.name == "tanh(x)"]
    assert describe("tanh(x)", db_path).scores[0].confirmed == {
        metric: pytest.approx(statistics.fmean(trial.metrics[metric] for trial in fresh))
        for metric in ("val_acc", "test_acc")
    }


def test_what_is_printed(searched: Path):
    text = show("relu(x)", searched).stdout
    lines = text.splitlines()
    assert lines[:3] == ["relu(x)", "  size   1", "  shape  unary(x)"]
    assert f"  f(x)   {formula('relu(x)')}" in lines and f"  LaTeX  {latex('relu(x)')}" in lines
    assert "  equal  relu(relu(x))" in lines
    assert "  flags  finite, finite_at_0, finite_at_20, finite_gradient_at_0" in lines
    assert any(
        line.startswith("  score  toy: val_acc 0.6000 in the search, mean of 2; rank 2 of 3; ") for line in lines
    )
    assert "  trial  toy added done 1 0.5000" in lines
    assert any(line.startswith("       4 ┤") for line in lines)


def test_json_has_all_of_it(searched: Path):
    known = json.loads(show("relu(x)", searched, "--json").stdout)
    assert known["formula"] == formula("relu(x)") and known["latex"] == latex("relu(x)")
    assert known["scores"][0]["rank"] == 2 and known["scores"][0]["seeds"] == 3
    assert known["flags"]["finite"] is True and "relu(relu(x))" in known["equal"]
    assert len(known["results"]) == sum(trial.name == "relu(x)" for trial in Study(searched, toy.task).records()) + 1
    curve = {key: np.array(values) for key, values in known["curve"].items()}
    assert np.array_equal(curve["y"], np.maximum(curve["x"], 0)) and curve["x"][0] == -4
    assert np.array_equal(curve["derivative"][curve["x"] != 0], (curve["x"] > 0)[curve["x"] != 0])


def test_values_that_are_not_finite_are_null():
    curve = json.loads(show("reciprocal(x)", "--json").stdout)["curve"]
    assert [x for x, y in zip(curve["x"], curve["y"], strict=True) if y is None] == [0]


def test_many_trials_are_not_all_printed(searched: Path, tmp_path: Path):
    db = shutil.copy(searched, tmp_path / "copy.duckdb")
    study = Study(db, toy.make_task())
    for seed in range(30):
        study.add("abs(x)", 100 + seed, val_acc=0.5)
    text = show("abs(x)", db).stdout
    known = json.loads(show("abs(x)", db, "--json").stdout)
    assert text.count("  trial  ") == 21 and f"and {len(known['results']) - 20} more" in text


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("relu(x)", {"finite", "finite_at_0", "finite_at_20", "finite_gradient_at_0"}),
        ("reciprocal(x)", {"finite", "finite_at_20"}),
        ("exp(exp(x))", {"finite", "finite_at_0", "finite_gradient_at_0"}),
        ("negative(x)", {"finite", "finite_at_0", "finite_at_20", "finite_gradient_at_0", "affine"}),
        ("one(x)", {"finite", "finite_at_0", "finite_at_20", "finite_gradient_at_0", "affine", "constant"}),
    ],
)
def test_flags_are_the_same_with_and_without_a_database(name: str, flags: set[str], db_path: Path):
    aqx.enumeration.enumerate_space(aqx.store.Database(db_path, create=True), aqx.Space([name]))
    for known in (describe(name), describe(name, db_path)):
        assert {flag for flag, on in known.flags.items() if on} == flags


def test_the_database_may_come_first(searched: Path):
    assert show(searched, "relu(x)").stdout == show("relu(x)", searched).stdout


def test_a_terminal_without_unicode_gets_ascii(searched: Path):
    text = show("relu(x)", searched, "--derivative", charset="ascii").stdout
    assert text.isascii() and "  LaTeX  " in text and "f(x)  " not in text and "*" in text


@pytest.mark.parametrize("columns", [20, 40, 70, 300])
def test_the_curve_is_as_wide_as_the_terminal_allows(columns: int):
    lines = show("relu(x)", columns=columns).stdout.splitlines()
    drawn = [line for line in lines if "┤" in line or "│" in line]
    assert len(drawn) == 12
    assert max(map(len, drawn)) == min(max(columns, 36), 72) - 2


# --- the curve


def dots(drawn: str, height: int, width: int) -> np.ndarray:
    """The grid of dots that a drawing's braille characters show, read without the code that wrote them."""
    grid = np.zeros((4 * height, 2 * width), bool)
    for row, line in enumerate(drawn.splitlines()[:height]):
        for column, character in enumerate(line[10:]):
            if 0x2800 <= ord(character) <= 0x28FF:
                for bit in range(8):
                    if (ord(character) - 0x2800) >> bit & 1:
                        grid[4 * row + DOT_ROWS[bit], 2 * column + DOT_COLUMNS[bit]] = True
    return grid


@pytest.mark.parametrize("width", [24, 60])
@pytest.mark.parametrize(
    "function",
    [np.tanh, np.abs, np.exp, lambda x: np.maximum(x, 0), lambda x: x**3 - x, lambda x: np.zeros_like(x) + 3],
    ids=["tanh", "abs", "exp", "relu", "cubic", "constant"],
)
def test_every_dot_lies_on_the_curve(function, width: int):
    height, y = 12, function(X)
    grid = dots(draw_curve(X, y, width=width, height=height), height, width)
    low, high = (2, 4) if np.ptp(y) == 0 else (y.min(), y.max())
    at = np.linspace(-4, 4, 2 * width)
    rows = (high - function(at)) / (high - low) * (4 * height - 1)
    assert grid.any(axis=0).all(), "every column has a dot"
    slope = np.abs(np.gradient(rows))
    for column in range(2 * width):
        (found,) = np.nonzero(grid[:, column])
        assert np.abs(found - rows[column]).max() <= 1.5 + 1.5 * slope[max(column - 1, 0) : column + 2].max()


def test_what_is_not_finite_is_left_out():
    y = np.where(X < 0, np.nan, np.where(X > 2, np.inf, X))
    grid = dots(draw_curve(X, y, width=60), 12, 60)
    at = np.linspace(-4, 4, 120)
    assert not grid[:, (at < -0.1) | (at > 2.1)].any() and grid[:, (at > 0.1) & (at < 1.9)].any(axis=0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e38, -3e38])
def test_constants_and_nothing_at_all_are_drawn(value: float):
    drawn = draw_curve(X, np.full_like(X, value))
    assert len(drawn.splitlines()) == 13
    assert dots(drawn, 12, 60).any() == math.isfinite(value)


def test_a_pole_does_not_hide_the_rest():
    with np.errstate(divide="ignore"):
        drawn = draw_curve(X, 1 / X)
    top = float(drawn.splitlines()[0].split("┤")[0])
    assert 1 < top < 20
    assert dots(drawn, 12, 60).any(axis=0).sum() > 90


def test_the_derivative_is_drawn_as_points():
    lines = draw_curve(X, np.maximum(X, 0), (X > 0).astype(np.float32), width=41).splitlines()
    row = next(line for line in lines if "·" in line and "┤" not in line)
    assert row[10:].rindex("·") > 30 > 20 > row[10:].index("·") - 5
    assert "." in draw_curve(X, np.maximum(X, 0), (X > 0).astype(np.float32), braille=False)


@pytest.mark.parametrize(
    ("function", "labels"),
    [(np.tanh, ["0.999", "0", "-0.999"]), (np.exp, ["54.6", "0.0183"]), (lambda x: x, ["4", "0", "-4"])],
    ids=["tanh", "exp", "identity"],
)
def test_axes_are_labelled(function, labels: list[str]):
    *lines, below = draw_curve(X, function(X)).splitlines()
    assert [line.split("┤")[0].strip() for line in lines if "┤" in line] == labels
    assert below.split() == ["-4", "0", "4"]
    zero = lines[0].index("│")
    assert below[zero] == "0" and all(line[zero] != " " for line in lines)
