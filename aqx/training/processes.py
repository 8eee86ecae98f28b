"""Worker processes for trainings: spawned, each with its share of the cores, and gone when their parent is."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import connection
from typing import Any

from aqx.machine import cores


class WorkerPool(Executor):
    """Processes that share out this machine's cores, and need not share out a GPU's memory beforehand.

    One that dies takes only its own work along (its future raises `BrokenExecutor`), and is replaced. They are never
    forked: a forked child inherits JAX's threads in an unusable state.

    Args:
        workers: how many; `submit` waits while all are busy.
    """

    def __init__(self, workers: int):
        self._threads = max(1, cores() // workers)
        self._idle: queue.SimpleQueue[ProcessPoolExecutor] = queue.SimpleQueue()
        self._all: list[ProcessPoolExecutor] = []
        for _ in range(workers):
            self._idle.put(self._start())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have an idle process run `fn`, as soon as one is."""
        worker = self._idle.get()
        try:
            future = worker.submit(fn, *args, **kwargs)
        except BrokenExecutor:  # it died while it was idle
            worker = self._start()
            future = worker.submit(fn, *args, **kwargs)

        def give_back(ended: Future[Any]) -> None:
            # The executor holds its own lock here where it broke: it is shut down at the end, with the others.
            died = not ended.cancelled() and isinstance(ended.exception(), BrokenExecutor)
            self._idle.put(self._start() if died else worker)

        future.add_done_callback(give_back)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, once they have finished what they are at."""
        for worker in self._all:
            worker.shutdown(wait, cancel_futures=cancel_futures)

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        worker = ProcessPoolExecutor(1, mp_context=context, initializer=_settle, initargs=(self._threads,))
        self._all.append(worker)
        return worker


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
