"""Spectra of classes for a task: append-only, a class once per task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from aqx.errors import InputError, StoreError
from aqx.store import clock
from aqx.store.connection import Database
from aqx.store.values import clean_text, insert_rows, matrix_column, read_matrix


def add_spectra(
    db: Database,
    task_id: int,
    class_ids: Sequence[str],
    features: Float32[np.ndarray, "K D"] | None,
    reasons: Sequence[str | None] | None = None,
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

    Returns:
        How many rows were added.

    Raises:
        InputError: the lengths do not agree.
        StoreError: the task's spectra have another number of features.
    """
    why = list(reasons) if reasons is not None else [None] * len(class_ids)
    rows = features if features is not None else np.full((len(class_ids), 1), np.nan, np.float32)
    if not len(class_ids) == len(why) == len(rows):
        raise InputError(
            f"class_ids, features and reasons must agree in length, but got {len(class_ids)}, {len(rows)}, {len(why)}"
        )
    finite = [bool(np.isfinite(row).all()) for row in rows]
    why = [reason if reason or ok else "features are not finite" for reason, ok in zip(why, finite, strict=True)]
    columns = {
        "position": np.arange(len(why)),
        "class_id": pa.array(class_ids, pa.string()),
        "reason": pa.array([reason and clean_text(reason) for reason in why], pa.string()),
        "features": matrix_column(rows),
    }
    with db.transaction() as con:
        stored = con.execute(
            "SELECT len(features) FROM spectra WHERE task_id = ? AND status = 'valid' LIMIT 1", [task_id]
        ).fetchall()
        if stored and not all(why) and stored[0][0] != rows.shape[1]:
            raise StoreError(
                f"spectra of task {task_id} in {db.path} have {stored[0][0]} features, but {rows.shape[1]} arrived; "
                "compute them in the stored form, or use another database"
            )
        return insert_rows(
            con,
            """
            INSERT INTO spectra
            SELECT ?, fresh.class_id, if(reason IS NULL, 'valid', 'invalid'), reason,
                   if(reason IS NULL, features, NULL), ?
            FROM (
                SELECT position, class_id::UUID AS class_id, reason, features FROM incoming
                QUALIFY row_number() OVER (PARTITION BY class_id ORDER BY position) = 1
            ) AS fresh
            ANTI JOIN (SELECT class_id FROM spectra WHERE task_id = ?) AS stored USING (class_id)
            ORDER BY position
            """,
            [task_id, clock.now(), task_id],
            columns,
        )


def classes_without_spectra(
    db: Database,
    task_id: int,
    limit: int | None = None,
    names: Sequence[str] | None = None,
    usable: bool = True,
) -> list[tuple[str, str]]:
    """The classes that have no spectrum for the task yet, simplest first.

    Args:
        db: the database.
        task_id: from `register_task`.
        limit: at most so many.
        names: only the classes of these functions.
        usable: only classes that can be trained: finite on the database's points, and not constant.

    Returns:
        (class id, name of its representative) in the order of size, then name.
    """
    with db.read() as con:
        con.register("wanted", pa.table({"name": pa.array(names or (), pa.string())}))
        rows = con.execute(
            """
            SELECT class_id::VARCHAR, name FROM class_info
            ANTI JOIN (SELECT class_id FROM spectra WHERE task_id = $task) AS stored USING (class_id)
            WHERE (NOT $usable OR (finite AND NOT constant))
              AND ($all OR class_id IN (SELECT class_id FROM functions SEMI JOIN wanted USING (name)))
            ORDER BY size, name LIMIT $limit
            """,
            {"task": task_id, "usable": usable, "all": names is None, "limit": limit},
        ).fetchall()
        con.unregister("wanted")
    return rows


def load_spectra(db: Database, task_id: int) -> tuple[np.ndarray, Float32[np.ndarray, "C D"]]:
    """The valid spectra of a task: class ids [C] as text, ascending, and their features."""
    with db.read() as con:
        return read_matrix(
            con,
            "SELECT class_id::VARCHAR, features FROM spectra WHERE task_id = ? AND status = 'valid' ORDER BY class_id",
            [task_id],
        )


def invalid_spectra(db: Database, task_id: int) -> dict[str, str]:
    """The classes whose spectrum is invalid, each with the reason."""
    with db.read() as con:
        rows = con.execute(
            "SELECT class_id::VARCHAR, reason FROM spectra WHERE task_id = ? AND status = 'invalid' ORDER BY ALL",
            [task_id],
        ).fetchall()
    return dict(rows)


def count_spectra(db: Database, task_id: int) -> dict[str, int]:
    """How many spectra of a task are valid and invalid."""
    with db.read() as con:
        rows = con.execute(
            "SELECT status, count(*) FROM spectra WHERE task_id = ? GROUP BY status", [task_id]
        ).fetchall()
    return {"valid": 0, "invalid": 0} | dict(rows)
