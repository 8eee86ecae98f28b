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
    """Return what the function gives for each item, in their order."""
    work = list(items)
    threads = min(_MOST, cores(), len(work))
    if threads < 2:
        return [function(item) for item in work]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, work))


def in_chunks(
    moments: Callable[[slice], tuple[np.ndarray, np.ndarray]], rows: int, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and spread of so many rows, a chunk at a time; no sum depends on the number of threads."""
    parts = in_threads(moments, (slice(start, start + chunk) for start in range(0, rows, chunk)))
    return np.concatenate([mean for mean, _ in parts]), np.concatenate([spread for _, spread in parts])
