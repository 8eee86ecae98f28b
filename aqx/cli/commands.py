"""The commands of `aqx`: their options, and which function of the Python API each one calls."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import click

from aqx.cli import options
from aqx.cli.compiled import keep_compiled_programs
from aqx.cli.screen import cell, interval, plain, progress_shown, show_rows
from aqx.errors import AqxError

# Everything else is imported by the command that needs it, so that `aqx --help` is quick.
if TYPE_CHECKING:
    from aqx.search import Study
    from aqx.space import Space


class _Aqx(click.Group):
    """The one place where an error becomes a line on stderr and an exit code; a bug keeps its traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            sys.exit(super().main(*args, **{**kwargs, "prog_name": "aqx", "standalone_mode": False}) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
            help_line = f" (see {command} --help)" if command else ""
            _fail(" ".join(error.format_message().split()) + help_line, 2)
        except AqxError as error:
            _fail(str(error), 2)
        except click.Abort:
            _fail("interrupted; what is stored stays, and the same command goes on from there", 130)


_OPTIMISTIC = "the best of many noisy results, so optimistic; aqx confirm gives a verdict"


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}" if code != 130 else message, err=True)
    sys.exit(code)


@click.group(cls=_Aqx, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="aqx")
def main() -> None:
    """Find better activation functions for your own Flax model and data.

    \b
    The whole way, on a built-in task:
      aqx enumerate found.duckdb --space act_bench
      aqx eigs found.duckdb --task mnist1d
      aqx search found.duckdb --task mnist1d --budget 60
      aqx confirm found.duckdb --task mnist1d
    """  # noqa: D301  (click wants the \b itself)
    keep_compiled_programs()


@main.command("enumerate")
@options.db
@click.option("--space", type=click.Choice(["paper", "act_bench"]), help="A preset.")
@click.option("--schema", "schemas", multiple=True, metavar="S", help="A schema, e.g. 'unary(unary(x))'; repeatable.")
@click.option("--fn", "functions", multiple=True, metavar="NAME", help="A single function; repeatable.")
@click.option("--operators", type=click.Choice(["paper", "aquasurf", "extended"]), help="Operators of --schema.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Only N functions, drawn at random.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the sample.")
@click.option("--points", type=click.IntRange(2), metavar="N", help="Points of N(0,1) at which outputs are stored.")
@click.option("--sampling", type=click.Choice(["stratified", "normal"]), help="How those points are drawn.")
@options.quiet
def enumerate_(
    db: str,
    space: str | None,
    schemas: tuple[str, ...],
    functions: tuple[str, ...],
    operators: str | None,
    sample: int | None,
    seed: int,
    points: int | None,
    sampling: str | None,
    quiet: bool,
) -> None:
    """Evaluate every function of a space and store its classes of equal functions."""
    from aqx.enumeration import enumerate_space
    from aqx.store import Database

    chosen = _space(space, schemas, functions, operators)
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
    click.echo(
        f"{report.functions:,} functions enumerated in {report.seconds:.1f} s; new in {db}: "
        f"{report.added_functions:,} functions, {report.added_classes:,} classes"
    )


def _space(preset: str | None, schemas: Sequence[str], functions: Sequence[str], operators: str | None) -> Space:
    from aqx.space import Space
    from aqx.tree import parse

    if sum(map(bool, (preset, schemas, functions))) != 1:
        raise click.UsageError("give one of --space, --schema and --fn", click.get_current_context())
    if operators and not schemas:
        raise click.UsageError("--operators goes with --schema only", click.get_current_context())
    if preset:
        return Space.paper() if preset == "paper" else Space.act_bench()
    return Space([*schemas, *map(parse, functions)], operators=operators or "paper")


@main.command()
@options.db
@options.task
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N classes now.")
@click.option("--batch", type=click.IntRange(1), metavar="K", help="Candidates per transaction; default some seconds'.")
@click.option("--names", multiple=True, metavar="NAME", help="Only this function's class; repeatable.")
@click.option(
    "--priority",
    type=click.Choice(["simplest", "predicted"]),
    default="simplest",
    show_default=True,
    help="What comes first; predicted: what the surrogate expects to train best, from the results so far.",
)
@click.option("--fisher", type=click.Choice(["empirical", "exact", "sampled"]), default="empirical", show_default=True)
@click.option("--sharing", type=click.Choice(["expand", "reduce"]), default="expand", show_default=True)
@click.option("--check", is_flag=True, help="Compare with the plain reference on this model instead; stores nothing.")
@click.option("--distributed", is_flag=True, help="Be one of several processes, as SLURM or Open MPI started them.")
@click.option("--coordinator", metavar="HOST:PORT", help="The same without a cluster: where process 0 is.")
@click.option("--processes", type=click.IntRange(1), metavar="N", help="With --coordinator: how many there are.")
@click.option("--process", type=click.IntRange(0), metavar="I", help="With --coordinator: which one this is, from 0.")
@options.quiet
def eigs(
    db: str,
    task: str,
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
) -> None:
    """Compute the Fisher spectra of the stored classes on a task's model and batch.

    Any number of these commands may work on one database at the same time: they share the classes. All devices of a
    machine are used; --distributed makes one run of the devices of several machines, of which process 0 alone needs
    the database.
    """
    from aqx import fisher as engine
    from aqx.tasks import load_task

    if distributed or any(option is not None for option in (coordinator, processes, process)):
        engine.connect(coordinator, processes, process)
    loaded = load_task(task)
    if check:
        difference = engine.check(loaded, names or loaded.baselines)
        click.echo(f"worst relative difference to the plain reference: {difference:.1e}")
        return

    def most_promising() -> list[str]:
        first = _study(db, task).most_promising()
        if not first:
            click.echo("too few results to predict from; the simplest classes come first", err=True)
        return first

    with progress_shown("eigs", quiet or not engine.leads()) as progress:
        report = engine.compute_spectra(
            db,
            loaded,
            limit=limit,
            batch=batch,
            names=names or None,
            first=most_promising if priority == "predicted" else (),
            fisher=fisher,
            sharing=sharing,
            progress=progress,
        )
    if engine.leads():
        click.echo(str(report))


@main.command()
@options.db
@options.task
@click.option("-n", "count", type=click.IntRange(1), default=5, show_default=True, help="How many.")
@options.surrogate
@options.seed
@options.as_json
def suggest(db: str, task: str, count: int, surrogate: str | None, seed: int, as_json: bool) -> None:
    """Show the candidates that the surrogate would train next, without claiming them."""
    suggestions = _study(db, task, surrogate, seed).suggest(count)
    show_rows(suggestions, _columns("name", "mean", "spread"), as_json)


@main.command()
@options.db
@options.task
@click.option("--budget", type=click.IntRange(0), default=100, show_default=True, help="Candidates to train.")
@options.workers
@options.surrogate
@options.seed
@click.option(
    "--spectra",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    metavar="N",
    help="The N most promising candidates get Fisher spectra where they have none.",
)
@options.quiet
def search(
    db: str, task: str, budget: int, workers: int, surrogate: str | None, seed: int, spectra: int, quiet: bool
) -> None:
    """Train the baselines, then what the surrogate suggests, until the budget is used."""
    study = _study(db, task, surrogate, seed)
    with progress_shown("search", quiet) as progress:
        finished = study.search(budget=budget, workers=workers, spectra=spectra, progress=progress)
    failed = sum(record.status == "failed" for record in finished)
    best = study.best()
    found = f"; best so far {best.name}: {cell(best.objective)}, {_OPTIMISTIC}" if best else ""
    left_out = [f"{count:,} {reason}" for reason, count in study.left_out().items() if count]
    if left_out:
        click.echo(f"classes left out of the search: {', '.join(left_out)}")
    click.echo(f"{len(finished)} trainings finished now, {failed} of them failed{found}")


@main.command()
@options.db
@options.task
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, metavar="K", help="The best K.")
@click.option("--seeds", type=click.IntRange(2), default=10, show_default=True, metavar="S", help="Fresh seeds each.")
@options.workers
@options.quiet
@options.as_json
def confirm(db: str, task: str, top: int, seeds: int, workers: int, quiet: bool, as_json: bool) -> None:
    """Retrain the best and the baselines on fresh seeds, and say whether the winner really wins."""
    with progress_shown("confirm", quiet) as progress:
        result = _study(db, task).confirm(top=top, seeds=seeds, workers=workers, progress=progress)
    columns = {
        "function": attrgetter("name"),
        f"{result.metric}, 95 % interval": lambda row: interval(row.mean, row.low, row.high),
        f"difference to {result.reference}": lambda row: (
            "" if row.verdict == "reference" else interval(row.difference, row.difference_low, row.difference_high, "+")
        ),
        "verdict": attrgetter("verdict"),
    }
    show_rows(result.rows, columns, as_json)


@main.command()
@options.db
@click.option("--task", metavar="NAME", help="Only the task of this name; default all in the database.")
@options.as_json
def summary(db: str, task: str | None, as_json: bool) -> None:
    """Count functions, classes, spectra and trials, and name the best so far."""
    from aqx.search import summarize

    counts = ("functions", "classes", "spectra", "done", "running", "stale", "pruned", "failed")
    columns = _columns("task", *counts, "best", "objective")
    show_rows(summarize(db, task), columns, as_json)


@main.command()
@options.db
@options.task
@click.option("-n", "count", type=click.IntRange(1), default=10, show_default=True, help="How many.")
@options.as_json
def top(db: str, task: str, count: int, as_json: bool) -> None:
    """List the best results: of many noisy trainings, so that the first look better than they are."""
    show_rows(_study(db, task).top(count), _columns("name", "objective", "trials"), as_json)
    click.echo(f"these are {_OPTIMISTIC}", err=True)


@main.command()
@click.argument("name")
@click.argument("db", required=False)
@options.as_json
def show(name: str, db: str | None, as_json: bool) -> None:
    """Show what is known of a function: its form, and in a database its class and results."""
    from aqx.search import describe

    known = describe(name, db)
    if as_json:
        click.echo(json.dumps(plain(known), indent=2))
        return
    lines = [known.name, f"  size   {known.size}", f"  shape  {known.shape}", f"  class  {known.class_id}"]
    if db and known.simplest is None:
        lines.append(f"  not in {db}")
    if known.simplest is not None:
        lines.append(f"  flags  {', '.join(flag for flag, on in known.flags.items() if on) or 'none'}")
    lines += [f"  equal  {other}" for other in known.equal]
    lines += [f"  trial  {' '.join(map(cell, result))}" for result in known.results]
    click.echo("\n".join(lines))


@main.command()
@options.db
@options.task
@click.option("--hours", type=click.FloatRange(0, min_open=True), default=24.0, show_default=True, help="Its lease.")
@options.surrogate
@options.seed
@options.as_json
def claim(db: str, task: str, hours: float, surrogate: str | None, seed: int, as_json: bool) -> None:
    """Claim the next function for a training in any framework: prints its name, the trial's id and its seed.

    Answer with aqx tell DB --task T --trial ID METRIC=NUMBER. A claim without an answer lapses after its lease; a later
    answer is accepted all the same.
    """
    trial = _study(db, task, surrogate, seed).claim_next(hours * 3600)
    known = {"name": trial.name, "trial": trial.id, "seed": trial.seed}
    click.echo(json.dumps(known) if as_json else " ".join(map(str, known.values())))


@main.command()
@options.db
@options.task
@click.argument("result", nargs=-1, metavar="[NAME] METRIC=NUMBER…")
@click.option("--trial", "trial_id", type=click.IntRange(1), metavar="ID", help="Answer to aqx claim; no NAME then.")
@click.option("--failed", "reason", metavar="REASON", help="With --trial: it failed, and why.")
@click.option("--seed", type=int, help="Seed of a training that was not claimed; default 0.")
def tell(
    db: str, task: str, result: tuple[str, ...], trial_id: int | None, reason: str | None, seed: int | None
) -> None:
    """Record the result of a claim, or one that was trained elsewhere.

    \b
    aqx tell DB --task T --trial 17 val_acc=0.61
    aqx tell DB --task T --trial 18 --failed "out of memory"
    aqx tell DB --task T "relu(x)" val_acc=0.61
    """  # noqa: D301  (click wants the \b itself)
    names = [word for word in result if "=" not in word]
    metrics = dict(_metric(word) for word in result if "=" in word)
    if len(names) != (trial_id is None):
        raise click.UsageError("give a function's NAME, or --trial ID instead of one", click.get_current_context())
    if (reason is None) != bool(metrics) or (reason is not None and trial_id is None):
        raise click.UsageError("give METRIC=NUMBER, or --trial with --failed REASON", click.get_current_context())
    if trial_id is not None and seed is not None:
        raise click.UsageError("--seed belongs to a NAME; a trial has its own", click.get_current_context())
    study = _study(db, task)
    if trial_id is None:
        record = study.add(names[0], seed or 0, **metrics)
    elif reason is not None:
        record = study.fail(trial_id, reason)
    else:
        record = study.tell(trial_id, **metrics)
    click.echo(f"recorded {record.name} as trial {record.id}: {record.status}")


@main.command("trials")
@options.db
@options.task
@click.option(
    "--status", type=click.Choice(["queued", "running", "stale", "done", "pruned", "failed"]), help="Only these."
)
@options.as_json
def trials_(db: str, task: str, status: str | None, as_json: bool) -> None:
    """List the trials: what was trained where, for how long, and what came of it."""
    columns = _columns("id", "name", "purpose", "status", "objective", "seconds", "worker", "reason")
    show_rows(_study(db, task).records(status=status), columns, as_json)


@main.command()
@options.db
@options.task
@click.option("--trial", "trial_ids", type=click.IntRange(1), multiple=True, metavar="ID", help="This one; repeatable.")
def retry(db: str, task: str, trial_ids: tuple[int, ...]) -> None:
    """Queue functions to be trained once more; default those that failed or were lost. What is stored of them stays."""
    queued = _study(db, task).retry(*trial_ids)
    names = ", ".join(record.name for record in queued[:5]) + (", …" if len(queued) > 5 else "")
    click.echo(f"{len(queued)} queued; the next search or claim takes them first" + (f": {names}" if names else ""))


@main.command()
@options.db
@options.task
@click.option("--keep-done", is_flag=True, help="Keep the trials that have a result.")
@click.option("--yes", is_flag=True, help="Delete results too.")
def reset(db: str, task: str, keep_done: bool, yes: bool) -> None:
    """Delete a task's trials for good, but for those that are running. Functions and spectra stay."""
    study = _study(db, task)
    results = sum(record.status in ("done", "pruned") for record in study.records())
    if results and not keep_done and not yes:
        raise click.UsageError(
            f"this would delete {results:,} results; add --yes to do so, or --keep-done", click.get_current_context()
        )
    click.echo(f"{study.reset(keep_done=keep_done):,} trials deleted")


@main.command("import")
@options.db
@click.argument("file")
@options.task
@options.quiet
def import_(db: str, file: str, task: str, quiet: bool) -> None:
    """Record the results in a file: an AQuaSurF database, a table (.parquet, .csv) or an Act-Bench file (JSON)."""
    from aqx.benchmark import import_results

    study = _study(db, task)
    with progress_shown("import", quiet) as progress:
        report = import_results(study, file, progress)
    click.echo(
        f"{report.added:,} results added, {report.failed:,} of them failed; {report.known:,} were there already, "
        f"{report.untrained:,} functions are not trained yet"
    )
    if report.unreadable:
        names = ", ".join(repr(name[:60]) for name in report.unreadable[:3])
        click.echo(f"{len(report.unreadable):,} names left out that do not parse: {names}", err=True)


def _metric(text: str) -> tuple[str, float]:
    key, _, value = text.partition("=")
    with contextlib.suppress(ValueError):
        if key not in ("", "name", "seed"):  # the other arguments of Study.add
            return key, float(value)
    raise click.UsageError(f"{text!r} is not METRIC=NUMBER", click.get_current_context())


@main.group()
def task() -> None:
    """Work with tasks."""


@task.command()
@click.argument("reference", metavar="T")
@click.option("--train", is_flag=True, help="Also run its training once, with ReLU.")
def check(reference: str, train: bool) -> None:
    """Try everything that a task promises and report what was seen."""
    from aqx.tasks import check_task, load_task

    click.echo(str(check_task(load_task(reference), run_training=train)))


def _study(db: str, task: str, surrogate: str | None = None, seed: int = 0) -> Study:
    """Open the study of an existing database; only `enumerate` makes one."""
    from aqx.search import Study
    from aqx.store import Database
    from aqx.surrogate import DEFAULT

    return Study(Database(db), task, seed=seed, surrogate=surrogate or DEFAULT)


def _columns(*names: str) -> dict[str, Callable[[Any], Any]]:
    return {name: attrgetter(name) for name in names}
