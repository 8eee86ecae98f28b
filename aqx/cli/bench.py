"""`aqx bench …`: tables of results, and searches replayed on them."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.options import MOST_SEEDS, MOST_WORKERS, Count, open_task, space_of
from aqx.cli.screen import progress_shown, say, show_result, show_rows

if TYPE_CHECKING:
    from aqx.benchmark import Curves, Estimate, Landscape


@main.group()
def bench() -> None:
    """Tables of all results, and searches replayed on them."""


@bench.command(
    needs="a task with a train function.",
    examples=[
        "aqx bench build --task mnist1d --out table.parquet --sample 200",
        "aqx bench build --task train.py:task --schema 'unary(unary(x))' --seeds 3 --out table.csv",
    ],
)
@options.task
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="FILE",
    help="The table: .parquet or .csv. One that exists is extended.",
    shell_complete=options.complete_files,
)
@options.functions
@click.option(
    "--seeds", type=Count(most=MOST_SEEDS), default=1, show_default=True, metavar="S", help="Trainings of each."
)
@click.option("--workers", type=Count(most=MOST_WORKERS), help="Trainings at a time; default one per core.")
@click.option(
    "--together",
    type=Count(),
    metavar="K",
    help="Functions that one program trains; default 4,096 on a GPU and 1, none together, on a CPU.",
)
@options.quiet
@options.as_json
def build(
    task: str,
    out: str,
    space: str | None,
    schemas: tuple[str, ...],
    functions: tuple[str, ...],
    operators: str | None,
    constants: str | None,
    sample: int | None,
    seeds: int,
    workers: int | None,
    together: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train every class of a space, default act_bench.

    Killed, the same command goes on from there.
    """
    from aqx.benchmark import build_table

    space = space or (None if schemas or functions else "act_bench")
    chosen = space_of(space, schemas, functions, operators, constants)
    with progress_shown("bench build", quiet) as progress:
        report = build_table(
            open_task(task),
            chosen,
            out,
            seeds=seeds,
            sample=sample,
            workers=workers,
            together=together,
            progress=progress,
        )
    text = (
        f"{report.trained:,} trainings of {report.classes:,} classes, {report.failed:,} of them without a result; "
        f"{out} has {report.rows:,} rows"
    )
    show_result(report, text, as_json)


@bench.command(
    "import",
    needs="the JSON file that the authors of Act-Bench have published for a data set.",
    examples=["aqx bench import cifar10.json --out cifar10.parquet"],
)
@click.argument("file", shell_complete=options.complete_files)
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="TABLE",
    help="The table to write, .parquet or .csv.",
    shell_complete=options.complete_files,
)
@options.quiet
@options.as_json
def import_(file: str, out: str, quiet: bool, as_json: bool) -> None:
    """Make a table of a published Act-Bench file (JSON)."""
    from aqx.benchmark import read_act_bench, save_table
    from aqx.store.files import check_ending

    check_ending(out)
    with progress_shown("import", quiet) as progress:
        found = read_act_bench(file, progress)
    save_table(out, found.table)
    metrics = list(found.table.metrics)
    text = f"{len(found.table):,} functions written to {out}: {', '.join(metrics)}"
    if found.equivalents:
        text += f"\n{found.equivalents:,} equivalent names left out: equal functions are one class, whatever the name"
    known = {"out": out, "functions": len(found.table), "metrics": metrics, "equivalents": found.equivalents}
    show_result(known, text, as_json)


@bench.command(
    needs="a table of results, from aqx bench build or import, and the task, whose model gives the spectra.",
    examples=[
        "aqx bench replay --table table.parquet --task mnist1d --policy ensemble --policy random",
        "aqx bench replay --table table.parquet --task mnist1d --evaluations 50 --plot curves.png",
    ],
)
@click.option(
    "--table",
    required=True,
    metavar="FILE",
    help="A .parquet or .csv file: name, seed and metrics.",
    shell_complete=options.complete_files,
)
@options.task
@click.option("--objective", metavar="METRIC", help="The column to search for; default the task's objective.")
@click.option(
    "--direction",
    type=click.Choice(["maximize", "minimize"]),
    help="Default the task's for its own objective; else losses and errors are minimized.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="PRESET",
    help="What to replay; repeatable; default all.",
    shell_complete=options.complete_presets,
)
@click.option("--seeds", type=Count(most=MOST_SEEDS), default=20, show_default=True, help="Searches of each policy.")
@click.option("--evaluations", type=Count(), default=100, show_default=True, help="Of each search.")
@click.option("--start", type=Count(), default=8, show_default=True, help="Random ones among them.")
@click.option("--baselines", is_flag=True, help="Begin with the task's baselines, as aqx search does.")
@click.option(
    "--spectra", type=Count(0), metavar="N", help="Spectra of those that a search --spectra N computes them for."
)
@click.option(
    "--runs", type=Count(0), metavar="N", help="Short runs of those that a search --runs N computes them for."
)
@click.option("--no-runs", is_flag=True, help="Without short runs: they are not computed.")
@click.option("--batch", type=Count(), default=1, show_default=True, help="Evaluations chosen together.")
@click.option("--posterior", is_flag=True, help="The incumbent is the best by the posterior mean, not the luckiest.")
@click.option("--workers", type=Count(most=MOST_WORKERS), default=1, show_default=True, help="Searches at a time.")
@click.option(
    "--features",
    metavar="DB",
    help="Keep the features in this database; what it has is not computed.",
    shell_complete=options.complete_files,
)
@click.option(
    "--plot",
    metavar="FILE",
    help="Draw the curves to a .png, .svg or .pdf file.",
    shell_complete=options.complete_files,
)
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
    baselines: bool,
    spectra: int | None,
    runs: int | None,
    no_runs: bool,
    batch: int,
    posterior: bool,
    workers: int,
    features: str | None,
    plot: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Replay searches on a table: what would each have found?

    Nothing is trained.
    """
    from aqx.benchmark import landscape_of, load_table, replay_policies, score
    from aqx.benchmark.replay import as_policy
    from aqx.report import check_plot
    from aqx.surrogate import PRESETS

    if start > evaluations:
        raise click.UsageError(f"--start {start} is more than --evaluations", click.get_current_context())
    presets = tuple(as_policy(policy) for policy in dict.fromkeys(policies or PRESETS))
    if plot:
        check_plot(plot)
    results, loaded = load_table(table), open_task(task)
    with progress_shown("features", quiet) as progress:
        landscape = landscape_of(
            results,
            loaded,
            objective=objective,
            direction=direction,
            presets=presets,
            features=features,
            runs=not no_runs and runs != 0,
            progress=progress,
        )
    say(str(landscape), error=True)
    with progress_shown("searches", quiet) as progress:
        curves = replay_policies(
            landscape,
            presets,
            seeds=seeds,
            evaluations=evaluations,
            start=start,
            spectra=spectra,
            runs=runs,
            batch=batch,
            baselines=baselines,
            posterior=posterior,
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
