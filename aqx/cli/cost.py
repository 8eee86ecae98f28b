"""The command that measures what functions cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.options import check_filled
from aqx.cli.screen import progress_shown, show_result, show_rows


@main.command(
    needs="functions in the database: aqx enumerate.",
    examples=["aqx cost found.duckdb", "aqx cost found.duckdb --fn gelu --fn 'mul(x,tanh(x))'"],
)
@options.db
@click.option("--fn", "functions", multiple=True, metavar="NAME", help="Show what this function costs; repeatable.")
@click.option("--again", is_flag=True, help="Measure the operators anew, on a quieter machine for instance.")
@options.quiet
@options.as_json
def cost(db: str, functions: tuple[str, ...], again: bool, quiet: bool, as_json: bool) -> None:
    """Measure what functions cost on this device.

    That is the time that value and gradient of an element take, relative to relu's, as a sum over the function's
    operators. It is stored with the device's name for all candidates and all that was trained, with whether float16 and
    bfloat16 hold their values on [-30, 30]; aqx top --cost, aqx search --max-cost, verdicts and the report use it.
    """
    from aqx.costs import compute_costs, costs_by_name
    from aqx.search import describe
    from aqx.search.ledger import class_of
    from aqx.simplify import full_name
    from aqx.store import Database
    from aqx.store.costs import said_of

    if not functions:
        check_filled(db)
    database = Database(db)
    named = {class_of(database, name): name for name in map(full_name, functions)}
    with progress_shown("cost", quiet) as progress:
        report = compute_costs(database, named, again=again, progress=progress)
    if not functions:
        show_result(report, str(report), as_json)
        return
    costs = costs_by_name(database, named.values())
    if lacking := [name for name, known in costs.items() if report.device not in known]:
        unknown = f"--fn {lacking[0]} has an operator that is not registered here"
        raise click.UsageError(unknown, click.get_current_context())
    rows = [
        {
            "name": name,
            "device": report.device,
            "cost": known[report.device],
            "precision": describe(name).precision,
        }
        for name, known in costs.items()
    ]
    columns: dict[str, Callable[[Any], str]] = {
        "name": lambda row: row["name"],
        "cost": lambda row: f"{row['cost']:.3g}",
        "in 16 bits": lambda row: said_of(row["precision"]),
    }
    show_rows(rows, columns, as_json)
