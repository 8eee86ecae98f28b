"""What a database holds: per task, and per function."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from aqx.errors import InputError
from aqx.evaluation import class_id_of
from aqx.store import Database, functions, trial_rows
from aqx.store.spectra import count_spectra
from aqx.store.tasks import list_tasks
from aqx.tree import parse


@dataclass(frozen=True)
class Summary:
    """Where a task's search stands; without a task, what has been enumerated.

    Attributes:
        task: its name, or None in a database that has none yet.
        functions: enumerated functions.
        classes: classes of equal functions among them.
        usable: classes that are finite and not constant, hence candidates.
        spectra: classes with a valid spectrum for the task.
        invalid: classes on which the task's model breaks.
        done: finished trials, confirmations included.
        running: trials in training.
        failed: trials that failed, stale ones not counted.
        pruned: trials that were stopped early.
        stale: trials whose process has not been heard of within its lease.
        best: the best function of the search.
        objective: its result: the best of many noisy ones, hence optimistic.
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


def summarize(db: str | os.PathLike[str] | Database, task: str | None = None) -> list[Summary]:
    """Return a summary per task in the database, or of one task.

    Raises:
        InputError: the database has no task of this name.
    """
    db = db if isinstance(db, Database) else Database(db)
    counts = functions.count_functions(db)
    held = (counts["functions"], counts["classes"], counts["usable"])
    tasks = list_tasks(db)
    if task is not None and task not in [row.name for row in tasks]:
        raise InputError(f"task {task!r} is not in {db.path}; it has {', '.join(row.name for row in tasks) or 'none'}")
    rows = []
    for stored in tasks:
        if task in (None, stored.name):
            spectra, trials = count_spectra(db, stored.task_id), trial_rows.count_trials(db, stored.task_id)
            done = trial_rows.list_trials(db, stored.task_id, status="done")
            sign = 1 if stored.identity["direction"] == "maximize" else -1
            best = max(
                (row for row in done if row.purpose != "confirm"),
                key=lambda row: sign * (row.objective or 0),
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
                )
            )
    return rows or [Summary(None, *held)]


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
        results: (task, purpose, status, seed, objective) of every trial of the class.
    """

    name: str
    size: int
    shape: str
    class_id: str
    simplest: str | None = None
    equal: list[str] = field(default_factory=list)
    flags: dict[str, bool | None] = field(default_factory=dict)
    results: list[tuple[str, str, str, int, float | None]] = field(default_factory=list)


def describe(name: str, db: str | os.PathLike[str] | Database | None = None) -> FunctionReport:
    """Return what is known of a function, also from a database.

    Example:
        >>> from aqx.search import describe
        >>> describe("max(x, zero(x))").shape
        'binary(x,unary(x))'
    """
    tree = parse(name)
    known = FunctionReport(str(tree), tree.size, tree.shape, class_id_of(tree))
    if db is None:
        return known
    db = db if isinstance(db, Database) else Database(db)
    names, flags = functions.class_members(db, known.class_id, limit=21)
    results = [
        (task.name, row.purpose, row.status, row.seed, row.objective)
        for task in list_tasks(db)
        for row in trial_rows.list_trials(db, task.task_id)
        if row.class_id == known.class_id
    ]
    return FunctionReport(
        known.name,
        known.size,
        known.shape,
        known.class_id,
        names[0] if names else None,
        [other for other in names if other != known.name][:20],
        flags,
        results,
    )
