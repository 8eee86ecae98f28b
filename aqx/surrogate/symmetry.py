"""What a network hardly notices, that a function is mirrored, negated, shifted or scaled; and what is left of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from aqx.plane import images, normal_pairs

# Beyond, a larger value tells no more about a function than that it explodes.
_LIMIT = 20.0


class Parts(NamedTuple):
    """Functions f as m + s·(±o ± e): their odd part o and even part e, oriented and of unit scale together.

    Attributes:
        odd: o at the points, with ⟨x·o⟩ ≥ 0 [C, P].
        even: e at the points, with ⟨e⟩ = 0 and ⟨x²·e⟩ ≥ 0 [C, P].
        mean: m/s, squashed by arcsinh; negative where the even part was turned over against it [C, 1].
        scale: log s, where s² = ⟨o²⟩ + ⟨e²⟩ before scaling [C, 1].
        orientation: ⟨x·f⟩/s and ⟨x²·(f − m)⟩/s, whose signs the others do not know [C, 2].
    """

    odd: Float[np.ndarray, "C P"]
    even: Float[np.ndarray, "C P"]
    mean: Float[np.ndarray, "C 1"]
    scale: Float[np.ndarray, "C 1"]
    orientation: Float[np.ndarray, "C 2"]


def parts(outputs: Float32[np.ndarray, "C P"], points: Float[np.ndarray, " P"]) -> Parts:
    """Take functions apart so that f(x), −f(x), f(−x) and −f(−x) have the same parts, their orientation aside.

    Weights are initialised alike for w and −w. So a network whose activation stands between two layers of weights
    trains with these four alike (in distribution), and what it learns from one of them holds for the others.

    Args:
        outputs: values of the functions at the points [C, P]; larger ones than 20 are taken for 20.
        points: ascending or not; values at a point's mirror image are interpolated where that is no point itself [P].
    """
    order = np.argsort(points, kind="stable")
    x = np.asarray(points, np.float64)[order]
    values = np.clip(outputs[:, order].astype(np.float64), -_LIMIT, _LIMIT)
    right = np.clip(np.searchsorted(x, -x), 1, max(len(x) - 1, 1)) if len(x) > 1 else np.zeros(1, int)
    left = np.maximum(right - 1, 0)
    gap = np.where(x[right] > x[left], x[right] - x[left], 1.0)
    share = np.clip((-x - x[left]) / gap, 0, 1)
    mirrored = values[:, left] * (1 - share) + values[:, right] * share
    odd, even = (values - mirrored) / 2, (values + mirrored) / 2
    mean = even.mean(axis=1, keepdims=True)
    even -= mean
    orientation = np.stack([odd @ x, even @ (x * x)], axis=1) / len(x)
    odd *= np.where(orientation[:, :1] < 0, -1.0, 1.0)
    turn = np.where(orientation[:, 1:] < 0, -1.0, 1.0)
    scale = np.sqrt((odd**2 + even**2).mean(axis=1, keepdims=True) + 1e-12)
    return Parts(odd / scale, even * turn / scale, np.arcsinh(mean * turn / scale), np.log(scale), orientation / scale)


def parts_in_plane(outputs: Float32[np.ndarray, "C P"]) -> Parts:
    """Take functions of two inputs apart as `parts` does, at the points of `aqx.plane.normal_pairs`.

    f is the sum of four parts: odd or even in x, and odd or even in y. Signs of f, x and y, and the exchange of x and
    y, are what a network hardly notices whose two projections are initialised alike. So each part is oriented by
    itself, and of f(x, y) and f(y, x) the one is described that is odd in one input by x, not by y.

    Args:
        outputs: values of the functions at the points [C, P]; larger ones than 20 are taken for 20.

    Returns:
        As of `parts`, where `odd` holds the parts that are odd in x, and `even` those that are even [C, 2P]. Of a
        function of x alone these are its odd and its even part, and zeros.
    """
    of_x, of_y, exchanged = images(outputs.shape[1])
    x, y = normal_pairs(outputs.shape[1]).astype(np.float64)
    values = np.clip(outputs.astype(np.float64), -_LIMIT, _LIMIT)
    turned, mirrored, both = values[:, of_x], values[:, of_y], values[:, of_x[of_y]]
    odd_in_x, odd_in_y = (values - turned + mirrored - both) / 4, (values + turned - mirrored - both) / 4
    odd_in_both, even = (values - turned - mirrored + both) / 4, (values + turned + mirrored + both) / 4
    mean = even.mean(axis=1, keepdims=True)
    even -= mean
    orientation = np.stack([values @ x, (values - mean) @ (x * x)], axis=1) / len(x)
    swap = _exceeds(
        (odd_in_y**2).mean(axis=1), (odd_in_x**2).mean(axis=1), (even @ (y * y)) ** 2, (even @ (x * x)) ** 2
    )
    odd_in_x[swap], odd_in_y[swap] = odd_in_y[swap][:, exchanged], odd_in_x[swap][:, exchanged]
    odd_in_both[swap], even[swap] = odd_in_both[swap][:, exchanged], even[swap][:, exchanged]
    odd_in_x, odd_in_y, odd_in_both = (
        part * np.where(part @ along < 0, -1.0, 1.0)[:, None]
        for part, along in ((odd_in_x, x), (odd_in_y, y), (odd_in_both, x * y))
    )
    turn = np.where(even @ (x * x + y * y) < 0, -1.0, 1.0)[:, None]
    odd, others = np.hstack([odd_in_x, odd_in_both]), np.hstack([even * turn, odd_in_y])
    scale = np.sqrt((odd**2 + others**2).sum(axis=1, keepdims=True) / len(x) + 1e-12)
    return Parts(odd / scale, others / scale, np.arcsinh(mean * turn / scale), np.log(scale), orientation / scale)


def _exceeds(a: np.ndarray, b: np.ndarray, next_a: np.ndarray, next_b: np.ndarray) -> np.ndarray:
    """Where a > b, and next_a > next_b where these are the same but for rounding."""
    margin = 1e-6 * (a + b)
    return (a > b + margin) | (np.abs(a - b) <= margin) & (next_a > next_b + 1e-6 * (next_a + next_b))


def in_plane(outputs: Float32[np.ndarray, "C P"], points: Float[np.ndarray, " P"]) -> Float32[np.ndarray, "C P"]:
    """Values of functions of one input, known at some points, as functions of x and y at those of `normal_pairs`.

    Interpolated, as values at mirror images are in `parts`.
    """
    order = np.argsort(points, kind="stable")
    known, x = np.asarray(points, np.float64)[order], normal_pairs(len(points))[0].astype(np.float64)
    right = np.clip(np.searchsorted(known, x), min(1, len(known) - 1), len(known) - 1)
    left = np.maximum(right - 1, 0)
    share = np.clip((x - known[left]) / np.where(right > left, known[right] - known[left], 1.0), 0, 1)
    with np.errstate(over="ignore"):
        values = outputs[:, order[left]] * (1 - share) + outputs[:, order[right]] * share
    return np.nan_to_num(values).astype(np.float32)


def mid_quantiles(count: int) -> Float[np.ndarray, " P"]:
    """The points at which a database stores outputs unless it was told otherwise: quantiles of N(0, 1)."""
    from scipy.special import ndtri

    return ndtri((np.arange(count) + 0.5) / count)
