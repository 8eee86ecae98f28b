"""Every option that takes a number: whatever it is given is used, or refused in one line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import toy
from click.testing import CliRunner, Result

from aqx.benchmark.table import ResultTable, save_table
from aqx.cli import main
from aqx.cli.options import Count, Hours
from aqx.search import Study

TASK = ["--task", f"{toy.__file__}:task"]
# A command line that works, to which an option is added.
WORKING: dict[str, list[str]] = {
    "enumerate": ["DB", "--schema", "unary(x)", "--sample", "2", "-q"],
    "eigs": ["DB", *TASK, "--limit", "1", "-q"],
    "search": ["DB", *TASK, "--budget", "2", "--spectra", "0", "-q"],
    "confirm": ["DB", *TASK, "--top", "1", "--seeds", "2", "-q"],
    "claim": ["DB", *TASK],
    "tell": ["DB", *TASK, "relu(x)", "val_acc=0.5"],
    "suggest": ["DB", *TASK],
    "top": ["DB", *TASK],
    "retry": ["DB", *TASK],
    "bench build": [*TASK, "--out", "out.csv", "--fn", "sin(x)", "--workers", "1", "-q"],
    "bench replay": [*TASK, "--table", "table.csv", "--seeds", "1", "--evaluations", "3", "--start", "2", "-q"]
    + ["--policy", "random"],
}
# At their largest these would be too much for the machine of a test.
LARGE = {"workers", "seeds", "budget"}
WRONG = ["nan", "inf", "-inf", "1e9", "-1", "0", "1.5", "", "ten", str(10**18), str(2**63), str(10**40), "9" * 5000]


def options(group: click.Group = main, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Option]]:
    """Every option that takes a number, with its command."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from options(command, (*words, name))
        for option in command.params:
            numeric = click.types.IntParamType | click.types.FloatParamType
            if isinstance(option, click.Option) and isinstance(option.type, numeric):
                yield " ".join((*words, name)), option


OPTIONS = list(options())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    path = toy.candidates(folder / "found.duckdb", ["unary(x)"], ["sin", "tanh", "relu", "abs", "square"])
    study = Study(path, toy.task)
    for number, name in enumerate(("relu(x)", "sin(x)", "abs(x)")):
        study.add(name, val_acc=0.1 * number)
    names = ("relu(x)", "tanh(x)", "sin(x)", "abs(x)", "square(x)")
    values = np.linspace(0, 1, 5)
    save_table(folder / "table.csv", ResultTable(names, np.zeros(5, np.int64), {"val_acc": values}, (None,) * 5))
    return folder


def run(command: str, extra: list[str], folder: Path) -> Result:
    line = [str(folder / "copy.duckdb") if word == "DB" else word for word in WORKING[command]]
    line = [str(folder / word) if word.endswith(".csv") else word for word in line]
    shutil.copy(folder / "found.duckdb", folder / "copy.duckdb")
    (folder / "out.csv").unlink(missing_ok=True)
    if "--trial" in extra and command == "tell":
        line.remove("relu(x)")
    return CliRunner().invoke(main, [*command.split(), *line, *extra])


def test_every_option_that_takes_a_number_is_bounded():
    assert {command for command, _ in OPTIONS} == set(WORKING)
    loose = [(command, option.name) for command, option in OPTIONS if not isinstance(option.type, Count | Hours)]
    assert not loose


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[f"{c} {o.opts[0]}" for c, o in OPTIONS])
def test_whatever_number_is_given(command: str, option: click.Option, folder: Path):
    texts = [*WRONG]
    if isinstance(option.type, Count) and option.name not in LARGE:
        texts.append(str(option.type.most))
    for text in texts:
        result = run(command, [f"{option.opts[0]}={text}" if option.opts[0][1] == "-" else f"-n{text}"], folder)
        assert result.exit_code in (0, 2), (text[:50], result.output, result.exception)
        assert isinstance(result.exception, SystemExit | None), (text[:50], result.exception)
        if result.exit_code == 2:
            (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
            assert len(error) < 400 and "Traceback" not in result.output
        no_number = text in ("nan", "inf", "-inf", "", "ten", "9" * 5000, str(10**40))
        assert result.exit_code == 2 or not no_number and (text != "1.5" or isinstance(option.type, Hours))


@pytest.mark.parametrize(
    "words", [["self=3", "val_acc=0.5"], ["trial=3", "val_acc=0.5", "trial_id=1", "db=2", "task=1"]]
)
def test_metrics_of_any_name_are_metrics(words: list[str], folder: Path):
    expected = {word.partition("=")[0]: float(word.partition("=")[2]) for word in words}
    shutil.copy(folder / "found.duckdb", path := folder / "metrics.duckdb")
    study = Study(path, toy.task)
    trial = study.ask()
    for start in (["tanh(x)"], ["--trial", str(trial.id)]):
        result = CliRunner().invoke(main, ["tell", str(path), *TASK, *start, *words])
        assert result.exit_code == 0, result.output
    assert [record.metrics for record in study.records()[3:]] == [expected, expected]


@pytest.mark.parametrize(("word", "said"), [("seed=3", "give the seed as --seed"), ("name=3", "the function as NAME")])
def test_what_is_no_metric_says_where_it_belongs(word: str, said: str, folder: Path):
    result = run("tell", [word], folder)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
def test_a_machine_that_gives_no_more_is_one_line(code: int, monkeypatch: pytest.MonkeyPatch):
    def describe(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("aqx.search.describe", describe)
    result = CliRunner().invoke(main, ["show", "relu(x)"])
    assert result.exit_code == 2 and result.stderr.startswith(
        f"error: this machine gives no more ({os.strerror(code)})"
    )


def test_more_trainings_than_memory_holds_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aqx.benchmark.build.MOST", 2)
    result = run("bench build", ["--seeds", "3"], folder)
    assert result.exit_code == 2 and "seeds=3 for 1 classes are more than 2 trainings" in result.stderr
