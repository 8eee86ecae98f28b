"""Tables in files: Parquet or CSV, by the file's ending."""

from __future__ import annotations

import contextlib
import csv as python_csv
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import compute, csv, parquet

from aqx.errors import InputError, StoreError
from aqx.writing import replacing

ENDINGS = (".parquet", ".csv")


def check_ending(path: str | os.PathLike[str]) -> Path:
    """Return the path of a table's file.

    Raises:
        InputError: its name ends neither in .parquet nor in .csv.
    """
    if (found := Path(path)).suffix.lower() not in ENDINGS:
        raise InputError(f"table={str(path)!r} is neither Parquet nor CSV; give a name that ends in {ENDINGS}")
    return found


def read_table(path: str | os.PathLike[str], exact: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return the columns of a Parquet or CSV file.

    Integers without gaps are int64, other numbers float64 with nan for what is missing, and all else objects. The
    columns of the names in `exact` are objects as they stand in the file: text in CSV, anything in Parquet.

    Raises:
        InputError: the name ends otherwise, or the file does not exist.
        StoreError: the file cannot be read.
    """
    path = check_ending(path)
    if not os.path.isfile(path):
        raise InputError(f"table={str(path)!r} does not exist")
    try:
        # Opened here, as Arrow takes no path that is not UTF-8.
        with open(path, "rb") as file:
            table = _read_csv(file, exact) if path.suffix.lower() == ".csv" else parquet.read_table(file)
        columns = [
            (name, _objects(column) if name in exact else _as_array(column))
            for name, column in zip(table.column_names, table.columns, strict=True)
        ]
    # The last two: text that is not UTF-8, and dates beyond Python's.
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StoreError(f"table={str(path)!r} cannot be read: {reason}") from error
    if len(dict(columns)) < len(columns):
        raise StoreError(f"table={str(path)!r} has several columns of one name: {[name for name, _ in columns]}")
    return dict(columns)


def write_table(path: str | os.PathLike[str], columns: Mapping[str, np.ndarray | Sequence[Any]]) -> None:
    """Write columns as a Parquet or CSV file, in whole or not at all.

    Raises:
        InputError: the name ends otherwise, or the columns differ in length.
        StoreError: the file cannot be written.
    """
    path = check_ending(path)
    if len({len(values) for values in columns.values()}) > 1:
        raise InputError(f"columns must agree in length, but got { {k: len(v) for k, v in columns.items()} }")
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if path.suffix.lower() == ".csv":
        table = _without_formulas(table)
    with replacing(path, "table") as draft, open(draft, "wb") as file:
        if path.suffix.lower() == ".csv":
            csv.write_csv(table, file)
        else:
            parquet.write_table(table, file, compression="zstd")


def _read_csv(file: BinaryIO, exact: Collection[str]) -> Any:
    options = csv.ConvertOptions(
        null_values=["", "null", "NULL", "None", "NA"],
        strings_can_be_null=True,
        column_types=dict.fromkeys(exact, pa.string()),
    )
    table = csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=options)
    return _in_cells(table, r"^'('*[=+\-@\t\r])", r"\1")


def _without_formulas(table: Any) -> Any:
    """A table whose text a spreadsheet shows and does not compute; `_read_csv` takes the apostrophes away again."""
    return _in_cells(table, r"^('*[=+\-@\t\r])", r"'\1")


def _in_cells(table: Any, pattern: str, replacement: str) -> Any:
    """Replace in every text of a table, its headings among them."""
    how = compute.ReplaceSubstringOptions(pattern, replacement)
    columns = [
        compute.call_function("replace_substring_regex", [column], how) if pa.types.is_string(column.type) else column
        for column in table.columns
    ]
    return pa.table(columns, names=[re.sub(pattern, replacement, name) for name in table.column_names])


def _as_array(column: Any) -> np.ndarray:
    kind: Any = column.type
    if pa.types.is_integer(kind) and not column.null_count and not pa.types.is_uint64(kind):
        return column.to_numpy().astype(np.int64)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return _objects(column)


def _objects(column: Any) -> np.ndarray:
    objects = np.empty(len(column), dtype=object)  # np.array would make a matrix of lists of one length
    objects[:] = column.to_pylist()
    return objects


def lines_of(path: str | os.PathLike[str], rows: int) -> np.ndarray:
    """Return where each row of a table stands, for people to find it: its first line in a CSV file, else its number."""
    if Path(path).suffix.lower() != ".csv":
        return np.arange(1, rows + 1)
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        reader, starts, end = python_csv.reader(file), [], 0
        with contextlib.suppress(python_csv.Error):
            for record in reader:
                if record:  # an empty line is no row
                    starts.append(end + 1)
                end = reader.line_num
    return np.array(starts[1:]) if len(starts) == rows + 1 else np.arange(2, rows + 2)
