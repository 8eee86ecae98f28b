"""Class ids and matrices on their way into the database and back, as Arrow tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from aqx.store.driver import duckdb

if TYPE_CHECKING:  # NumPy takes a fifth of a second, and who reads trials needs none of it
    import numpy as np
    from duckdb import DuckDBPyRelation
    from jaxtyping import Float32


def differences(stored: Mapping[str, Any], given: Mapping[str, Any], length: int = 60) -> str:
    """Say in a few words where two flat mappings differ; empty where they agree.

    Example:
        >>> differences({"seed": 0, "objective": "val_acc"}, {"seed": 0, "objective": "loss"})
        "objective (stored 'val_acc', now 'loss')"
    """

    def show(mapping: Mapping[str, Any], key: str) -> str:
        text = repr(mapping[key]) if key in mapping else "nothing"
        return text if len(text) <= length else text[: length - 1] + "…"

    keys = [key for key in {**stored, **given} if key not in stored or key not in given or stored[key] != given[key]]
    return ", ".join(f"{key} (stored {show(stored, key)}, now {show(given, key)})" for key in keys)


# So is pyarrow, which takes a tenth of a second.
def arrow_table(columns: Mapping[str, Any]) -> Any:
    """Columns, Arrow's or NumPy's, as a table that DuckDB reads."""
    import pyarrow as pa

    import_module("duckdb")  # teaches its connections to read Arrow
    return pa.table(dict(columns))


def text_column(values: Iterable[str | None]) -> Any:
    """Text as an Arrow column, NULL for None."""
    import pyarrow as pa

    return pa.array(values, pa.string())


def integer_column(values: Iterable[int]) -> Any:
    """Integers of 64 bits as an Arrow column."""
    import pyarrow as pa

    return pa.array(values, pa.int64())


def number_column(values: Iterable[float | int | None]) -> Any:
    """Numbers as an Arrow column, NULL for None."""
    import pyarrow as pa

    return pa.array(values, pa.float64())


def matrix_column(matrix: Float32[np.ndarray, "K D"]) -> Any:
    """The rows of a matrix as one Arrow column of lists, without a copy."""
    import numpy as np
    import pyarrow as pa

    if not matrix.shape[1]:
        return pa.array([[]] * len(matrix), pa.list_(pa.float32()))
    flat = np.ascontiguousarray(matrix).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), matrix.shape[1])


def insert_rows(
    con: duckdb.DuckDBPyConnection,
    statement: str,
    parameters: Sequence[Any] | Mapping[str, Any],
    columns: Mapping[str, Any],
) -> int:
    """Run an INSERT that selects from `columns`, there under the name `incoming`; return how many rows it inserted."""
    con.register("incoming", arrow_table(columns))
    # All of a result must be fetched before the connection registers or unregisters anything. After an error it can do
    # neither, and ends with the transaction.
    ((inserted,),) = con.execute(statement, parameters).fetchall()
    con.unregister("incoming")
    return inserted


def relation(
    con: duckdb.DuckDBPyConnection, query: str, parameters: list[Any] | dict[str, Any] | None = None
) -> DuckDBPyRelation:
    """What a query says, not run yet: to be read as Arrow's tables."""
    import_module("duckdb")  # equips its connections with `sql`
    return con.sql(query, params=parameters)


def read_matrix(
    con: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any]
) -> tuple[np.ndarray, Float32[np.ndarray, "C D"]]:
    """Run a query for (class id as text, list of floats) and return the ids [C] and the matrix."""
    import numpy as np

    table = relation(con, query, list(parameters)).to_arrow_table()
    ids, rows = (column.combine_chunks() for column in table.columns)
    matrix = rows.flatten().to_numpy().astype(np.float32, copy=False)
    return np.array(ids.to_pylist(), dtype=object), matrix.reshape(len(ids), -1) if len(ids) else np.zeros(
        (0, 0), np.float32
    )


def read_columns(
    con: duckdb.DuckDBPyConnection, query: str, parameters: list[Any] | dict[str, Any]
) -> dict[str, np.ndarray]:
    """Run a query and return its columns; one of lists of equal length is a matrix, one of text an array of objects."""
    table = relation(con, query, parameters).to_arrow_table()
    return {
        name: _as_array(column.combine_chunks()) for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _as_array(column: Any) -> np.ndarray:
    import pyarrow as pa

    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), len(flat) // max(len(column), 1))
    return column.to_numpy(zero_copy_only=False)
