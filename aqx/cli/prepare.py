"""Commands before a search: check the task, fill the database, describe its classes, bring in known results."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.options import LARGEST, Count, Whole, check_filled, named_task, open_study, open_task, space_of, task_of
from aqx.cli.screen import columns_of, prints_to_stderr, progress_shown, say, show_json, show_result, show_rows
from aqx.errors import InputError
from aqx.text import clipped

if TYPE_CHECKING:
    from aqx.spectra import SpectraReport
    from aqx.tasks import Task

_SHOWN = 5  # refused rows
MOST_POINTS = 100_000  # the longest array of DuckDB


@main.group()
def task() -> None:
    """Try a task first; list and remove a database's."""


@task.command(
    needs="nothing but the task.",
    examples=["aqx task check mnist1d", "aqx task check train.py:task --train"],
)
@click.argument("reference", metavar="T", shell_complete=options.complete_tasks)
@click.option("--train", is_flag=True, help="Also train: ReLU, and a second function of its shape.")
@options.quiet
@options.as_json
def check(reference: str, train: bool, quiet: bool, as_json: bool) -> None:
    """Try what a task promises, and report what was seen."""
    from aqx.tasks import check_task

    loaded = open_task(reference)
    with progress_shown("training with relu(x)", quiet or not train) as progress:
        report = check_task(loaded, run_training=train, second=train)
        if progress:  # a training has no steps that aqx could count
            progress(1, 1, "")
    show_result(report, str(report), as_json)


@task.command("list", needs="a database.", examples=["aqx task list found.duckdb"])
@options.db
@options.as_json
def list_(db: str, as_json: bool) -> None:
    """List the tasks of a database, with what is stored of each."""
    from aqx.search import summarize

    rows = [row for row in summarize(db) if row.task is not None]
    columns = columns_of("task", "spectra", "done", "running", "failed", "best", "objective")
    show_rows(rows, columns, as_json, drop=("spectra", "running", "failed"))


@task.command(
    needs="a database that has the task.",
    examples=[
        "aqx task remove found.duckdb tried --yes",
        "aqx task remove found.duckdb old --yes --results",
    ],
)
@options.db
@click.argument("name", required=False)
@click.option("--task", metavar="NAME", help="The task's name in the database.")
@click.option("--yes", is_flag=True, help="Do it.")
@click.option("--results", is_flag=True, help="Also where the task has results, which are deleted with it.")
@options.as_json
def remove(db: str, name: str | None, task: str | None, yes: bool, results: bool, as_json: bool) -> None:
    """Delete a task with its trials and spectra, for good.

    One that has results is deleted only with --results. Functions stay; they belong to all tasks.
    """
    from aqx.store import Database
    from aqx.store.tasks import get_task, remove_task

    ctx = click.get_current_context()
    if (name is None) == (task is None):
        raise click.UsageError("give the task's NAME once: aqx task remove DB --task NAME --yes", ctx)
    database, chosen = Database(db), name or task or ""
    get_task(database, chosen)  # which says what there is
    if not yes:
        raise click.UsageError(f"this would delete task {chosen!r} for good; add --yes to do so", ctx)
    try:
        removed = remove_task(database, chosen, with_results=results)
    except InputError as error:
        hint = "" if results else "; add --results to delete them too"
        raise click.UsageError(str(error) + hint * ("results" in str(error)), ctx) from None
    text = f"{chosen} removed, with {removed['trials']:,} trials and {removed['spectra']:,} spectra"
    show_result({"removed": chosen, **removed}, text, as_json)


@main.command(
    "enumerate",
    needs="nothing: it makes the database, or extends it.",
    examples=[
        "aqx enumerate found.duckdb --space act_bench",
        "aqx enumerate found.duckdb --schema 'binary(unary(x),x)' --operators extended",
        "aqx enumerate found.duckdb --schema 'mul(c,unary(mul(c,x)))' --constants 0.5,1,2",
        "aqx enumerate found.duckdb --space paper --sample 10000",
    ],
)
@options.db
@options.functions
@click.option("--seed", type=Count(0, LARGEST), default=0, show_default=True, help="Seed of the sample.")
@click.option("--points", type=Count(2, MOST_POINTS), metavar="N", help="Points of N(0,1) at which outputs are stored.")
@click.option("--sampling", type=click.Choice(["stratified", "normal"]), help="How those points are drawn.")
@options.quiet
@options.as_json
def enumerate_(
    db: str,
    space: str | None,
    schemas: tuple[str, ...],
    functions: tuple[str, ...],
    operators: str | None,
    constants: str | None,
    sample: int | None,
    seed: int,
    points: int | None,
    sampling: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fill a database with functions, in classes of equal ones.

    Every function of a space is evaluated; a function that is there already costs nothing.
    """
    from aqx.enumeration import enumerate_space
    from aqx.store import Database

    chosen = space_of(space, schemas, functions, operators, constants)
    with progress_shown("enumerate", quiet) as progress:
        report = enumerate_space(
            Database(db, create=True),
            chosen,
            sample=sample,
            seed=seed,
            points=points,
            sampling=sampling,
            progress=progress,
        )
    text = (
        f"{report.functions:,} functions enumerated in {report.seconds:.1f} s; new in {db}: "
        f"{report.added_functions:,} functions, {report.added_classes:,} classes"
    )
    show_result(report, text, as_json)


_Command = TypeVar("_Command", bound=Callable[..., Any])


def _together(*made: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Some options as one decorator."""

    def decorate(command: _Command) -> _Command:
        for option in made:
            command = option(command)
        return command

    return decorate


def _which(number: type[Count] | type[Whole]) -> Callable[[_Command], _Command]:
    """Which classes are described, in which order, and how many together."""
    return _together(
        click.option(
            "--priority",
            type=click.Choice(["simplest", "predicted"]),
            default="simplest",
            show_default=True,
            help="What comes first; predicted: what the surrogate expects to train best, from the results so far.",
        ),
        click.option(
            "--fn", "--names", "names", multiple=True, metavar="NAME", help="Only this function's class; repeatable."
        ),
        click.option("--batch", type=number(), metavar="K", help="Candidates per transaction; default some seconds'."),
        click.option("--limit", type=number(), metavar="N", help="At most N classes now."),
        options.task_if_needed,
        options.db,
    )


def _fisher() -> Callable[[_Command], _Command]:
    """What kind of spectra."""
    return _together(
        click.option(
            "--sharing",
            type=click.Choice(["expand", "reduce"]),
            default="expand",
            show_default=True,
            help="How positions that share weights, as in a convolution, are taken together.",
        ),
        click.option(
            "--fisher",
            type=click.Choice(["empirical", "exact", "sampled"]),
            default="empirical",
            show_default=True,
            help="Gradients of the true labels, of all labels by the model's probabilities, or of labels drawn from "
            "them.",
        ),
    )


def _distributed(number: type[Count] | type[Whole]) -> Callable[[_Command], _Command]:
    """Being one of several processes."""
    return _together(
        click.option("--process", type=number(0), metavar="I", help="With --coordinator: which one this is, from 0."),
        click.option("--processes", type=number(), metavar="N", help="With --coordinator: how many there are."),
        click.option("--coordinator", metavar="HOST:PORT", help="The same without a cluster: where process 0 is."),
        click.option(
            "--distributed", is_flag=True, help="Be one of several processes, as SLURM or Open MPI started them."
        ),
    )


@main.command(
    needs="functions in the database: aqx enumerate.",
    examples=[
        "aqx describe found.duckdb --task mnist1d",
        "aqx describe found.duckdb --task train.py:task --only runs --limit 500 --priority predicted",
    ],
)
@_which(Whole)
@click.option("--only", type=click.Choice(["spectra", "runs"]), help="One of the two; default both, runs first.")
@_fisher()
@_distributed(Whole)
@options.quiet
@options.as_json
def describe(
    db: str,
    task: str | None,
    limit: int | None,
    batch: int | None,
    names: tuple[str, ...],
    priority: str,
    only: str | None,
    fisher: str,
    sharing: str,
    distributed: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Add short runs and Fisher spectra of the stored classes.

    They are those of the task's untrained model on its batch, and tell the surrogate how a model would train: how its
    loss falls in a few steps of Adam, and the eigenvalues of its Fisher matrix. aqx search computes what it needs of
    both by itself.

    Any number of these commands may work on one database at the same time: they share the classes. All devices of a
    machine are used; --distributed makes one run of the devices of several machines, of which process 0 alone needs
    the database.
    """
    from aqx import spectra as room
    from aqx.simplify import full_name

    names = tuple(map(full_name, names))
    loaded = _task_of_run(db, task, distributed, coordinator, processes, process)
    if room.leads():
        check_filled(db)
    reports: dict[str, SpectraReport] = {}
    for what in (only,) if only else ("runs", "spectra"):
        with progress_shown(f"describe: {what}", quiet or not room.leads()) as progress:
            if what == "runs":
                reports[what] = room.compute_runs(
                    db,
                    loaded,
                    limit=limit,
                    batch=batch,
                    names=names or None,
                    first=_first(db, task, priority, runs=True),
                    progress=progress,
                )
            else:
                reports[what] = room.compute_spectra(
                    db,
                    loaded,
                    limit=limit,
                    batch=batch,
                    names=names or None,
                    first=_first(db, task, priority),
                    fisher=fisher,
                    sharing=sharing,
                    progress=progress,
                )
    if room.leads():
        show_result(reports, "\n".join(map(str, reports.values())), as_json)


def _task_of_run(
    db: str,
    task: str | None,
    distributed: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
) -> Task:
    """Join the run, where this is one of several processes, and load its task."""
    from aqx.spectra import connect

    if distributed or any(option is not None for option in (coordinator, processes, process)):
        connect(coordinator, processes, process)
    # Of the processes of one run only the first needs the database.
    return open_task(task) if task is not None and not os.path.isfile(db) else task_of(db, named_task(db, task))


def _first(db: str, task: str | None, priority: str, runs: bool = False) -> Callable[[], list[str]]:
    """What is described before the others."""

    def most_promising() -> list[str]:
        if priority != "predicted":
            return []
        first = open_study(db, task).most_promising(runs=runs)
        if not first:
            click.echo("too few results to predict from; the simplest classes come first", err=True)
        return first

    return most_promising


@main.command(
    needs="functions in the database: aqx enumerate.",
    examples=[
        "aqx eigs found.duckdb --task mnist1d",
        "aqx eigs found.duckdb --task train.py:task --limit 500 --priority predicted",
        "aqx eigs found.duckdb --task train.py:task --check",
    ],
)
@_which(Count)
@_fisher()
@click.option("--check", is_flag=True, help="Compare with the plain reference on this model instead; stores nothing.")
@_distributed(Count)
@options.quiet
@options.as_json
def eigs(
    db: str,
    task: str | None,
    limit: int | None,
    batch: int | None,
    names: tuple[str, ...],
    priority: str,
    fisher: str,
    sharing: str,
    check: bool,
    distributed: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Add the Fisher spectra of the stored classes.

    They are those of the task's untrained model on its batch, and tell the surrogate how a model would train.

    Any number of these commands may work on one database at the same time: they share the classes. All devices of a
    machine are used; --distributed makes one run of the devices of several machines, of which process 0 alone needs
    the database.
    """
    from aqx import fisher as engine
    from aqx.simplify import full_name

    names = tuple(map(full_name, names))
    loaded = _task_of_run(db, task, distributed, coordinator, processes, process)
    if check:
        _compare_with_reference(loaded, names, as_json)
        return
    if engine.leads():
        check_filled(db)

    with progress_shown("eigs", quiet or not engine.leads()) as progress:
        report = engine.compute_spectra(
            db,
            loaded,
            limit=limit,
            batch=batch,
            names=names or None,
            first=_first(db, task, priority),
            fisher=fisher,
            sharing=sharing,
            progress=progress,
        )
    if engine.leads():
        show_result(report, str(report), as_json)


def _compare_with_reference(task: Task, names: tuple[str, ...], as_json: bool) -> None:
    from aqx import fisher as engine

    with prints_to_stderr():
        difference = engine.check(task, names or task.baselines)
    text = f"worst relative difference to the plain reference: {difference:.1e}"
    show_result({"worst_relative_difference": difference}, text, as_json)


@main.command(
    "import",
    needs="a database, and the task that the results are of; the task's objective is a metric of the file.",
    examples=["aqx import found.duckdb results.csv --task train.py:task"],
)
@options.db
@click.argument("file", shell_complete=options.complete_files)
@options.task_if_needed
@options.quiet
@options.as_json
def import_(db: str, file: str, task: str | None, quiet: bool, as_json: bool) -> None:
    """Record the results in a file of another program.

    It is an AQuaSurF database, a table (.parquet, .csv) or an Act-Bench file (JSON). A row whose name, seed and metrics
    are there already is merged with it; one whose name is no function's, or whose seed is no whole number, is refused.
    """
    from aqx.benchmark import import_results

    study = open_study(db, task, code="left")
    with progress_shown("import", quiet) as progress:
        report = import_results(study, file, progress)
    if as_json:
        show_json(report)
        return
    say(
        f"{report.added:,} results added, {report.failed:,} of them failed; merged, as name, seed and metrics are the "
        f"same: {report.known - report.repeated:,} with what was there already, {report.repeated:,} with earlier rows; "
        f"{len(report.refused):,} refused, {report.untrained:,} functions are not trained yet"
    )
    for row in report.refused[:_SHOWN]:
        say(clipped(": ".join(filter(None, ["refused", row.place, row.reason])), 500), error=True)
    if (more := len(report.refused) - _SHOWN) > 0:
        say(f"and {more:,} more; --json lists all", error=True)
