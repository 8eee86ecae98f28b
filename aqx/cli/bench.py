"""`aqx bench …`: tables of results, and searches replayed on them."""

from __future__ import annotations

import click

from aqx.cli.commands import _quiet, _space, _task, main
from aqx.cli.screen import progress_shown


@main.group()
def bench() -> None:
    """Build tables of what every function gives on a task, and replay searches on them."""


@bench.command()
@_task
@click.option("--out", required=True, metavar="FILE", help="The table: .parquet or .csv. One that exists is extended.")
@click.option("--space", type=click.Choice(["paper", "act_bench"]), help="A preset; default act_bench.")
@click.option("--schema", "schemas", multiple=True, metavar="S", help="A schema, e.g. 'unary(unary(x))'; repeatable.")
@click.option("--fn", "functions", multiple=True, metavar="NAME", help="A single function; repeatable.")
@click.option("--operators", type=click.Choice(["paper", "aquasurf", "extended"]), help="Operators of --schema.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Only N functions, drawn at random.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, metavar="S", help="Trainings of each.")
@click.option("--workers", type=click.IntRange(1), help="Trainings at a time; default one per core.")
@_quiet
def build(
    task: str,
    out: str,
    space: str | None,
    schemas: tuple[str, ...],
    functions: tuple[str, ...],
    operators: str | None,
    sample: int | None,
    seeds: int,
    workers: int | None,
    quiet: bool,
) -> None:
    """Train every class of a space on a task; killed, the same command goes on from there."""
    from aqx.benchmark import build_table
    from aqx.tasks import load_task

    chosen = _space(space or (None if schemas or functions else "act_bench"), schemas, functions, operators)
    with progress_shown("bench build", quiet) as progress:
        report = build_table(
            load_task(task), chosen, out, seeds=seeds, sample=sample, workers=workers, progress=progress
        )
    click.echo(
        f"{report.trained:,} trainings of {report.classes:,} classes, {report.failed:,} of them without a result; "
        f"{out} has {report.rows:,} rows"
    )
