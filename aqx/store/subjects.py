"""Subjects: of which batch, loss and initial weights the descriptors of a task are; those of another are set aside."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aqx.store import clock
from aqx.store.connection import Database
from aqx.store.driver import duckdb
from aqx.store.kinds import KINDS, SPECTRA, Kind
from aqx.store.tasks import check_form, store_form

Digest = Mapping[str, str | Sequence[float]]

# Initial weights and batches that are computed differ by rounding between machines, what somebody changes by more.
_TOLERANCE = 1e-3
_ROWS = "class_id, status, reason, features, created_at"


@dataclass(frozen=True)
class Subject:
    """What the spectra and the short runs of a task are of.

    Attributes:
        subject_id: its number, that no other has; 0 where nothing is known of it, as before there was a digest.
        changed: the parts of the digest that are not what they were; empty where all is as it was.
        set_aside: spectra that are of another subject and were set aside now.
        taken_back: spectra of this subject that had been set aside and are in force again.
        runs_set_aside: the same of short runs.
        runs_taken_back: the same of short runs.
    """

    subject_id: int
    changed: tuple[str, ...] = ()
    set_aside: int = 0
    taken_back: int = 0
    runs_set_aside: int = 0
    runs_taken_back: int = 0


def current_subject(con: duckdb.DuckDBPyConnection, task_id: int) -> int:
    """The number of the subject whose spectra are in force, 0 for none, inside the caller's transaction."""
    ((number,),) = con.execute(
        "SELECT coalesce(max(subject_id), 0) FROM subjects WHERE task_id = ? AND current", [task_id]
    ).fetchall()
    return number


def enter_subject(
    db: Database,
    task_id: int,
    form: Mapping[str, Any],
    digest: Digest,
    unless: Collection[str] = (),
    kind: Kind = SPECTRA,
) -> Subject:
    """Make the descriptors of this digest those in force; those of another are set aside, and come back with it.

    Descriptors of a database that had no digests yet are taken to be of the first that comes.

    Args:
        db: the database.
        task_id: from `register_task`.
        form: as in `set_spectra_form`; with another digest its layers and examples may be others too.
        digest: by part, text or numbers; numbers that differ by rounding only are the same.
        unless: where one of these parts has changed, nothing is done but told, under the number 0.
        kind: of the descriptors whose form is given; all kinds are set aside and taken back.

    Raises:
        StoreError: the form is another, and the digest is not, or the options of the form are others.
    """
    with db.transaction() as con:
        changed = _changes(con, task_id, digest)
        if not set(changed).isdisjoint(unless):
            return Subject(0, changed)
        check_form(db, con, task_id, form, bool(changed), kind)
        store_form(con, task_id, form, kind)
        number = current_subject(con, task_id)
        if number and not changed:
            return Subject(number)
        former = [
            subject
            for subject, text in _digests(con, task_id, current=False)
            if not _differing(json.loads(text), digest)
        ]
        aside = dict.fromkeys(KINDS, 0)
        back = dict.fromkeys(KINDS, 0)
        if number:
            for each in KINDS:
                moved = f"INSERT INTO {each.aside} SELECT ?, {_ROWS} FROM {each.table} WHERE task_id = ?"
                aside[each] = _count(con, moved, number, task_id)
                _clear(con, task_id, each)
                if each is not kind:
                    store_form(con, task_id, None, each)  # its examples may be others now
            con.execute("UPDATE subjects SET current = false WHERE task_id = ?", [task_id])
        if former:
            number = former[-1]
            con.execute("UPDATE subjects SET current = true WHERE subject_id = ?", [number])
            for each in KINDS:
                moved = f"INSERT INTO {each.table} SELECT ?, {_ROWS} FROM {each.aside} WHERE subject_id = ?"
                back[each] = _count(con, moved, task_id, number)
                con.execute(f"DELETE FROM {each.aside} WHERE subject_id = ?", [number])
        else:
            number = _new_subject(con, task_id, json.dumps(digest))
        return Subject(number, changed, *(count[each] for each in KINDS for count in (aside, back)))


def _new_subject(con: duckdb.DuckDBPyConnection, task_id: int, digest: str) -> int:
    ((number,),) = con.execute("SELECT coalesce(max(subject_id), 0) + 1 FROM subjects").fetchall()
    con.execute("INSERT INTO subjects VALUES (?, ?, ?, true, ?)", [number, task_id, digest, clock.now()])
    return number


def remove_spectra(db: Database, task_id: int, kind: Kind = SPECTRA) -> int:
    """Delete the spectra of a task for good, those set aside too, and forget their form; return how many they were.

    Descriptors of the other kind stay, under a number of their own: what was read of both is not current any more.
    """
    with db.transaction() as con:
        ours = "(SELECT subject_id FROM subjects WHERE task_id = ?)"
        removed = _count(con, f"DELETE FROM {kind.aside} WHERE subject_id IN {ours}", task_id)
        stored = _rows_of(con, kind, task_id)
        others = [each for each in KINDS if each is not kind and _rows_of(con, each, task_id)]
        digests = _digests(con, task_id, current=True)
        _clear(con, task_id, kind)
        # The number stays, so that it is not given again.
        kept = " UNION ALL ".join(f"SELECT subject_id FROM {each.aside}" for each in KINDS)
        con.execute("UPDATE subjects SET current = false WHERE task_id = ?", [task_id])
        con.execute(f"UPDATE subjects SET digest = NULL WHERE task_id = ? AND subject_id NOT IN ({kept})", [task_id])
        if others and digests:
            _new_subject(con, task_id, digests[0][1])
        store_form(con, task_id, None, kind)
    return removed + stored


def _rows_of(con: duckdb.DuckDBPyConnection, kind: Kind, task_id: int) -> int:
    ((stored,),) = con.execute(f"SELECT count(*) FROM {kind.table} WHERE task_id = ?", [task_id]).fetchall()
    return stored


def _clear(con: duckdb.DuckDBPyConnection, task_id: int, kind: Kind) -> None:
    """Remove the descriptors in force, who computes some, and what was fitted to them."""
    for table in ("embedding_rows", "embedding_runs"):
        con.execute(
            f"DELETE FROM {table} WHERE embedding_id IN (SELECT embedding_id FROM embeddings WHERE task_id = ?)",
            [task_id],
        )
    for table in ("embeddings", kind.table, kind.claims):
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
