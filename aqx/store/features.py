"""Features of the classes worth training, outputs and spectra, and the fitted embeddings of them that are kept."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, UInt64

from aqx.errors import StoreError
from aqx.store import clock
from aqx.store.connection import Database
from aqx.store.counts import FeatureCounts, count_features
from aqx.store.driver import duckdb
from aqx.store.encoding import arrow_table, insert_rows, matrix_column, read_columns, relation
from aqx.store.functions import CLASS_ID, ID_HALVES, read_points
from aqx.store.subjects import current_subject
from aqx.store.trouble import LEFT_AS_IT_WAS

# Rows copied at a time: outputs of 400,000 classes are 400 MB, of which no second copy is made.
_BATCH = 16384
# An embedding is fitted anew when there are so many times the classes or the spectra that it was fitted to.
_GROWTH = 1.1
_FITTED_TO = (
    "SELECT embedding_id, classes, spectra, coalesce(runs, 0) FROM embeddings "
    "LEFT JOIN embedding_runs USING (embedding_id)"
)


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
        runs: losses of the short runs [C, R]; rows of nan where there are none.
    """

    counts: FeatureCounts
    ids: UInt64[np.ndarray, "C 2"]
    names: np.ndarray
    outputs: Float32[np.ndarray, "C n"]
    spectra: Float32[np.ndarray, "C D"]
    points: Float32[np.ndarray, " n"]
    runs: Float32[np.ndarray, "C R"]


def load_features(db: Database, task_id: int, lacking: int | None = None) -> FeatureRows:
    """Read the features of all classes worth training, or of those that an embedding lacks.

    Args:
        db: the database.
        task_id: whose spectra.
        lacking: the number of an embedding: then only classes that are not in it, or that have got a spectrum, or short
            runs where it has any, since.
    """
    with db.read() as con:
        known = read_columns(
            con,
            f"""
            SELECT {ID_HALVES}, name, outputs_row, coalesce(spectrum_row, -1) AS spectrum_row,
                   coalesce(runs_row, -1) AS runs_row
            FROM (SELECT class_id, name FROM class_info WHERE finite AND NOT constant)
            JOIN (SELECT class_id, rowid AS outputs_row FROM class_outputs) USING (class_id)
            LEFT JOIN ({_SPECTRA}) USING (class_id)
            LEFT JOIN ({_RUNS}) USING (class_id)
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
            _read_rows(con, "SELECT rowid AS row, features AS value FROM runs", known["runs_row"]),
        )


_SPECTRA = "SELECT class_id, rowid AS spectrum_row FROM spectra WHERE task_id = $task AND status = 'valid'"
_RUNS = "SELECT class_id, rowid AS runs_row FROM runs WHERE task_id = $task AND status = 'valid'"
_LACKING = """
    LEFT JOIN (
        SELECT class_id, has_spectrum, EXISTS (FROM embedding_runs WHERE embedding_id = $embedding)
            AND isnan(coordinates[len(coordinates)]) AS lacks_runs
        FROM embedding_rows WHERE embedding_id = $embedding
    ) USING (class_id)
    WHERE has_spectrum IS NULL OR (NOT has_spectrum AND spectrum_row IS NOT NULL)
        OR (lacks_runs AND runs_row IS NOT NULL)
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
    con.register("wanted", arrow_table({"row": wanted[present]}))
    try:
        for batch in relation(con, f"FROM ({rows}) SEMI JOIN wanted USING (row)").to_arrow_reader(_BATCH):
            row, value = batch["row"].to_numpy(), batch["value"].flatten().to_numpy().reshape(len(batch), -1)
            if not matrix.shape[1]:
                matrix = np.full((len(wanted), value.shape[1]), np.nan, np.float32)
            matrix[place[row]] = value
    finally:
        con.unregister("wanted")
    return matrix


@dataclass(frozen=True, eq=False)
class StoredEmbedding:
    """An embedding of the candidates there were when it was fitted.

    Attributes:
        fitted_to: how many classes and spectra there were.
        ids: halves of the candidates' ids, ascending [C, 2].
        coordinates: of each of them [C, K].
        has_spectrum: whose spectra were known then [C].
        loadings: what is needed to give more candidates coordinates of the same kind; empty where that cannot be done.
        embedding_id: its number, that no other embedding in the database ever has; 0 before it is stored.

    Where it was fitted to short runs, they give the last coordinates, nan for a candidate without.
    """

    fitted_to: FeatureCounts
    ids: UInt64[np.ndarray, "C 2"]
    coordinates: Float32[np.ndarray, "C K"]
    has_spectrum: Bool[np.ndarray, " C"]
    loadings: Mapping[str, np.ndarray] = field(default_factory=dict)
    embedding_id: int = 0


def is_due(fitted_to: FeatureCounts, now: FeatureCounts) -> bool:
    """Whether an embedding must be fitted anew: there are 10 % more classes, spectra or runs than it was fitted to.

    Example:
        >>> from aqx.store.features import FeatureCounts
        >>> [is_due(FeatureCounts(100, 10), FeatureCounts(*now)) for now in ((110, 11), (111, 10), (100, 12))]
        [False, True, True]
    """
    return any(
        now_there > _GROWTH * were_there
        for now_there, were_there in (
            (now.classes, fitted_to.classes),
            (now.spectra, fitted_to.spectra),
            (now.runs, fitted_to.runs),
        )
    )


def save_embedding(db: Database, task_id: int, preset: str, seed: int, fitted: StoredEmbedding) -> int:
    """Keep an embedding in the place of the earlier one of this task, preset and seed, and return its number.

    Where another process was quicker and has stored one that is not due to be fitted anew, that one stays, and its
    number is returned: two processes that fit at once then go on with the same embedding. One fitted to spectra
    that are not in force any more is not kept, and its number is 0.

    Args:
        db: the database.
        task_id: from `register_task`.
        preset: the surrogate's name.
        seed: of the fit.
        fitted: the embedding.
    """
    key = [task_id, preset, seed]
    with db.transaction() as con:
        if fitted.fitted_to.subject != current_subject(con, task_id):
            return 0
        found = con.execute(f"{_FITTED_TO} WHERE (task_id, preset, seed) = (?, ?, ?)", key).fetchall()
        for number, classes, spectra, runs in found:
            if not is_due(FeatureCounts(classes, spectra, runs=runs), fitted.fitted_to):
                return number
            for table in ("embedding_rows", "embedding_runs"):
                con.execute(f"DELETE FROM {table} WHERE embedding_id = ?", [number])
        con.execute("DELETE FROM embeddings WHERE (task_id, preset, seed) = (?, ?, ?)", key)
        ((number,),) = con.execute("SELECT nextval('embedding_ids')").fetchall()
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **fitted.loadings)
        con.execute(
            "INSERT INTO embeddings VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [number, *key, fitted.fitted_to.classes, fitted.fitted_to.spectra, packed.getvalue(), clock.now()],
        )
        if fitted.fitted_to.runs:
            con.execute("INSERT INTO embedding_runs VALUES (?, ?)", [number, fitted.fitted_to.runs])
        insert_rows(
            con,
            f"INSERT INTO embedding_rows SELECT ?, {CLASS_ID}, has_spectrum, coordinates FROM incoming",
            [number],
            {
                "hi": fitted.ids[:, 0],
                "lo": fitted.ids[:, 1],
                "has_spectrum": fitted.has_spectrum,
                "coordinates": matrix_column(fitted.coordinates),
            },
        )
        return number


def find_embedding(
    db: Database, task_id: int, preset: str, seed: int
) -> tuple[FeatureCounts, int | None, FeatureCounts | None]:
    """Return what features there are, the number of the kept embedding, and what that was fitted to (None: no such)."""
    with db.read() as con:
        counts = count_features(con, task_id)
        found = con.execute(
            f"{_FITTED_TO} WHERE (task_id, preset, seed) = (?, ?, ?)", [task_id, preset, seed]
        ).fetchall()
    for number, classes, spectra, runs in found:
        return counts, number, FeatureCounts(classes, spectra, runs=runs)
    return counts, None, None


def load_embedding(db: Database, embedding_id: int) -> StoredEmbedding | None:
    """Return an embedding by its number; None where another has taken its place."""
    with db.read() as con:
        found = con.execute(f"{_FITTED_TO} WHERE embedding_id = ?", [embedding_id]).fetchall()
        if not found:
            return None
        ((_, classes, spectra, runs),) = found
        ((packed,),) = con.execute("SELECT loadings FROM embeddings WHERE embedding_id = ?", [embedding_id]).fetchall()
        columns = read_columns(
            con,
            f"SELECT {ID_HALVES}, has_spectrum, coordinates FROM embedding_rows WHERE embedding_id = ? ORDER BY rowid",
            [embedding_id],
        )
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as loadings:
            kept = {name: loadings[name] for name in loadings.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"{db.path} holds an embedding that is not aqx's own ({error}); {LEFT_AS_IT_WAS}") from error
    return StoredEmbedding(
        FeatureCounts(classes, spectra, runs=runs),
        np.stack([columns["hi"], columns["lo"]], axis=1),
        columns["coordinates"],
        columns["has_spectrum"],
        kept,
        embedding_id,
    )
