"""Functions, their classes, the classes' outputs, and how far each family has been enumerated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float32, UInt64

from aqx.errors import StoreError
from aqx.store.connection import Database

FLAGS = ("finite", "finite_at_0", "finite_at_20", "finite_gradient_at_0", "constant", "affine")

_CLASS_ID = "((hi::UHUGEINT << 64) | lo::UHUGEINT)::UUID"


@dataclass(frozen=True)
class Representatives:
    """Functions of a piece, R of them, that are the simplest known so far of their classes.

    Attributes:
        rows: their positions in the piece [R].
        flags: one column per name in `FLAGS` [R, 6].
        outputs: values at the database's points [F, n] of those whose flag `finite` is set, in their order.
    """

    rows: np.ndarray
    flags: Bool[np.ndarray, "R flags"]
    outputs: Float32[np.ndarray, "F n"]


@dataclass(frozen=True)
class Classes:
    """Stored classes, ordered by id.

    Attributes:
        class_ids: ids as text [C].
        names: the simplest name of each class [C].
        outputs: values at the database's points [C, n].
    """

    class_ids: np.ndarray
    names: np.ndarray
    outputs: Float32[np.ndarray, "C n"]


def get_points(db: Database) -> tuple[str, Float[np.ndarray, " n"]] | None:
    """Return how this database's points were sampled, and the points; None before the first enumeration."""
    with db.read() as con:
        return _points(con)


def set_points(db: Database, sampling: str, points: Float[np.ndarray, " n"]) -> None:
    """Fix the points at which outputs are stored; a database keeps the ones it was made with.

    Raises:
        StoreError: the database has other points.
    """
    with db.transaction() as con:
        stored = _points(con)
        if stored is None:
            value = json.dumps({"sampling": sampling, "points": points.tolist()})
            con.execute("INSERT INTO meta VALUES ('points', ?)", [value])
            # The view must not see its column change type, so it goes and comes back with the table.
            ((view,),) = con.execute("SELECT sql FROM duckdb_views() WHERE view_name = 'classes'").fetchall()
            con.execute("DROP VIEW classes; DROP TABLE class_outputs")
            con.execute(f"CREATE TABLE class_outputs (class_id UUID NOT NULL, outputs FLOAT[{len(points)}] NOT NULL)")
            con.execute(view)
        elif stored[0] != sampling or not np.array_equal(stored[1], points):
            raise StoreError(
                f"{db.path} stores outputs at {len(stored[1])} {stored[0]} points, but {len(points)} {sampling} ones "
                f"were asked for; leave --points and --sampling out, or start another database"
            )


def check_operators(db: Database, behaviours: dict[str, str]) -> None:
    """Record what each operator does (a digest of its values), or refuse if the database knows it to do otherwise.

    Raises:
        StoreError: an operator of this name computed something else when the database was filled.
    """
    with db.transaction() as con:
        row = con.execute("SELECT value FROM meta WHERE key = 'operators'").fetchone()
        known = json.loads(row[0]) if row else {}
        changed = sorted(name for name, digest in behaviours.items() if known.get(name, digest) != digest)
        if changed:
            raise StoreError(
                f"{db.path} was filled with another operator {changed[0]!r} than the one registered now; "
                f"register yours under another name, or start another database"
            )
        if not behaviours.keys() <= known.keys():
            con.execute("INSERT OR REPLACE INTO meta VALUES ('operators', ?)", [json.dumps(known | behaviours)])


def enumerated(db: Database, schema: str, operators: str) -> int:
    """Return how many functions of a family are stored already, counted in enumeration order."""
    with db.read() as con:
        row = con.execute(
            "SELECT done FROM families WHERE schema = ? AND operators = ?", [schema, operators]
        ).fetchone()
    return row[0] if row else 0


def add_piece(
    db: Database,
    family: tuple[str, str],
    done: int,
    names: Sequence[str],
    ids: UInt64[np.ndarray, "K 2"],
    size: int,
    simplest: Representatives,
) -> tuple[int, int]:
    """Store one piece of a family in one transaction: functions not yet there, their classes, and the progress.

    Args:
        db: the database.
        family: its schema and its operators, as text.
        done: how many of the family's functions are stored after this piece.
        names: the piece's functions [K], all different.
        ids: halves of their class ids [K, 2].
        size: number of operators in each of them.
        simplest: the functions that represent classes that are new, or that a less simple function has represented.

    Returns:
        how many functions and how many classes were added.
    """
    incoming = pa.table({"name": pa.array(names, pa.string()), "hi": ids[:, 0], "lo": ids[:, 1]})
    flags = {flag: pa.array(simplest.flags[:, column]) for column, flag in enumerate(FLAGS)}
    representatives = incoming.take(pa.array(simplest.rows))
    for flag, column in flags.items():
        representatives = representatives.append_column(flag, column)
    finite = simplest.rows[simplest.flags[:, FLAGS.index("finite")]]
    values = pa.FixedSizeListArray.from_arrays(pa.array(simplest.outputs.reshape(-1)), simplest.outputs.shape[1])
    outputs = pa.table({"hi": ids[finite, 0], "lo": ids[finite, 1], "outputs": values})
    columns = ", ".join(FLAGS)
    with db.transaction() as con:
        con.register("incoming", incoming)
        con.register("incoming_outputs", outputs)
        con.register("incoming_representatives", representatives)
        added_functions = _changed(
            con,
            f"INSERT INTO functions SELECT name, {_CLASS_ID}, ? FROM incoming ANTI JOIN functions USING (name)",
            [size],
        )
        con.execute(
            f"CREATE TEMP TABLE simplest AS SELECT {_CLASS_ID} AS class_id, name, ?::USMALLINT AS size, {columns} "
            "FROM incoming_representatives",
            [size],
        )
        con.execute(
            f"UPDATE class_info SET (name, size, {columns}) = (s.name, s.size, {', '.join(f's.{f}' for f in FLAGS)}) "
            "FROM simplest s WHERE s.class_id = class_info.class_id "
            "AND (s.size, s.name) < (class_info.size, class_info.name)"
        )
        added_classes = _changed(
            con,
            f"INSERT INTO class_info (class_id, name, size, {columns}) SELECT class_id, name, size, {columns} "
            "FROM simplest ANTI JOIN class_info USING (class_id)",
        )
        con.execute("DROP TABLE simplest")
        con.execute(
            f"INSERT INTO class_outputs SELECT class_id, outputs FROM (SELECT {_CLASS_ID} AS class_id, outputs "
            f"FROM incoming_outputs) ANTI JOIN class_outputs USING (class_id)"
        )
        con.execute(
            "INSERT INTO families VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET done = greatest(done, excluded.done)",
            [*family, done],
        )
        for view in ("incoming", "incoming_outputs", "incoming_representatives"):
            con.unregister(view)
    return added_functions, added_classes


def known_classes(db: Database) -> dict[bytes, tuple[int, str]]:
    """Return (size, simplest name) of all stored classes, by their ids as `class_keys` writes them."""
    with db.read() as con:
        found = con.sql(
            "SELECT (class_id::UHUGEINT >> 64)::UBIGINT AS hi, "
            "(class_id::UHUGEINT & 18446744073709551615)::UBIGINT AS lo, size, name FROM class_info"
        ).to_arrow_table()
    keys = class_keys(np.stack([found["hi"].to_numpy(), found["lo"].to_numpy()], axis=1))
    return dict(zip(keys, zip(found["size"].to_pylist(), found["name"].to_pylist(), strict=True), strict=True))


def class_keys(ids: UInt64[np.ndarray, "K 2"]) -> list[bytes]:
    """Return hashable forms of class ids given as halves."""
    return np.ascontiguousarray(ids).view("V16").ravel().tolist()


def find_class(db: Database, name: str) -> tuple[str, str] | None:
    """Return (class id, simplest name) of a stored function, or None."""
    with db.read() as con:
        return con.execute(
            "SELECT class_id::VARCHAR, i.name FROM functions f JOIN class_info i USING (class_id) WHERE f.name = ?",
            [name],
        ).fetchone()


def class_members(db: Database, class_id: str, limit: int) -> tuple[list[str], dict[str, bool | None]]:
    """Return the simplest `limit` stored names of a class, and its flags."""
    with db.read() as con:
        names = con.execute(
            "SELECT name FROM functions WHERE class_id = ?::UUID ORDER BY size, name LIMIT ?", [class_id, limit]
        ).fetchall()
        flags = con.execute(
            f"SELECT {', '.join(FLAGS)} FROM class_info WHERE class_id = ?::UUID", [class_id]
        ).fetchone()
    return [name for (name,) in names], dict(zip(FLAGS, flags or (), strict=bool(flags)))


def load_candidates(db: Database) -> Classes:
    """Return the classes worth training: finite on the database's points, and not constant."""
    with db.read() as con:
        found = con.sql(
            "SELECT class_id::VARCHAR AS class_id, name, outputs FROM class_info JOIN class_outputs USING (class_id) "
            "WHERE finite AND NOT constant ORDER BY class_id"
        ).to_arrow_table()
    outputs = found["outputs"].combine_chunks()
    n = outputs.type.list_size if len(outputs) else 0
    return Classes(
        found["class_id"].to_numpy(zero_copy_only=False),
        found["name"].to_numpy(zero_copy_only=False),
        outputs.flatten().to_numpy(zero_copy_only=False).reshape(len(outputs), n),
    )


def features_version(db: Database, task_id: int) -> tuple[int, int]:
    """Return the numbers of classes and of a task's spectra; they grow whenever features of candidates are added."""
    with db.read() as con:
        ((classes, spectra),) = con.execute(
            "SELECT (SELECT count(*) FROM class_info), (SELECT count(*) FROM spectra WHERE task_id = ?)", [task_id]
        ).fetchall()
    return classes, spectra


def count_functions(db: Database) -> dict[str, int]:
    """Return how many functions, classes and usable classes are stored (usable: finite, not constant)."""
    with db.read() as con:
        (counts,) = con.execute(
            "SELECT (SELECT count(*) FROM functions), count(*), count(*) FILTER (finite AND NOT constant) "
            "FROM class_info"
        ).fetchall()
    return dict(zip(("functions", "classes", "usable"), counts, strict=True))


def _points(con: duckdb.DuckDBPyConnection) -> tuple[str, Float[np.ndarray, " n"]] | None:
    row = con.execute("SELECT value FROM meta WHERE key = 'points'").fetchone()
    if row is None:
        return None
    value = json.loads(row[0])
    return value["sampling"], np.asarray(value["points"], np.float32)


def _changed(con: duckdb.DuckDBPyConnection, statement: str, parameters: Sequence[int] = ()) -> int:
    ((count,),) = con.execute(statement, parameters).fetchall()
    return count
