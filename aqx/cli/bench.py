"""`aqx bench …`: tables of results, and searches replayed on them."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import click

from aqx.cli import options
from aqx.cli.commands import _space, main
from aqx.cli.screen import progress_shown, show_rows

if TYPE_CHECKING:
    from aqx.benchmark import Curves, Estimate, Landscape


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


@bench.command()
@click.option("--table", required=True, metavar="FILE", help="A .parquet or .csv file: name, seed and metrics.")
@options.task
@click.option("--objective", metavar="METRIC", help="The column to search for; default the task's objective.")
@click.option(
    "--direction",
    type=click.Choice(["maximize", "minimize"]),
    help="Default the task's for its own objective; else losses and errors are minimized.",
)
@click.option("--policy", "policies", multiple=True, metavar="PRESET", help="What to replay; repeatable; default all.")
@click.option("--seeds", type=click.IntRange(1), default=20, show_default=True, help="Searches of each policy.")
@click.option("--evaluations", type=click.IntRange(1), default=100, show_default=True, help="Of each search.")
@click.option("--start", type=click.IntRange(1), default=8, show_default=True, help="Random ones among them.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Searches at a time.")
@click.option("--features", metavar="DB", help="Keep the features in this database; what it has is not computed.")
@click.option("--plot", metavar="FILE", help="Draw the curves to a .png, .svg or .pdf file.")
@options.quiet
@options.as_json
def replay(
    table: str,
    task: str,
    objective: str | None,
    direction: str | None,
    policies: tuple[str, ...],
    seeds: int,
    evaluations: int,
    start: int,
    workers: int,
    features: str | None,
    plot: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Replay searches on a table of results: what would each policy have found? Nothing is trained."""
    from aqx.benchmark import landscape_of, load_table, replay_policies, score
    from aqx.report import check_plot
    from aqx.surrogate import PRESETS, as_preset
    from aqx.tasks import load_task

    if start > evaluations:
        raise click.UsageError(f"--start {start} is more than --evaluations", click.get_current_context())
    presets = tuple(as_preset(policy) for policy in dict.fromkeys(policies or PRESETS))
    if plot:
        check_plot(plot)
    results, loaded = load_table(table), load_task(task)
    with progress_shown("features", quiet) as progress:
        landscape = landscape_of(
            results,
            loaded,
            objective=objective,
            direction=direction,
            presets=presets,
            features=features,
            progress=progress,
        )
    click.echo(str(landscape), err=True)
    with progress_shown("searches", quiet) as progress:
        curves = replay_policies(
            landscape,
            presets,
            seeds=seeds,
            evaluations=evaluations,
            start=start,
            workers=workers,
            progress=progress,
        )
    scores = [score(one) for one in curves]
    columns = {"policy": attrgetter("policy"), "median rank": lambda row: _estimate(row.rank)}
    for k in scores[0].regret:
        columns[f"mean regret @{k}"] = lambda row, k=k: _estimate(row.regret[k])
    columns["to top 1 %"] = lambda row: _estimate(row.to_top_1_percent, evaluations)
    columns["to top 0.1 %"] = lambda row: _estimate(row.to_top_01_percent, evaluations)
    columns["s/suggestion"] = lambda row: f"{row.seconds_per_suggestion:.2g}"
    show_rows(scores, columns, as_json)
    if plot:
        _draw(plot, landscape, curves, f"{len(landscape):,} classes on {loaded.name}, {seeds} searches each", start)


def _estimate(estimate: Estimate, most: int | None = None) -> str:
    """Write e.g. `0.0021 [0.0012, 0.0031]`, and `>100` for what was not reached by then."""

    def number(value: float) -> str:
        return f">{most}" if value == float("inf") else f"{value:.3g}"

    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def _draw(path: str, landscape: Landscape, curves: list[Curves], title: str, start: int) -> None:
    from aqx.benchmark import mean_interval, median_interval
    from aqx.report import Panel, draw_panels

    values = Panel(
        f"best {landscape.objective} so far (mean, 95 % interval)",
        {one.policy: mean_interval(one.best) for one in curves},
        reference=(curves[0].optimum, "best of the table"),
        first=start,
    )
    ranks = Panel(
        "rank of the best so far (median, 95 % interval)",
        {one.policy: median_interval(one.rank.astype(float)) for one in curves},
        log=True,
    )
    draw_panels(path, [values, ranks], title)
