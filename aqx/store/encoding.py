"""Values on their way into the database and back: text, metrics as JSON, class ids and matrices as Arrow tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from aqx.errors import InputError

# JSON has no such numbers, and other readers refuse the NaN that some writers emit. DuckDB casts these strings:
# `(metrics->>'loss')::DOUBLE` is nan, inf or -inf.
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode_metrics(metrics: Mapping[Any, Any]) -> str:
    r"""Write metrics as one JSON object.

    Numbers that JSON lacks become the strings "nan", "inf" and "-inf"; a string that reads like one of them gets an
    apostrophe in front.

    Args:
        metrics: keys are strings; values are numbers, strings, booleans, None, or lists and arrays of such.

    Raises:
        InputError: a key or a value of another type.

    Example:
        >>> encode_metrics({"val_acc": 0.5, "loss": float("inf"), "note": "inf"})
        '{"val_acc": 0.5, "loss": "inf", "note": "\'inf"}'
    """
    if odd := [key for key in metrics if not isinstance(key, str)]:
        raise InputError(f"metrics must have strings as keys, but got {odd[0]!r} of type {type(odd[0]).__name__}")
    return clean_text(json.dumps({key: _encode(key, value) for key, value in metrics.items()}, ensure_ascii=False))


def decode_metrics(text: str) -> dict[str, Any]:
    r"""Read what `encode_metrics` wrote; arrays come back as lists.

    Example:
        >>> decode_metrics('{"loss": "nan", "note": "\'nan"}')
        {'loss': nan, 'note': 'nan'}
    """
    return {} if text == "{}" else {key: _decode(value) for key, value in json.loads(text).items()}


def plain_metrics(metrics: Mapping[Any, Any]) -> dict[str, Any]:
    """Metrics as they come back from the database: plain numbers, text and lists.

    Raises:
        InputError: a key or a value that cannot be stored.

    Example:
        >>> plain_metrics({"val_acc": np.float32(0.5), "curve": np.arange(3)})
        {'val_acc': 0.5, 'curve': [0, 1, 2]}
    """
    return decode_metrics(encode_metrics(metrics))


def _encode(key: str, value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy's and JAX's arrays and scalars
        value = value.tolist()
    match value:
        case bool() | int() | None:
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return "'" + value if value.lstrip("'") in _NON_FINITE else value
        case list() | tuple():
            return [_encode(key, item) for item in value]
        case _:
            raise InputError(
                f"metric {key[:60]!r} must be a number, string, boolean, None or a list of such, but got "
                f"{type(value).__name__}"
            )


def _decode(value: Any) -> Any:
    match value:
        case str() if value in _NON_FINITE:
            return _NON_FINITE[value]
        case str() if value.startswith("'") and value.lstrip("'") in _NON_FINITE:
            return value[1:]
        case list():
            return [_decode(item) for item in value]
        case _:
            return value


def clean_text(text: str) -> str:
    """Text as it can be stored: halves of surrogate pairs, which UTF-8 lacks, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


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


def matrix_column(matrix: Float32[np.ndarray, "K D"]) -> Any:
    """The rows of a matrix as one Arrow column of lists, without a copy."""
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
    con.register("incoming", pa.table(dict(columns)))
    # All of a result must be fetched before the connection registers or unregisters anything. After an error it can do
    # neither, and ends with the transaction.
    ((inserted,),) = con.execute(statement, parameters).fetchall()
    con.unregister("incoming")
    return inserted


def read_matrix(
    con: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any]
) -> tuple[np.ndarray, Float32[np.ndarray, "C D"]]:
    """Run a query for (class id as text, list of floats) and return the ids [C] and the matrix."""
    table = con.sql(query, params=list(parameters)).to_arrow_table()
    ids, rows = (column.combine_chunks() for column in table.columns)
    matrix = rows.flatten().to_numpy().astype(np.float32, copy=False)
    return np.array(ids.to_pylist(), dtype=object), matrix.reshape(len(ids), -1) if len(ids) else np.zeros(
        (0, 0), np.float32
    )


def read_columns(
    con: duckdb.DuckDBPyConnection, query: str, parameters: list[Any] | dict[str, Any]
) -> dict[str, np.ndarray]:
    """Run a query and return its columns; one of lists of equal length is a matrix, one of text an array of objects."""
    table = con.sql(query, params=parameters).to_arrow_table()
    return {
        name: _as_array(column.combine_chunks()) for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _as_array(column: Any) -> np.ndarray:
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), len(flat) // max(len(column), 1))
    return column.to_numpy(zero_copy_only=False)
