"""Commands that train: the search, and the confirmation of what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.options import MOST_SEEDS, Count, check_filled, named_task, open_study
from aqx.cli.screen import cell, interval, progress_shown, say, says_unicode, show_json, show_rows
from aqx.text import printable

if TYPE_CHECKING:
    from aqx.search import Compared, Confirmation, Confirmed, LearningComparison

_NAMED = 5
_ON_LEARNING = {
    "better": "learning paid",
    "no evidence": "no evidence that learning paid",
    "worse": "learning did harm",
    "failed": "no verdict, as trainings failed",
}
OPTIMISTIC = "the best of many noisy results, so optimistic; aqx confirm gives a verdict"


@main.command(
    needs="functions in the database (aqx enumerate), and a task with a train function.",
    examples=[
        "aqx search found.duckdb --task mnist1d --budget 60",
        "aqx search found.duckdb --task train.py:task --budget 100 --workers 4 --time-limit 30m",
        "aqx search found.duckdb --task mnist1d --max-cost 3",
    ],
)
@options.db
@options.task_if_needed
@click.option("--budget", type=Count(0), default=100, show_default=True, help="Candidates to train.")
@options.workers
@options.together
@options.time_limit
@options.timeout
@options.max_cost
@options.accept_changed
@options.retry
@options.pruner
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
@click.option(
    "--learnable",
    type=click.Choice(["layer", "channel"]),
    help="Train with constants that are learnt, one set per layer or per channel; as --task T+layer.",
)
@click.option(
    "--runs",
    type=Count(0),
    metavar="N",
    help="N candidates get short runs: all, or in a larger space the promising; default 150 a training, 300 to 3,000.",
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
    timeout: float | None,
    max_cost: float | None,
    accept_changed: bool,
    retry: int | None,
    pruner: str,
    surrogate: str | None,
    seed: int,
    spectra: int,
    learnable: str | None,
    runs: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train baselines and suggestions, and learn from each.

    The baselines come first, then what the surrogate suggests, until the budget is used.
    """
    from aqx.simplify import simplest

    task = named_task(db, task)
    if budget:
        check_filled(db)
    learning = f"{task}+{learnable}" if learnable else task
    study = open_study(db, learning, surrogate, seed, accept_changed=accept_changed, pruner=pruner, failed=retry)
    with progress_shown("search", quiet) as progress:
        finished = study.search(
            budget,
            workers=workers,
            together=together,
            spectra=spectra,
            time_limit=time_limit,
            timeout=timeout,
            max_cost=max_cost,
            runs=runs,
            progress=progress,
        )
    failed = sum(record.status == "failed" for record in finished)
    records = study.records()
    best, incumbent, left_out = study.best(records), study.incumbent(records), study.left_out()
    if as_json:
        found = best and {"name": best.name, "trial": best.id, "objective": best.objective}
        likely = incumbent and {"name": incumbent.name, "objective": incumbent.objective}
        result = {"finished": len(finished), "failed": failed, "metric": study.task.objective, "best": found}
        show_json({**result, "incumbent": likely, "left_out": left_out})
        return
    found = f"; best so far {printable(simplest(best.name))}: {cell(best.objective)}, {OPTIMISTIC}" if best else ""
    if best and incumbent and incumbent.class_id != best.class_id:
        found += f"; the surrogate believes more in {printable(simplest(incumbent.name))}: {cell(incumbent.objective)}"
    reasons = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
    if reasons:
        say(f"classes left out of the search: {', '.join(reasons)}")
    say(f"{len(finished)} trainings finished now, {failed} of them failed{found}")


@main.command(
    needs="results of aqx search.",
    examples=[
        "aqx confirm found.duckdb --task mnist1d",
        "aqx confirm found.duckdb --task train.py:task --top 3 --reference 'gelu(x)'",
        "aqx confirm found.duckdb --task train.py:task --fn 'mul(x,tanh(x))' --seeds 20",
        "aqx confirm found.duckdb --task mnist1d+layer --compare-learning --fn 'swish(x)'",
    ],
)
@options.db
@options.task_if_needed
@click.option("--top", type=Count(), default=5, show_default=True, metavar="K", help="The best K.")
@click.option(
    "--seeds", type=Count(2, MOST_SEEDS), default=10, show_default=True, metavar="S", help="Fresh seeds each."
)
@click.option("--fn", "functions", multiple=True, metavar="NAME", help="This function, not the best; repeatable.")
@click.option("--baselines", multiple=True, metavar="NAME", help="Compare with this one, not the task's; repeatable.")
@click.option("--reference", metavar="NAME", help="What differences are to; default the task's first baseline.")
@click.option(
    "--compare-learning",
    is_flag=True,
    help="Compare functions whose constants are learnt, in a task T+layer, with the plain ones of T: did it pay?",
)
@options.workers
@options.together
@options.time_limit
@options.accept_changed
@options.quiet
@options.as_json
@click.pass_context
def confirm(
    ctx: click.Context,
    db: str,
    task: str | None,
    top: int,
    seeds: int,
    functions: tuple[str, ...],
    baselines: tuple[str, ...],
    reference: str | None,
    compare_learning: bool,
    workers: int,
    together: int | None,
    time_limit: float | None,
    accept_changed: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Retrain the best on fresh seeds: do they really win?

    The baselines are retrained with them. What the search saw is the best of many noisy results, so optimistic. Each
    function is compared with the reference, and with the baseline that turns out to be the best.

    With --compare-learning, in a task T+layer, each is trained with its constants learnt, frozen as they were learnt,
    and as it is, and compared with the last.

    Trainings that another process is at are waited for, and taken over where it is dead. Where some are missing all the
    same there is no verdict, and the exit code is 3. A task that aqx cannot train is confirmed by aqx claim --confirm.
    """
    if compare_learning and (baselines or reference):
        given = "--baselines" if baselines else "--reference"
        raise click.UsageError(f"{given} does not go with --compare-learning: each is compared with itself", ctx)
    study = open_study(db, task, code="needed" if compare_learning else "useful", accept_changed=accept_changed)
    by: dict[str, Any] = {"workers": workers, "together": together, "time_limit": time_limit}
    if compare_learning:
        learning = study.learning_plan(top, seeds, functions)
        if not quiet:
            say(f"compare: {learning}", error=True)
        with progress_shown("compare", quiet) as progress:
            compared = study.compare_learning(**by, progress=progress, plan=learning)
        show_learning(compared, as_json)
        _end_where_incomplete(ctx, compared, "run the same again for a verdict")
        return
    plan = study.confirmation_plan(top, seeds, functions, baselines, reference)
    if not quiet:
        say(f"confirm: {plan}", error=True)
    with progress_shown("confirm", quiet) as progress:
        result = study.confirm(**by, progress=progress, plan=plan)
    show_confirmation(result, seeds, as_json)
    if result.lacking and not as_json:
        names = ", ".join(map(printable, result.lacking[:_NAMED])) + (", …" if len(result.lacking) > _NAMED else "")
        say(f"judged by {result.metric}, which results of these lack: {names}", error=True)
    how = "run the same again for a verdict"
    if study.task.train is None:
        name = task or study.task.name
        how = f"train the rest: aqx claim {db} --task {name} --confirm, or study.trial(confirm=True)"
    _end_where_incomplete(ctx, result, how)


def _end_where_incomplete(ctx: click.Context, result: Confirmation | LearningComparison, how: str) -> None:
    if not result.is_complete:
        say(f"incomplete: {result.ended} of {result.wanted} trainings; {how}", error=True)
        ctx.exit(3)


def show_learning(result: LearningComparison, as_json: bool) -> None:
    """Print whether learning paid: each function learnt, frozen and plain."""
    from aqx.simplify import simplest

    columns: dict[str, Callable[[Compared], str]] = {
        "function": lambda row: simplest(row.function) if row.way == "learnt" else "",
        "constants": lambda row: row.way,
        f"{result.metric}, 95 % interval": lambda row: interval(row.mean, row.low, row.high),
        "difference to plain": lambda row: (
            "" if row.way == "plain" else interval(row.difference, row.difference_low, row.difference_high, "+")
        ),
        "verdict": lambda row: row.verdict,
        "trained as": lambda row: row.name,
    }
    show_rows(result.rows, columns, as_json, drop=["trained as"])
    if as_json:
        return
    if result.not_frozen:
        names = ", ".join(map(printable, result.not_frozen))
        say(f"not frozen: {names}; the training's metrics lack aqx.linen.learnt(params)", error=True)
    for verdict, words in _ON_LEARNING.items():
        names = [row.function for row in result.rows if (row.way, row.verdict) == ("learnt", verdict)]
        if names:
            say(f"{words}: {', '.join(printable(simplest(name)) for name in names)}")


def show_confirmation(result: Confirmation, seeds: int, as_json: bool) -> None:
    """Print a verdict: found functions are marked, baselines are not."""
    from aqx.simplify import simplest

    mark = "◆ " if says_unicode() else "* "
    columns: dict[str, Callable[[Confirmed], str]] = {
        "function": lambda row: simplest(row.name) if row.is_baseline else mark + simplest(row.name),
        f"{result.metric}, 95 % interval": lambda row: interval(row.mean, row.low, row.high),
        f"difference to {result.reference}": lambda row: (
            "" if row.verdict == "reference" else interval(row.difference, row.difference_low, row.difference_high, "+")
        ),
        "verdict": lambda row: (
            f"incomplete: {row.seeds + row.failed} of {seeds} seeds"
            if not result.is_complete and row.seeds + row.failed < seeds
            else _said(row.verdict, result.metric)
        ),
    }
    columns |= cost_columns(row.costs for row in result.rows)
    if result.best_baseline not in (None, result.reference):
        columns[f"difference to the best baseline, {result.best_baseline}"] = lambda row: (
            "" if row.to_best_verdict == "reference" else interval(row.to_best, row.to_best_low, row.to_best_high, "+")
        )
        columns["verdict on that"] = lambda row: _said(row.to_best_verdict, result.metric)
    priced = [heading for heading in columns if heading.startswith("cost")]
    others = [heading for heading in columns if heading not in priced]
    drop = [*priced, *others[2:4], others[1]] if len(others) > 4 else priced
    show_rows(result.rows, columns, as_json, drop=drop)
    if not as_json and any(not row.is_baseline for row in result.rows):
        say(f"{mark}found by the search; the others are baselines")


def cost_columns(costs: Iterable[Mapping[str, float]]) -> dict[str, Callable[[Any], str]]:
    """Return a column of what functions cost, relative to relu, for each device on which that was measured."""
    devices = list(dict.fromkeys(device for known in costs for device in known))

    def on(device: str) -> Callable[[Any], str]:
        return lambda row: f"{row.costs[device]:.3g}" if device in row.costs else ""

    return {"cost" if len(devices) == 1 else f"cost on {device}": on(device) for device in devices}


def _said(verdict: str, metric: str) -> str:
    return f"lacks {metric}" if verdict == "lacking" else verdict
