"""Commands that look around in a database and change nothing: its counts, its best, what is next, one function."""

from __future__ import annotations

import math
import os
import shutil
from typing import TYPE_CHECKING, Any

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.options import Count, check_filled, named_task, open_results, open_study
from aqx.cli.screen import cell, columns_of, plain, say, says_unicode, show_json, show_rows
from aqx.cli.searching import OPTIMISTIC, cost_columns
from aqx.cli.wrapping import hanging
from aqx.duration import written
from aqx.errors import InputError
from aqx.store.costs import said_of
from aqx.text import clipped, printable
from aqx.tree import parse

if TYPE_CHECKING:
    from aqx.search import FunctionReport
    from aqx.search.summary import Score

RANGE, POINTS = 4.0, 481  # 0 is one of them
_LISTED = 20
_COPIED = ("  f(x)", "  LaTeX")
_LONGEST = 20_000  # characters of a line: a formula of the longest name has some thousands


@main.command(
    needs="a database: aqx enumerate.",
    examples=["aqx summary found.duckdb", "aqx summary found.duckdb --json"],
)
@options.db
@click.option("--task", metavar="NAME", help="Only the task of this name; default all in the database.")
@options.as_json
def summary(db: str, task: str | None, as_json: bool) -> None:
    """Count what there is, and name the best so far.

    Trainings that run unusually long, and may hang, are named below.
    """
    from aqx.search import summarize

    counts = ("functions", "classes", "spectra", "runs", "done", "running", "stale", "pruned", "failed")
    rows = summarize(db, task)
    columns = columns_of("task", *counts, "best", "objective")
    if as_json or len(rows) > 1:
        show_rows(rows, columns, as_json)
    else:  # one task, which stands better upright
        for row in rows:
            known = {heading: cell(shown(row)) for heading, shown in columns.items()}
            say("\n".join(hanging(f"{heading:<10} {text}", 11) for heading, text in known.items() if text))
    for long in (long for row in rows for long in row.long if not as_json):
        what = printable(f"trial {long.trial_id}, {long.name}, has been running for {written(long.seconds)}")
        say(
            f"{what} at {printable(long.worker or 'nowhere')}, where trainings take {written(long.usual)}; "
            "--time-limit has aqx search end such"
        )


@main.command(
    needs="functions in the database: aqx enumerate.",
    examples=["aqx suggest found.duckdb --task mnist1d -n 10"],
)
@options.db
@options.task_if_needed
@click.option("-n", "count", type=Count(), default=5, show_default=True, help="How many.")
@options.surrogate
@options.seed
@options.as_json
def suggest(db: str, task: str | None, count: int, surrogate: str | None, seed: int, as_json: bool) -> None:
    """Show what would be trained next, without claiming it."""
    task = named_task(db, task)
    check_filled(db)
    study = open_study(db, task, surrogate, seed, code="left")
    suggested = study.suggest(count)
    show_rows(suggested, columns_of("name", "mean", "spread"), as_json)
    if all(math.isnan(one.mean) for one in suggested):
        say("these are drawn at random: there are too few results to predict from", error=True)


@main.command(
    needs="results: aqx search, aqx tell or aqx import.",
    examples=["aqx top found.duckdb --task mnist1d -n 20", "aqx top found.duckdb --task mnist1d --cost"],
)
@options.db
@options.task_if_needed
@click.option("-n", "count", type=Count(), default=10, show_default=True, help="How many.")
@click.option("--cost", is_flag=True, help="Also what they cost, relative to relu, as aqx cost has measured it.")
@options.as_json
def top(db: str, task: str | None, count: int, cost: bool, as_json: bool) -> None:
    """List the best results.

    They are the best of many noisy trainings, so that the first look better than they are. Where 16-bit floats are
    known to fail a function, that is said.
    """
    results = open_results(db, task)
    best = results.with_costs(results.ranking[:count])
    columns = columns_of("name", "objective", "trials")
    if cost:
        columns |= cost_columns(row.costs for row in best)
    if any(said_of(row.precision) for row in best):
        columns["in 16 bits"] = lambda row: said_of(row.precision)
    show_rows(best, columns, as_json, drop=["in 16 bits"])
    if cost and best and not any(row.costs for row in best):
        say(f"what they cost was not measured yet; do so: aqx cost {db}", error=True)
    missing = f"nothing has been trained yet; do so: aqx search {db} --task {task or results.task.name}"
    say(f"these are {OPTIMISTIC}" if best else missing, error=True)


@main.command(
    needs="only the function; with a database it tells what was found there.",
    examples=["aqx show gelu", 'aqx show found.duckdb "mul(x,tanh(x))"', "aqx show gelu --derivative"],
)
@click.argument("name", metavar="[DB] NAME", shell_complete=options.complete_files)
@click.argument("db", required=False, metavar="", shell_complete=options.complete_files)
@click.option("-d", "--derivative", is_flag=True, help="Draw the derivative too, as points.")
@options.as_json
def show(name: str, db: str | None, derivative: bool, as_json: bool) -> None:
    """Show what is known of a function, and its curve.

    That is its formula, class and flags; with a database also equal functions, and what came of it per task. Of a
    function of two inputs the curve is a map of the plane.
    """
    from aqx.cli.curve import draw_curve
    from aqx.cli.heat import draw_heat
    from aqx.export import formula, latex
    from aqx.search import describe
    from aqx.simplify import full_name, simplest

    if db and not os.path.isfile(db) and (os.path.isfile(name) or (_is_function(db) and not _is_function(name))):
        name, db = db, name  # as in the other commands, where the database comes first
    name = full_name(name)
    known = describe(name, db)
    gated = parse(known.name).inputs == 2
    x, y, slope = _plane(known.name) if gated else _curve(known.name)
    if as_json:
        curve = {"x": x, "y": y, "values": slope} if gated else {"x": x, "y": y, "derivative": slope}
        show_json({**plain(known), "formula": formula(name), "latex": latex(name), "curve": curve})
        return
    unicode = says_unicode()
    lines = [known.name, f"  size   {known.size}", f"  shape  {known.shape}", f"  class  {known.class_id}"]
    lines += [f"  {'f(x,y)' if gated else 'f(x)  '} {formula(name)}"] * unicode + [f"  LaTeX  {latex(name)}"]
    if (simpler := simplest(known.name)) != known.name:
        lines.append(f"  simpler {simpler}, an equal function")
    lines += [f"  not in {db}"] * bool(db and known.simplest is None)
    lines.append(f"  flags  {', '.join(flag for flag, on in known.flags.items() if on) or 'none'}")
    lines.append(f"  16 bit {said_of(known.precision) or 'float16 and bfloat16 hold its values on [-30, 30]'}")
    lines += [f"  cost   {cost:.3g} times relu's on {device}" for device, cost in known.costs.items()]
    lines += [f"  equal  {other}" for other in known.equal]
    width = min(max(shutil.get_terminal_size().columns - 12, 24), 60)
    if gated:
        drawn, derivative = draw_heat(x, y, slope, unicode=unicode), False
    else:
        drawn = draw_curve(x, y, slope if derivative else None, width=width, braille=unicode)
    legend = ["", ("⠤⠒⠉ f   · its derivative" if unicode else "*** f   . its derivative")] if derivative else [""]
    said = [printable(clipped(line, _LONGEST)) for line in [*lines, *_scores(known)]]
    # Lines to copy stay whole.
    said = [line if line.startswith(_COPIED) else hanging(line, 9) for line in said]
    say("\n".join([*said, *legend, drawn]))


def _is_function(text: str) -> bool:
    from aqx.simplify import full_name
    from aqx.tree import parse

    try:
        parse(full_name(text))
    except InputError:
        return False
    return True


def _scores(known: FunctionReport) -> list[str]:
    lines = [f"  score  {score.task}: {said}" for score in known.scores if (said := _score(score))]
    lines += [f"  trial  {' '.join(map(cell, result))}" for result in known.results[:_LISTED]]
    if (more := len(known.results) - _LISTED) > 0:
        lines.append(f"  trial  and {more:,} more; --json has all of them")
    return lines


def _score(score: Score) -> str:
    parts = []
    if score.searched is not None:
        parts.append(f"{score.objective} {cell(score.searched)} in the search, mean of {score.trials}")
        parts.append(f"rank {score.rank:,} of {score.ranked:,}")
    if score.confirmed:
        means = ", ".join(f"{metric} {cell(mean)}" for metric, mean in score.confirmed.items())
        parts.append(f"confirmed with {means}, mean of {score.seeds} fresh seeds")
    if score.failed:
        parts.append(f"{score.failed} failed")
    if score.broken:
        parts.append(f"breaks the model ({score.broken})")
    runs = [f"{cell(first)} → {cell(last)} at rate {rate}" for rate, (first, last) in score.short_runs.items()]
    if runs:
        parts.append(f"loss in short runs {', '.join(runs)}")
    return "; ".join(parts)


def _plane(name: str) -> tuple[Any, Any, Any]:
    """Abscissas [C], ordinates [R] and values [R, C] of a function of two inputs."""
    import numpy as np

    from aqx.activation import activation
    from aqx.numerics.settings import own_settings

    x, y = (np.linspace(-RANGE, RANGE, count, dtype=np.float32) for count in (49, 17))
    with own_settings():
        return x, y, np.asarray(activation(name)(x, y[:, None]))


def _curve(name: str) -> tuple[Any, Any, Any]:
    """Abscissas, values and derivatives [P]."""
    import numpy as np

    from aqx.activation import activation
    from aqx.report.curves import values_and_slopes

    x = np.linspace(-RANGE, RANGE, POINTS, dtype=np.float32)
    return x, *values_and_slopes(activation(name), x)
