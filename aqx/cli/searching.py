"""Commands that train: the search, and the confirmation of what it found."""

from __future__ import annotations

from operator import attrgetter

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.options import MOST_SEEDS, Count, check_filled, open_study
from aqx.cli.screen import cell, interval, progress_shown, say, show_json, show_rows
from aqx.text import printable

OPTIMISTIC = "the best of many noisy results, so optimistic; aqx confirm gives a verdict"


@main.command(
    needs="functions in the database (aqx enumerate), and a task with a train function.",
    examples=[
        "aqx search found.duckdb --task mnist1d --budget 60",
        "aqx search found.duckdb --task train.py:task --budget 100 --workers 4 --time-limit 30m",
    ],
)
@options.db
@options.task_if_needed
@click.option("--budget", type=Count(0), default=100, show_default=True, help="Candidates to train.")
@options.workers
@options.together
@options.time_limit
@options.surrogate
@options.seed
@click.option(
    "--spectra",
    type=Count(0),
    default=200,
    show_default=True,
    metavar="N",
    help="The N most promising candidates get Fisher spectra where they have none.",
)
@options.quiet
@options.as_json
def search(
    db: str,
    task: str | None,
    budget: int,
    workers: int,
    together: int | None,
    time_limit: float | None,
    surrogate: str | None,
    seed: int,
    spectra: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train baselines and suggestions, and learn from each.

    The baselines come first, then what the surrogate suggests, until the budget is used.
    """
    if budget:
        check_filled(db)
    study = open_study(db, task, surrogate, seed)
    with progress_shown("search", quiet) as progress:
        finished = study.search(
            budget, workers=workers, together=together, spectra=spectra, time_limit=time_limit, progress=progress
        )
    failed = sum(record.status == "failed" for record in finished)
    best, left_out = study.best(), study.left_out()
    if as_json:
        found = best and {"name": best.name, "trial": best.id, "objective": best.objective}
        result = {"finished": len(finished), "failed": failed, "metric": study.task.objective, "best": found}
        show_json({**result, "left_out": left_out})
        return
    found = f"; best so far {printable(best.name)}: {cell(best.objective)}, {OPTIMISTIC}" if best else ""
    reasons = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
    if reasons:
        say(f"classes left out of the search: {', '.join(reasons)}")
    say(f"{len(finished)} trainings finished now, {failed} of them failed{found}")


@main.command(
    needs="results of aqx search.",
    examples=["aqx confirm found.duckdb --task mnist1d", "aqx confirm found.duckdb --task train.py:task --top 3"],
)
@options.db
@options.task_if_needed
@click.option("--top", type=Count(), default=5, show_default=True, metavar="K", help="The best K.")
@click.option(
    "--seeds", type=Count(2, MOST_SEEDS), default=10, show_default=True, metavar="S", help="Fresh seeds each."
)
@options.workers
@options.together
@options.time_limit
@options.quiet
@options.as_json
@click.pass_context
def confirm(
    ctx: click.Context,
    db: str,
    task: str | None,
    top: int,
    seeds: int,
    workers: int,
    together: int | None,
    time_limit: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Retrain the best on fresh seeds: do they really win?

    The baselines are retrained with them. What the search saw is the best of many noisy results, so optimistic.

    Trainings that another process is at are waited for, and taken over where it is dead. Where some are missing all the
    same there is no verdict, and the exit code is 3.
    """
    study = open_study(db, task)
    with progress_shown("confirm", quiet) as progress:
        result = study.confirm(top, seeds, workers=workers, together=together, time_limit=time_limit, progress=progress)
    columns = {
        "function": attrgetter("name"),
        f"{result.metric}, 95 % interval": lambda row: interval(row.mean, row.low, row.high),
        f"difference to {result.reference}": lambda row: (
            "" if row.verdict == "reference" else interval(row.difference, row.difference_low, row.difference_high, "+")
        ),
        "verdict": lambda row: (
            f"incomplete: {row.seeds + row.failed} of {seeds} seeds"
            if not result.is_complete and row.seeds + row.failed < seeds
            else row.verdict
        ),
    }
    show_rows(result.rows, columns, as_json)
    if not result.is_complete:
        missing = f"{result.ended} of {result.wanted} trainings"
        say(f"incomplete: {missing}; run the same again for a verdict", error=True)
        ctx.exit(3)
