"""Commands that look around in a database and change nothing."""

from __future__ import annotations

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.opening import check_filled, open_study
from aqx.cli.screen import columns_of, show_rows
from aqx.cli.searching import OPTIMISTIC


@main.command(
    needs="a database: aqx enumerate.",
    examples=["aqx summary found.duckdb", "aqx summary found.duckdb --json"],
)
@options.db
@click.option("--task", metavar="NAME", help="Only the task of this name; default all in the database.")
@options.as_json
def summary(db: str, task: str | None, as_json: bool) -> None:
    """Count what there is, and name the best so far."""
    from aqx.search import summarize

    counts = ("functions", "classes", "spectra", "done", "running", "stale", "pruned", "failed")
    show_rows(summarize(db, task), columns_of("task", *counts, "best", "objective"), as_json)


@main.command(
    needs="functions in the database: aqx enumerate.",
    examples=["aqx suggest found.duckdb --task mnist1d -n 10"],
)
@options.db
@options.task
@click.option("-n", "count", type=click.IntRange(1), default=5, show_default=True, help="How many.")
@options.surrogate
@options.seed
@options.as_json
def suggest(db: str, task: str, count: int, surrogate: str | None, seed: int, as_json: bool) -> None:
    """Show what would be trained next, without claiming it."""
    check_filled(db)
    study = open_study(db, task, surrogate, seed)
    show_rows(study.suggest(count), columns_of("name", "mean", "spread"), as_json)


@main.command(
    needs="results: aqx search, aqx tell or aqx import.",
    examples=["aqx top found.duckdb --task mnist1d -n 20"],
)
@options.db
@options.task
@click.option("-n", "count", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@options.as_json
def top(db: str, task: str, count: int, as_json: bool) -> None:
    """List the best results.

    They are the best of many noisy trainings, so that the first look better than they are.
    """
    best = open_study(db, task).top(count)
    show_rows(best, columns_of("name", "objective", "trials"), as_json)
    missing = f"nothing has been trained yet; do so: aqx search {db} --task {task}"
    click.echo(f"these are {OPTIMISTIC}" if best else missing, err=True)
