"""Trials as they are written: claims with a lease, results and failures, each in one transaction."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from aqx.errors import InputError
from aqx.store import clock
from aqx.store.connection import Database
from aqx.store.encoding import clean_text, encode_metrics, insert_rows
from aqx.store.trial_rows import (
    ENDED,
    PURPOSES,
    Brief,
    TrialRow,
    change_one,
    of_same,
    select,
    select_brief,
    select_one,
    select_same,
    since_retry,
)


class Wanted(NamedTuple):
    """A function that somebody would train.

    Attributes:
        class_id: the function's class; None if it was never enumerated: then the name decides.
        name: the function; None for the simplest one of its class in the database.
        purpose: one of `PURPOSES`.
    """

    class_id: str | None
    name: str | None
    purpose: str


def claim(
    db: Database,
    task_id: int,
    *,
    class_id: str | None,
    name: str,
    seed: int | Callable[[int], int],
    lease_seconds: float | int,
    purpose: str = "search",
    worker: str | None = None,
    retry_failed: bool = False,
) -> TrialRow | None:
    """Take a function for training, or return None where it is taken already; see `claim_first`."""
    wanted = [Wanted(class_id, name, purpose)]
    return claim_first(
        db, task_id, wanted, seed=seed, lease_seconds=lease_seconds, worker=worker, retry_failed=retry_failed
    )


def claim_first(
    db: Database,
    task_id: int,
    wanted: Iterable[Wanted] | Callable[[list[Brief]], Iterable[Wanted]],
    *,
    seed: int | Callable[[int], int],
    lease_seconds: float | int,
    worker: str | None = None,
    retry_failed: bool = False,
) -> TrialRow | None:
    """Take the first of some functions that is not taken for training, or return None where all are.

    A function is taken when a trial of its class is running within its lease, done, pruned, or failed. Trials to
    confirm count apart from the others, and each seed by itself. A stale claim holds nothing back; a queued trial is
    taken over with its id and seed. Where a trial was queued by `retry`, only what came after the trial that it repeats
    counts.

    Args:
        db: the database.
        task_id: from `register_task`.
        wanted: the functions, the most wanted first; or what chooses them from the task's trials, inside the
            transaction, while other processes wait.
        seed: of the training, or a function that makes it from the trial's id.
        lease_seconds: how long the claim lasts without a heartbeat.
        worker: who claims, for people to read.
        retry_failed: claim also what has failed.

    Raises:
        InputError: an unknown purpose, a seed outside 64 bits, or a name that is not valid text.
    """
    now = clock.now()
    with db.transaction() as con:
        next_id = _next_id(con)
        chosen = seed if isinstance(seed, int) else seed(next_id)
        known: list[Brief] | None = None
        if callable(wanted):
            known = select_brief(con, "task_id = $task", now, task=task_id)
            wanted = wanted(known)
        for class_id, name, purpose in wanted:
            if name is None:
                ((name,),) = con.execute("SELECT name FROM class_info WHERE class_id = ?", [class_id]).fetchall()
            new = _new_trial(next_id, task_id, class_id, name, chosen, purpose, now)
            same = select_same(con, new, now) if known is None else of_same(known, new)
            trial_id = _claimable(same, new, retry_failed)
            if trial_id is None:
                continue
            lease = now + timedelta(seconds=lease_seconds)
            new = replace(new, worker=worker and clean_text(worker), heartbeat_at=now, expires_at=lease)
            if trial_id == next_id:
                return _insert(con, new, now)
            return change_one(
                con,
                """
                UPDATE trials
                SET status = 'running', purpose = $purpose, worker = $worker,
                    started_at = $started_at, heartbeat_at = $started_at, expires_at = $expires_at
                WHERE trial_id = $trial
                """,
                now,
                purpose=purpose,
                worker=new.worker,
                started_at=now,
                expires_at=lease,
                trial=trial_id,
            )
    return None


def _claimable(same: list[Brief], new: TrialRow, retry_failed: bool) -> int | None:
    """The number under which a function can be claimed, a queued trial's or the new one; None if it is taken."""
    running = any(trial.status == "running" for trial in same)
    ended = {trial.status for trial in since_retry(same)} & set(ENDED)
    if running or ended - ({"failed"} if retry_failed else set()):
        return None
    queued = [trial.trial_id for trial in same if trial.status == "queued"]
    return queued[-1] if queued else new.trial_id


def heartbeat(db: Database, trial_id: int, lease_seconds: float | int) -> bool:
    """Extend a claim's lease from now on.

    Returns:
        Whether the claim still stands: False once the trial is finished or given back, or a later trial has taken the
        same function after this one went stale. A result is accepted all the same, if the trial has none.
    """
    now = clock.now()
    with db.transaction() as con:
        trial = select_one(con, trial_id, now)
        later = [other for other in select_same(con, trial, now) if other.trial_id > trial_id]
        if trial.status != "running" and (trial.status != "stale" or {other.status for other in later} - {"stale"}):
            return False
        con.execute(
            "UPDATE trials SET heartbeat_at = ?, expires_at = ? WHERE trial_id = ?",
            [now, now + timedelta(seconds=lease_seconds), trial_id],
        )
        return True


def report(db: Database, trial_id: int, metrics: Mapping[str, Any]) -> None:
    """Add metrics to a trial that has no result yet; a key reported again is replaced.

    Raises:
        InputError: no such trial, or it is finished, or a metric cannot be stored.
    """
    encode_metrics(metrics)
    with db.transaction() as con:
        trial = _unfinished(con, trial_id, clock.now())
        merged = encode_metrics({**trial.metrics, **metrics})
        con.execute("UPDATE trials SET metrics = ? WHERE trial_id = ?", [merged, trial_id])


def finish(
    db: Database,
    trial_id: int,
    objective: float | int,
    metrics: Mapping[str, Any],
    *,
    seconds: float | int | None = None,
    environment: Mapping[str, str] | None = None,
) -> TrialRow:
    """Store the result of a trial, also of one whose claim has lapsed or was given back.

    An objective that is nan or infinite makes the trial a failed one, so that it never wins.

    Args:
        db: the database.
        trial_id: from `claim`.
        objective: the number that the search optimises.
        metrics: added to what was reported before.
        seconds: how long the training took.
        environment: where and with what it ran.

    Returns:
        The finished trial.

    Raises:
        InputError: no such trial, or it has a result already (which stays), or a metric cannot be stored.
    """
    reason = _verdict(objective)
    end = _End("failed" if reason else "done", float(objective), reason, seconds, environment)
    return _close(db, trial_id, metrics, end)


def prune(
    db: Database,
    trial_id: int,
    objective: float | int | None,
    metrics: Mapping[str, Any],
    *,
    seconds: float | int | None = None,
    environment: Mapping[str, str] | None = None,
) -> TrialRow:
    """Store that a training was stopped early, with the last value of its objective; see `finish`.

    A value that is missing or not finite makes the trial a failed one.
    """
    reason = "stopped before the objective was seen" if objective is None else _verdict(objective)
    end = _End("failed" if reason else "pruned", objective, reason, seconds, environment)
    return _close(db, trial_id, metrics, end)


def fail(
    db: Database,
    trial_id: int,
    reason: str,
    metrics: Mapping[str, Any] | None = None,
    *,
    seconds: float | int | None = None,
    environment: Mapping[str, str] | None = None,
) -> TrialRow:
    """Store that a trial failed, and why; see `finish`.

    Raises:
        InputError: no such trial, or it has a result already (which stays), or a metric cannot be stored.
    """
    return _close(db, trial_id, metrics or {}, _End("failed", None, reason or "no reason given", seconds, environment))


def lose(db: Database, trial_id: int, reason: str) -> TrialRow:
    """Note that the process of a running trial is known to be gone: the trial is stale at once.

    A result that comes after all is accepted. A trial that is not running stays as it is.
    """
    now = clock.now()
    with db.transaction() as con:
        if select_one(con, trial_id, now).status == "running":
            con.execute(
                "UPDATE trials SET expires_at = ?, reason = ? WHERE trial_id = ?",
                [now - timedelta(microseconds=1), clean_text(reason), trial_id],
            )
        return select_one(con, trial_id, now)


def release(db: Database, trial_id: int) -> bool:
    """Give a claim back: the trial is queued, and the next claim of its function takes it over.

    The row and its id stay, so that a result which comes after all finds its place.

    Returns:
        Whether there was a claim to give back; False for a finished or queued trial, which stays as it is.
    """
    with db.transaction() as con:
        if select_one(con, trial_id, clock.now()).status not in ("running", "stale"):
            return False
        con.execute(
            "UPDATE trials SET status = 'queued', worker = NULL, expires_at = NULL WHERE trial_id = ?",
            [trial_id],
        )
        return True


def retry(
    db: Database, task_id: int, trial_ids: Iterable[int], seed: Callable[[int], int] | None = None
) -> list[TrialRow]:
    """Queue functions to be trained once more; the trials that they were trained in stay as they are.

    Args:
        db: the database.
        task_id: whose trials they are.
        trial_ids: trials that ended or went stale; where several stand for the same training, one is queued.
        seed: makes the new training's seed from the new trial's id; without it, and for a confirmation, the old stays.

    Returns:
        The new trials, queued.

    Raises:
        InputError: there is no such trial of this task, or it is queued or running; then none is queued.
    """
    now = clock.now()
    queued: dict[int, TrialRow] = {}
    with db.transaction() as con:
        for repeated in sorted(set(trial_ids)):
            old = select_one(con, repeated, now)
            if old.task_id != task_id:
                raise InputError(f"trial_id {repeated} belongs to another task; name that task")
            same = select_same(con, old, now)
            if waiting := [trial for trial in same if trial.status in ("queued", "running")]:
                if any(trial.trial_id in queued for trial in waiting):
                    continue
                state = f"as trial {waiting[-1].trial_id}" if waiting[-1].trial_id != repeated else "itself"
                raise InputError(
                    f"trial {repeated} ({old.name[:60]}) is {waiting[-1].status} {state}; let it end first"
                )
            trial_id = _next_id(con)
            again = _new_trial(trial_id, task_id, old.class_id, old.name, old.seed, old.purpose, now)
            newest = max(trial.trial_id for trial in same)
            again = replace(again, status="queued", retry_of=newest, heartbeat_at=None, expires_at=None)
            if old.purpose == "added":
                again = replace(again, purpose="search")
            if seed is not None and old.purpose != "confirm":
                again = replace(again, seed=_checked_seed(seed(trial_id)))
            queued[trial_id] = _insert(con, again, now)
    return list(queued.values())


def remove(db: Database, task_id: int, statuses: Collection[str]) -> int:
    """Delete the trials of a task that have these statuses, for good; their ids are never used again.

    Returns:
        How many were deleted.
    """
    now = clock.now()
    with db.transaction() as con:
        doomed = [
            trial.trial_id for trial in select(con, "task_id = $task", now, task=task_id) if trial.status in statuses
        ]
        con.execute("INSERT OR REPLACE INTO meta VALUES ('last_trial_id', ?)", [str(_next_id(con) - 1)])
        con.execute("DELETE FROM trials WHERE list_contains(?, trial_id)", [doomed])
    return len(doomed)


def add_result(
    db: Database,
    task_id: int,
    *,
    class_id: str | None,
    name: str,
    seed: int,
    objective: float | int,
    metrics: Mapping[str, Any],
) -> TrialRow:
    """Record a result that was trained elsewhere; whatever is stored of the function stays beside it.

    Raises:
        InputError: a name, seed or metric that cannot be stored.
    """
    now = clock.now()
    encoded = encode_metrics(metrics)
    with db.transaction() as con:
        trial_id = _next_id(con)
        new = _new_trial(trial_id, task_id, class_id, name, seed, "added", now)
        _insert(con, replace(new, heartbeat_at=None, expires_at=None), now)
        reason = _verdict(objective)
        end = _End("failed" if reason else "done", float(objective), reason)
        added = _store_end(con, trial_id, encoded, end, now)
        assert added is not None
        return added


def add_results(
    db: Database,
    task_id: int,
    *,
    class_ids: Sequence[str | None],
    names: Sequence[str],
    seeds: Sequence[int],
    objectives: Sequence[float | None],
    metrics: Sequence[Mapping[str, Any]],
    reasons: Sequence[str | None],
    worker: str | None = None,
) -> tuple[int, int]:
    """Record many results that were trained elsewhere, in one transaction, without those recorded before.

    A result was recorded before where an added trial of the task has its name, seed and metrics.

    Args:
        db: the database.
        task_id: from `register_task`.
        class_ids: the functions' classes [R].
        names: the functions [R].
        seeds: of the trainings [R].
        objectives: the numbers that the search optimises; None, nan and infinity are failures [R].
        metrics: whatever is worth keeping of each training [R].
        reasons: why a training failed, or None [R].
        worker: where they come from, for people to read.

    Returns:
        How many were added, and how many of those are failures.

    Raises:
        InputError: a name, seed or metric that cannot be stored; then none of them is.
    """
    now = clock.now()
    ends = [
        (objective, reason or _verdict(math.nan if objective is None else objective))
        for objective, reason in zip(objectives, reasons, strict=True)
    ]
    columns = {
        "line": pa.array(range(len(names)), pa.int64()),
        "class_id": pa.array(class_ids, pa.string()),
        "name": pa.array(map(_checked_name, names), pa.string()),
        "seed": pa.array(map(_checked_seed, seeds), pa.int64()),
        # A failed trial keeps no objective, see `_store_end`.
        "objective": pa.array([None if reason else objective for objective, reason in ends], pa.float64()),
        "metrics": pa.array(map(encode_metrics, metrics), pa.string()),
        "reason": pa.array([reason and clean_text(reason) for _, reason in ends], pa.string()),
    }
    with db.transaction() as con:
        first = _next_id(con)
        added = insert_rows(
            con,
            """
            INSERT INTO trials (trial_id, task_id, class_id, name, seed, purpose, status, objective, metrics, reason,
                                worker, started_at, finished_at)
            SELECT $first - 1 + row_number() OVER (ORDER BY line), $task, class_id::UUID, name, seed, 'added',
                   if(reason IS NULL, 'done', 'failed'), objective, metrics, reason, $worker, $now, $now
            FROM (FROM incoming QUALIFY row_number() OVER (PARTITION BY name, seed, metrics ORDER BY line) = 1)
            ANTI JOIN (
                SELECT name, seed, metrics::VARCHAR AS metrics FROM trials WHERE task_id = $task AND purpose = 'added'
            ) USING (name, seed, metrics)
            """,
            {"first": first, "task": task_id, "worker": worker and clean_text(worker), "now": now},
            columns,
        )
        ((failed,),) = con.execute(
            "SELECT count(*) FROM trials WHERE trial_id >= ? AND status = 'failed'", [first]
        ).fetchall()
    return added, failed


def _new_trial(
    trial_id: int, task_id: int, class_id: str | None, name: str, seed: int, purpose: str, now: datetime
) -> TrialRow:
    if purpose not in PURPOSES:
        raise InputError(f"purpose must be one of {', '.join(PURPOSES)}, but got {purpose!r}")
    name, seed = _checked_name(name), _checked_seed(seed)
    return TrialRow(trial_id, task_id, class_id, name, seed, purpose, "running", None, None, None, now, now, now, None)


def _checked_seed(seed: int) -> int:
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"seed must fit into 64 bits, but got {seed}")
    return seed


def _checked_name(name: str) -> str:
    if clean_text(name) != name:
        raise InputError(f"name must be valid Unicode text, but got {name[:60]!r}")
    return name


def _next_id(con: duckdb.DuckDBPyConnection) -> int:
    ((last,),) = con.execute("SELECT coalesce(max(trial_id), 0) FROM trials").fetchall()
    # A trial that was removed may still be told about: its number must not be another's.
    removed = con.execute("SELECT value FROM meta WHERE key = 'last_trial_id'").fetchall()
    return max([last, *(int(value) for (value,) in removed)]) + 1


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
)
_INSERT = f"""
    INSERT INTO trials ({", ".join(_INSERTED)}, metrics)
    VALUES ({", ".join(f"${column}" for column in _INSERTED)}, '{{}}')
"""


def _insert(con: duckdb.DuckDBPyConnection, trial: TrialRow, now: datetime) -> TrialRow:
    inserted = change_one(con, _INSERT, now, **{column: getattr(trial, column) for column in _INSERTED})
    assert inserted is not None
    return inserted


def _unfinished(con: duckdb.DuckDBPyConnection, trial_id: int, now: datetime) -> TrialRow:
    trial = select_one(con, trial_id, now)
    if trial.status in ENDED:
        outcome = f"({trial.reason})" if trial.status == "failed" else f"with objective {trial.objective}"
        raise InputError(
            f"trial {trial_id} ({trial.name[:60]}) is {trial.status} already {outcome}, and a result is never "
            "overwritten; record another one as a result trained elsewhere"
        )
    return trial


@dataclass(frozen=True)
class _End:
    status: str
    objective: float | int | None
    reason: str | None
    seconds: float | int | None = None
    environment: Mapping[str, str] | None = None


def _close(db: Database, trial_id: int, metrics: Mapping[str, Any], end: _End) -> TrialRow:
    encoded = encode_metrics(metrics)
    now = clock.now()
    with db.transaction() as con:
        # At one go where nothing was reported before: workers wait for each other here.
        if closed := _store_end(con, trial_id, encoded, end, now, "status IN ('queued', 'running') AND metrics = '{}'"):
            return closed
        trial = _unfinished(con, trial_id, now)
        closed = _store_end(con, trial_id, encode_metrics({**trial.metrics, **metrics}), end, now)
        assert closed is not None
        return closed


def _store_end(
    con: duckdb.DuckDBPyConnection, trial_id: int, metrics: str, end: _End, now: datetime, condition: str = "true"
) -> TrialRow | None:
    return change_one(
        con,
        f"""
        UPDATE trials
        SET status = $status, objective = $objective, metrics = $metrics, reason = $reason, finished_at = $finished_at,
            seconds = $seconds, environment = $environment
        WHERE trial_id = $trial AND {condition}
        """,
        now,
        status=end.status,
        # A failed trial keeps no objective: in SQL, nan is greater than every number and would be the maximum.
        objective=None if end.status == "failed" else end.objective,
        metrics=metrics,
        reason=end.reason and clean_text(end.reason),
        finished_at=now,
        seconds=end.seconds,
        environment=None if end.environment is None else clean_text(json.dumps(dict(end.environment))),
        trial=trial_id,
    )


def _verdict(objective: float | int) -> str | None:
    return None if math.isfinite(objective) else f"objective is {float(objective)}"
