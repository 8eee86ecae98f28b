"""Worker processes: spawned, each with its share of cores and GPUs, and gone when their parent is."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import connection
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from aqx.machine import cores, gpu_ids

_MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # JAX refuses both at once
_starting = threading.Lock()
_log = logging.getLogger("aqx")


class WorkerPool(Executor):
    """Processes that share out this machine's cores and GPUs.

    Each has one GPU from its first moment on; where there are more processes than GPUs, those of one GPU have equal
    parts of its memory. This process takes of a GPU's memory only what it uses, if its JAX has not started before.

    One that dies takes only its own work along (its future raises `BrokenExecutor`), and is replaced. They are never
    forked: a forked child inherits JAX's threads in an unusable state.

    Args:
        workers: how many; `submit` waits while all are busy.
    """

    def __init__(self, workers: int):
        self._threads = max(1, cores() // workers)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        gpus = gpu_ids()
        if gpus:
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        for number, settings in enumerate(gpu_shares(workers, gpus, os.environ), 1):
            if settings:
                _log.info("worker %d of %d: %s", number, workers, " ".join("=".join(each) for each in settings.items()))
            self._idle.put(self._start(settings))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have an idle process run `fn`, as soon as one is."""
        worker = self._idle.get()
        try:
            future = worker.submit(fn, *args, **kwargs)
        except BrokenExecutor:  # it died while it was idle
            worker = self._start(worker.settings)
            future = worker.submit(fn, *args, **kwargs)

        def give_back(ended: Future[Any]) -> None:
            # The executor holds its own lock here where it broke: it is shut down at the end, with the others.
            died = not ended.cancelled() and isinstance(ended.exception(), BrokenExecutor)
            self._idle.put(self._start(worker.settings) if died else worker)

        future.add_done_callback(give_back)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, once they have finished what they are at."""
        for worker in self._all:
            worker.shutdown(wait, cancel_futures=cancel_futures)

    def _start(self, settings: Mapping[str, str]) -> _Worker:
        worker = _Worker(settings, self._threads)
        self._all.append(worker)
        return worker


class _Worker(ProcessPoolExecutor):
    """One process, and what is set in its environment."""

    def __init__(self, settings: Mapping[str, str], threads: int):
        self.settings = settings
        super().__init__(1, mp_context=_Context(settings), initializer=_settle, initargs=(threads,))


class _Context(SpawnContext):
    """Spawns processes into an environment of their own.

    Set by an initializer, it would come too late for a main module that computes something while it is imported.
    """

    def __init__(self, settings: Mapping[str, str]):
        super().__init__()
        self._settings = settings

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        """Make a process, not started yet."""
        process = _Process(*args, **kwargs)
        process.settings = self._settings
        return process


class _Process(SpawnProcess):
    settings: Mapping[str, str] = {}

    def start(self) -> None:
        """Start it while the settings are in force here, as a child inherits them."""
        with _starting:
            before = {name: os.environ.get(name) for name in self.settings}
            os.environ.update(self.settings)
            try:
                super().start()
            finally:
                for name, value in before.items():
                    os.environ.pop(name)
                    if value is not None:
                        os.environ[name] = value


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


def _settle(threads: int) -> None:
    """Set what JAX and BLAS read when they start; what the user has set stays."""
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
