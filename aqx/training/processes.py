"""Worker processes: spawned, each with its share of cores and GPUs, and gone when their parent is."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from multiprocessing import connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

from aqx.duration import written
from aqx.errors import TaskError
from aqx.machine import cores, gpu_ids
from aqx.stopping import held, when_let_go

_MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # JAX refuses both at once
_starting = threading.Lock()
_log = logging.getLogger("aqx")

_POLL_SECONDS = 0.1  # how late at most a process is ended that takes too long
_IMPORT_SECONDS = 120.0  # at least so long may a worker with a time limit take to import what it is to run
# In a worker process: when by the monotonic clock it is to be ended, 0 for never; and whether it has come to `allow`.
_deadline: Any = None
_begun: Any = None


_NEVER_STARTED = (
    "a worker process ended before it could start; a script that uses several workers, or a time limit, must be a "
    'file, and needs `if __name__ == "__main__":` around all that it does, as each worker imports it'
)
_HANGS = (
    "a worker process took longer than {} to import what it is to train, and was ended; let the task file not compute "
    "or wait for something while it is imported, or give a longer time limit"
)


class OverTime(Exception):
    """A process was ended, as what it ran took longer than it may; see `allow`."""


def allow(seconds: float | int | None) -> None:
    """Let what runs now in this worker process take so many seconds from now on, None for any; elsewhere do nothing."""
    if _deadline is not None:
        _begun.value = 1
        _deadline.value = 0.0 if seconds is None else time.monotonic() + seconds


class WorkerPool(Executor):
    """Processes that share out this machine's cores and GPUs.

    Each has one GPU from its first moment on; where there are more processes than GPUs, those of one GPU have equal
    parts of its memory. This process takes of a GPU's memory only what it uses, if its JAX has not started before.

    One that dies takes only its own work along (its future raises `BrokenExecutor`), and is replaced; so is one that is
    ended because it takes longer than it allowed itself (`OverTime`). Where the block is left by an error, they are
    killed at what they are at, with the processes that they have started. Ctrl-C is this process's to handle, not
    theirs. They are never forked: a forked child inherits JAX's threads in an unusable state.

    Args:
        workers: how many; `submit` waits while all are busy.
        share: whether each has its part of the GPUs only.
        time_limit: what a process will `allow` itself, if anything: as long, and two minutes at least, it may take to
            import what it is to run (its future raises `TaskError`).

    Raises:
        TaskError: this process is a worker itself, which imports the script that wants workers.
    """

    def __init__(self, workers: int, share: bool = True, time_limit: float | int | None = None):
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # A worker that imports the script: to go on would claim work that dies with it.
            raise TaskError(_NEVER_STARTED)
        self._threads = max(1, cores() // workers)
        self._import_limit = time_limit and max(time_limit, _IMPORT_SECONDS)
        self._closed = threading.Event()
        self._last_resort = when_let_go(self.kill)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        gpus = gpu_ids()
        if gpus:
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        shares = gpu_shares(workers, gpus if share else [], os.environ)
        for number, settings in enumerate(shares, 1):
            if settings:
                _log.info("worker %d of %d: %s", number, workers, " ".join("=".join(each) for each in settings.items()))
            self._idle.put(self._start(settings))
        threading.Thread(target=self._end_overdue, daemon=True, name="aqx-limits").start()

    def __enter__(self) -> WorkerPool:
        self._last_resort.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None:
            self.kill()
        self.shutdown()
        self._last_resort.__exit__(None, None, None)

    def kill(self) -> None:
        """Kill the processes at what they are at, and those that they have started."""
        self._closed.set()
        for worker in self._all:
            worker.kill()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have an idle process run `fn`, as soon as one is."""
        worker = self._idle.get()
        try:
            inner = worker.run(self._import_limit, fn, *args, **kwargs)
        except BrokenExecutor:  # it died while it was idle
            worker = self._start(worker.settings)
            inner = worker.run(self._import_limit, fn, *args, **kwargs)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def give_back(ended: Future[Any]) -> None:
            # The executor holds its own lock here where it broke: it is shut down at the end, with the others.
            error = CancelledError() if ended.cancelled() else ended.exception()
            died = worker.ended_for or isinstance(error, BrokenExecutor)
            never = isinstance(error, BrokenExecutor) and not any(each.has_started for each in self._all)
            if never and not worker.ended_for:
                self._idle.put(worker)
                future.set_exception(TaskError(_NEVER_STARTED))
                return
            self._idle.put(self._start(worker.settings) if died and not self._closed.is_set() else worker)
            if error is None:
                future.set_result(ended.result())
            else:
                future.set_exception(worker.ended_for or error)

        inner.add_done_callback(give_back)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, once they have finished what they are at."""
        for worker in self._all:
            worker.shutdown(wait, cancel_futures=cancel_futures)
        self._closed.set()

    def _end_overdue(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            for worker in list(self._all):
                worker.end_if_overdue()

    def _start(self, settings: Mapping[str, str]) -> _Worker:
        worker = _Worker(settings, self._threads)
        self._all.append(worker)
        return worker


class _Worker(ProcessPoolExecutor):
    """One process, and what is set in its environment."""

    def __init__(self, settings: Mapping[str, str], threads: int):
        self.settings = settings
        self.ended_for: OverTime | TaskError | None = None
        self._import_limit: float | int = 0
        self._context = _Context(settings)
        self._deadline, self._started, self._begun = RawValue("d"), RawValue("b"), RawValue("b")
        shared = (threads, self._deadline, self._started, self._begun)
        super().__init__(1, mp_context=self._context, initializer=_settle, initargs=shared)

    @property
    def has_started(self) -> bool:
        """Whether the process has come so far that it can run what it is given."""
        return bool(self._started.value)

    def run(self, import_limit: float | int | None, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Have the process run `fn`, which has so many seconds until it says what it allows itself."""
        self._begun.value = 0
        self._import_limit = import_limit or 0
        self._deadline.value = time.monotonic() + import_limit if import_limit else 0.0
        return self.submit(fn, *args, **kwargs)

    def end_if_overdue(self) -> None:
        """Kill the process where its time is up."""
        if 0 < self._deadline.value < time.monotonic() and not self.ended_for:
            self.ended_for = OverTime() if self._begun.value else TaskError(_HANGS.format(written(self._import_limit)))
            self.kill()

    def kill(self) -> None:
        """Kill the process, and those that it has started."""
        for process in self._context.started:
            kill_with_children(process)


class _Context(SpawnContext):
    """Spawns processes into an environment of their own.

    Set by an initializer, it would come too late for a main module that computes something while it is imported.
    """

    def __init__(self, settings: Mapping[str, str]):
        super().__init__()
        self._settings = settings
        self.started: list[_Process] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        """Make a process, not started yet."""
        process = _Process(*args, **kwargs)
        process.settings = self._settings
        self.started.append(process)
        return process


class _Process(SpawnProcess):
    settings: Mapping[str, str] = {}

    def start(self) -> None:
        """Start it while the settings are in force here, as a child inherits them."""
        # A start that is torn in two leaves a process that nobody knows; in the child Ctrl-C waits for `_settle`.
        with _starting, held():
            before = {name: os.environ.get(name) for name in self.settings}
            os.environ.update(self.settings)
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                for name, value in before.items():
                    os.environ.pop(name)
                    if value is not None:
                        os.environ[name] = value


def kill_with_children(process: SpawnProcess) -> None:
    """Kill a process and, where the system lists them (Linux), all that descend from it."""
    if process.pid is None or not process.is_alive():
        return
    descendants = list(_descendants(process.pid))
    process.kill()
    for pid in descendants:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> Iterator[int]:
    for tasks in Path("/proc", str(pid), "task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, tasks.read_text().split()):
                yield child
                yield from _descendants(child)


def gpu_shares(workers: int, gpus: Sequence[str], environment: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what to set for each worker, so that each has one GPU, or an equal part of one; what is set stays.

    Args:
        workers: how many.
        gpus: as `CUDA_VISIBLE_DEVICES` names them; without any, nothing is set.
        environment: variables of this process.

    Example:
        >>> gpu_shares(2, ["0", "1"], {})
        [{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '1'}]
        >>> gpu_shares(2, ["0"], {})[1]
        {'CUDA_VISIBLE_DEVICES': '0', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.45'}
    """
    if not gpus:
        return [{} for _ in range(workers)]
    turns = [number % len(gpus) for number in range(workers)]
    shares = [{"CUDA_VISIBLE_DEVICES": gpus[turn]} for turn in turns]
    for turn, share in zip(turns, shares, strict=True):
        # A tenth is left for CUDA's own, and for the process that started them.
        if turns.count(turn) > 1 and not any(name in environment for name in _MEMORY):
            share["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / turns.count(turn):.3g}"
    return shares


def run_each(
    workers: int, fn: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], Future[Any]]]:
    """Run `fn(*job)` in so many processes, and yield every job with its future as it ends."""
    running: dict[Future[Any], tuple[Any, ...]] = {}
    with WorkerPool(workers) as pool:
        try:
            left = iter(jobs)
            while True:
                for job in itertools.islice(left, workers - len(running)):
                    running[pool.submit(fn, *job)] = job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future
        finally:
            for future in running:
                future.cancel()


class ThisProcess(Executor):
    """Runs what is submitted at once, here."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` and return its result as a future; what it raises is raised."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _settle(threads: int, deadline: Any, started: Any, begun: Any) -> None:
    """Set what JAX and BLAS read when they start; what the user has set stays."""
    global _deadline, _begun
    _deadline, _begun = deadline, begun
    started.value = 1
    # The parent hears of Ctrl-C too, and kills what it does not wait for. Not ignored: what a training starts would be.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    # The first is XLA's: as many processes as cores, each with a thread per core, would keep interrupting each other.
    for name in ("PJRT_NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    threading.Thread(target=_end_with_parent, daemon=True, name="aqx-parent").start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers to stop; without this they would wait for work for ever."""
    if parent := multiprocessing.parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)
