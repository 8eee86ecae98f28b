"""The commands of `aqx bench`: tables of what functions give on a task."""

from __future__ import annotations

import click

from aqx.cli import options
from aqx.cli.screen import progress_shown


@click.group()
def bench() -> None:
    """Work with tables of results: Act-Bench."""


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
