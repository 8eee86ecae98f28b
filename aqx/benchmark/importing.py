"""Results of other programs, as trials of a task."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aqx.benchmark.act_bench import read_act_bench
from aqx.benchmark.aquasurf import SIGNATURE, read_aquasurf
from aqx.benchmark.table import ResultTable, load_table
from aqx.candidates import class_ids
from aqx.errors import InputError, StoreError
from aqx.search import Study
from aqx.store import add_results
from aqx.store.files import ENDINGS
from aqx.tree import Tree, parse

CHUNK = 10_000  # trials in a transaction


@dataclass(frozen=True)
class ImportReport:
    """What `import_results` did.

    Attributes:
        added: trials added.
        failed: how many of them are failures: their objective is nan or infinite.
        known: results that an earlier import, or another row of the file, has added already.
        untrained: functions in the file that have no result yet.
        unreadable: names in the file that are no function's.
    """

    added: int
    failed: int
    known: int
    untrained: int
    unreadable: tuple[str, ...]


def import_results(
    study: Study, path: str | os.PathLike[str], progress: Callable[[int, int, str], None] | None = None
) -> ImportReport:
    r"""Add the results in a file to a study, as `Study.add` would add each; the same file again adds nothing.

    The file is read in whole before anything is added. Its names are parsed, never evaluated; those that do not parse
    are left out and reported. A metric that is nan, the objective aside, is taken for one that was not measured.

    Args:
        study: whose task and database they are for; the task's objective must be among the file's metrics.
        path: a table (.parquet or .csv), a database of AQuaSurF (SQLite) or an Act-Bench file (JSON).
        progress: called as progress(done, total, note).

    Returns:
        How many results are new, failed, known already, untrained, and the names that do not parse.

    Raises:
        InputError: the file does not exist or is none of these, or the objective is not in it.
        StoreError: the file or the database cannot be read, or the database not written.

    Example:
        >>> import aqx, pathlib, tempfile
        >>> from aqx.benchmark import import_results
        >>> folder = tempfile.TemporaryDirectory()
        >>> table = pathlib.Path(folder.name, "table.csv")
        >>> _ = table.write_text("name,val_acc\nrelu(x),0.61\ntanh(x),nan\nwhat(x),0.3\n")
        >>> study = aqx.Study(folder.name + "/search.duckdb", "mnist1d")
        >>> import_results(study, table)
        ImportReport(added=2, failed=1, known=0, untrained=0, unreadable=('what(x)',))
    """
    table, untrained = _read(path, study.task.objective, progress)
    if study.task.objective not in table.metrics:
        raise InputError(
            f"{study.task.objective} is missing from file={str(path)!r}; it has {', '.join(table.metrics)}"
        )
    trees, rows, unreadable = _parsed(table.names)
    added = failed = 0
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        some = trees[start : start + CHUNK]
        objectives = table.metrics[study.task.objective][chunk].tolist()
        new, new_failed = add_results(
            study.db,
            study.task_id,
            class_ids=class_ids(study.db, some),
            names=list(map(str, some)),
            seeds=table.seeds[chunk].tolist(),
            objectives=objectives,
            metrics=_measured(table, chunk, study.task.objective),
            reasons=[table.reasons[row] for row in chunk],
            worker=f"import of {Path(path).name}",
        )
        added, failed = added + new, failed + new_failed
        if progress:
            progress(start + len(chunk), len(rows), "results")
    return ImportReport(added, failed, len(rows) - added, untrained, unreadable)


def _read(
    path: str | os.PathLike[str], objective: str, progress: Callable[[int, int, str], None] | None
) -> tuple[ResultTable, int]:
    """The results in a file of any known format, and how many functions in it have none."""
    if Path(path).suffix.lower() in ENDINGS:
        return load_table(path), 0
    if not os.path.isfile(path):
        raise InputError(f"file={str(path)!r} does not exist, or is no file")
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise StoreError(f"file={str(path)!r} cannot be read: {error.strerror or error}") from error
    if start.startswith(SIGNATURE):
        found = read_aquasurf(path, objective)
        return found.table, found.untrained
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        return read_act_bench(path, progress).table, 0
    raise InputError(
        f"file={str(path)!r} is no database of SQLite, no JSON object, and its name does not end in {ENDINGS}"
    )


def _measured(table: ResultTable, rows: np.ndarray, objective: str) -> list[dict[str, float]]:
    """The objective and the other metrics that are not nan, row by row."""
    columns = [(name, values[rows].tolist()) for name, values in table.metrics.items()]
    return [
        {name: values[at] for name, values in columns if name == objective or not math.isnan(values[at])}
        for at in range(len(rows))
    ]


def _parsed(names: tuple[str, ...]) -> tuple[list[Tree], np.ndarray, tuple[str, ...]]:
    """The functions that these names are, in which rows they stand, and the names that are none."""
    trees, rows, unreadable = [], [], []
    for row, name in enumerate(names):
        try:
            trees.append(parse(name))
            rows.append(row)
        except InputError:
            unreadable.append(name)
    return trees, np.array(rows, np.int64), tuple(unreadable)
