"""Studies: by which seed, surrogate and pruner the trials of a task were chosen."""

from __future__ import annotations

from dataclasses import dataclass

from aqx.store import clock
from aqx.store.connection import Database


@dataclass(frozen=True)
class StudySettings:
    """What, beside the results so far, a study's choices depend on.

    Attributes:
        seed: of whatever is random.
        surrogate: the preset's name.
        pruner: the rule that stops trainings early.
    """

    seed: int
    surrogate: str
    pruner: str


def register_study(db: Database, task_id: int, settings: StudySettings) -> int:
    """Return the number of a task's study, which is stored if it is new."""
    values = [task_id, settings.seed, settings.surrogate, settings.pruner]
    with db.transaction() as con:
        found = con.execute(
            "SELECT study_id FROM studies WHERE (task_id, seed, surrogate, pruner) = (?, ?, ?, ?)", values
        ).fetchall()
        if found:
            return found[0][0]
        ((number,),) = con.execute("SELECT coalesce(max(study_id), 0) + 1 FROM studies").fetchall()
        con.execute("INSERT INTO studies VALUES (?, ?, ?, ?, ?, ?)", [number, *values, clock.now()])
        return number


def list_studies(db: Database, task_id: int) -> dict[int, StudySettings]:
    """The studies of a task by number, in the order of their first claims; none of a database of before."""
    with db.read() as con:
        rows = con.execute(
            "SELECT study_id, seed, surrogate, pruner FROM studies WHERE task_id = ? ORDER BY study_id", [task_id]
        ).fetchall()
    return {number: StudySettings(*settings) for number, *settings in rows}
