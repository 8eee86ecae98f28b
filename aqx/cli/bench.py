"""`aqx bench …`: tables of results, and searches replayed on them."""

from __future__ import annotations

import click

from aqx.cli import options
from aqx.cli.commands import _space, main
from aqx.cli.screen import progress_shown


@main.group()
def bench() -> None:
    """Build tables of what every function gives on a task, and replay searches on them."""


@bench.command()
@options.task
@click.option("--out", required=True, metavar="FILE", help="The table: .parquet or .csv. One that exists is extended.")
@click.option("--space", type=click.Choice(["paper", "act_bench"]), help="A preset; default act_bench.")
@click.option("--schema", "schemas", multiple=True, metavar="S", help="A schema, e.g. 'unary(unary(x))'; repeatable.")
@click.option("--fn", "functions", multiple=True, metavar="NAME", help="A single function; repeatable.")
@click.option("--operators", type=click.Choice(["paper", "aquasurf", "extended"]), help="Operators of --schema.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Only N functions, drawn at random.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, metavar="S", help="Trainings of each.")
@click.option("--workers", type=click.IntRange(1), help="Trainings at a time; default one per core.")
@options.quiet
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


@bench.command("import")
@click.argument("file")
@click.option("--out", required=True, metavar="TABLE", help="The table to write, .parquet or .csv.")
@options.quiet
def import_(file: str, out: str, quiet: bool) -> None:
    """Make a table of a published Act-Bench file (JSON)."""
    from aqx.benchmark import read_act_bench, save_table
    from aqx.store.files import check_ending

    check_ending(out)
    with progress_shown("import", quiet) as progress:
        found = read_act_bench(file, progress)
    save_table(out, found.table)
    columns = ", ".join(found.table.metrics)
    click.echo(f"{len(found.table):,} functions written to {out}: {columns}")
    if found.equivalents:
        click.echo(f"{found.equivalents:,} equivalent names left out: equal functions are one class, whatever the name")
