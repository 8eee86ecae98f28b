"""`ResultTable`: what trainings gave, a row per function and seed; from a Parquet or CSV file and back."""

from __future__ import annotations

import os
from dataclasses import dataclass

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
        InputError: the file does not exist, is neither .parquet nor .csv, or has no column `name` or no metric.
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
    columns = files.read_table(path)
    seeds = columns.pop("seed", None)
    reasons = columns.pop("reason", None)
    tasks = set(columns.pop("task", ()))
    names = columns.pop("name", None)
    if names is None:
        raise InputError(f"table={str(path)!r} has no column name; it has {', '.join(columns) or 'none'}")
    metrics = {name: values.astype(np.float64) for name, values in columns.items() if values.dtype != object}
    if not metrics:
        raise InputError(f"table={str(path)!r} has no metric: no column of numbers beside the name")
    return ResultTable(
        tuple(map(str, names)),
        seeds if seeds is not None and seeds.dtype == np.int64 else np.zeros(len(names), np.int64),
        metrics,
        tuple(None if reason is None else str(reason) for reason in reasons)
        if reasons is not None and reasons.dtype == object
        else (None,) * len(names),
        str(tasks.pop()) if len(tasks) == 1 else None,
    )


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
