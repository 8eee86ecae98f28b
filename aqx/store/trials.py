"""Trials as others read them."""

from __future__ import annotations

from aqx.errors import InputError
from aqx.store.connection import Database
from aqx.store.moment import Moment
from aqx.store.trial_rows import Purpose, Status, TrialRow, count_states, select, select_one


def get_trial(db: Database, trial_id: int) -> TrialRow:
    """One trial.

    Raises:
        InputError: there is none of this id.
    """
    with db.read() as con:
        return select_one(con, trial_id, Moment(con))


def list_trials(db: Database, task_id: int, status: str | None = None, purpose: str | None = None) -> list[TrialRow]:
    """The trials of a task in the order of their ids, all of them or those of one status or purpose.

    Raises:
        InputError: an unknown status or purpose.
    """
    for argument, given, known in (("status", status, Status), ("purpose", purpose, Purpose)):
        if given is not None and given not in list(known):
            raise InputError(f"{argument} must be one of {', '.join(known)}, but got {given!r}")
    with db.read() as con:
        trials = select(con, "task_id = $task", Moment(con), task=task_id)
    return [trial for trial in trials if status in (None, trial.status) and purpose in (None, trial.purpose)]


def count_versions(db: Database, task_id: int) -> dict[str, int]:
    """How many results a task has of each version of its code that is known, the oldest first."""
    with db.read() as con:
        rows = con.execute(
            "SELECT environment->>'version' AS version, count(*) FROM trials WHERE task_id = ? "
            "AND status IN ('done', 'pruned') AND version IS NOT NULL GROUP BY version ORDER BY min(trial_id)",
            [task_id],
        ).fetchall()
    return dict(rows)


def count_trials(db: Database, task_id: int) -> dict[str, int]:
    """How many trials of a task have each status, zeros included."""
    with db.read() as con:
        return dict.fromkeys(map(str, Status), 0) | count_states(con, "task_id = $task", Moment(con), task=task_id)
