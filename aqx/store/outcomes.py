"""What became of trials: results, failures and early stops, stored and never overwritten."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from aqx.errors import InputError
from aqx.metrics import clean_reason, clean_text, decode_metrics, encode_metrics
from aqx.store import clock
from aqx.store.claims import Snapshot, read_snapshot, take_snapshot
from aqx.store.connection import Database
from aqx.store.encoding import insert_rows, integer_column, number_column, text_column
from aqx.store.endings import Ending, encoded, failure, result, stop, store_ending, why_none
from aqx.store.moment import Moment
from aqx.store.pending import Note
from aqx.store.trial_rows import (
    Purpose,
    TrialRow,
    check_task_is_there,
    checked_name,
    checked_seed,
    insert,
    new_trial,
    next_id,
    select,
    unfinished,
)


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
        trial = unfinished(con, trial_id)
        merged = encode_metrics({**trial.metrics, **metrics})
        con.execute("UPDATE trials SET metrics = ? WHERE trial_id = ?", [merged, trial_id])
        if compare is None:
            return []
        rows = con.execute(
            """
            SELECT value FROM (
                SELECT trial_id, json_extract(metrics, $path)::VARCHAR AS value FROM trials
                WHERE task_id = $task AND trial_id <> $trial AND NOT list_contains($apart, purpose)
            ) WHERE value IS NOT NULL ORDER BY trial_id
            """,
            {"path": _path(compare), "task": trial.task_id, "trial": trial_id, "apart": _APART},
        ).fetchall()
    return [decode_metrics(f'{{"value": {value}}}')["value"] for (value,) in rows]


_APART = [str(purpose) for purpose in Purpose if not purpose.is_searched]


def _path(key: str) -> str:
    """The key of a JSON object as DuckDB's path to its value."""
    return "$." + json.dumps(key, ensure_ascii=False)


def close(db: Database, task_id: int | None, trial_id: int, ending: Ending) -> TrialRow:
    """Store how a trial ended, also of one whose claim has lapsed or was given back.

    Args:
        db: the database.
        task_id: the task that the trial must belong to; None for any.
        trial_id: from `claim`.
        ending: from `result`, `stop` or `failure`.

    Returns:
        The finished trial.

    Raises:
        InputError: no such trial of this task or for this function, or it has a result already (which stays), or a
            metric cannot be stored.
        StoreError: the database cannot be had; the ending is kept beside it, and stored when it is next opened.
    """
    answers, _ = db.hand_in(Note.of(db.path, db.identity, task_id, {trial_id: ending}))
    answer = answers[trial_id]
    if isinstance(answer, InputError):
        raise answer
    return answer


def close_all(
    db: Database, task_id: int, endings: Mapping[int, Ending]
) -> tuple[dict[int, TrialRow | InputError], Snapshot]:
    """Store how many trials ended, in one transaction; see `close`.

    Returns:
        The finished trials by number, an error in place of one that could not be stored, such as of one whose result
        was stored before (that stays); and the task's trials with them.
    """
    answers, snapshot = db.hand_in(
        Note.of(db.path, db.identity, task_id, endings), lambda con: read_snapshot(con, task_id, Moment(con))
    )
    return answers, snapshot or take_snapshot(db, task_id)


def finish(
    db: Database, trial_id: int, objective: float | int, metrics: Mapping[str, Any], **circumstances: Any
) -> TrialRow:
    """Store the result of a trial; see `result` and `close`."""
    return close(db, None, trial_id, result(objective, metrics, **circumstances))


def prune(
    db: Database, trial_id: int, objective: float | int | None, metrics: Mapping[str, Any], **circumstances: Any
) -> TrialRow:
    """Store that a training was stopped early; see `stop` and `close`."""
    return close(db, None, trial_id, stop(objective, metrics, **circumstances))


def fail(
    db: Database, trial_id: int, reason: str, metrics: Mapping[str, Any] | None = None, **circumstances: Any
) -> TrialRow:
    """Store that a trial failed, and why; see `failure` and `close`."""
    return close(db, None, trial_id, failure(reason, metrics, **circumstances))


def remove(db: Database, task_id: int, statuses: Collection[str]) -> int:
    """Delete the trials of a task that have these statuses, for good; their ids are never used again.

    Returns:
        How many were deleted.
    """
    with db.transaction() as con:
        known = select(con, "task_id = $task", Moment(con), task=task_id)
        doomed = [trial.trial_id for trial in known if trial.status in statuses]
        con.execute("INSERT OR REPLACE INTO meta VALUES ('last_trial_id', ?)", [str(next_id(con) - 1)])
        con.execute("DELETE FROM trials WHERE list_contains(?, trial_id)", [doomed])
    return len(doomed)


def check_result(name: str, seed: int, metrics: Mapping[str, Any]) -> None:
    """Check that `add_result` can store these.

    Raises:
        InputError: a name, seed or metric that cannot be stored.
    """
    checked_name(name)
    checked_seed(seed)
    encode_metrics(metrics)


def add_result(
    db: Database,
    task_id: int,
    *,
    class_id: str | None,
    name: str,
    seed: int,
    objective: float | int,
    metrics: Mapping[str, Any],
    registered: bool = False,
) -> TrialRow:
    """Record a result that was trained elsewhere; whatever is stored of the function stays beside it.

    With `registered`, a task that somebody has removed is refused.

    Raises:
        InputError: a name, seed or metric that cannot be stored.
    """
    encode_metrics(metrics)  # before anything is stored
    with db.transaction() as con:
        if registered:
            check_task_is_there(con, task_id)
        now = Moment(con)
        new = new_trial(next_id(con), task_id, class_id, name, seed, Purpose.ADDED, now)
        insert(con, replace(new, heartbeat_at=None, expires_at=None))
        return store_ending(con, None, new.trial_id, encoded(result(objective, metrics)), now.now)


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
    registered: bool = False,
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
        registered: refuse a task that somebody has removed.

    Returns:
        How many were added, and how many of those are failures.

    Raises:
        InputError: a name, seed or metric that cannot be stored; then none of them is.
    """
    now = clock.now()
    ends = [
        (objective, reason or why_none(math.nan if objective is None else objective))
        for objective, reason in zip(objectives, reasons, strict=True)
    ]
    columns = {
        "line": integer_column(range(len(names))),
        "class_id": text_column(class_ids),
        "name": text_column(map(checked_name, names)),
        "seed": integer_column(map(checked_seed, seeds)),
        # A failed trial keeps no objective, see `_store`.
        "objective": number_column([None if reason else objective for objective, reason in ends]),
        "metrics": text_column(map(encode_metrics, metrics)),
        "reason": text_column([reason and clean_reason(reason) for _, reason in ends]),
    }
    with db.transaction() as con:
        if registered:
            check_task_is_there(con, task_id)
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
