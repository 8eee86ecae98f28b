"""Descriptors of classes for a task, spectra and short runs: append-only, a class once per task; claims of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from aqx.errors import InputError, StoreError
from aqx.metrics import clean_reason
from aqx.store import clock
from aqx.store.connection import Database
from aqx.store.driver import duckdb
from aqx.store.encoding import arrow_table, insert_rows, integer_column, matrix_column, read_matrix, text_column
from aqx.store.kinds import SPECTRA, Kind
from aqx.store.moment import Moment
from aqx.store.subjects import current_subject

if TYPE_CHECKING:  # NumPy takes a fifth of a second, and who reads trials needs none of it
    import numpy as np
    from jaxtyping import Float32


def add_spectra(
    db: Database,
    task_id: int,
    class_ids: Sequence[str],
    features: Float32[np.ndarray, "K D"] | None,
    reasons: Sequence[str | None] | None = None,
    subject: int | None = None,
    *,
    kind: Kind = SPECTRA,
) -> int:
    """Store the spectra of K classes; a class that has one for this task already keeps it.

    Batches that come twice, late, or overlap are therefore harmless.

    Args:
        db: the database.
        task_id: from `register_task`.
        class_ids: K class ids as text.
        features: a row per class; the row of an invalid class is ignored. None where all K are invalid.
        reasons: per class why it is invalid, or None for a valid one. Left out, all are valid.
            A row that is not finite is invalid in any case.
        subject: what they are of, from `enter_subject`; None where that is not known.
        kind: of the descriptor, here and in the other functions.

    Returns:
        How many rows were added.

    Raises:
        InputError: the lengths do not agree.
        StoreError: the task's spectra have another number of features, or are of another subject by now.
    """
    import numpy as np

    why = list(reasons) if reasons is not None else [None] * len(class_ids)
    rows = features if features is not None else np.full((len(class_ids), 1), np.nan, np.float32)
    if not len(class_ids) == len(why) == len(rows):
        raise InputError(
            f"class_ids, features and reasons must agree in length, but got {len(class_ids)}, {len(rows)}, {len(why)}"
        )
    finite: list[bool] = np.all(np.isfinite(rows), axis=1).tolist()
    why = [reason if reason or ok else "features are not finite" for reason, ok in zip(why, finite, strict=True)]
    columns = {
        "position": integer_column(range(len(why))),
        "class_id": text_column(class_ids),
        "reason": text_column([reason and clean_reason(reason) for reason in why]),
        "features": matrix_column(rows),
    }
    with db.transaction() as con:
        if subject is not None and subject != current_subject(con, task_id):
            raise StoreError(
                f"the batch, the loss or the initial weights of task {task_id} in {db.path} were changed by another "
                f"process meanwhile, or its {kind.noun} removed; run the same again"
            )
        stored = con.execute(
            f"SELECT len(features) FROM {kind.table} WHERE task_id = ? AND status = 'valid' LIMIT 1", [task_id]
        ).fetchall()
        if stored and not all(why) and stored[0][0] != rows.shape[1]:
            raise StoreError(
                f"{kind.noun} of task {task_id} in {db.path} have {stored[0][0]} features, "
                f"but {rows.shape[1]} arrived; compute them in the stored form, or use another database"
            )
        added = insert_rows(
            con,
            f"""
            INSERT INTO {kind.table}
            SELECT ?, fresh.class_id, if(reason IS NULL, 'valid', 'invalid'), reason,
                   if(reason IS NULL, features, NULL), ?
            FROM (
                SELECT position, class_id::UUID AS class_id, reason, features FROM incoming
                QUALIFY row_number() OVER (PARTITION BY class_id ORDER BY position) = 1
            ) AS fresh
            ANTI JOIN (SELECT class_id FROM {kind.table} WHERE task_id = ?) AS stored USING (class_id)
            ORDER BY position
            """,
            [task_id, clock.now(), task_id],
            columns,
        )
        con.execute(
            f"DELETE FROM {kind.claims} WHERE task_id = ? AND class_id IN (SELECT unnest(?::UUID[]))",
            [task_id, list(class_ids)],
        )
        return added


@dataclass(frozen=True)
class SpectraClaim:
    """Classes that one process may compute for now.

    Attributes:
        classes: (class id, name of its representative), in the order in which they were wanted.
        missing: how many of the wanted classes have no spectrum yet: these, those claimed by others, and the free.
    """

    classes: list[tuple[str, str]]
    missing: int


def claim_spectra(
    db: Database,
    task_id: int,
    worker: str,
    *,
    limit: int,
    lease_seconds: float | int,
    names: Sequence[str] | None = None,
    first: Sequence[str] = (),
    without: Sequence[str] = (),
    kind: Kind = SPECTRA,
) -> SpectraClaim:
    """Take classes that have no spectrum for the task and that no other process is computing, simplest first.

    Only classes that can be trained are wanted: finite on the database's points, and not constant. A claim lasts
    until the spectrum is stored, it is given back, or its lease lapses.

    Args:
        db: the database.
        task_id: from `register_task`.
        worker: who claims; unique among all processes.
        limit: at most so many; 0 only counts.
        lease_seconds: how long the claims last without a heartbeat.
        names: only the classes of these functions.
        first: ids of the classes to take before the others, in their order.
        without: ids of classes that are not wanted.
        kind: of the descriptor.
    """
    with db.transaction() as con:
        now = Moment(con)
        con.register("wanted", arrow_table({"name": text_column(names or ())}))
        con.register("preferred", arrow_table({"id": text_column(first), "place": integer_column(range(len(first)))}))
        con.register("unwanted", arrow_table({"id": text_column(without)}))
        for holder, until, _ in lapsed_claims(con, now, kind):
            con.execute(f"DELETE FROM {kind.claims} WHERE worker = ? AND expires_at < ?", [holder, until])
        con.execute(
            f"""
            CREATE TEMP TABLE missing AS
            SELECT class_id, name, size FROM class_info
            ANTI JOIN (SELECT class_id FROM {kind.table} WHERE task_id = $task) AS stored USING (class_id)
            WHERE finite AND NOT constant AND class_id NOT IN (SELECT id::UUID FROM unwanted)
              AND ($all OR class_id IN (SELECT class_id FROM functions SEMI JOIN wanted USING (name)))
            """,
            {"task": task_id, "all": names is None},
        )
        ((missing,),) = con.execute("SELECT count(*) FROM missing").fetchall()
        rows = con.execute(
            f"""
            SELECT missing.class_id::VARCHAR, name FROM missing
            ANTI JOIN (SELECT class_id FROM {kind.claims} WHERE task_id = $task) AS claimed USING (class_id)
            LEFT JOIN (SELECT id::UUID AS class_id, place FROM preferred) AS preferred USING (class_id)
            ORDER BY place NULLS LAST, size, name LIMIT $limit
            """,
            {"task": task_id, "limit": limit},
        ).fetchall()
        con.execute("DROP TABLE missing")
        con.unregister("wanted")
        con.unregister("preferred")
        con.unregister("unwanted")
        insert_rows(
            con,
            f"INSERT INTO {kind.claims} SELECT ?, class_id::UUID, ?, ? FROM incoming",
            [task_id, _by_clock(worker, now), now.now + timedelta(seconds=lease_seconds)],
            {"class_id": text_column([class_id for class_id, _ in rows])},
        )
        if rows or now.is_news:
            now.write_down()
    return SpectraClaim(rows, missing)


def _by_clock(worker: str, now: Moment) -> str:
    return f"{worker} {now.clock}"


def lapsed_claims(con: duckdb.DuckDBPyConnection, now: Moment, kind: Kind = SPECTRA) -> list[tuple[str, datetime, int]]:
    """Whose claims of what is not stored have lapsed: the worker, by when, and how many, inside a transaction.

    Those of one worker may lapse one after the other.
    """
    found: list[tuple[str, datetime, int]] = []
    for (worker,) in con.execute(f"SELECT DISTINCT worker FROM {kind.claims}").fetchall():
        until = now.time_on(worker.rpartition(" ")[2])
        ((number,),) = con.execute(
            f"SELECT count(*) FROM {kind.claims} ANTI JOIN {kind.table} USING (task_id, class_id) "
            "WHERE worker = ? AND expires_at < ?",
            [worker, until],
        ).fetchall()
        if number:
            found.append((worker, until, number))
    return found


def operators_of_classes(db: Database) -> list[str]:
    """The operators in the names of all classes, in alphabetical order."""
    with db.read() as con:
        rows = con.execute(
            r"SELECT DISTINCT unnest(regexp_extract_all(name, '([^(),]+)\(', 1)) AS name FROM class_info ORDER BY ALL"
        ).fetchall()
    return [operator for (operator,) in rows]


def renew_spectra_claims(db: Database, worker: str, lease_seconds: float | int, kind: Kind = SPECTRA) -> None:
    """Extend the lease of all that this worker has claimed and not stored."""
    with db.transaction() as con:
        now = Moment(con)
        con.execute(
            f"UPDATE {kind.claims} SET expires_at = ?, worker = ? WHERE starts_with(worker, ?)",
            [now.now + timedelta(seconds=lease_seconds), _by_clock(worker, now), worker + " "],
        )
        now.write_down()


def release_spectra_claims(
    db: Database, worker: str, class_ids: Sequence[str] | None = None, kind: Kind = SPECTRA
) -> None:
    """Give back what this worker has claimed and not stored: all of it, or these classes."""
    with db.transaction() as con:
        con.execute(
            f"DELETE FROM {kind.claims} WHERE starts_with(worker, ?) AND (? OR class_id IN (SELECT unnest(?::UUID[])))",
            [worker + " ", class_ids is None, list(class_ids or ())],
        )


def load_spectra(db: Database, task_id: int, kind: Kind = SPECTRA) -> tuple[np.ndarray, Float32[np.ndarray, "C D"]]:
    """The valid spectra of a task: class ids [C] as text, ascending, and their features."""
    with db.read() as con:
        return read_matrix(
            con,
            f"SELECT class_id::VARCHAR, features FROM {kind.table} "
            "WHERE task_id = ? AND status = 'valid' ORDER BY class_id",
            [task_id],
        )


def invalid_spectra(db: Database, task_id: int, kind: Kind = SPECTRA) -> dict[str, str]:
    """The classes whose spectrum is invalid, each with the reason."""
    with db.read() as con:
        rows = con.execute(
            f"SELECT class_id::VARCHAR, reason FROM {kind.table} WHERE task_id = ? AND status = 'invalid' ORDER BY ALL",
            [task_id],
        ).fetchall()
    return dict(rows)


def find_spectrum(db: Database, task_id: int, class_id: str, kind: Kind = SPECTRA) -> list[float] | None:
    """The features of the valid spectrum of one class, or None."""
    with db.read() as con:
        found = con.execute(
            f"SELECT features FROM {kind.table} WHERE task_id = ? AND class_id = ? AND status = 'valid'",
            [task_id, class_id],
        ).fetchall()
    return found[0][0] if found else None


def described_classes(db: Database, task_id: int, kind: Kind = SPECTRA) -> set[str]:
    """The ids of the classes that have a descriptor of this kind, valid or not."""
    with db.read() as con:
        rows = con.execute(f"SELECT class_id::VARCHAR FROM {kind.table} WHERE task_id = ?", [task_id]).fetchall()
    return {class_id for (class_id,) in rows}


def any_valid(db: Database, task_id: int, class_ids: Sequence[str], kind: Kind = SPECTRA) -> bool:
    """Whether one of these classes has a valid spectrum."""
    with db.read() as con:
        ((found,),) = con.execute(
            f"SELECT count(*) FROM {kind.table} "
            "WHERE task_id = ? AND status = 'valid' AND class_id IN (SELECT unnest(?::UUID[]))",
            [task_id, list(class_ids)],
        ).fetchall()
    return found > 0


def count_spectra(db: Database, task_id: int, kind: Kind = SPECTRA) -> dict[str, int]:
    """How many spectra of a task are valid and invalid."""
    with db.read() as con:
        rows = con.execute(
            f"SELECT status, count(*) FROM {kind.table} WHERE task_id = ? GROUP BY status", [task_id]
        ).fetchall()
    return {"valid": 0, "invalid": 0} | dict(rows)
