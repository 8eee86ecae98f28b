"""What commands open: tasks, studies and spaces, from what stands on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from aqx.cli.screen import prints_to_stderr

if TYPE_CHECKING:
    from aqx.search import Study
    from aqx.space import Space
    from aqx.tasks import Task


def open_task(reference: str) -> Task:
    """Load a task; what its file prints is no result of the command."""
    from aqx.tasks import load_task

    with prints_to_stderr():
        return load_task(reference)


def open_study(db: str, task: str, surrogate: str | None = None, seed: int = 0) -> Study:
    """Open the study of an existing database; only `enumerate` makes one."""
    from aqx.search import Study
    from aqx.store import Database
    from aqx.surrogate import DEFAULT

    database = Database(db)  # what is wrong with it shows before the task is imported
    return Study(database, open_task(task), seed=seed, surrogate=surrogate or DEFAULT)


def check_filled(db: str) -> None:
    """Refuse a database that has no functions to work on yet."""
    from aqx.store import Database
    from aqx.store.functions import count_functions

    if not count_functions(Database(db))["functions"]:
        raise click.UsageError(
            f"{db} holds no functions yet; fill it: aqx enumerate {db} --space act_bench", click.get_current_context()
        )


def space_of(preset: str | None, schemas: Sequence[str], functions: Sequence[str], operators: str | None) -> Space:
    """Return the space that one of --space, --schema and --fn stands for."""
    from aqx.space import Space
    from aqx.tree import parse

    if sum(map(bool, (preset, schemas, functions))) != 1:
        raise click.UsageError("give one of --space, --schema and --fn", click.get_current_context())
    if operators and not schemas:
        raise click.UsageError("--operators goes with --schema only", click.get_current_context())
    if preset:
        return Space.paper() if preset == "paper" else Space.act_bench()
    return Space([*schemas, *map(parse, functions)], operators=operators or "paper")
