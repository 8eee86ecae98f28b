"""Subjects: of which batch, loss and initial weights the spectra of a task are; those of another are set aside."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aqx.store import clock
from aqx.store.connection import Database
from aqx.store.driver import duckdb
from aqx.store.tasks import check_form, store_form

Digest = Mapping[str, str | Sequence[float]]

# Initial weights and batches that are computed differ by rounding between machines, what somebody changes by more.
_TOLERANCE = 1e-3
_ROWS = "class_id, status, reason, features, created_at"


@dataclass(frozen=True)
class Subject:
    """What the spectra of a task are of.

    Attributes:
        subject_id: its number, that no other has; 0 where nothing is known of it, as before there was a digest.
        changed: the parts of the digest that are not what they were; empty where all is as it was.
        set_aside: spectra that are of another subject and were set aside now.
        taken_back: spectra of this subject that had been set aside and are in force again.
    """

    subject_id: int
    changed: tuple[str, ...] = ()
    set_aside: int = 0
    taken_back: int = 0


def current_subject(con: duckdb.DuckDBPyConnection, task_id: int) -> int:
    """The number of the subject whose spectra are in force, 0 for none, inside the caller's transaction."""
    ((number,),) = con.execute(
        "SELECT coalesce(max(subject_id), 0) FROM subjects WHERE task_id = ? AND current", [task_id]
    ).fetchall()
    return number


def enter_subject(
    db: Database, task_id: int, form: Mapping[str, Any], digest: Digest, unless: Collection[str] = ()
) -> Subject:
    """Make the spectra of this digest those in force; those of another are set aside, and come back with it.

    Spectra of a database that had no digests yet are taken to be of the first that comes.

    Args:
        db: the database.
        task_id: from `register_task`.
        form: as in `set_spectra_form`; with another digest its layers and examples may be others too.
        digest: by part, text or numbers; numbers that differ by rounding only are the same.
        unless: where one of these parts has changed, nothing is done but told, under the number 0.

    Raises:
        StoreError: the form is another, and the digest is not, or the options of the form are others.
    """
    with db.transaction() as con:
        changed = _changes(con, task_id, digest)
        if not set(changed).isdisjoint(unless):
            return Subject(0, changed)
        check_form(db, con, task_id, form, only_options=bool(changed))
        store_form(con, task_id, form)
        number = current_subject(con, task_id)
        if number and not changed:
            return Subject(number)
        aside = back = 0
        former = [
            subject
            for subject, text in _digests(con, task_id, current=False)
            if not _differing(json.loads(text), digest)
        ]
        if number:
            aside = _count(
                con, f"INSERT INTO spectra_aside SELECT ?, {_ROWS} FROM spectra WHERE task_id = ?", number, task_id
            )
            _clear(con, task_id)
            con.execute("UPDATE subjects SET current = false WHERE task_id = ?", [task_id])
        if former:
            number = former[-1]
            con.execute("UPDATE subjects SET current = true WHERE subject_id = ?", [number])
            back = _count(
                con,
                f"INSERT INTO spectra SELECT ?, {_ROWS} FROM spectra_aside WHERE subject_id = ?",
                task_id,
                number,
            )
            con.execute("DELETE FROM spectra_aside WHERE subject_id = ?", [number])
        else:
            ((number,),) = con.execute("SELECT coalesce(max(subject_id), 0) + 1 FROM subjects").fetchall()
            con.execute(
                "INSERT INTO subjects VALUES (?, ?, ?, true, ?)", [number, task_id, json.dumps(digest), clock.now()]
            )
        return Subject(number, changed, aside, back)


def remove_spectra(db: Database, task_id: int) -> int:
    """Delete the spectra of a task for good, those set aside too, and forget their form; return how many they were."""
    with db.transaction() as con:
        ours = "(SELECT subject_id FROM subjects WHERE task_id = ?)"
        removed = _count(con, f"DELETE FROM spectra_aside WHERE subject_id IN {ours}", task_id)
        ((stored,),) = con.execute("SELECT count(*) FROM spectra WHERE task_id = ?", [task_id]).fetchall()
        _clear(con, task_id)
        # The number stays, so that it is not given again: what was read of these spectra is not current any more.
        con.execute("UPDATE subjects SET digest = NULL, current = false WHERE task_id = ?", [task_id])
        con.execute("UPDATE tasks SET spectra_form = NULL WHERE task_id = ?", [task_id])
    return removed + stored


def _clear(con: duckdb.DuckDBPyConnection, task_id: int) -> None:
    """Remove the spectra in force, who computes some, and what was fitted to them."""
    con.execute(
        "DELETE FROM embedding_rows WHERE embedding_id IN (SELECT embedding_id FROM embeddings WHERE task_id = ?)",
        [task_id],
    )
    for table in ("embeddings", "spectra", "spectra_claims"):
        con.execute(f"DELETE FROM {table} WHERE task_id = ?", [task_id])


def _count(con: duckdb.DuckDBPyConnection, statement: str, *parameters: Any) -> int:
    ((count,),) = con.execute(statement, parameters).fetchall()
    return count


def _changes(con: duckdb.DuckDBPyConnection, task_id: int, digest: Digest) -> tuple[str, ...]:
    for _, text in _digests(con, task_id, current=True):
        return _differing(json.loads(text), digest)
    return ()


def _digests(con: duckdb.DuckDBPyConnection, task_id: int, current: bool) -> list[tuple[int, str]]:
    return con.execute(
        "SELECT subject_id, digest FROM subjects WHERE task_id = ? AND current = ? AND digest IS NOT NULL ORDER BY ALL",
        [task_id, current],
    ).fetchall()


def _differing(stored: Digest, given: Digest) -> tuple[str, ...]:
    return tuple(part for part in {**stored, **given} if not _same(stored.get(part), given.get(part)))


def _same(stored: Any, given: Any) -> bool:
    if isinstance(stored, list) and isinstance(given, Sequence) and len(stored) == len(given):
        size = max(math.hypot(*stored), math.hypot(*given))
        return all(abs(a - b) <= _TOLERANCE * size for a, b in zip(stored, given, strict=True))
    return stored == given
