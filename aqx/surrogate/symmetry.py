"""What a network hardly notices, that a function is mirrored, negated, shifted or scaled; and what is left of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

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


def mid_quantiles(count: int) -> Float[np.ndarray, " P"]:
    """The points at which a database stores outputs unless it was told otherwise: quantiles of N(0, 1)."""
    from scipy.special import ndtri

    return ndtri((np.arange(count) + 0.5) / count)
