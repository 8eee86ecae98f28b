"""Fitted embeddings of all candidates, kept with the fingerprint of what they were fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from aqx.errors import InputError
from aqx.store import clock
from aqx.store.connection import Database
from aqx.store.values import insert_rows, matrix_column, read_matrix


def save_embedding(
    db: Database,
    task_id: int,
    preset: str,
    fingerprint: str,
    class_ids: Sequence[str] | np.ndarray,
    matrix: Float32[np.ndarray, "C D"],
) -> None:
    """Keep an embedding in the place of the earlier one of this task and preset.

    Args:
        db: the database.
        task_id: from `register_task`.
        preset: the surrogate's name.
        fingerprint: of the inputs that the embedding was fitted to.
        class_ids: C class ids as text.
        matrix: their coordinates.

    Raises:
        InputError: the lengths do not agree.
    """
    if len(class_ids) != len(matrix):
        raise InputError(f"class_ids and matrix must agree in length, but got {len(class_ids)} and {len(matrix)}")
    with db.transaction() as con:
        earlier = "SELECT embedding_id FROM embeddings WHERE task_id = ? AND preset = ?"
        con.execute(f"DELETE FROM embedding_rows WHERE embedding_id IN ({earlier})", [task_id, preset])
        con.execute("DELETE FROM embeddings WHERE task_id = ? AND preset = ?", [task_id, preset])
        ((number,),) = con.execute("SELECT coalesce(max(embedding_id), 0) + 1 FROM embeddings").fetchall()
        con.execute(
            "INSERT INTO embeddings VALUES (?, ?, ?, ?, ?)", [number, task_id, preset, fingerprint, clock.now()]
        )
        insert_rows(
            con,
            "INSERT INTO embedding_rows SELECT ?, class_id::UUID, coordinates FROM incoming",
            [number],
            {"class_id": pa.array(class_ids, pa.string()), "coordinates": matrix_column(matrix)},
        )


def load_embedding(
    db: Database, task_id: int, preset: str
) -> tuple[str, np.ndarray, Float32[np.ndarray, "C D"]] | None:
    """The kept embedding as (fingerprint, class ids [C] as text, coordinates), in the order it was saved; or None."""
    with db.read() as con:
        found = con.execute(
            "SELECT embedding_id, fingerprint FROM embeddings WHERE task_id = ? AND preset = ?", [task_id, preset]
        ).fetchall()
        if not found:
            return None
        ((number, fingerprint),) = found
        query = "SELECT class_id::VARCHAR, coordinates FROM embedding_rows WHERE embedding_id = ? ORDER BY rowid"
        return fingerprint, *read_matrix(con, query, [number])
