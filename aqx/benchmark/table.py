"""`ResultTable`: what trainings gave, a row per function and seed; from a Parquet or CSV file and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from aqx.errors import InputError
from aqx.store import files


@dataclass(frozen=True, eq=False)
class ResultTable:
    """Results of R trainings; row i of each field is the same training.

    Attributes:
        names: functions, as they were written [R].
        seeds: seed of each training; 0 where the file has none [R].
        metrics: numbers by metric; nan, inf and -inf stand for themselves [R] each.
        reasons: why a training gave no result, or None [R].
        task: the task that was trained on, where the table says so.
    """

    names: tuple[str, ...]
    seeds: Int64[np.ndarray, " R"]
    metrics: dict[str, Float64[np.ndarray, " R"]]
    reasons: tuple[str | None, ...]
    task: str | None = None

    def __len__(self) -> int:
        return len(self.names)


def load_table(path: str | os.PathLike[str]) -> ResultTable:
    r"""Read a table: a column `name`, maybe `seed`, `reason` and `task`, and every other column of numbers is a metric.

    Args:
        path: the file, Parquet or CSV by its ending.

    Returns:
        Names, seeds, reasons and metrics of all rows.

    Raises:
        InputError: the file does not exist, is neither .parquet nor .csv, has no column `name` or no metric, or a seed
            that is no whole number of 64 bits; a blank one is 0.
        StoreError: it cannot be read.

    Example:
        >>> import tempfile, pathlib
        >>> from aqx.benchmark import load_table
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = pathlib.Path(folder.name, "table.csv")
        >>> _ = path.write_text("name,val_acc\nrelu(x),0.61\ntanh(x),nan\n")
        >>> load_table(path).metrics["val_acc"]
        array([0.61,  nan])
    """
    rows = read_rows(path)
    if rows.refused:
        first, more = rows.refused[0], len(rows.refused) - 1
        others = f", and {more:,} more rows" if more else ""
        raise InputError(f"table={str(path)!r}: {first.place}: {first.reason}{others}")
    return rows.table


@dataclass(frozen=True)
class Refused:
    """A row of a file that is left out.

    Attributes:
        place: where it stands, as "line 3"; empty where that cannot be said.
        name: the function, as it is written there.
        reason: why it is left out.
    """

    place: str
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a file.

    Attributes:
        table: those that can be used.
        places: where each of them stands in the file, as "line 3" [R]; empty where that cannot be said.
        refused: the others.
        texts: columns that are no metrics, as they have text in them.
    """

    table: ResultTable
    places: Sequence[str] = ()
    refused: tuple[Refused, ...] = ()
    texts: tuple[str, ...] = ()


def read_rows(path: str | os.PathLike[str]) -> Rows:
    """Read a table as `load_table` does, but for rows whose seed cannot be used: they are left out, and told.

    A blank seed is 0, and 3.0 is 3; what is no whole number, or needs more than 64 bits, cannot be used.

    Raises:
        InputError: as `load_table`.
        StoreError: as `load_table`.
    """
    columns = files.read_table(path, exact=("seed",))
    seeds = columns.pop("seed", None)
    reasons = columns.pop("reason", None)
    tasks = set(columns.pop("task", ()))
    names = columns.pop("name", None)
    if names is None:
        raise InputError(f"table={str(path)!r} has no column name; it has {', '.join(columns) or 'none'}")
    metrics = {name: values.astype(np.float64) for name, values in columns.items() if values.dtype != object}
    if not metrics:
        raise InputError(f"table={str(path)!r} has no metric: no column of numbers beside the name")
    read = [0] * len(names) if seeds is None else list(map(_seed, seeds))
    kept = np.array([row for row, seed in enumerate(read) if isinstance(seed, int)], np.int64)
    word, lines = ("line" if Path(path).suffix.lower() == ".csv" else "row"), files.lines_of(path, len(names))
    if reasons is None or reasons.dtype != object:
        reasons = [None] * len(names)
    return Rows(
        ResultTable(
            tuple(str(names[row]) for row in kept),
            np.array([read[row] for row in kept], np.int64),
            {name: values[kept] for name, values in metrics.items()},
            tuple(None if reasons[row] is None else str(reasons[row]) for row in kept),
            str(tasks.pop()) if len(tasks) == 1 else None,
        ),
        [f"{word} {lines[row]}" for row in kept],
        tuple(
            Refused(f"{word} {lines[row]}", str(names[row]), seed)
            for row, seed in enumerate(read)
            if isinstance(seed, str)
        ),
        tuple(name for name, values in columns.items() if values.dtype == object),
    )


def _seed(value: Any) -> int | str:
    """The seed that a cell holds, or why it holds none."""
    if value is None or value != value or not str(value).strip():  # nan is how a float column has a blank
        return 0
    try:
        number = Decimal(str(value).strip())
        if not isinstance(value, bool) and number == number.to_integral_value() and -(2**63) <= number < 2**63:
            return int(number)
    except ArithmeticError:  # no number; infinite; beyond every exponent
        pass
    return f"seed {str(value)[:60]!r} is no whole number of 64 bits"


def save_table(path: str | os.PathLike[str], table: ResultTable) -> None:
    """Write a table, in whole or not at all; `load_table` returns an equal one.

    Args:
        path: the file, Parquet or CSV by its ending.
        table: what to write.

    Raises:
        InputError: the path ends neither in .parquet nor in .csv.
        StoreError: it cannot be written.
    """
    columns = {"name": table.names, "seed": table.seeds, **table.metrics, "reason": np.array(table.reasons, object)}
    files.write_table(path, columns | ({"task": [table.task] * len(table)} if table.task else {}))
