"""Trials inside a transaction: one row per training, with the state its lease gives it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import duckdb

from aqx.errors import InputError
from aqx.metrics import clean_text, decode_metrics


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
    ADDED = "added"  # trained elsewhere

    @property
    def is_searched(self) -> bool:
        """Whether the search learns from it; confirmations stay apart."""
        return self is not Purpose.CONFIRM


_STATUS, _PURPOSE = {status.value: status for status in Status}, {purpose.value: purpose for purpose in Purpose}

# A claim past its lease reads as stale; nothing is written for that, so clocks that disagree can do no lasting harm.
_COLUMNS = """
    trial_id, task_id, class_id::VARCHAR, name, seed, purpose, status, objective, reason, worker, started_at,
    heartbeat_at, expires_at, finished_at, retry_of, study_id, seconds, metrics::VARCHAR,
    coalesce(environment, '{}')::VARCHAR
"""
STATE = "if(status = 'running' AND expires_at < $now, 'stale', status)"
# Processes wait for each other while this is read.
_BRIEF = f"SELECT trial_id, class_id::VARCHAR, name, seed, purpose, {STATE}, objective, retry_of FROM trials"


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
        heartbeat_at: when the worker was last heard of.
        expires_at: when the claim lapses.
        finished_at: when the result or the failure came.
        retry_of: the trial that it was asked to repeat.
        study_id: the study that claimed it; None for a result of elsewhere, and in databases of before.
        seconds: how long the training took; None where nobody measured.
        metrics: everything reported; arrays are lists.
        environment: where and with what it was trained: versions, device, host, state of the code.
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


_NAMES = tuple(column.name for column in fields(TrialRow))
AnyTrial = TypeVar("AnyTrial", bound=TrialRow | Brief)


def select(con: duckdb.DuckDBPyConnection, condition: str, now: datetime, **parameters: Any) -> list[TrialRow]:
    """The trials that meet a condition in SQL, in the order of their ids, inside the caller's transaction."""
    rows = con.execute(f"SELECT {_COLUMNS} FROM trials WHERE {condition} ORDER BY trial_id", parameters).fetchall()
    return [_trial(row, now) for row in rows]


def select_brief(con: duckdb.DuckDBPyConnection, condition: str, now: datetime, **parameters: Any) -> list[Brief]:
    """As `select`, in brief."""
    rows = sorted(con.execute(f"{_BRIEF} WHERE {condition}", {"now": now, **parameters}).fetchall())
    return [
        Brief(id_, class_id, name, seed, _PURPOSE[purpose], _STATUS[status], *rest)
        for id_, class_id, name, seed, purpose, status, *rest in rows
    ]


def change_one(con: duckdb.DuckDBPyConnection, statement: str, now: datetime, **parameters: Any) -> TrialRow | None:
    """Run an INSERT or UPDATE of at most one trial, inside the caller's transaction; return it as it is then."""
    rows = con.execute(f"{statement} RETURNING {_COLUMNS}", parameters).fetchall()
    return _trial(rows[0], now) if rows else None


def _trial(row: tuple[Any, ...], now: datetime) -> TrialRow:
    columns: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    # As STATE says; RETURNING takes no parameter.
    if columns["status"] == Status.RUNNING and columns["expires_at"] is not None and columns["expires_at"] < now:
        columns["status"] = Status.STALE
    columns["status"], columns["purpose"] = _STATUS[columns["status"]], _PURPOSE[columns["purpose"]]
    columns["metrics"] = decode_metrics(columns["metrics"])
    columns["environment"] = dict(_decoded(columns["environment"]))
    return TrialRow(**columns)


@functools.lru_cache(maxsize=64)
def _decoded(environment: str) -> dict[str, str]:
    return json.loads(environment)


def select_one(con: duckdb.DuckDBPyConnection, trial_id: int, now: datetime) -> TrialRow:
    """The trial of an id, inside the caller's transaction.

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
    function without a class stands for its name.
    """
    name = trial.name if trial.class_id is None else None
    return trial.class_id, name, None if trial.purpose.is_searched else str(trial.seed)


def by_training(trials: Iterable[AnyTrial]) -> list[list[AnyTrial]]:
    """Group a task's trials by the training that they stand for, in the order of their first ids."""
    groups: dict[tuple[str | None, ...], list[AnyTrial]] = {}
    for trial in trials:
        groups.setdefault(training_of(trial), []).append(trial)
    return list(groups.values())


def select_same(con: duckdb.DuckDBPyConnection, trial: TrialRow, now: datetime) -> list[Brief]:
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
    trial_id: int, task_id: int, class_id: str | None, name: str, seed: int, purpose: str, now: datetime
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
        started_at=now,
        heartbeat_at=now,
        expires_at=now,
        finished_at=None,
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
)
_INSERT = f"""
    INSERT INTO trials ({", ".join(_INSERTED)}, metrics)
    VALUES ({", ".join(f"${column}" for column in _INSERTED)}, '{{}}')
"""


def insert(con: duckdb.DuckDBPyConnection, trial: TrialRow) -> None:
    """Store a new trial, inside the caller's transaction."""
    con.execute(_INSERT, {column: getattr(trial, column) for column in _INSERTED})


def unfinished(con: duckdb.DuckDBPyConnection, trial_id: int, now: datetime) -> TrialRow:
    """The trial of an id, which may still be given a result, inside the caller's transaction.

    Raises:
        InputError: there is none, or it has a result already.
    """
    trial = select_one(con, trial_id, now)
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
