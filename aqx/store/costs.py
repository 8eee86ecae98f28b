"""What functions cost, by the kind of device, and where 16-bit floats fail them: of single operators and of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from aqx.store import clock
from aqx.store.connection import Database
from aqx.store.encoding import insert_rows, number_column, read_columns, text_column
from aqx.store.functions import ID_HALVES

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, UInt64

PRECISION = ("float16_overflows", "float16_loses_digits", "bfloat16_overflows", "bfloat16_loses_digits")

# The classes that matter: candidates, and whatever was trained, be it enumerated or not.
_WANTED = """(
    SELECT class_id, name FROM class_info
    WHERE (finite AND NOT constant) OR class_id IN (SELECT class_id FROM trials)
    UNION ALL
    SELECT class_id, min(name) FROM trials
    WHERE class_id IS NOT NULL AND class_id NOT IN (SELECT class_id FROM class_info) GROUP BY class_id
)"""


def operator_costs(db: Database, device: str, versions: str) -> dict[str, float]:
    """Return nanoseconds by operator, as these versions of aqx and JAX were measured on a kind of device."""
    with db.read() as con:
        rows = con.execute(
            "SELECT operator, nanoseconds FROM operator_costs WHERE device = ? AND versions = ?", [device, versions]
        ).fetchall()
    return dict(rows)


def operators_by_device(db: Database) -> dict[str, dict[str, float]]:
    """Return nanoseconds by device and operator, the device that was measured last first."""
    with db.read() as con:
        rows = con.execute(
            "SELECT device, operator, nanoseconds FROM operator_costs "
            "ORDER BY max(measured_at) OVER (PARTITION BY device) DESC, device"
        ).fetchall()
    found: dict[str, dict[str, float]] = {}
    for device, operator, nanoseconds in rows:
        found.setdefault(device, {})[operator] = nanoseconds
    return found


def trained_names(db: Database) -> list[str]:
    """Return the names by which functions were trained."""
    with db.read() as con:
        return [name for (name,) in con.execute("SELECT DISTINCT name FROM trials").fetchall()]


def add_operator_costs(
    db: Database, device: str, versions: str, nanoseconds: Mapping[str, float], *, replace: bool = False
) -> None:
    """Store what operators cost on a device.

    What was measured there by other versions goes, and with `replace` all that was; and what classes cost by that.
    """
    with db.transaction() as con:
        stale = con.execute(
            "SELECT 1 FROM operator_costs WHERE device = ? AND (versions <> ? OR ?) LIMIT 1",
            [device, versions, replace],
        ).fetchone()
        if stale:
            con.execute("DELETE FROM operator_costs WHERE device = ?", [device])
            con.execute("DELETE FROM class_costs WHERE device = ?", [device])
        known = con.execute("SELECT operator FROM operator_costs WHERE device = ?", [device]).fetchall()
        rows = [
            (device, operator, cost, versions, clock.now())
            for operator, cost in nanoseconds.items()
            if (operator,) not in known  # another process was quicker, and the classes go by its numbers
        ]
        if rows:
            con.executemany("INSERT INTO operator_costs VALUES (?, ?, ?, ?, ?)", rows)


def classes_without_cost(db: Database, device: str) -> dict[str, str]:
    """Return the names, by class, of candidates and trained functions whose cost by that name is not stored."""
    with db.read() as con:
        rows = con.execute(
            f"SELECT class_id::VARCHAR, name FROM {_WANTED} "
            "ANTI JOIN (SELECT class_id, name FROM class_costs WHERE device = ?) USING (class_id, name)",
            [device],
        ).fetchall()
    return dict(rows)


def add_class_costs(
    db: Database, device: str, names: Mapping[str, str], nanoseconds: Sequence[float], relative: Sequence[float]
) -> int:
    """Store what classes cost by their names, in place of what they cost by others, and return how many are new.

    Args:
        db: the database.
        device: what it was measured on.
        names: by class.
        nanoseconds: of each.
        relative: of each, to relu's.
    """
    columns = {
        "id": text_column(names),
        "name": text_column(names.values()),
        "nanoseconds": number_column(nanoseconds),
        "relative": number_column(relative),
    }
    with db.transaction(bulk=True) as con:
        if con.execute("SELECT 1 FROM class_costs WHERE device = ? LIMIT 1", [device]).fetchone():
            con.execute(
                "DELETE FROM class_costs WHERE device = ? AND class_id IN (SELECT unnest(?::UUID[]))",
                [device, list(names)],
            )
        return insert_rows(
            con,
            "INSERT INTO class_costs SELECT id::UUID, ?, name, nanoseconds, relative FROM incoming",
            [device],
            columns,
        )


def cost_matrix(db: Database, device: str) -> tuple[UInt64[np.ndarray, "C 2"], Float[np.ndarray, " C"]]:
    """Return the halves of the ids of the classes whose cost on a device is known, and it relative to relu's."""
    import numpy as np

    with db.read() as con:
        found = read_columns(con, f"SELECT {ID_HALVES}, relative FROM class_costs WHERE device = ?", [device])
    return np.stack([found["hi"], found["lo"]], axis=1).astype(np.uint64), found["relative"]


def costs_of(db: Database, class_ids: Iterable[str | None]) -> dict[str, dict[str, float]]:
    """Return by class and by device what some classes cost relative to relu; the device measured last comes first."""
    with db.read() as con:
        order = con.execute(
            "SELECT device FROM operator_costs GROUP BY device ORDER BY max(measured_at) DESC, device"
        ).fetchall()
        rows = con.execute(
            "SELECT class_id::VARCHAR, device, relative FROM class_costs WHERE class_id IN (SELECT unnest(?::UUID[]))",
            [[class_id for class_id in class_ids if class_id is not None]],
        ).fetchall()
    found = {(class_id, device): relative for class_id, device, relative in rows}
    classes = dict.fromkeys(class_id for class_id, _, _ in rows)
    return {id_: {device: found[id_, device] for (device,) in order if (id_, device) in found} for id_ in classes}


def classes_without_precision(db: Database) -> dict[str, str]:
    """Return the names, by class, of candidates and trained functions of which nobody looked what 16-bit floats do."""
    with db.read() as con:
        rows = con.execute(
            f"SELECT class_id::VARCHAR, name FROM {_WANTED} ANTI JOIN class_precision USING (class_id)"
        ).fetchall()
    return dict(rows)


def add_precision(db: Database, class_ids: Sequence[str], flags: Mapping[str, Bool[np.ndarray, " C"]]) -> int:
    """Store of classes what `PRECISION` names, and return how many are new."""
    columns = {"id": text_column(class_ids), **{flag: flags[flag] for flag in PRECISION}}
    with db.transaction(bulk=True) as con:
        return insert_rows(
            con,
            f"INSERT INTO class_precision SELECT id::UUID, {', '.join(PRECISION)} FROM incoming "
            "WHERE id::UUID NOT IN (SELECT class_id FROM class_precision)",
            [],
            columns,
        )


def precision_of(db: Database, class_ids: Iterable[str | None]) -> dict[str, dict[str, bool]]:
    """Return by class the flags of `PRECISION`, of those of some classes that were looked at."""
    with db.read() as con:
        rows = con.execute(
            f"SELECT class_id::VARCHAR, {', '.join(PRECISION)} FROM class_precision "
            "WHERE class_id IN (SELECT unnest(?::UUID[]))",
            [[class_id for class_id in class_ids if class_id is not None]],
        ).fetchall()
    return {class_id: dict(zip(PRECISION, flags, strict=True)) for class_id, *flags in rows}


def said_of(flags: Mapping[str, bool]) -> str:
    """Write such flags as people read them.

    Example:
        >>> said_of({"float16_overflows": True, "float16_loses_digits": True, "bfloat16_overflows": False})
        'float16 overflows, loses digits'
    """
    parts = []
    for kind in ("float16", "bfloat16"):
        found = [
            flag.removeprefix(f"{kind}_").replace("_", " ")
            for flag in flags
            if flag.startswith(f"{kind}_") and flags[flag]
        ]
        if found:
            parts.append(f"{kind} {', '.join(found)}")
    return "; ".join(parts)
