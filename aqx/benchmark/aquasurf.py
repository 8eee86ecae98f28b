"""The database in which AQuaSurF, the published code, keeps a search: an SQLite file with one table."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aqx.benchmark.table import ResultTable
from aqx.errors import InputError, StoreError

SIGNATURE = b"SQLite format 3\0"
METRICS = ("train_acc", "val_acc", "train_loss", "val_loss", "test_acc", "test_loss", "runtime")
_TABLE, _NAME = "activation_functions", "fn_name"
_ROWS = 1000  # at a time


@dataclass(frozen=True)
class AquasurfFile:
    """What such a database holds.

    Attributes:
        table: a row per trained function, in the file's order.
        untrained: how many functions have no result yet.
    """

    table: ResultTable
    untrained: int


def read_aquasurf(path: str | os.PathLike[str], objective: str) -> AquasurfFile:
    """Read the results in a database of AQuaSurF, which is opened for reading only.

    A function is trained when the objective is a number, `nan` and `inf` written as text among them. SQLite has no nan
    and stores it as NULL; so a loss that is NULL beside the accuracy of the same split, or the other way round, is nan.
    The lists in the file are not read, and the status is not trusted.

    Args:
        path: the file.
        objective: the column that tells whether a function is trained.

    Returns:
        The table, and what the file says besides.

    Raises:
        InputError: the file does not exist, or is no such database, or has no number in the objective's column.
        StoreError: it cannot be read.
    """
    if not os.path.isfile(path):
        raise InputError(f"file={str(path)!r} does not exist, or is no file")
    names: list[str] = []
    columns: dict[str, array[float]] = {}
    untrained, has_objective = 0, False
    try:
        # Not `with connect(…)`, which would commit and leave it open.
        with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as con:
            con.text_factory = lambda text: text.decode("utf-8", "replace")
            con.execute("PRAGMA trusted_schema = OFF")
            held = _columns(con, str(path), objective)
            columns |= {metric: array("d") for metric in METRICS if metric in held}
            quoted = ", ".join(f'"{held[column]}"' for column in (_NAME, *columns))
            rows = con.execute(f'SELECT {quoted} FROM "{_TABLE}"')
            while some := rows.fetchmany(_ROWS):
                for name, *values in some:
                    numbers = dict(zip(columns, map(_number, values), strict=True))
                    has_objective |= numbers[objective] is not None
                    if _is_trained(numbers, objective):
                        names.append(str(name))
                        for metric, number in numbers.items():
                            columns[metric].append(math.nan if number is None else number)
                    else:
                        untrained += 1
    except sqlite3.Error as error:
        raise StoreError(f"file={str(path)!r} cannot be read as an SQLite database: {error}") from error
    if names and not has_objective:
        raise InputError(
            f"{objective} has no number in file={str(path)!r}, though {len(names):,} functions are trained"
        )
    metrics = {metric: np.array(values) for metric, values in columns.items()}
    return AquasurfFile(
        ResultTable(tuple(names), np.zeros(len(names), np.int64), metrics, (None,) * len(names)), untrained
    )


def _columns(con: sqlite3.Connection, path: str, objective: str) -> dict[str, str]:
    """The table's columns, in lower case, and as they are written."""
    # A view would let a foreign file compute what it likes.
    found = con.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [_TABLE]).fetchone()
    if not found:
        raise InputError(f"file={path!r} has no table {_TABLE}, so it is no database of AQuaSurF")
    held = {str(row[1]).lower(): str(row[1]) for row in con.execute(f'PRAGMA table_info("{_TABLE}")')}
    for column in (_NAME, objective):
        if column not in held or column == objective and objective not in METRICS:
            known = ", ".join(name for name in METRICS if name in held) or "no numbers"
            raise InputError(f"{column} is missing from table {_TABLE} in file={path!r}; it has {known}")
    return held


def _number(value: Any) -> float | None:
    """A number, or None for NULL and for what is none."""
    if isinstance(value, bytes):
        # As which sqlite3 stores a numpy.float32 that nobody has converted.
        return struct.unpack("<f", value)[0] if len(value) == 4 else None
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _is_trained(numbers: dict[str, float | None], objective: str) -> bool:
    split, _, kind = objective.rpartition("_")
    other = {"acc": f"{split}_loss", "loss": f"{split}_acc"}.get(kind, "")
    return numbers[objective] is not None or numbers.get(other) is not None
