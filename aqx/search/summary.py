"""What a database holds: per task, and per function."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from aqx.costs import costs_by_name
from aqx.search.ledger import Ledger, Record, class_of, load_results
from aqx.store import Database, count_trials, functions
from aqx.store.kinds import RUNS
from aqx.store.moment import Moment
from aqx.store.spectra import count_spectra, find_spectrum, invalid_spectra
from aqx.store.tasks import get_task, list_tasks, spectra_form
from aqx.store.trial_rows import Purpose, Status
from aqx.tree import Tree, parse

# A training that has run so many times as long as those that ended is worth a look, though not in its first minute.
UNUSUAL, _UNUSUAL_SECONDS = 10, 60.0


@dataclass(frozen=True)
class LongTrial:
    """A trial that runs unusually long: it may hang.

    Attributes:
        trial_id: its number.
        name: the function.
        worker: who claimed it.
        seconds: since then.
        usual: seconds that trainings of the task took, the median.
    """

    trial_id: int
    name: str
    worker: str | None
    seconds: float | int
    usual: float | int


@dataclass(frozen=True)
class Summary:
    """Where a task's search stands; without a task, what has been enumerated.

    Attributes:
        task: its name, or None in a database that has none yet.
        functions: enumerated functions.
        classes: classes of equal functions among them.
        usable: classes that are finite and not constant, hence candidates.
        spectra: classes with a valid spectrum for the task.
        invalid: classes on which the task's model breaks, by their spectrum.
        done: finished trials, confirmations included.
        running: trials in training.
        failed: trials that failed, stale ones not counted.
        pruned: trials that were stopped early.
        stale: trials whose process has not been heard of within its lease.
        best: the best function of the search.
        objective: its result: the best of many noisy ones, hence optimistic.
        long: trials in training for more than a minute, and ten times as long as trainings usually take.
        runs: classes with valid short runs for the task.
        invalid_runs: classes on which the task's model breaks in the short runs.
    """

    task: str | None
    functions: int
    classes: int
    usable: int
    spectra: int = 0
    invalid: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0
    pruned: int = 0
    stale: int = 0
    best: str | None = None
    objective: float | None = None
    long: list[LongTrial] = field(default_factory=list)
    runs: int = 0
    invalid_runs: int = 0


def summarize(db: str | os.PathLike[str] | Database, task: str | None = None) -> list[Summary]:
    """Return a summary per task in the database, or of one task.

    Args:
        db: a database.
        task: the name of a task; None for all of them.

    Returns:
        one summary per task; one without a task where the database has none.

    Raises:
        InputError: the database has no task of this name.
    """
    db = db if isinstance(db, Database) else Database(db)
    with db.read():  # all of one moment
        counts = functions.count_functions(db)
        held = (counts["functions"], counts["classes"], counts["usable"])
        rows = []
        for stored in list_tasks(db) if task is None else [get_task(db, task)]:
            spectra, trials = count_spectra(db, stored.task_id), count_trials(db, stored.task_id)
            runs, results = count_spectra(db, stored.task_id, RUNS), load_results(db, stored.name)
            best = max(
                (trial for trial in results.searched if trial.status is Status.DONE),
                key=lambda trial: results.sign * (trial.objective or 0),
                default=None,
            )
            rows.append(
                Summary(
                    stored.name,
                    *held,
                    spectra["valid"],
                    spectra["invalid"],
                    trials["done"],
                    trials["running"],
                    trials["failed"],
                    trials["pruned"],
                    trials["stale"],
                    best.name if best else None,
                    best.objective if best else None,
                    _long_now(db, results.trials),
                    runs["valid"],
                    runs["invalid"],
                )
            )
        return rows or [Summary(None, *held)]


def _long_now(db: Database, trials: Sequence[Record]) -> list[LongTrial]:
    with db.read() as con:
        now = Moment(con)
        return unusually_long(trials, now.now, {trial.clock: now.time_on(trial.clock) for trial in trials})


def unusually_long(
    trials: Sequence[Record], now: datetime, on: Mapping[str | None, datetime] | None = None
) -> list[LongTrial]:
    """Return the trials that run for more than a minute, and ten times as long as the others took (their median).

    Args:
        trials: of one task.
        now: UTC without a zone.
        on: the same on clocks by which trials were claimed elsewhere.
    """
    took = [trial.seconds for trial in trials if trial.status.is_finished and trial.seconds is not None]
    if not took:
        return []
    from statistics import median  # takes as long as a transaction

    usual = median(took)
    running = [
        LongTrial(
            trial.trial_id,
            trial.name,
            trial.worker,
            ((on or {}).get(trial.clock, now) - trial.started_at).total_seconds(),
            usual,
        )
        for trial in trials
        if trial.status is Status.RUNNING
    ]
    return [trial for trial in running if trial.seconds > max(_UNUSUAL_SECONDS, UNUSUAL * usual)]


@dataclass(frozen=True)
class Score:
    """How a function did on a task.

    Attributes:
        task: its name.
        objective: the metric that the search goes by.
        searched: mean of its results in the search; None without one.
        trials: how many these are.
        rank: its place among the functions that have a result, by that mean, from 1.
        ranked: how many functions have one.
        confirmed: means over the fresh seeds of `confirm`: of the objective, and of the metric that is reported.
        seeds: how many seeds gave a result.
        failed: trials that failed, confirmations included.
        broken: why its Fisher spectrum or its short runs are invalid: the task's model breaks with it.
        has_spectrum: whether its Fisher spectrum is known.
        short_runs: by learning rate, the loss in the first steps of its short run, and after the last.
    """

    task: str
    objective: str
    searched: float | None = None
    trials: int = 0
    rank: int | None = None
    ranked: int = 0
    confirmed: dict[str, float] = field(default_factory=dict)
    seeds: int = 0
    failed: int = 0
    broken: str | None = None
    has_spectrum: bool = False
    short_runs: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class FunctionReport:
    """What is known of a function.

    Attributes:
        name: as aqx writes it.
        size: number of operators.
        shape: the schema it belongs to.
        class_id: its class of equal functions.
        simplest: the class's simplest name in the database, or None if it holds none.
        equal: other names of the class in the database (the first 20, simplest first).
        flags: what is known of the class's values.
        scores: per task of the database what came of it.
        results: (task, purpose, status, seed, objective) of every trial of the class.
        costs: what value and gradient cost relative to relu's, by the device that this was measured on.
        precision: whether 16-bit floats fail it on [-30, 30], see `aqx.evaluation.precision`.
    """

    name: str
    size: int
    shape: str
    class_id: str
    simplest: str | None = None
    equal: list[str] = field(default_factory=list)
    flags: dict[str, bool | None] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    results: list[tuple[str, str, str, int, float | None]] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    precision: dict[str, bool] = field(default_factory=dict)


def describe(name: str, db: str | os.PathLike[str] | Database | None = None) -> FunctionReport:
    """Return what is known of a function, also from a database.

    Args:
        name: the function.
        db: a database, whose classes and trials are looked at.

    Returns:
        what its name says, the flags of its values, and from the database equal functions, scores and trials.

    Raises:
        ParseError: the name does not parse.
        StoreError: the database cannot be read.

    Example:
        >>> from aqx.search import describe
        >>> describe("max(x, zero(x))").shape
        'binary(x,unary(x))'
    """
    tree = parse(name)
    if db is None:
        from aqx.evaluation import class_id_of

        known = FunctionReport(str(tree), tree.size, tree.shape, class_id_of(tree))
        return replace(known, flags=_flags(tree), precision=_precision(tree))
    db = db if isinstance(db, Database) else Database(db)
    known = FunctionReport(str(tree), tree.size, tree.shape, class_of(db, str(tree)))
    names, flags = functions.class_members(db, known.class_id, limit=21)
    all_results = [load_results(db, task.name) for task in list_tasks(db)]
    return replace(
        known,
        simplest=names[0] if names else None,
        equal=[other for other in names if other != known.name][:20],
        flags=flags or _flags(tree),
        scores=[_score(results, known.class_id) for results in all_results],
        results=[
            (results.task.name, trial.purpose, trial.status, trial.seed, trial.objective)
            for results in all_results
            for trial in results.trials
            if trial.class_id == known.class_id
        ],
        costs=costs_by_name(db, [known.name])[known.name],
        precision=_precision(tree),
    )


def _precision(tree: Tree) -> dict[str, bool]:
    from aqx.evaluation import Batch, precision

    return {flag: bool(found[0]) for flag, found in precision(Batch.of_trees([tree])).flags().items()}


def _flags(tree: Tree) -> dict[str, bool | None]:
    """The flags of a function that is not enumerated, at the points that a new database would have."""
    import numpy as np

    from aqx.enumeration import sample_points
    from aqx.evaluation import Batch, evaluate, fingerprints, finite_at
    from aqx.plane import points_for

    batch = Batch.of_trees([tree])
    prints, found = fingerprints(batch), finite_at(batch)
    values = evaluate(batch, points_for(tree.inputs, sample_points(256, "stratified")))
    flags = {
        "finite": np.isfinite(values).all(),
        "finite_at_0": found.zero[0],
        "finite_at_20": found.twenty[0],
        "finite_gradient_at_0": found.gradient_at_0[0],
        "constant": prints.constant[0],
        "affine": prints.affine[0],
    }
    return {flag: bool(flags[flag]) for flag in functions.FLAGS}


def _score(results: Ledger, class_id: str) -> Score:
    from aqx.search.verdict import reported_metric  # brings NumPy

    own = [trial for trial in results.trials if trial.class_id == class_id]
    fresh = [trial for trial in own if trial.purpose is Purpose.CONFIRM and trial.status is Status.DONE]
    reported = reported_metric(results.trials, results.objective)
    ranking, task_id = results.ranking, results.task_id
    broken = invalid_spectra(results.db, task_id, RUNS) | invalid_spectra(results.db, task_id)
    place = next((i for i, ranked in enumerate(ranking) if ranked.class_id == class_id), None)
    return Score(
        results.task.name,
        results.objective,
        searched=None if place is None else ranking[place].objective,
        trials=0 if place is None else ranking[place].trials,
        rank=None if place is None else place + 1,
        ranked=len(ranking),
        confirmed={
            metric: math.fsum(float(trial.metrics.get(metric, math.nan)) for trial in fresh) / len(fresh)
            for metric in dict.fromkeys((results.objective, reported))
            if fresh
        },
        seeds=len(fresh),
        failed=sum(trial.status is Status.FAILED for trial in own),
        broken=broken.get(class_id),
        has_spectrum=find_spectrum(results.db, task_id, class_id) is not None,
        short_runs=_short_runs(results.db, task_id, class_id),
    )


def _short_runs(db: Database, task_id: int, class_id: str) -> dict[str, list[float]]:
    losses, form = find_spectrum(db, task_id, class_id, RUNS), spectra_form(db, task_id, RUNS)
    if losses is None or form is None:
        return {}
    rates = form["runs"]["rates"]
    size = len(losses) // len(rates)
    of_rates = (losses[i * size : (i + 1) * size] for i in range(len(rates)))
    end = len(form["runs"]["kept"]) - 1
    return {f"{rate:g}": [run[0], run[end]] for rate, run in zip(rates, of_rates, strict=True)}
