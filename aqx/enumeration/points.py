"""The points of N(0, 1) at which the outputs of classes are stored; a database has one choice of them.

Functions of two inputs have theirs at as many points of N(0, I₂), see `aqx.plane`.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from jaxtyping import Float32

from aqx.errors import InputError
from aqx.store import functions as store
from aqx.store.connection import Database

SAMPLINGS = ("stratified", "normal")


def sample_points(n: int, sampling: str) -> Float32[np.ndarray, " n"]:
    """Return n points of N(0, 1), truncated to ±5: its mid-quantiles ("stratified") or random ones ("normal").

    Args:
        n: how many.
        sampling: "stratified" or "normal".
    """
    if sampling == "stratified":
        quantiles = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    else:
        quantiles = np.random.Generator(np.random.Philox(0)).standard_normal(n)
    return np.clip(np.asarray(quantiles, np.float32), -5, 5)


def points_of(db: Database, points: int | None, sampling: str | None) -> Float32[np.ndarray, " n"]:
    """Return a database's points, and fix them where it has none yet: 256 stratified ones unless asked otherwise.

    Raises:
        InputError: points or sampling cannot be used.
        StoreError: the database has other points.
    """
    stored = store.get_points(db)
    n = points if points is not None else len(stored[1]) if stored else 256
    sampling = sampling or (stored[0] if stored else "stratified")
    if not 1 <= n <= 100_000:
        raise InputError(f"points={n} is out of range; give 1 to 100,000, for instance 256")
    if sampling not in SAMPLINGS:
        raise InputError(f"sampling={sampling!r} is unknown; give one of {', '.join(SAMPLINGS)}")
    if stored and (sampling, n) == (stored[0], len(stored[1])):
        return stored[1]
    x = sample_points(n, sampling)
    store.set_points(db, sampling, x)
    return x
