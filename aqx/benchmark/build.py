"""`build_table`: train every class of a space on a task, together or in processes; interrupted, it goes on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aqx.benchmark.table import ResultTable, load_table, save_table
from aqx.enumeration import enumerate_space
from aqx.errors import InputError, StoreError, TaskError
from aqx.machine import cores
from aqx.population import shape_of
from aqx.space import Space
from aqx.store import Database
from aqx.store.files import check_ending
from aqx.store.functions import candidate_names
from aqx.tasks import Task
from aqx.tasks.loading import as_task
from aqx.training.run import Job, Lost, Outcome, Training, run, workplace

Progress = Callable[[int, int, str], None]
Row = tuple[str, int]  # a function and a seed
Result = dict[str, Any]  # metrics, or {"reason": …}

# By one call of `train_many`: two chunks of a population, seconds of work, and what a kill may cost.
TOGETHER = 4096
MOST = 10**7  # trainings of a table: their names and results are in memory


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
    task: Task | str,
    space: Space,
    out: str | os.PathLike[str],
    *,
    seeds: int = 1,
    sample: int | None = None,
    workers: int | None = None,
    together: int | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Train one function of every class of a space on a task, with the seeds 0 to `seeds` − 1, and write a table.

    Classes that are constant, or not finite at the points of N(0, 1), are left out, as a search would leave them out.
    A training that raises, or whose process dies, gets a row with the reason and nan in all metrics.

    On a GPU a task with a `train_many` trains functions of one shape together; on a CPU, trainings run in processes.

    Results are appended to `<out>.partial` as they come, from which the same call goes on after an interruption; the
    table is written at the end. A table that exists is extended: by more seeds, or by another space.

    Args:
        task: has a `train`; it must be such that worker processes can load it.
        space: what to train.
        out: the table's file, Parquet or CSV by its ending.
        seeds: trainings of each class.
        sample: only so many functions of the space, drawn with the seed 0.
        workers: processes; default one per core. With 1 the trainings run in this process.
        together: functions that one call of the task's `train_many` trains in this process; 1 for none together.
            Default 4,096 on a GPU where the task has a `train_many` of its own and `workers` is left out, else 1.
        progress: called as progress(done, total, note).

    Returns:
        How many classes there are, how many trainings were done now and failed, and the rows of the table.

    Raises:
        InputError: an argument cannot be used, or `out` holds results of another task.
        TaskError: the task has no `train`, no `train_many` to train several together, or each of the first 20
            trainings raises.
        StoreError: the table cannot be read or written.
    """
    out, task = check_ending(out), as_task(task)
    if task.train is None:
        raise TaskError(f"task {task.name!r} has no train function; give Task(train=…)")
    if seeds < 1:
        raise InputError(f"seeds={seeds} is too few; give 1 or more")
    together = _together(task, workers, together)
    names = _class_names(space, sample)
    if seeds * len(names) > MOST:
        raise InputError(f"seeds={seeds} for {len(names):,} classes are more than {MOST:,} trainings; give fewer")
    wanted = [(name, seed) for seed in range(seeds) for name in names]
    diary = _Diary(out, task)
    missing = [row for row in wanted if row not in diary.results]
    done, counts = len(wanted) - len(missing), _Counts()
    if progress:
        progress(done, len(wanted), "")
    with diary, _workplace(workers, together, task.time_limit) as (executor, width):
        jobs = _jobs(missing, together)
        for ended in run(lambda: next(jobs, None), task, executor, width):
            results = [pair for job, outcomes in ended for pair in _results(job, outcomes)]
            diary.add(results)
            counts.add(task, results)
            if progress:
                progress(done + counts.done, len(wanted), f"{counts.failed} failed" if counts.failed else "")
    return BuildReport(len(names), len(missing), counts.failed, diary.close())


@dataclass
class _Counts:
    """What came of the trainings so far."""

    done: int = 0
    failed: int = 0
    raised: int = 0

    def add(self, task: Task, results: Sequence[tuple[Row, Result]]) -> None:
        """Count results, and give up where nothing but errors has come."""
        self.done += len(results)
        self.failed += sum(not np.isfinite(result.get(task.objective, np.nan)) for _, result in results)
        self.raised += sum("reason" in result for _, result in results)
        if self.raised == self.done >= 20:
            reason = results[-1][1]["reason"]
            raise TaskError(f"each of the first {self.done} trainings failed, the last by {reason}")


def _together(task: Task, workers: int | None, together: int | None) -> int:
    """How many functions one program trains."""
    if together is None:
        # Asked last: it starts JAX's devices in this process, which then trains.
        on_gpu = workers is None and task.trains_together and jax.default_backend() != "cpu"
        return TOGETHER if on_gpu else 1
    if together < 1:
        raise InputError(f"together={together} is too few; give 1 or more")
    if together > 1 and workers is not None:
        raise InputError(f"together={together} and workers={workers} exclude each other; one program uses all devices")
    if together > 1 and not task.trains_together:
        raise TaskError(f"task {task.name!r} has no train_many; give Task(train_many=aqx.population(…)), or together=1")
    return together


@contextlib.contextmanager
def _workplace(workers: int | None, together: int, time_limit: float | int | None) -> Iterator[tuple[Executor, int]]:
    """Where trainings run, and how many jobs are under way."""
    if together == 1:
        with workplace(None, cores() if workers is None else workers, time_limit) as place:
            yield place
        return
    # A thread, so that what was trained is written while the next is being trained.
    with ThreadPoolExecutor(1) as executor:
        yield executor, 2


def _jobs(rows: Sequence[Row], together: int) -> Iterator[Job]:
    """Share rows out: those of one job have one seed, of which they share the data's order, and one shape."""
    if together == 1:
        yield from ((Training(*row),) for row in rows)
        return
    groups: dict[tuple[int, str], list[str]] = {}
    for name, seed in rows:
        groups.setdefault((seed, shape_of(name)[0]), []).append(name)
    for (seed, _), names in groups.items():
        # Of equal size but for one, as each width is a program of its own.
        size = math.ceil(len(names) / math.ceil(len(names) / together))
        for start in range(0, len(names), size):
            yield tuple(Training(name, seed) for name in names[start : start + size])


def _class_names(space: Space, sample: int | None) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        db = Database(Path(folder, "space.duckdb"), create=True)
        enumerate_space(db, space, sample=sample)
        return list(candidate_names(db).values())


def _results(job: Job, outcomes: Sequence[Outcome] | Lost) -> Iterator[tuple[Row, Result]]:
    """The metrics that are numbers of each training of a job, or the reason why there are none."""
    for number, training in enumerate(job):
        row = training.name, training.seed
        if isinstance(outcomes, Lost):
            yield row, {"reason": "the training's process died"}
        elif (reason := outcomes[number].reason) is not None:
            yield row, {"reason": reason}
        else:
            metrics = outcomes[number].metrics
            yield row, {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}


class _Diary:
    """Results by job: what the table holds, and what was appended beside it since."""

    def __init__(self, out: Path, task: Task):
        self.out, self.path = out, out.with_name(out.name + ".partial")
        self.task = task.name
        self.results: dict[Row, Result] = {}
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

    def add(self, results: Iterable[tuple[Row, Result]]) -> None:
        """Append results; a killed process leaves at most half a line behind."""
        lines = []
        for (name, seed), result in results:
            self.results[name, seed] = result
            lines.append(json.dumps({"task": self.task, "name": name, "seed": seed, "result": result}) + "\n")
        try:
            self._file.write("".join(lines))
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
        for row, key in enumerate(zip(table.names, table.seeds.tolist(), strict=True)):
            metrics = {key: float(values[row]) for key, values in table.metrics.items()}
            reason = table.reasons[row]
            self.results[key] = {"reason": reason} if reason else metrics

    def _read_lines(self) -> None:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                row, result = (entry["name"], entry["seed"]), dict(entry["result"])
            except (ValueError, TypeError, KeyError):
                continue  # torn by a kill, and trained again
            if entry.get("task") != self.task:
                raise InputError(f"{self.path} holds results of task {entry.get('task')!r}; give another --out")
            self.results[row] = result
