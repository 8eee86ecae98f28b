"""`build_table`: train every class of a space on a task, in several processes; interrupted, it goes on from there."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aqx.activation import activation
from aqx.benchmark.table import ResultTable, load_table, save_table
from aqx.enumeration import enumerate_space
from aqx.errors import InputError, StoreError, TaskError, one_line
from aqx.machine import cores
from aqx.space import Space
from aqx.store import Database
from aqx.store.files import check_ending
from aqx.store.functions import load_candidates
from aqx.tasks import Task
from aqx.training.processes import run_each

Progress = Callable[[int, int, str], None]
Job = tuple[str, int]  # a function and a seed
Result = dict[str, Any]  # metrics, or {"reason": …}


@dataclass(frozen=True)
class BuildReport:
    """What a call of `build_table` did.

    Attributes:
        classes: functions that were to be trained: one per class of the space.
        trained: trainings of this call.
        failed: those among them without a finite objective.
        rows: rows of the table now.
    """

    classes: int
    trained: int
    failed: int
    rows: int


def build_table(
    task: Task,
    space: Space,
    out: str | os.PathLike[str],
    *,
    seeds: int = 1,
    sample: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Train one function of every class of a space on a task, with the seeds 0 to `seeds` − 1, and write a table.

    Classes that are constant, or not finite at the points of N(0, 1), are left out, as a search would leave them out.
    A training that raises, or whose process dies, gets a row with the reason and nan in all metrics.

    Each result is appended to `<out>.partial` at once, from which the same call goes on after an interruption; the
    table is written at the end. A table that exists is extended: by more seeds, or by another space.

    Args:
        task: has a `train`; it must be such that worker processes can load it.
        space: what to train.
        out: the table's file, Parquet or CSV by its ending.
        seeds: trainings of each class.
        sample: only so many functions of the space, drawn with the seed 0.
        workers: processes; default one per core. With 1 the trainings run in this process.
        progress: called as progress(done, total, note).

    Returns:
        How many classes there are, how many trainings were done now and failed, and the rows of the table.

    Raises:
        InputError: an argument cannot be used, or `out` holds results of another task.
        TaskError: the task has no `train`, or each of the first 20 trainings raises.
        StoreError: the table cannot be read or written.
    """
    out = check_ending(out)
    if task.train is None:
        raise TaskError(f"task {task.name!r} has no train function; give Task(train=…)")
    if seeds < 1:
        raise InputError(f"seeds={seeds} is too few; give 1 or more")
    workers = cores() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers={workers} is too few; give 1 or more")
    names = _class_names(space, sample)
    wanted = [(name, seed) for seed in range(seeds) for name in names]
    diary = _Diary(out, task)
    jobs = [job for job in wanted if job not in diary.results]
    started_with = len(wanted) - len(jobs)
    failed = raised = 0
    if progress:
        progress(started_with, len(wanted), "")
    with diary:
        for done, (job, result) in enumerate(_results(task, jobs, workers), 1):
            diary.add(job, result)
            failed += not np.isfinite(result.get(task.objective, np.nan))
            raised += "reason" in result
            if raised == done == 20:
                raise TaskError(f"each of the first {done} trainings failed, the last by {result['reason']}")
            if progress:
                progress(started_with + done, len(wanted), f"{failed} failed" if failed else "")
    rows = diary.close()
    return BuildReport(len(names), len(jobs), failed, rows)


def _class_names(space: Space, sample: int | None) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        db = Database(Path(folder, "space.duckdb"), create=True)
        enumerate_space(db, space, sample=sample)
        return load_candidates(db).names.tolist()


def _results(task: Task, jobs: list[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """Train, and yield results as they come; a process that dies costs only the training that killed it."""
    if workers == 1:
        yield from ((job, _train(task, *job)) for job in jobs)
        return
    for job, future in run_each(workers, functools.partial(_train, task), jobs):
        try:
            yield job, future.result()
        except BrokenExecutor:
            yield job, {"reason": "the training's process died"}


def _train(task: Task, name: str, seed: int) -> Result:
    """Train in this process: the metrics that are numbers, or the reason why there are none."""
    assert task.train is not None
    try:
        metrics = task.train(activation(name), seed)
        return {
            key: float(value) for key, value in metrics.items() if np.ndim(value) == 0 and not isinstance(value, str)
        }
    except Exception as error:
        return {"reason": one_line(error)}


class _Diary:
    """Results by job: what the table holds, and what was appended beside it since."""

    def __init__(self, out: Path, task: Task):
        self.out, self.path = out, out.with_name(out.name + ".partial")
        self.task = task.name
        self.results: dict[Job, Result] = {}
        if out.exists():
            self._read_table(load_table(out))
        if self.path.exists():
            self._read_lines()

    def __enter__(self) -> _Diary:
        try:
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            self._file = open(self.path, "a", encoding="utf-8")
            if torn:
                self._file.write("\n")
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, job: Job, result: Result) -> None:
        """Append a result; a killed process leaves at most half a line behind."""
        self.results[job] = result
        name, seed = job
        try:
            self._file.write(json.dumps({"task": self.task, "name": name, "seed": seed, "result": result}) + "\n")
            self._file.flush()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror}") from error

    def close(self) -> int:
        """Write the table of all results, drop the partial one, and return the number of rows."""
        metrics = list(dict.fromkeys(key for result in self.results.values() for key in result if key != "reason"))
        if not metrics:
            raise TaskError("no training gave a metric")
        results = list(self.results.values())
        table = ResultTable(
            tuple(name for name, _ in self.results),
            np.array([seed for _, seed in self.results], np.int64),
            {key: np.array([result.get(key, np.nan) for result in results], np.float64) for key in metrics},
            tuple(result.get("reason") for result in results),
            self.task,
        )
        save_table(self.out, table)
        self.path.unlink(missing_ok=True)
        return len(table)

    def _read_table(self, table: ResultTable) -> None:
        if table.task != self.task:
            raise InputError(f"out={str(self.out)!r} holds results of task {table.task!r}; give another file")
        for row, job in enumerate(zip(table.names, table.seeds.tolist(), strict=True)):
            metrics = {key: float(values[row]) for key, values in table.metrics.items()}
            reason = table.reasons[row]
            self.results[job] = {"reason": reason} if reason else metrics

    def _read_lines(self) -> None:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                job, result = (entry["name"], entry["seed"]), dict(entry["result"])
            except (ValueError, TypeError, KeyError):
                continue  # torn by a kill, and trained again
            if entry.get("task") != self.task:
                raise InputError(f"{self.path} holds results of task {entry.get('task')!r}; give another --out")
            self.results[job] = result
