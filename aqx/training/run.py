"""Jobs in, outcomes out: trainings here, in worker processes or in any executor; no database."""

from __future__ import annotations

import contextlib
import logging
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aqx.activation import Activation, activation
from aqx.duration import written
from aqx.errors import AqxError, InputError, TaskError, one_line, traceback_of
from aqx.metrics import plain_metrics
from aqx.population import stack_of
from aqx.stopping import is_stop, stop_if_asked
from aqx.tasks import Task
from aqx.training.environment import environment
from aqx.training.processes import OverTime, ThisProcess, WorkerPool, allow

_log = logging.getLogger("aqx")

GIVEN_UP = 10  # jobs in a row that were lost: then it is not the functions that are at fault


@dataclass(frozen=True)
class Training:
    """A function and the seed that it is trained with.

    Attributes:
        name: the function.
        seed: for whatever is random in the training.
        trial_id: of the trial that this is, where there is one.
    """

    name: str
    seed: int
    trial_id: int | None = None


Job = tuple[Training, ...]  # of one shape; more than one are trained by one program


@dataclass(frozen=True)
class Outcome:
    """What a training left behind, wherever it ran.

    Attributes:
        metrics: what it reported.
        reason: why it failed, or None.
        seconds: how long it took; of trainings of one program, its share.
        environment: where and with what it ran.
    """

    metrics: dict[str, Any]
    reason: str | None
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """A job whose process died, or that did not come back from where it was sent.

    Attributes:
        reason: what is known of it.
    """

    reason: str


@contextlib.contextmanager
def workplace(
    executor: Executor | None, workers: int | None, time_limit: float | int | None = None
) -> Iterator[tuple[Executor, int]]:
    """Provide where trainings run, and how many jobs at a time.

    Args:
        executor: any `concurrent.futures.Executor`; it stays the caller's.
        workers: jobs at a time; without an executor, more than one run in processes of their own.
        time_limit: of a training: with one, a single worker is a process of its own too, as it may have to be killed.

    Raises:
        InputError: too few workers.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} is too few; give 1 or more")
    if executor is not None:
        if time_limit is not None:
            _log.warning("aqx: an executor's processes cannot be ended from here; give it the time limit itself")
        yield executor, workers or getattr(executor, "_max_workers", None) or 1
        return
    width = workers or 1
    apart = width > 1 or time_limit is not None
    with WorkerPool(width, width > 1, time_limit) if apart else ThisProcess() as own:
        yield own, width


def run(
    next_job: Callable[[], Job | None],
    task: Task,
    executor: Executor,
    width: int,
    time_limit: float | int | None = None,
) -> Generator[list[tuple[Job, list[Outcome] | Lost]], None, None]:
    """Run a task's trainings and yield them as they end, those together that ended together.

    Args:
        next_job: what to train next; None where there is nothing at present: it is asked again when something has
            ended, and where nothing runs any more, that is the end.
        task: has a `train` or a `train_many`.
        executor: from `workplace`; task and names of functions travel by pickle.
        width: jobs at a time.
        time_limit: seconds that a training may take, by default the task's; a job of K trainings may take K times as
            long, and is then tried one by one. Kept where `executor` is a `WorkerPool`.

    Yields:
        Jobs that ended, each with the outcomes of its trainings, or lost.

    Raises:
        TaskError: the task cannot train, the executor takes no more work, or job after job is lost.
        AqxError: the task or a function cannot be had where the work is done: no training will do better.
    """
    if task.train is None:
        raise TaskError(f"task {task.name!r} has no train function; give Task(train=…), or use ask and tell")
    limit = task.time_limit if time_limit is None else time_limit
    running: dict[Future[list[Outcome]], Job] = {}
    again: deque[Job] = deque()
    lost_in_a_row = 0
    try:
        while True:
            while len(running) < width and (job := again.popleft() if again else next_job()):
                try:
                    running[_submit(executor, task, job, limit)] = job
                except RuntimeError as error:  # broken, or shut down
                    raise TaskError(
                        f"the executor takes no more work ({one_line(error)}); "
                        "run the same again with a new one to go on"
                    ) from error
            if not running:
                return
            ended: list[tuple[Job, list[Outcome] | Lost]] = []
            cause: BaseException | None = None
            hopeless: AqxError | None = None
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    outcomes: list[Outcome] | Lost = future.result()
                    lost_in_a_row = 0
                except OverTime:
                    assert limit is not None
                    if len(job := running[future]) > 1:
                        _log.warning("aqx: %d trainings together took longer than the limit; now one by one", len(job))
                        again.extend((training,) for training in running.pop(future))
                        continue
                    reason = f"took longer than the time limit of {written(limit)}, and was ended"
                    outcomes = [Outcome({}, reason, limit)]
                except AqxError as error:
                    hopeless = error
                    continue
                except BaseException as error:
                    if is_stop(error):
                        raise
                    # What a training raises comes as an outcome: this befell its process, or the way to it.
                    cause, lost_in_a_row = error, lost_in_a_row + 1
                    outcomes = Lost(f"lost with its worker ({one_line(error)})")
                ended.append((running.pop(future), outcomes))
            if ended:
                yield ended
            stop_if_asked()  # a training may have swallowed it
            if hopeless is not None:
                raise hopeless
            if cause is not None and lost_in_a_row >= max(GIVEN_UP, 2 * width):
                raise TaskError(
                    f"{lost_in_a_row} trainings in a row were lost, the last by {one_line(cause)}"
                ) from cause
    finally:
        for future in running:
            future.cancel()


def _submit(executor: Executor, task: Task, job: Job, limit: float | int | None) -> Future[list[Outcome]]:
    if isinstance(executor, ThisProcess | ThreadPoolExecutor):
        return executor.submit(train, task, job)
    kept = limit if isinstance(executor, WorkerPool) else None  # nobody else would end what takes longer
    try:
        pickled = pickle.dumps((task, job, kept))
    except (AqxError, pickle.PicklingError, AttributeError, TypeError):
        return executor.submit(train, task, job, kept)  # it may need no pickle, and says so if it does
    return executor.submit(_train_pickled, pickled)


def _train_pickled(work: bytes) -> list[Outcome]:
    """Unpickle what `train` takes, and train: an error in that is an answer, where an executor would break."""
    return train(*pickle.loads(work))


def train(task: Task, job: Job, limit: float | int | None = None) -> list[Outcome]:
    """Run a job of a task here and return what came of each training; whatever one raises becomes its reason.

    Trainings that fail together are tried one by one: one of them may be at fault.

    Args:
        task: what is trained.
        job: the functions.
        limit: in a process of a `WorkerPool`, the seconds that a training may take.
    """
    try:
        return _train(task, job, limit)
    finally:
        allow(None)


def _train(task: Task, job: Job, limit: float | int | None) -> list[Outcome]:
    if len(job) > 1:
        allow(limit and limit * len(job))
        try:
            acts = stack_of([training.name for training in job])
            return _together(task, acts, np.array([training.seed for training in job], np.int64))
        except BaseException as error:
            if is_stop(error):
                raise
            _log.warning("aqx: %d trainings failed together (%s); now one by one", len(job), one_line(error))
    outcomes: list[Outcome] = []
    for training in job:
        act = activation(training.name)
        allow(limit)
        outcomes.append(_alone(task, act, training.seed))
    return outcomes


def _alone(task: Task, act: Activation, seed: int) -> Outcome:
    assert task.train is not None
    started = time.monotonic()
    metrics: dict[str, Any] = {}
    reason = None
    try:
        returned = task.train(act, seed)
        if not isinstance(returned, dict):
            raise TaskError(f"train must return a dict of metrics, but returned {type(returned).__name__}")
        metrics = plain_metrics(returned)
        task.goal.of(metrics)
    except BaseException as error:  # `sys.exit` too: only Ctrl-C and SIGTERM end more than this training
        if is_stop(error):
            raise
        reason = one_line(error)
        metrics = {**metrics, "traceback": traceback_of(error)}
    return Outcome(metrics, reason, time.monotonic() - started, environment(task))


def _together(task: Task, acts: Activation, seeds: np.ndarray) -> list[Outcome]:
    assert task.train_many is not None
    started = time.monotonic()
    returned = task.train_many(acts, seeds)
    if not isinstance(returned, dict):
        raise TaskError(f"train_many must return a dict of arrays, but returned {type(returned).__name__}")
    columns = {name: np.asarray(values) for name, values in returned.items()}
    for name, values in columns.items():
        if values.shape[:1] != seeds.shape:
            raise TaskError(f"train_many must return {len(seeds)} values of {name}, but the shape is {values.shape}")
    share = (time.monotonic() - started) / len(seeds)
    # Numbers are plain as they are: a detour by JSON would take as long as a hundredth of a small network's training.
    if all(values.ndim == 1 and values.dtype.kind in "biuf" for values in columns.values()):
        lists = [values.tolist() for values in columns.values()]
        members = [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
    else:
        each = [{name: values[member] for name, values in columns.items()} for member in range(len(seeds))]
        members = list(map(plain_metrics, each))
    for metrics in members:
        task.goal.of(metrics)
    return [Outcome(metrics, None, share, environment(task)) for metrics in members]
