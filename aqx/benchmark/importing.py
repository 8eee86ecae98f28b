"""Results of other programs, as trials of a task."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aqx.benchmark.act_bench import read_act_bench
from aqx.benchmark.aquasurf import SIGNATURE, read_aquasurf
from aqx.benchmark.table import Refused, ResultTable, Rows, read_rows
from aqx.candidates import class_ids
from aqx.errors import InputError, StoreError
from aqx.metrics import encode_metrics
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
        known: rows not added, as the database or an earlier row has a result of the same name, seed and metrics.
        repeated: those of them that repeat an earlier row of the file.
        untrained: functions in the file that have no result yet.
        unreadable: names in the file that are no function's.
        refused: rows left out, with where they stand and why: those of such names, and those of unusable seeds.
    """

    added: int
    failed: int
    known: int
    repeated: int
    untrained: int
    unreadable: tuple[str, ...]
    refused: tuple[Refused, ...]


def import_results(
    study: Study, path: str | os.PathLike[str], progress: Callable[[int, int, str], None] | None = None
) -> ImportReport:
    r"""Add the results in a file to a study, as `Study.add` would add each; the same file again adds nothing.

    The file is read in whole before anything is added. Its names are parsed, never evaluated; rows whose name does not
    parse, or whose seed is no whole number of 64 bits, are left out and reported. A blank seed is 0. A metric that is
    nan, the objective aside, is taken for one that was not measured.

    Args:
        study: whose task and database they are for; the task's objective must be among the file's metrics.
        path: a table (.parquet or .csv), a database of AQuaSurF (SQLite) or an Act-Bench file (JSON).
        progress: called as progress(done, total, note).

    Returns:
        How many results are new, failed, merged with others, untrained, and the rows that were refused.

    Raises:
        InputError: the file does not exist or is none of these, or the objective is not in it.
        StoreError: the file or the database cannot be read, or the database not written.

    Example:
        >>> import aqx, pathlib, tempfile
        >>> from aqx.benchmark import import_results
        >>> folder = tempfile.TemporaryDirectory()
        >>> table = pathlib.Path(folder.name, "table.csv")
        >>> _ = table.write_text("name,seed,val_acc\nrelu(x),,0.61\nrelu(x),0,0.61\ntanh(x),1.5,nan\nwhat(x),3,0.3\n")
        >>> study = aqx.Study(folder.name + "/search.duckdb", "mnist1d")
        >>> report = import_results(study, table)
        >>> report.added, report.repeated
        (1, 1)
        >>> for row in report.refused:
        ...     print(row.place, row.reason)
        line 4 seed '1.5' is no whole number of 64 bits
        line 5 cannot parse function name 'what(x)': unknown operator 'what' (at position 0)
    """
    objective = study.task.objective
    read, untrained = _read(path, objective, progress)
    table = read.table
    if objective not in table.metrics:
        text = "has text in it, so it is no metric" if objective in read.texts else "is missing"
        raise InputError(f"{objective} {text}: file={str(path)!r} has the metrics {', '.join(table.metrics)}")
    trees, rows, unreadable = _parsed(read)
    metrics = _measured(table, rows, objective)
    new = _first(trees, table.seeds[rows].tolist(), metrics)
    repeated = len(rows) - len(new)
    added = failed = 0
    for start in range(0, len(new), CHUNK):
        at = new[start : start + CHUNK]
        chunk, some = rows[at], [trees[index] for index in at]
        objectives = table.metrics[objective][chunk].tolist()
        new_added, new_failed = add_results(
            study.db,
            study.task_id,
            class_ids=class_ids(study.db, some),
            names=list(map(str, some)),
            seeds=table.seeds[chunk].tolist(),
            objectives=objectives,
            metrics=[metrics[index] for index in at],
            reasons=[table.reasons[row] for row in chunk],
            worker=f"import of {Path(path).name}",
            registered=True,
        )
        added, failed = added + new_added, failed + new_failed
        if progress:
            progress(start + len(chunk), len(new), "results")
    names = tuple(refused.name for refused in unreadable)
    known = len(rows) - added
    return ImportReport(added, failed, known, repeated, untrained, names, (*read.refused, *unreadable))


def _read(
    path: str | os.PathLike[str], objective: str, progress: Callable[[int, int, str], None] | None
) -> tuple[Rows, int]:
    """The results in a file of any known format, and how many functions in it have none."""
    if Path(path).suffix.lower() in ENDINGS:
        return read_rows(path), 0
    if not os.path.isfile(path):
        raise InputError(f"file={str(path)!r} does not exist, or is no file")
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise StoreError(f"file={str(path)!r} cannot be read: {error.strerror or error}") from error
    if start.startswith(SIGNATURE):
        found = read_aquasurf(path, objective)
        return Rows(found.table), found.untrained
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        return Rows(read_act_bench(path, progress).table), 0
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


def _parsed(read: Rows) -> tuple[list[Tree], np.ndarray, tuple[Refused, ...]]:
    """The functions that the names are, in which rows they stand, and the rows whose name is none."""
    trees, rows, unreadable = [], [], []
    for row, name in enumerate(read.table.names):
        try:
            trees.append(parse(name))
            rows.append(row)
        except InputError as error:
            place = read.places[row] if read.places else ""
            unreadable.append(Refused(place, name, str(error).splitlines()[0]))
    return trees, np.array(rows, np.int64), tuple(unreadable)


def _first(trees: list[Tree], seeds: list[int], metrics: list[dict[str, float]]) -> list[int]:
    """Which rows no earlier row equals in name, seed and metrics."""
    seen: set[bytes] = set()
    new = []
    for index, (tree, seed, measured) in enumerate(zip(trees, seeds, metrics, strict=True)):
        row = hashlib.blake2b(f"{tree}\n{seed}\n{encode_metrics(measured)}".encode(), digest_size=16).digest()
        if row not in seen:
            seen.add(row)
            new.append(index)
    return new
