"""Outputs and spectra of the classes worth training, as the surrogate takes them: all, or those an embedding lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt64

from aqx.store.connection import Database
from aqx.store.encoding import read_columns
from aqx.store.functions import ID_HALVES, read_points

# Rows copied at a time: outputs of 400,000 classes are 400 MB, of which no second copy is made.
_BATCH = 16384


class FeatureCounts(NamedTuple):
    """How many features a database has for a task.

    None is ever removed or changed, so what depends on features alone stays true as long as their numbers do.

    Attributes:
        classes: all of them.
        spectra: valid ones.
        invalid: classes whose spectrum is invalid.
    """

    classes: int
    spectra: int
    invalid: int = 0


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Classes worth training (finite on the database's points, and not constant), in the order of their ids.

    Attributes:
        counts: of all features that were stored at that moment.
        ids: halves of the class ids [C, 2].
        names: the simplest name of each class [C].
        outputs: at the database's points [C, n].
        spectra: features of the Fisher spectrum [C, D]; rows of nan where there is none.
        points: of the outputs [n].
    """

    counts: FeatureCounts
    ids: UInt64[np.ndarray, "C 2"]
    names: np.ndarray
    outputs: Float32[np.ndarray, "C n"]
    spectra: Float32[np.ndarray, "C D"]
    points: Float32[np.ndarray, " n"]


def count_features(con: duckdb.DuckDBPyConnection, task_id: int) -> FeatureCounts:
    """Count features, inside the caller's transaction."""
    (counts,) = con.execute(
        "SELECT (SELECT count(*) FROM class_info), count(*) FILTER (status = 'valid'), "
        "count(*) FILTER (status <> 'valid') FROM spectra WHERE task_id = ?",
        [task_id],
    ).fetchall()
    return FeatureCounts(*counts)


def load_features(db: Database, task_id: int, lacking: int | None = None) -> FeatureRows:
    """Read the features of all classes worth training, or of those that an embedding lacks.

    Args:
        db: the database.
        task_id: whose spectra.
        lacking: the number of an embedding: then only classes that are not in it, or that have got a spectrum since.
    """
    with db.read() as con:
        known = read_columns(
            con,
            f"""
            SELECT {ID_HALVES}, name, outputs_row, coalesce(spectrum_row, -1) AS spectrum_row
            FROM (SELECT class_id, name FROM class_info WHERE finite AND NOT constant)
            JOIN (SELECT class_id, rowid AS outputs_row FROM class_outputs) USING (class_id)
            LEFT JOIN ({_SPECTRA}) USING (class_id)
            {"" if lacking is None else _LACKING}
            ORDER BY class_id
            """,
            {"task": task_id} | ({} if lacking is None else {"embedding": lacking}),
        )
        outputs = _read_rows(con, "SELECT rowid AS row, outputs AS value FROM class_outputs", known["outputs_row"])
        stored = read_points(con)
        return FeatureRows(
            count_features(con, task_id),
            np.stack([known["hi"], known["lo"]], axis=1),
            known["name"],
            outputs,
            _read_rows(con, "SELECT rowid AS row, features AS value FROM spectra", known["spectrum_row"]),
            stored[1] if stored and outputs.size else np.zeros(outputs.shape[1], np.float32),
        )


_SPECTRA = "SELECT class_id, rowid AS spectrum_row FROM spectra WHERE task_id = $task AND status = 'valid'"
_LACKING = """
    LEFT JOIN (SELECT class_id, has_spectrum FROM embedding_rows WHERE embedding_id = $embedding) USING (class_id)
    WHERE has_spectrum IS NULL OR (NOT has_spectrum AND spectrum_row IS NOT NULL)
"""


def _read_rows(con: duckdb.DuckDBPyConnection, rows: str, wanted: np.ndarray) -> Float32[np.ndarray, "C n"]:
    """Read lists by their row numbers, nan where that is -1; they go straight to their places in one matrix.

    Joining or sorting lists in the query would copy 400,000 of them, which are 400 MB.
    """
    matrix = np.empty((len(wanted), 0), np.float32)
    present = np.flatnonzero(wanted >= 0)
    if not len(present):
        return matrix
    place = np.full(wanted.max() + 1, -1)
    place[wanted[present]] = present
    con.register("wanted", pa.table({"row": wanted[present]}))
    try:
        for batch in con.sql(f"FROM ({rows}) SEMI JOIN wanted USING (row)").to_arrow_reader(_BATCH):
            row, value = batch["row"].to_numpy(), batch["value"].flatten().to_numpy().reshape(len(batch), -1)
            if not matrix.shape[1]:
                matrix = np.full((len(wanted), value.shape[1]), np.nan, np.float32)
            matrix[place[row]] = value
    finally:
        con.unregister("wanted")
    return matrix
