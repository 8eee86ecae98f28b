"""Points of the plane at which functions of two inputs are known, and their mirror images."""

from __future__ import annotations

import functools
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Float32, Int

_PLASTIC = 1.324717957244746  # x³ = x + 1: its powers make the best of such sequences in two dimensions
_IMAGES = 8  # of a point under changes of sign and the exchange of x and y


@functools.lru_cache(maxsize=8)
def normal_pairs(n: int) -> Float32[np.ndarray, "2 n"]:
    """Return n points (x, y) of N(0, I₂), truncated to ±5.

    Points of a low-discrepancy sequence through the inverse of the normal distribution function, and not random ones:
    averages over them come closer to expectations, so that functions are told apart by fewer numbers. It is the
    additive recurrence of the plastic number, each coordinate replaced by the quantile of its rank, which is plain
    arithmetic: the same on every machine and with every version of SciPy, as stored outputs must be. Each of its points
    stands with its seven mirror images (±x, ±y) and (±y, ±x), so that the parts of a function that are odd or even in x
    or in y are exact.

    Args:
        n: how many; of the last point there are fewer images where 8 does not divide it.

    Example:
        >>> from aqx.plane import normal_pairs
        >>> print(normal_pairs(16)[:, ::4].round(2))
        [[0.97 0.43 0.21 1.38]
         [0.43 0.97 1.38 0.21]]

    Source: Roberts, M. (2018). The unreasonable effectiveness of quasirandom sequences.
    """
    count = -(-n // _IMAGES)
    sequence = np.mod(0.5 + np.arange(1, count + 1)[:, None] / _PLASTIC ** np.arange(1, 3), 1)
    # Not the same quantiles of both coordinates, so that no point is its own image under an exchange.
    uniform = (sequence.argsort(axis=0).argsort(axis=0) + np.array([1, 2]) / 3) / count
    halves = np.vectorize(lambda u: NormalDist().inv_cdf(0.5 + u / 2), otypes=[float])(uniform)
    images = np.arange(_IMAGES)
    pairs = np.where((images >> 2 & 1)[:, None].astype(bool), halves[:, None, ::-1], halves[:, None, :])
    signs = 1 - 2 * np.stack([images & 1, images >> 1 & 1], axis=-1)
    points = (pairs * signs).reshape(-1, 2)[:n]
    return np.ascontiguousarray(np.clip(points, -5, 5).T, np.float32)


def points_for(inputs: int, points: Float[np.ndarray, " P"]) -> Float[np.ndarray, "*I P"]:
    """Return where functions of so many inputs are known, 1 or 2: at these points, or at as many of the plane.

    Example:
        >>> import numpy as np
        >>> from aqx.plane import points_for
        >>> points_for(1, np.zeros(8)).shape, points_for(2, np.zeros(8)).shape
        ((8,), (2, 8))
    """
    return points if inputs == 1 else normal_pairs(len(points))


def images(n: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return which of `normal_pairs(n)` are (−x, y), (x, −y) and (y, x) of each; itself where that is not among them.

    Example:
        >>> from aqx.plane import images
        >>> [image.tolist() for image in images(8)]
        [[1, 0, 3, 2, 5, 4, 7, 6], [2, 3, 0, 1, 6, 7, 4, 5], [4, 6, 5, 7, 0, 2, 1, 3]]
    """
    at = np.arange(n)
    image = at % _IMAGES
    exchanged = (image ^ 4) & 4 | (image & 1) << 1 | image >> 1 & 1
    found = (at - image + other for other in (image ^ 1, image ^ 2, exchanged))
    of_x, of_y, of_both = (np.where(other < n, other, at) for other in found)
    return of_x, of_y, of_both
