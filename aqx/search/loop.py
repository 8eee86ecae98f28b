"""The search loop, and the trainings it sends to an executor."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from typing import TYPE_CHECKING, Any

from aqx.activation import Activation
from aqx.errors import AqxError, Exhausted, InputError, TaskError
from aqx.search.pool import worker_pool
from aqx.search.trial import LEASE_SECONDS, Record, Trial, heartbeats
from aqx.store import trials as store
from aqx.tasks import Task

if TYPE_CHECKING:
    from aqx.search.study import Study

_log = logging.getLogger("aqx")

Progress = Callable[[int, int, str], None] | None


def search(
    study: Study, budget: int, executor: Executor | None, workers: int | None, spectra: int, progress: Progress
) -> list[Record]:
    """Train baselines and suggestions until `budget` suggestions have a result; see `Study.search`."""
    if not isinstance(budget, int) or budget < 0:
        raise InputError(f"budget={budget!r} is not a number of trainings; give an integer from 0")
    if not isinstance(spectra, int) or spectra < 0:
        raise InputError(f"spectra={spectra!r} is not a number of candidates; give an integer from 0")
    baselines = len(study.task.baselines)

    def describe() -> None:
        nonlocal spectra
        try:
            if spectra:
                study.describe_promising(spectra)
        except AqxError as error:
            spectra = 0
            _log.warning("aqx: the search goes on without more Fisher spectra: %s", error)

    def claims() -> Iterator[Trial]:
        # Counted anew each time: other processes may work on the same study.
        while True:
            suggested = sum(row.status in ("done", "failed", "running") for row in study.records("search"))
            if suggested < budget:
                describe()
            try:
                yield study.claim_next(LEASE_SECONDS, suggestions=suggested < budget)
            except Exhausted:
                if suggested == 0 < budget:
                    raise  # there is nothing to search in, which the user should hear
                return

    finished: list[Record] = []

    def finish(record: Record) -> None:
        finished.append(record)
        _stop_if_hopeless(study, baselines)
        if progress:
            done = study.records()
            total = sum(r.status in ("done", "failed") and r.purpose in ("search", "baseline") for r in done)
            best = study.best()
            progress(total, budget + baselines, f"best {best.objective:.4f} {best.name}" if best else "")

    train_all(study, claims(), executor, workers, finish)
    return finished


def _stop_if_hopeless(study: Study, baselines: int) -> None:
    """When every baseline fails, the fault is the task's, and no suggestion will do better."""
    records = study.records("baseline")
    if baselines and len(records) == baselines and all(record.status == "failed" for record in records):
        raise TaskError(f"every baseline of task {study.task.name!r} failed; the first: {records[0].reason}")


def train_all(
    study: Study,
    claims: Iterator[Trial],
    executor: Executor | None,
    workers: int | None,
    finish: Callable[[Record], None],
) -> None:
    """Run the task's training for every claim, here or in an executor, storing each result as it comes."""
    if study.task.train is None:
        raise TaskError(f"task {study.task.name!r} has no train function; give Task(train=…), or use ask and tell")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} is too few; give 1 or more")
    if executor is None and (workers or 1) == 1:
        for trial in claims:
            with _stored(trial, finish):
                trial.report(**train(study.task, trial.activation, trial.seed))
    elif executor is not None:
        _train_in(executor, workers or getattr(executor, "_max_workers", None) or 1, study, claims, finish)
    else:
        with worker_pool(workers or 1) as pool:
            _train_in(pool, workers or 1, study, claims, finish)


def train(task: Task, act: Activation, seed: int) -> dict[str, Any]:
    """Run a task's training; what an executor is given to do."""
    assert task.train is not None
    metrics = task.train(act, seed)
    if not isinstance(metrics, dict):
        raise TaskError(f"train must return a dict of metrics, but returned {type(metrics).__name__}")
    return metrics


@contextlib.contextmanager
def _stored(trial: Trial, finish: Callable[[Record], None]) -> Iterator[None]:
    with heartbeats(trial.db, [trial.id]):
        try:
            yield
        except Exception as error:
            record = trial.fail(error)
        except BaseException:
            store.release(trial.db, trial.id)
            raise
        else:
            record = trial.finish()
    finish(record)


def _train_in(
    executor: Executor, workers: int, study: Study, claims: Iterator[Trial], finish: Callable[[Record], None]
) -> None:
    running: dict[Future[dict[str, Any]], Trial] = {}
    claimed: list[int] = []

    def settle(future: Future[dict[str, Any]]) -> None:
        trial = running.pop(future)
        claimed.remove(trial.id)
        try:
            trial.report(**future.result())
        except BrokenExecutor:
            running[future] = trial  # given back with the others
            claimed.append(trial.id)
            raise
        except Exception as error:
            finish(trial.fail(error))
        else:
            finish(trial.finish())

    with heartbeats(study.db, claimed):
        try:
            more = True
            while more or running:
                while more and len(running) < workers:
                    trial = next(claims, None)
                    if trial is None:
                        more = False
                        break
                    claimed.append(trial.id)
                    running[executor.submit(train, study.task, trial.activation, trial.seed)] = trial
                if running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        settle(future)
        except BrokenExecutor as error:
            raise TaskError(f"a worker process died ({error}); run the same search again to go on") from error
        finally:
            for future, trial in running.items():
                future.cancel()
                store.release(study.db, trial.id)
