"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from aqx.cli import complete

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])

db = click.argument("db", shell_complete=complete.files)
task = click.option(
    "--task",
    required=True,
    metavar="T",
    help="A built-in task, or path/to/file.py:name.",
    shell_complete=complete.tasks,
)
quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else on stdout.")
workers = click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Trainings at a time.")
surrogate = click.option(
    "--surrogate", metavar="PRESET", help="What predicts, e.g. ensemble or paper.", shell_complete=complete.presets
)
seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the study.")


def functions(command: AnyCommand) -> AnyCommand:
    """Add the options that say which functions: --space, --schema, --fn, --operators and --sample."""
    for option in reversed(_FUNCTIONS):
        command = option(command)
    return command


_FUNCTIONS = (
    click.option("--space", type=click.Choice(["paper", "act_bench"]), help="A preset."),
    click.option("--schema", "schemas", multiple=True, metavar="S", help="E.g. 'unary(unary(x))'; repeatable."),
    click.option("--fn", "functions", multiple=True, metavar="NAME", help="A single function; repeatable."),
    click.option("--operators", type=click.Choice(["paper", "aquasurf", "extended"]), help="Operators of --schema."),
    click.option("--sample", type=click.IntRange(1), metavar="N", help="Only N functions, drawn at random."),
)
