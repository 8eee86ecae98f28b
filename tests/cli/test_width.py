"""What commands print fits the terminal, and breaks no word: names of functions break after their commas."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import candidates, make_task

import aqx
from aqx.cli import main
from aqx.cli.wrapping import broken, fitted, longest_word

LONG = "mul(log_sigmoid(x),bessel_i1e(bessel_i0e(x)))"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks with results of short and long names, and failures with reasons."""
    path = candidates(tmp_path_factory.mktemp("width") / "found.duckdb", ["unary(x)"], ["tanh", "sin", "abs"])
    for name in ("toy", "a-task-of-quite-a-long-name"):
        study = aqx.Study(path, make_task(name=name, baselines=("relu(x)",)))
        for number, function in enumerate(("relu(x)", "tanh(x)", LONG)):
            study.add(function, val_acc=0.5 + 0.1 * number)
        study.fail(study.ask(), "FloatingPointError: the loss is not finite after 117 of 400 steps; it was nan at 118")
    return path


@pytest.fixture
def run(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on a terminal of a width, and return what it prints on stdout."""

    def ran(words: list[str], columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        with contextlib.suppress(SystemExit):
            main([str(path) if word == "DB" else word for word in words])
        return click.unstyle(capsys.readouterr().out)

    return ran


COMMANDS = {
    "summary": ["summary", "DB"],
    "summary of one": ["summary", "DB", "--task", "toy"],
    "top": ["top", "DB", "--task", "toy"],
    "trials": ["trials", "DB", "--task", "toy"],
    "show": ["show", "DB", LONG],
    "task list": ["task", "list", "DB"],
    "doctor": ["doctor", "DB", "--quick"],
}
COPIED = ("  f(x)", "  LaTeX")  # lines that people copy are not wrapped


def words_of(text: str) -> set[str]:
    kept = [line for line in text.splitlines() if not line.startswith(COPIED)]
    return set(re.sub("[─│┤┼└┬┘]", " ", "\n".join(kept)).split())


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_word_is_broken(run: Run, words: list[str], columns: int):
    text, wide = run(words, columns), run(words, 1000)
    lines = [line for line in text.splitlines() if not line.startswith(COPIED)]
    assert lines and max(map(len, lines)) <= columns
    pieces = {piece for word in words_of(wide) for piece in all_pieces(word)}
    text_words = {word for word in words_of(text) if not re.match(r"^[⠀-⣿.,*]+$", word)}
    assert {word for word in text_words if word not in pieces and not re.match(r"[-\d.]+$", word)} == set()


def all_pieces(word: str) -> set[str]:
    """A word, and all that stands between two commas, brackets or slashes of a name or a path."""
    cuts = [0, *(match.end() for match in re.finditer(r"[,(/]", word)), len(word)]
    return {word[i:j] for i in cuts for j in cuts if i < j}


def test_upright_where_a_table_has_no_room(run: Run):
    text = run(["summary", "DB"], 60)
    assert text.count("task ") == 2 and re.search(r"^task +a-task-of-quite-a-long-name$", text, re.M)
    assert re.search(r"^objective +0\.7000$", text, re.M)


def test_a_pipe_has_room(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    with contextlib.suppress(SystemExit):
        main(["top", str(path), "--task", "toy"])
    assert f"{LONG}" in capsys.readouterr().out


@given(
    st.lists(st.sampled_from(["tanh(", "x,", "bessel_i0e(x)", ")", " ", "word", ",,", "(("]), max_size=12),
    st.integers(1, 30),
)
def test_breaking_loses_nothing(pieces: list[str], width: int):
    text = "".join(pieces)
    lines = broken(text, width).split("\n")
    assert "".join(lines) == text
    assert all(longest_word(line) <= width for line in lines)


@given(
    st.lists(st.lists(st.text("ab(,", max_size=30), min_size=2, max_size=2), min_size=1, max_size=5),
    st.integers(1, 90),
    st.integers(0, 2),
)
def test_what_is_fitted_fits(texts: list[list[str]], width: int, dropped: int):
    columns = {str(number): [str(number), *some] for number, some in enumerate(texts)}
    drop = list(columns)[1 : 1 + dropped]
    found = fitted(columns, width, drop)
    if found is None:
        return
    left, gone = found
    assert set(left) | set(gone) == set(columns) and set(gone) <= set(drop)
    assert sum(max(map(longest_word, some)) + 3 for some in left.values()) <= width
    assert all(
        "".join(text.split("\n")) == was for name in left for text, was in zip(left[name], columns[name], strict=True)
    )
