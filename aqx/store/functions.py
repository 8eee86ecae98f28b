"""Functions, their classes, the classes' outputs, and how far each family has been enumerated."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aqx.errors import StoreError
from aqx.store.connection import Database
from aqx.store.driver import duckdb
from aqx.store.encoding import arrow_table, insert_rows, integer_column, matrix_column, relation, text_column

if TYPE_CHECKING:  # NumPy takes a fifth of a second, and who reads trials needs none of it
    import numpy as np
    from jaxtyping import Bool, Float, Float32, UInt64

FLAGS = ("finite", "finite_at_0", "finite_at_20", "finite_gradient_at_0", "constant", "affine")

# A UUID of two 64-bit halves, which is how arrays hold ids, and the halves of a UUID.
CLASS_ID = "((hi::UHUGEINT << 64) | lo::UHUGEINT)::UUID"
ID_HALVES = "(class_id::UHUGEINT >> 64)::UBIGINT AS hi, (class_id::UHUGEINT & 18446744073709551615)::UBIGINT AS lo"


@dataclass(frozen=True)
class Representatives:
    """R functions that are the simplest known so far of their classes.

    Attributes:
        rows: their positions among the functions stored with them [R].
        flags: for each of `FLAGS` whether it holds [R].
        with_outputs: which of these functions are finite, in any order [F].
        outputs: the values of those at the database's points [F, n].
    """

    rows: np.ndarray
    flags: Mapping[str, Bool[np.ndarray, " R"]]
    with_outputs: np.ndarray
    outputs: Float32[np.ndarray, "F n"]


@dataclass(frozen=True)
class Added:
    """What one transaction added, and how many functions of each of its families are stored now."""

    functions: int
    classes: int
    done: dict[tuple[str, str], int]


def get_points(db: Database) -> tuple[str, Float[np.ndarray, " n"]] | None:
    """Return how this database's points were sampled, and the points; None before the first enumeration."""
    with db.read() as con:
        return read_points(con)


def set_points(db: Database, sampling: str, points: Float[np.ndarray, " n"]) -> None:
    """Fix the points at which outputs are stored; a database keeps the ones it was made with.

    Raises:
        StoreError: the database has other points.
    """
    import numpy as np

    with db.transaction() as con:
        stored = read_points(con)
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


def check_operators(db: Database, method: str, behaviours: dict[str, str]) -> None:
    """Record how classes are told apart and what each operator does (a digest of its values).

    Raises:
        StoreError: the database tells classes apart by another method, or an operator of this name computed something
            else when the database was filled.
    """
    with db.transaction() as con:
        known = _meta(con, "operators")
        if (stored := _meta(con, "method").get("name", "1" if known else method)) != method:
            raise StoreError(
                f"{db.path} was filled by another version of aqx, which told functions apart differently (method "
                f"{stored}, now {method}); use that version with it, or start another database"
            )
        changed = sorted(name for name, digest in behaviours.items() if known.get(name, digest) != digest)
        if changed:
            raise StoreError(another_operator(db, changed[0]))
        if not behaviours.keys() <= known.keys():
            for key, value in (("method", {"name": method}), ("operators", known | behaviours)):
                con.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, json.dumps(value)])


def operators_of(db: Database) -> dict[str, str]:
    """The operators that the database was filled with, each with a digest of what it does."""
    with db.read() as con:
        return _meta(con, "operators")


def another_operator(db: Database, name: str) -> str:
    """What to say of an operator that computes something else than it did when the database was filled."""
    return (
        f"{db.path} was filled with another operator {name!r} than the one registered now; "
        "register yours under another name, or start another database"
    )


def _meta(con: duckdb.DuckDBPyConnection, key: str) -> dict[str, Any]:
    row = con.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchone()
    return json.loads(row[0]) if row else {}


def enumerated(db: Database) -> dict[tuple[str, str], int]:
    """Return how many functions of each family, a schema and its operators, are stored, in the order of their names."""
    with db.read() as con:
        return _families(con)


# Where `y` stands as an argument in a name or a schema.
_TAKES_Y = r"'[(,]y[,)]'"


def holds_two_inputs(db: Database) -> bool:
    """Return whether functions of two inputs have been enumerated."""
    with db.read() as con:
        ((found,),) = con.execute(f"SELECT EXISTS (FROM families WHERE regexp_matches(schema, {_TAKES_Y}))").fetchall()
    return found


def classes_by_inputs(db: Database, inputs: int) -> list[str]:
    """Return the ids of the classes worth training that are functions of so many inputs, 1 or 2."""
    with db.read() as con:
        rows = con.execute(
            "SELECT class_id::VARCHAR FROM class_info WHERE finite AND NOT constant "
            f"AND regexp_matches(name, {_TAKES_Y}) = ?",
            [inputs == 2],
        ).fetchall()
    return [class_id for (class_id,) in rows]


def add_functions(
    db: Database,
    names: Sequence[str],
    ids: UInt64[np.ndarray, "K 2"],
    size: int,
    simplest: Representatives,
    progress: Mapping[tuple[str, str], tuple[int, int]],
    disjoint: Collection[tuple[str, str]],
) -> Added:
    """Store functions that are not there yet, their classes, and how far their families have come; all or nothing.

    Args:
        db: the database.
        names: the functions [K].
        ids: halves of their class ids [K, 2].
        size: number of operators in each of them.
        simplest: those that represent classes which are new, or which a less simple function has represented.
        progress: for each family, how many of its functions come before these, and how many there are with these. A
            family of which only some functions are stored, in no order, is given as (0, 0).
        disjoint: families that can't have stored one of these functions, except as `progress` says.

    Returns:
        how many functions and classes were added, and how far the families in `progress` are now.
    """
    with db.transaction(bulk=True) as con:
        families = _families(con)
        added = 0, 0
        # Another process may have been here meanwhile: even with all of it, or part of the way.
        if any(families.get(key, 0) < stop or not stop for key, (_, stop) in progress.items()):
            alone = all(families.get(key, start) == start for key, (start, _) in progress.items())
            new = alone and {*families, *progress} <= {*disjoint}
            added = _insert_functions(con, names, ids, size, new), _insert_classes(con, names, ids, size, simplest)
            for (schema, operators), (_, stop) in progress.items():
                con.execute(
                    "INSERT INTO families VALUES (?, ?, ?) "
                    "ON CONFLICT DO UPDATE SET done = greatest(done, excluded.done)",
                    [schema, operators, stop],
                )
        return Added(*added, {key: max(families.get(key, 0), stop) for key, (_, stop) in progress.items()})


def _families(con: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], int]:
    rows = con.execute("SELECT schema, operators, done FROM families").fetchall()
    return {(schema, operators): done for schema, operators, done in rows}


def _insert_functions(
    con: duckdb.DuckDBPyConnection, names: Sequence[str], ids: UInt64[np.ndarray, "K 2"], size: int, new: bool
) -> int:
    columns = {"name": text_column(names), "hi": ids[:, 0], "lo": ids[:, 1]}
    # Looking for a million names costs more than inserting them.
    select = "" if new else "DISTINCT"
    where = "" if new else "ANTI JOIN functions USING (name)"
    return insert_rows(
        con, f"INSERT INTO functions SELECT {select} name, {CLASS_ID}, ? FROM incoming {where}", [size], columns
    )


def _insert_classes(
    con: duckdb.DuckDBPyConnection,
    names: Sequence[str],
    ids: UInt64[np.ndarray, "K 2"],
    size: int,
    simplest: Representatives,
) -> int:
    flags = ", ".join(FLAGS)
    halves = ids[simplest.rows]
    rows: list[int] = simplest.rows.tolist()
    columns = {"name": text_column(names[row] for row in rows)}
    columns |= {"hi": halves[:, 0], "lo": halves[:, 1]}
    columns |= {flag: simplest.flags[flag] for flag in FLAGS}
    selected = f"(SELECT {CLASS_ID} AS class_id, name, ?::USMALLINT AS size, {flags} FROM incoming)"
    added = insert_rows(
        con,
        f"INSERT INTO class_info (class_id, name, size, {flags}) "
        f"SELECT * FROM {selected} ANTI JOIN class_info USING (class_id)",
        [size],
        columns,
    )
    if added < len(simplest.rows):
        insert_rows(
            con,
            f"UPDATE class_info SET (name, size, {flags}) = (s.name, s.size, {', '.join(f's.{f}' for f in FLAGS)}) "
            f"FROM {selected} s WHERE s.class_id = class_info.class_id "
            "AND (s.size, s.name) < (class_info.size, class_info.name)",
            [size],
            columns,
        )
    _insert_outputs(con, halves[simplest.with_outputs], simplest.outputs)
    return added


def _insert_outputs(
    con: duckdb.DuckDBPyConnection, ids: UInt64[np.ndarray, "F 2"], outputs: Float32[np.ndarray, "F n"]
) -> None:
    import numpy as np

    # Joined without the long column, which each step of a query would copy.
    con.register("incoming", arrow_table({"hi": ids[:, 0], "lo": ids[:, 1], "row": integer_column(range(len(ids)))}))
    stored = con.execute(
        f"SELECT row FROM (SELECT {CLASS_ID} AS class_id, row FROM incoming) SEMI JOIN class_outputs USING (class_id)"
    ).fetchnumpy()["row"]
    con.unregister("incoming")
    if len(stored):
        ids, outputs = np.delete(ids, stored, axis=0), np.delete(outputs, stored, axis=0)
    columns = {"hi": ids[:, 0], "lo": ids[:, 1], "outputs": matrix_column(outputs)}
    insert_rows(con, f"INSERT INTO class_outputs SELECT {CLASS_ID}, outputs FROM incoming", [], columns)


def known_classes(db: Database) -> tuple[UInt64[np.ndarray, "C 2"], np.ndarray, list[str]]:
    """Return the halves of the ids, the sizes and the simplest names of all stored classes."""
    import numpy as np

    with db.read() as con:
        found = relation(con, f"SELECT {ID_HALVES}, size, name FROM class_info").to_arrow_table()
    ids = np.stack([found["hi"].to_numpy(), found["lo"].to_numpy()], axis=1)
    return ids, found["size"].to_numpy(), found["name"].to_pylist()


def find_class(db: Database, name: str) -> tuple[str, str] | None:
    """Return (class id, simplest name) of a stored function, or None."""
    with db.read() as con:
        return con.execute(
            "SELECT class_id::VARCHAR, i.name FROM functions f JOIN class_info i USING (class_id) WHERE f.name = ?",
            [name],
        ).fetchone()


def find_classes(db: Database, names: Sequence[str]) -> dict[str, tuple[str, bool | None, bool | None]]:
    """Return (class id, finite, constant) of each of these functions that is stored; None where nobody looked."""
    with db.read() as con:
        con.register("wanted", arrow_table({"name": text_column(names)}))
        rows = con.execute(
            "SELECT f.name, class_id::VARCHAR, finite, constant "
            "FROM functions f SEMI JOIN wanted USING (name) JOIN class_info i USING (class_id)"
        ).fetchall()
        con.unregister("wanted")
    return {name: (class_id, finite, constant) for name, class_id, finite, constant in rows}


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


def candidate_names(db: Database) -> dict[str, str]:
    """Return the simplest name of each class worth training, finite and not constant, by ascending class id."""
    with db.read() as con:
        rows = con.execute(
            "SELECT class_id::VARCHAR, name FROM class_info WHERE finite AND NOT constant ORDER BY class_id"
        ).fetchall()
    return dict(rows)


def class_names(db: Database, class_ids: Sequence[str]) -> list[str]:
    """Return the simplest names of stored classes, in the order of their ids."""
    with db.read() as con:
        names = con.execute(
            "SELECT class_id::VARCHAR, name FROM class_info WHERE class_id IN (SELECT unnest(?::UUID[]))",
            [list(class_ids)],
        ).fetchall()
    name_of = dict(names)
    return [name_of[class_id] for class_id in class_ids]


def count_functions(db: Database) -> dict[str, int]:
    """Count what is stored: functions, classes, and of these the usable ones and the others by what they are."""
    with db.read() as con:
        (counts,) = con.execute(
            "SELECT (SELECT count(*) FROM functions), count(*), count(*) FILTER (finite AND NOT constant), "
            "count(*) FILTER (NOT finite), count(*) FILTER (finite AND constant) FROM class_info"
        ).fetchall()
    return dict(zip(("functions", "classes", "usable", "not finite", "constant"), counts, strict=True))


def read_points(con: duckdb.DuckDBPyConnection) -> tuple[str, Float[np.ndarray, " n"]] | None:
    """Return how the points were drawn, and the points, inside the caller's transaction; None where there are none."""
    import numpy as np

    row = con.execute("SELECT value FROM meta WHERE key = 'points'").fetchone()
    if row is None:
        return None
    value = json.loads(row[0])
    return value["sampling"], np.asarray(value["points"], np.float32)
