"""The README and the guides say what is true: commands that parse, code that compiles, links and paths that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import aqx
from aqx.cli import main

PACKAGE = Path(aqx.__file__).parent
ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", *sorted((PACKAGE / "guides").glob("*.md"))]
IDS = [page.name for page in PAGES]


def commands(text: str) -> list[str]:
    """Lines to type that start with aqx, from blocks of code and from shell substitutions; … is no whole command."""
    lines = re.findall(r"^    (?:\.venv/bin/|scripts/)?((?:aqx|enumerate|eigs) .*)$", text, re.M)
    lines += re.findall(r"`(aqx [^`]*)`", text) + re.findall(r"\$\((aqx [^)]*)\)", text)
    lines += re.findall(r"&& (aqx .*)$", text, re.M)
    return [line.split("  #")[0].strip() for line in lines if "…" not in line]


def parsed(command: str) -> None:
    """Have click take a command line apart, up to the arguments of the command that would run."""
    words = shlex.split(command)
    words = words[1:] if words[0] == "aqx" else words
    group: click.Command = main
    context = click.Context(main, info_name="aqx")
    while isinstance(group, click.Group):
        if not words:
            return  # the group itself is talked of
        assert words[0] in group.commands, f"{command}: there is no {words[0]}"
        group = group.commands[words.pop(0)]
        context = click.Context(group, parent=context)
    if words:  # a name alone talks of the command
        group.parse_args(context, words)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_what_the_command_line_takes(page: Path):
    found = commands(page.read_text())
    for command in found:
        for choice in expanded(command):
            parsed(choice)
    assert found or page.name == "integrations.md"


def expanded(command: str) -> list[str]:
    """`--to jax|numpy` talks of each of its choices; capitals stand for a value."""
    command = command.replace(" FIGURE", " map").replace(" METRIC=NUMBER", " val_acc=1")
    command = re.sub(r"\b[NI]\b", "1", command).replace('"$trial"', "1").replace('"$name"', "'relu(x)'")
    command = re.sub(r"^aqx (--\w+)$", "aqx", command)
    choices = re.search(r"\S+\|\S+", command)
    return [command.replace(choices[0], one) for one in choices[0].split("|")] if choices else [command]


def test_a_wrong_command_is_seen():
    with pytest.raises(click.UsageError):
        parsed("aqx search found.duckdb --task mnist1d --budgets 3")
    with pytest.raises(AssertionError):
        parsed("aqx find found.duckdb")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_code_compiles(page: Path):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_and_paths_exist(page: Path):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"(?<![\w./-])(?:scripts|tests|aqx)/[\w./-]+", text):
        assert "{" in path or (ROOT / path).exists() or path.endswith(("_", "T.parquet")), path


def test_readme_is_short_and_names_every_guide():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert all(f"aqx/guides/{page.name}" in text for page in PAGES[1:])


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_public_names_in_code_exist(page: Path):
    names = set(re.findall(r"\baqx\.([A-Za-z_]\w*)", page.read_text())) - {"cli", "duckdb"}
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert all(hasattr(aqx, name) or name in modules for name in names), names
