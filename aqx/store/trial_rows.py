"""Trials inside a transaction: one row per training, with the state its lease gives it."""

from __future__ import annotations

import functools
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from aqx.errors import InputError, StoreError
from aqx.metrics import clean_text, decode_metrics
from aqx.store.driver import duckdb
from aqx.store.moment import Moment


class _Word(StrEnum):
    """A word of the database; it prints as the text that is stored."""

    def __repr__(self) -> str:
        return repr(self.value)


class Status(_Word):
    """Where a trial stands."""

    QUEUED = "queued"  # given back or asked for again, waiting for a worker
    RUNNING = "running"
    STALE = "stale"  # running, but past its lease
    DONE = "done"
    PRUNED = "pruned"  # stopped early
    FAILED = "failed"

    @property
    def is_finished(self) -> bool:
        """Whether something came of it: a result, an early stop or a failure."""
        return self in (Status.DONE, Status.PRUNED, Status.FAILED)


class Purpose(_Word):
    """What a trial is for."""

    SEARCH = "search"
    BASELINE = "baseline"
    CONFIRM = "confirm"
    COMPARE = "compare"  # whether constants that are learnt are better than those that are kept
    ADDED = "added"  # trained elsewhere

    @property
    def is_searched(self) -> bool:
        """Whether the search learns from it; confirmations and comparisons stay apart."""
        return self is not Purpose.CONFIRM and self is not Purpose.COMPARE


_STATUS, _PURPOSE = {status.value: status for status in Status}, {purpose.value: purpose for purpose in Purpose}

# A claim past its lease reads as stale; nothing is written for that.
_COLUMNS = """
    trial_id, task_id, class_id::VARCHAR, name, seed, purpose, status, objective, reason, worker, started_at,
    heartbeat_at, expires_at, finished_at, retry_of, study_id, seconds, metrics::VARCHAR,
    coalesce(environment, '{}')::VARCHAR, clock, process, token
"""
# Processes wait for each other while this is read.
_BRIEF = """
    SELECT trial_id, class_id::VARCHAR, name, seed, purpose, status, objective, retry_of,
        if(status = 'running', expires_at, NULL), if(status = 'running', clock, NULL)
    FROM trials
"""


class Brief(NamedTuple):
    """What a choice of the next training goes by; see `TrialRow`."""

    trial_id: int
    class_id: str | None
    name: str
    seed: int
    purpose: Purpose
    status: Status
    objective: float | None
    retry_of: int | None


@dataclass(frozen=True)
class TrialRow:
    """A stored trial.

    Attributes:
        trial_id: from 1, consecutive in the database.
        task_id: whose trial it is.
        class_id: the function's class as text; None for a function that was never enumerated.
        name: the function.
        seed: of the training.
        purpose: what it is for; see `Purpose`.
        status: where it stands; see `Status`.
        objective: of a trial that is done; of a pruned one, the last value that was seen.
        reason: why it failed, or was lost.
        worker: who claimed it.
        started_at: UTC, as all times.
        heartbeat_at: when the worker was last heard of, by the clock of its machine; see `aqx.store.moment`.
        expires_at: when the claim lapses, by the same clock.
        finished_at: when the result or the failure came.
        retry_of: the trial that it was asked to repeat.
        study_id: the study that claimed it; None for a result of elsewhere, and in databases of before.
        seconds: how long the training took; None where nobody measured.
        metrics: everything reported; arrays are lists.
        environment: where and with what it was trained: versions, device, host, state of the code.
        clock: the name of that clock; None in databases of before.
        process: the process that holds the claim while it lives; None for a claim without one.
        token: what a result should bring, so that it cannot land on another trial of this number in a copy of the
            database; None in databases of before.
    """

    trial_id: int
    task_id: int
    class_id: str | None
    name: str
    seed: int
    purpose: Purpose
    status: Status
    objective: float | None
    reason: str | None
    worker: str | None
    started_at: datetime
    heartbeat_at: datetime | None
    expires_at: datetime | None
    finished_at: datetime | None
    retry_of: int | None = None
    study_id: int | None = None
    seconds: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    clock: str | None = field(default=None, compare=False, repr=False)
    process: str | None = field(default=None, compare=False, repr=False)
    token: str | None = field(default=None, compare=False, repr=False)


_NAMES = tuple(column.name for column in fields(TrialRow))
AnyTrial = TypeVar("AnyTrial", bound=TrialRow | Brief)


def select(con: duckdb.DuckDBPyConnection, condition: str, now: Moment | None, **parameters: Any) -> list[TrialRow]:
    """The trials that meet a condition in SQL, in the order of their ids, inside the caller's transaction.

    Without a moment, those that are stale are said to be running.
    """
    rows = con.execute(f"SELECT {_COLUMNS} FROM trials WHERE {condition} ORDER BY trial_id", parameters).fetchall()
    return [_trial(row, now) for row in rows]


def select_brief(con: duckdb.DuckDBPyConnection, condition: str, now: Moment, **parameters: Any) -> list[Brief]:
    """As `select`, in brief."""
    rows = sorted(con.execute(f"{_BRIEF} WHERE {condition}", parameters).fetchall())
    return [
        Brief(id_, class_id, name, seed, _PURPOSE[purpose], _state(status, expires_at, by, now), objective, retry_of)
        for id_, class_id, name, seed, purpose, status, objective, retry_of, expires_at, by in rows
    ]


def count_states(con: duckdb.DuckDBPyConnection, condition: str, now: Moment, **parameters: Any) -> Counter[str]:
    """How many of the trials that meet a condition have each status, inside the caller's transaction."""
    counts: Counter[str] = Counter()
    for status, expires_at, by, number in con.execute(
        "SELECT status, if(status = 'running', expires_at, NULL), if(status = 'running', clock, NULL), count(*) "
        f"FROM trials WHERE {condition} GROUP BY ALL",
        parameters,
    ).fetchall():
        counts[str(_state(status, expires_at, by, now))] += number
    return counts


def _state(status: str, expires_at: datetime | None, by: str | None, now: Moment | None) -> Status:
    is_stale = now is not None and status == Status.RUNNING and now.has_lapsed(expires_at, by)
    return Status.STALE if is_stale else _STATUS[status]


def change_one(con: duckdb.DuckDBPyConnection, statement: str, **parameters: Any) -> TrialRow | None:
    """Run an INSERT or UPDATE of at most one trial, inside the caller's transaction; return it as it is stored then."""
    rows = con.execute(f"{statement} RETURNING {_COLUMNS}", parameters).fetchall()
    return _trial(rows[0], None) if rows else None


def _trial(row: tuple[Any, ...], now: Moment | None) -> TrialRow:
    columns: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    columns["status"] = _state(columns["status"], columns["expires_at"], columns["clock"], now)
    columns["purpose"] = _PURPOSE[columns["purpose"]]
    columns["metrics"] = decode_metrics(columns["metrics"])
    columns["environment"] = dict(_decoded(columns["environment"]))
    return TrialRow(**columns)


@functools.lru_cache(maxsize=64)
def _decoded(environment: str) -> dict[str, str]:
    return json.loads(environment)


def select_one(con: duckdb.DuckDBPyConnection, trial_id: int, now: Moment | None) -> TrialRow:
    """The trial of an id, inside the caller's transaction; see `select`.

    Raises:
        InputError: there is none.
    """
    trials = select(con, "trial_id = $trial", now, trial=trial_id)
    if not trials:
        raise InputError(f"trial_id {trial_id} is not in this database; `aqx summary` counts what is")
    return trials[0]


def training_of(trial: TrialRow | Brief) -> tuple[str | None, ...]:
    """What a trial stands for when it is claimed, among those of its task.

    Trials that search, give a baseline or were added stand for their class; those that confirm, for class and seed. A
    function without a class stands for its name, and so does, with its seed, one of a comparison: functions of one
    class may differ in the constants that they learn.
    """
    name = trial.name if trial.class_id is None or trial.purpose is Purpose.COMPARE else None
    return trial.class_id, name, None if trial.purpose.is_searched else str(trial.seed)


def by_training(trials: Iterable[AnyTrial]) -> list[list[AnyTrial]]:
    """Group a task's trials by the training that they stand for, in the order of their first ids."""
    groups: dict[tuple[str | None, ...], list[AnyTrial]] = {}
    for trial in trials:
        groups.setdefault(training_of(trial), []).append(trial)
    return list(groups.values())


def select_same(con: duckdb.DuckDBPyConnection, trial: TrialRow, now: Moment) -> list[Brief]:
    """The trials that stand for the same training as `trial`, itself included."""
    condition = "task_id = $task AND class_id IS NOT DISTINCT FROM $class_id::UUID"
    return of_same(select_brief(con, condition, now, task=trial.task_id, class_id=trial.class_id), trial)


def of_same(known: Iterable[Brief], trial: TrialRow) -> list[Brief]:
    """Those of a task's trials that stand for the same training as `trial`."""
    training = training_of(trial)
    return [other for other in known if other.class_id == trial.class_id and training_of(other) == training]


def since_retry(same: Sequence[AnyTrial]) -> list[AnyTrial]:
    """Of the trials that stand for the same training, those that count: what came before a retry was asked does not."""
    asked = max((trial.retry_of or 0 for trial in same), default=0)
    return [trial for trial in same if trial.trial_id > asked]


def new_trial(
    trial_id: int, task_id: int, class_id: str | None, name: str, seed: int, purpose: str, now: Moment
) -> TrialRow:
    """A trial that starts running now.

    Raises:
        InputError: a purpose, a seed or a name that cannot be stored.
    """
    if purpose not in _PURPOSE:
        raise InputError(f"purpose must be one of {', '.join(Purpose)}, but got {purpose!r}")
    return TrialRow(
        trial_id=trial_id,
        task_id=task_id,
        class_id=class_id,
        name=checked_name(name),
        seed=checked_seed(seed),
        purpose=_PURPOSE[purpose],
        status=Status.RUNNING,
        objective=None,
        reason=None,
        worker=None,
        started_at=now.now,
        heartbeat_at=now.now,
        expires_at=now.now,
        finished_at=None,
        clock=now.clock,
        token=uuid.uuid4().hex[:8],
    )


def checked_seed(seed: int) -> int:
    """The seed; InputError where it does not fit into a column."""
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"seed must fit into 64 bits, but got {seed}")
    return seed


def checked_name(name: str) -> str:
    """The name; InputError where it is not valid text."""
    if clean_text(name) != name:
        raise InputError(f"name must be valid Unicode text, but got {name[:60]!r}")
    return name


def check_task_is_there(con: duckdb.DuckDBPyConnection, task_id: int) -> None:
    """Refuse to store trials of a task that somebody has removed meanwhile.

    Raises:
        StoreError: it is not in the database.
    """
    if not con.execute("SELECT 1 FROM tasks WHERE task_id = ?", [task_id]).fetchall():
        raise StoreError(f"task number {task_id} has been removed from the database; open the study again")


def next_id(con: duckdb.DuckDBPyConnection) -> int:
    """The number of the next trial."""
    # A trial that was removed may still be told about: its number must not be another's.
    ((last, removed),) = con.execute(
        "SELECT max(trial_id), (SELECT value FROM meta WHERE key = 'last_trial_id') FROM trials"
    ).fetchall()
    return max(last or 0, int(removed or 0)) + 1


_INSERTED = (
    "trial_id",
    "task_id",
    "class_id",
    "name",
    "seed",
    "purpose",
    "status",
    "worker",
    "started_at",
    "heartbeat_at",
    "expires_at",
    "retry_of",
    "study_id",
    "clock",
    "process",
    "token",
)
_INSERT = f"""
    INSERT INTO trials ({", ".join(_INSERTED)}, metrics)
    VALUES ({", ".join(f"${column}" for column in _INSERTED)}, '{{}}')
"""


def insert(con: duckdb.DuckDBPyConnection, trial: TrialRow) -> None:
    """Store a new trial, inside the caller's transaction."""
    con.execute(_INSERT, {column: getattr(trial, column) for column in _INSERTED})


def unfinished(con: duckdb.DuckDBPyConnection, trial_id: int) -> TrialRow:
    """The trial of an id, which may still be given a result, inside the caller's transaction.

    Raises:
        InputError: there is none, or it has a result already.
    """
    trial = select_one(con, trial_id, None)
    check_unfinished(trial)
    return trial


def check_unfinished(trial: TrialRow) -> None:
    """Refuse a trial that has a result already."""
    if trial.status.is_finished:
        outcome = f"({trial.reason})" if trial.status is Status.FAILED else f"with objective {trial.objective}"
        raise InputError(
            f"trial {trial.trial_id} ({trial.name[:60]}) is {trial.status} already {outcome}, and a result is never "
            "overwritten; record another one as a result trained elsewhere"
        )
