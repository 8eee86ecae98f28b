"""What became of trials: results, failures and early stops, stored and never overwritten."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import duckdb
import numpy as np

from aqx.errors import InputError
from aqx.metrics import clean_text, decode_metrics, encode_metrics
from aqx.store import clock
from aqx.store.claims import Snapshot, read_snapshot
from aqx.store.connection import Database
from aqx.store.encoding import insert_rows, number_column, text_column
from aqx.store.trial_rows import (
    Purpose,
    Status,
    TrialRow,
    change_one,
    checked_name,
    checked_seed,
    insert,
    new_trial,
    next_id,
    select,
    unfinished,
)


@dataclass(frozen=True)
class Ending:
    """How a training ended; see `result`, `failure` and `stop`, which make it.

    Attributes:
        status: done, pruned or failed.
        objective: the number that the search optimises; None where there is none.
        reason: why it failed.
        metrics: added to what was reported before.
        seconds: how long the training took; None where nobody measured.
        environment: where and with what it ran.
    """

    status: Status
    objective: float | None
    reason: str | None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | int | None = None
    environment: Mapping[str, str] | None = None


def result(objective: float | int, metrics: Mapping[str, Any], **circumstances: Any) -> Ending:
    """Return the ending of a training that gave a result; nan and infinity are failures, so that they never win.

    Args:
        objective: the number that the search optimises.
        metrics: all of them.
        **circumstances: `seconds` and `environment` of an `Ending`.
    """
    doubt = _doubt(objective)
    return Ending(Status.FAILED if doubt else Status.DONE, float(objective), doubt, metrics, **circumstances)


def stop(objective: float | int | None, metrics: Mapping[str, Any], **circumstances: Any) -> Ending:
    """Return the ending of a training that was stopped early, with the last value of its objective; see `result`.

    A value that is missing or not finite makes the trial a failed one.
    """
    doubt = "stopped before the objective was seen" if objective is None else _doubt(objective)
    return Ending(Status.FAILED if doubt else Status.PRUNED, objective, doubt, metrics, **circumstances)


def failure(reason: str, metrics: Mapping[str, Any] | None = None, **circumstances: Any) -> Ending:
    """Return the ending of a training that failed, and why; see `result`."""
    return Ending(Status.FAILED, None, reason or "no reason given", metrics or {}, **circumstances)


def report(db: Database, trial_id: int, metrics: Mapping[str, Any], compare: str | None = None) -> list[Any]:
    """Add metrics to a trial that has no result yet; a key reported again is replaced.

    Args:
        db: the database.
        trial_id: from `claim`.
        metrics: what is added.
        compare: a key of metrics.

    Returns:
        What the task's other trials that the search learns from hold under the key `compare`, in the order of their
        ids; nothing without one.

    Raises:
        InputError: no such trial, or it is finished, or a metric cannot be stored.
    """
    encode_metrics(metrics)
    with db.transaction() as con:
        trial = unfinished(con, trial_id, clock.now())
        merged = encode_metrics({**trial.metrics, **metrics})
        con.execute("UPDATE trials SET metrics = ? WHERE trial_id = ?", [merged, trial_id])
        if compare is None:
            return []
        rows = con.execute(
            """
            SELECT value FROM (
                SELECT trial_id, json_extract(metrics, $path)::VARCHAR AS value FROM trials
                WHERE task_id = $task AND trial_id <> $trial AND purpose <> $apart
            ) WHERE value IS NOT NULL ORDER BY trial_id
            """,
            {"path": _path(compare), "task": trial.task_id, "trial": trial_id, "apart": Purpose.CONFIRM},
        ).fetchall()
    return [decode_metrics(f'{{"value": {value}}}')["value"] for (value,) in rows]


def _path(key: str) -> str:
    """The key of a JSON object as DuckDB's path to its value."""
    return "$." + json.dumps(key, ensure_ascii=False)


def close(db: Database, trial_id: int, ending: Ending) -> TrialRow:
    """Store how a trial ended, also of one whose claim has lapsed or was given back.

    Returns:
        The finished trial.

    Raises:
        InputError: no such trial, or it has a result already (which stays), or a metric cannot be stored.
    """
    encoded, now = encode_metrics(ending.metrics), clock.now()
    with db.transaction() as con:
        return _close(con, trial_id, ending, encoded, now)


def close_all(
    db: Database, task_id: int, endings: Mapping[int, Ending]
) -> tuple[dict[int, TrialRow | InputError], Snapshot]:
    """Store how many trials ended, in one transaction; see `close`.

    Returns:
        The finished trials by number, an error in place of one whose result was stored before (that stays); and the
        task's trials with them.

    Raises:
        InputError: no such trial, or a metric cannot be stored; then nothing is stored.
    """
    encoded, now = {trial_id: encode_metrics(ending.metrics) for trial_id, ending in endings.items()}, clock.now()
    closed: dict[int, TrialRow | InputError] = {}
    with db.transaction() as con:
        for trial_id, ending in endings.items():
            try:
                closed[trial_id] = _close(con, trial_id, ending, encoded[trial_id], now)
            except InputError as error:
                closed[trial_id] = error
        return closed, read_snapshot(con, task_id)


def finish(
    db: Database, trial_id: int, objective: float | int, metrics: Mapping[str, Any], **circumstances: Any
) -> TrialRow:
    """Store the result of a trial; see `result` and `close`."""
    return close(db, trial_id, result(objective, metrics, **circumstances))


def prune(
    db: Database, trial_id: int, objective: float | int | None, metrics: Mapping[str, Any], **circumstances: Any
) -> TrialRow:
    """Store that a training was stopped early; see `stop` and `close`."""
    return close(db, trial_id, stop(objective, metrics, **circumstances))


def fail(
    db: Database, trial_id: int, reason: str, metrics: Mapping[str, Any] | None = None, **circumstances: Any
) -> TrialRow:
    """Store that a trial failed, and why; see `failure` and `close`."""
    return close(db, trial_id, failure(reason, metrics, **circumstances))


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
        con.execute("INSERT OR REPLACE INTO meta VALUES ('last_trial_id', ?)", [str(next_id(con) - 1)])
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
        new = new_trial(next_id(con), task_id, class_id, name, seed, Purpose.ADDED, now)
        insert(con, replace(new, heartbeat_at=None, expires_at=None))
        added = _store(con, new.trial_id, encoded, result(objective, metrics), now)
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
        (objective, reason or _doubt(math.nan if objective is None else objective))
        for objective, reason in zip(objectives, reasons, strict=True)
    ]
    columns = {
        "line": np.arange(len(names)),
        "class_id": text_column(class_ids),
        "name": text_column(map(checked_name, names)),
        "seed": np.array(list(map(checked_seed, seeds)), np.int64),
        # A failed trial keeps no objective, see `_store`.
        "objective": number_column([None if reason else objective for objective, reason in ends]),
        "metrics": text_column(map(encode_metrics, metrics)),
        "reason": text_column([reason and clean_text(reason) for _, reason in ends]),
    }
    with db.transaction() as con:
        first = next_id(con)
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


def _close(con: duckdb.DuckDBPyConnection, trial_id: int, ending: Ending, encoded: str, now: datetime) -> TrialRow:
    # At one go where nothing was reported before: workers wait for each other here.
    if closed := _store(con, trial_id, encoded, ending, now, "status IN ('queued', 'running') AND metrics = '{}'"):
        return closed
    trial = unfinished(con, trial_id, now)
    merged = encode_metrics({**trial.metrics, **decode_metrics(encoded)})
    closed = _store(con, trial_id, merged, ending, now)
    assert closed is not None
    return closed


def _store(
    con: duckdb.DuckDBPyConnection, trial_id: int, metrics: str, ending: Ending, now: datetime, condition: str = "true"
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
        status=ending.status,
        # A failed trial keeps no objective: in SQL, nan is greater than every number and would be the maximum.
        objective=None if ending.status is Status.FAILED else ending.objective,
        metrics=metrics,
        reason=ending.reason and clean_text(ending.reason),
        finished_at=now,
        seconds=ending.seconds,
        environment=None if ending.environment is None else clean_text(json.dumps(dict(ending.environment))),
        trial=trial_id,
    )


def _doubt(objective: float | int) -> str | None:
    """Why a number is no result."""
    return None if math.isfinite(objective) else f"objective is {float(objective)}"
