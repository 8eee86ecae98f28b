"""Work shared out to threads: NumPy and scikit-learn let others run while they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from aqx.machine import cores

_MOST = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return what the function gives for each item, in their order; the caller's thread works too."""
    work = list(items)
    threads = min(_MOST, cores(), len(work))
    if threads < 2:
        return [function(item) for item in work]
    left, done = iter(enumerate(work)), dict[int, Result]()

    def take() -> None:
        for place, item in left:
            done[place] = function(item)

    with ThreadPoolExecutor(threads - 1) as pool:  # to start a thread takes milliseconds where others compute
        others = [pool.submit(take) for _ in range(threads - 1)]
        take()
        for other in others:
            other.result()
    return [done[place] for place in range(len(work))]


def in_chunks(
    moments: Callable[[slice], tuple[np.ndarray, np.ndarray]], rows: int, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and spread of so many rows, a chunk at a time; no sum depends on the number of threads."""
    parts = in_threads(moments, (slice(start, start + chunk) for start in range(0, rows, chunk)))
    return np.concatenate([mean for mean, _ in parts]), np.concatenate([spread for _, spread in parts])
