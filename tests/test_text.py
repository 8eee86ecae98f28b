"""What is shown of stored text drives no terminal and floods none."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import click
import pytest
import toy
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from aqx.cli import main
from aqx.cli.screen import cell
from aqx.metrics import REASON_LENGTH
from aqx.search import Study
from aqx.store import add_results, add_spectra, invalid_spectra, list_trials
from aqx.text import clipped, printable

# Clears the screen, sets the title, asks the terminal to answer, turns the direction, a lone half, C1, a null.
NASTY = "\x1b[2J\x1b]0;owned\x07\x1b[6n\u202e\udcff\x9b31m\0 ok\r\nfake: line"


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Co"])))
def test_printable_text_is_one_line_without_control(text: str):
    shown = printable(text)
    assert len(shown) == len(text) and len(shown.splitlines()) <= 1
    assert {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()
    assert printable(shown) == shown
    assert all(b == a for a, b in zip(text, shown, strict=True) if a.isprintable())


def test_text_is_clipped_to_its_length():
    assert (clipped("abc", 3), clipped("abcd", 3), clipped("", 3)) == ("abc", "ab…", "")
    assert len(cell("x" * 10**6)) == 500 and cell("a\x1b[1m\nb") == "a�[1m b"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A database in which every text that commands show is hostile, and a reason has 5 MB."""
    path = toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], ["sin", "tanh", "relu"])
    study = Study(path, toy.task)
    study.add("relu(x)", val_acc=0.5)
    study.add("sin(x)", val_acc=float("nan"))
    study.ask()
    text = NASTY.replace("\udcff", "").replace("\0", "")
    with study.db.transaction() as con:
        con.execute("UPDATE trials SET reason = ? || repeat('y', 5000000), worker = ?", [text, text])
        con.execute("UPDATE trials SET name = ? WHERE name = 'relu(x)'", [text])
        con.execute("INSERT INTO tasks SELECT 2, ?, identity, NULL, now() FROM tasks", [text])
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["summary", "DB"],
        ["trials", "DB", "--task", "toy"],
        ["top", "DB", "--task", "toy"],
        ["show", "sin(x)", "DB"],
        ["doctor", "DB", "--quick"],
        ["tell", "DB", "--task", "toy", "--trial", "1", "val_acc=1"],
        ["tell", "DB", "--task", "toy", "--trial", "2", "val_acc=1"],
        ["retry", "DB", "--task", f"{toy.__file__}:task"],
        ["trials", "DB", "--task", NASTY],
        ["summary", f"/nowhere/{NASTY}"],
        ["export", "relu(x)", "--to", "torch", "-o", f"/nowhere/{NASTY}"],
        ["show", NASTY],
        [NASTY],
    ],
    ids=lambda words: " ".join(words)[:30].replace(NASTY[:3], "…"),
)
def test_no_command_lets_stored_text_drive_the_terminal(hostile: Path, words: list[str]):
    result = CliRunner().invoke(main, [str(hostile) if word == "DB" else word for word in words])
    assert result.exit_code in (0, 1, 2) and isinstance(result.exception, SystemExit | None), result.exception
    assert "\x1b" not in result.output and "fake: line" not in result.output.splitlines()
    assert not {unicodedata.category(c) for c in result.output.replace("\n", "")} & {"Cc", "Cf"}
    assert 0 < len(result.output) < 20_000


def test_reasons_are_kept_up_to_a_length(tmp_path: Path):
    study = Study(toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], ["sin"]), toy.task)
    long = "y" * (2 * REASON_LENGTH)
    settings = {"class_ids": [None], "names": ["x"], "seeds": [0], "objectives": [None], "metrics": [{}]}
    add_results(study.db, study.task_id, **settings, reasons=[long])
    study.fail(study.ask().id, long)
    study.ledger.lose(study.ask().id, long)
    add_spectra(study.db, study.task_id, [study.class_id("sin(x)")], None, [long])
    kept = [row.reason for row in list_trials(study.db, study.task_id)]
    reasons = [*kept, *invalid_spectra(study.db, study.task_id).values()]
    assert all(reason == long[: REASON_LENGTH - 1] + "…" for reason in reasons) and len(reasons) == 4


def test_headings_and_messages_too(capsys: pytest.CaptureFixture[str]):
    from aqx.cli.screen import say, show_rows

    show_rows([1], {NASTY: str}, as_json=False)
    say("one\ntwo" + NASTY, error=True)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and err.startswith("one\ntwo") and err.count("\n") == 3
    assert click.unstyle(err) == err
