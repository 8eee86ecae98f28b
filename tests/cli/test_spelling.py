"""One spelling for one thing, in all commands and in both doors, Python's and the shell's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from cli_helpers import aqx_command, check_error
from toy import candidates, make_task

import aqx
from aqx.cli import main
from aqx.errors import ParseError

# Commands whose first word is no database, and why.
WITHOUT = {
    "task check": "of a task alone",
    "export": "of a function alone",
    "completion": "of the shell",
    "bench build": "of a table",
    "bench import": "of a table",
    "bench replay": "of a table",
}


def commands(group: click.Group = main, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(commands())


def options_of(command: click.Command) -> dict[str, click.Option]:
    return {
        spelling: option for option in command.params if isinstance(option, click.Option) for spelling in option.opts
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_spelled_alike(name: str):
    options = options_of(COMMANDS[name])
    assert ("--out" in options) == ("-o" in options)
    if "-o" in options:
        assert options["-o"] is options["--out"]
    assert "--fn" in options or "--names" not in options
    if "--names" in options:  # as it was called before
        assert options["--names"] is options["--fn"]
    assert ("--quiet" in options) == ("-q" in options)
    if "--json" in options:
        assert options["--json"].name == "as_json"
    if "--task" in options:
        assert options["--task"].metavar in ("T", "NAME")


def test_workers_have_one_default():
    found = {
        name: options_of(command)["--workers"]
        for name, command in COMMANDS.items()
        if "--workers" in options_of(command) and name != "bench build"  # a table is built by all cores
    }
    assert {"search", "confirm", "bench replay"} <= set(found)
    for name in found:
        text = " ".join(aqx_command(*name.split(), "--help").stdout.split())
        said = re.search(r"--workers \S+ .*?\bdefault:? (\w+)", text)
        assert said and said[1] == "1", name


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT])
def test_the_database_comes_first(name: str):
    usage = COMMANDS[name].get_usage(click.Context(COMMANDS[name], info_name=name))
    words = [word.strip("[]") for word in usage.split() if word not in ("Usage:", "[OPTIONS]", *name.split())]
    assert words[0] == "DB", usage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = candidates(tmp_path / "found.duckdb", ["unary(x)"], ["tanh", "sin"])
    aqx.Study(path, make_task()).add("tanh(x)", val_acc=0.7)
    return path


def test_show_takes_the_database_first_or_last(path: Path):
    first = aqx_command("show", path, "tanh(x)")
    assert first.exit_code == 0 and first.stdout == aqx_command("show", "tanh(x)", path).stdout
    assert "score  toy" in first.stdout
    for words in (["missing.duckdb", "tanh(x)"], ["tanh(x)", "missing.duckdb"], ["missing.duckdb", "tanh"]):
        check_error(aqx_command("show", *words), "missing.duckdb", "does not exist")


def test_tell_takes_a_name_in_both_doors(path: Path):
    study = aqx.Study(path, make_task())
    told = study.tell("sin(x)", val_acc=0.5, seed=3)
    assert (told.name, told.seed, told.objective, told.purpose) == ("sin(x)", 3, 0.5, "added")
    added = study.add("sin(x)", 4, val_acc=0.6)
    assert {key for key, value in vars(told).items() if value != getattr(added, key)} <= {
        "trial_id", "seed", "objective", "metrics", "started_at", "finished_at", "class_id", "token", "environment",
    }  # fmt: skip
    with pytest.raises(ParseError):
        study.tell("nope(x)", val_acc=0.5)
    assert aqx_command("tell", path, "--task", "toy", "sin(x)", "val_acc=0.4").exit_code == 0
    assert [record.objective for record in study.records() if record.name == "sin(x)"] == [0.5, 0.6, 0.4]
