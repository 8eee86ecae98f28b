"""Worker processes for trainings: spawned, each with its share of the cores, and gone when their parent is."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Make a pool of processes that share out this machine's cores, and need not share out a GPU's memory beforehand.

    Never forked: a forked child inherits JAX's threads in an unusable state.
    """
    threads = max(1, available_cores() // workers)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(threads,))


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
