"""Mean and standard deviation of a function of x ~ N(0, 1), by adaptive quadrature in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from aqx.errors import InputError

Function = Callable[[Float64[np.ndarray, "P"]], Float64[np.ndarray, "P"]]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
# φ(37.5) ≈ 5e-307 is the last density that float64 holds to full precision.
_EDGES = np.concatenate([np.linspace(-37.5, -8, 60), np.linspace(-8, 8, 65)[1:-1], np.linspace(8, 37.5, 60)])
_TAIL = 36.0
_PANEL_ERROR = 1e-12  # relative error at which a panel is done: a thousand of them stay below 1e-9
_TOTAL_ERROR = 1e-7  # what panels that could not be finished may add up to
_LEVELS = 60  # a panel of width 0.25 at 0 shrinks to 2e-19, elsewhere to the spacing of float64
_PANELS = 4096
_BLOCK = 4096  # points per call of the function: one size, so that JAX compiles each operator once


def moments(f: Function, name: str) -> tuple[float, float]:
    """Return E[f(x)] and the square root of E[(f(x) − E[f(x)])²] for x ~ N(0, 1).

    Gauss–Legendre with 16 nodes on panels of [−37.5, 37.5]; a panel that disagrees with its two halves is replaced by
    them. Kinks, jumps and weak singularities so cost a few dozen panels, and a pole never converges. The second moment
    is taken about a first estimate of the mean, so that a small variance beside a large mean keeps its digits.

    Args:
        f: the function, called with 4096 float64 points at a time.
        name: what error messages call it.

    Returns:
        Mean and standard deviation, to about 1e-9 of the standard deviation where f is piecewise smooth.

    Raises:
        InputError: f is not finite somewhere, the integrals do not converge, or f is constant.
    """
    with np.errstate(all="ignore"):
        return _integrate(f, name)


def _integrate(f: Function, name: str) -> tuple[float, float]:
    low, high = _EDGES[:-1], _EDGES[1:]
    x, weight = _points(low, high)
    center = float(np.sum(weight * _values(f, x, name)))

    def panel_sums(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Both moments about the center on each panel: [panels, 2]."""
        x, weight = _points(low, high)
        # √weight first: f² alone overflows where f² φ does not.
        part = np.sqrt(weight) * (_values(f, x, name) - center)
        return np.stack([np.sum(np.sqrt(weight) * part, axis=-1), np.sum(part * part, axis=-1)], axis=-1)

    coarse = panel_sums(low, high)
    done, tail, left_over, worst = np.zeros(2), 0.0, 0.0, 0.0
    for level in range(_LEVELS + 1):
        middle = (low + high) / 2
        halves = panel_sums(np.concatenate([low, middle]), np.concatenate([middle, high]))
        fine = halves[: len(low)] + halves[len(low) :]
        second = done[1] + fine[:, 1].sum()
        scale = math.sqrt(max(second, (1e-10 * center) ** 2, 1e-300))
        error = np.max(np.abs(fine - coarse) / np.array([scale, scale**2]), axis=-1)
        finished = error <= _PANEL_ERROR
        stop = level == _LEVELS or 2 * np.sum(~finished) > _PANELS
        if stop and not finished.all():
            left_over = float(error[~finished].sum())
            worst = float(middle[np.argmax(error)])
            finished[:] = True
        done = done + fine[finished].sum(axis=0)
        tail += fine[finished & (np.abs(middle) > _TAIL), 1].sum()
        keep = ~finished
        if not keep.any():
            break
        coarse = np.concatenate([halves[: len(low)][keep], halves[len(low) :][keep]])
        low, high = np.concatenate([low[keep], middle[keep]]), np.concatenate([middle[keep], high[keep]])

    if not left_over <= _TOTAL_ERROR:
        raise refuse(name, f"the integrals do not converge near x = {worst:.6g}")
    return settled(name, center, done, tail)


def settled(name: str, center: float, done: Float64[np.ndarray, "2"], tail: float) -> tuple[float, float]:
    """Return mean and standard deviation, given both moments about a center, and how much of the second lies far out.

    Raises:
        InputError: a function that has such moments cannot be normalized.
    """
    first, second = float(done[0]), float(done[1])
    if not tail <= _TOTAL_ERROR * second:
        raise refuse(name, "it grows too fast for large |x|")
    mean, deviation = center + first, math.sqrt(max(second - first * first, 0.0))
    # float32 outputs of a function this flat are nothing but rounding.
    if deviation <= np.finfo(np.float32).eps * abs(mean):
        raise refuse(name, f"it is constant, {mean:.6g}, so its variance is 0")
    if not 1e-37 < deviation < 1e37 or not abs(mean) < 1e37:
        raise refuse(name, f"its standard deviation, {deviation:.3g}, does not fit float32")
    return mean, deviation


def _points(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (the density included) of each panel: [panels, 16] each."""
    half = (high - low)[:, None] / 2
    x = (high + low)[:, None] / 2 + half * _NODES
    return x, half * _WEIGHTS * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _values(f: Function, x: np.ndarray, name: str) -> np.ndarray:
    flat = x.ravel()
    padded = np.pad(flat, (0, -len(flat) % _BLOCK), mode="edge")
    blocks = [f(padded[i : i + _BLOCK]) for i in range(0, len(padded), _BLOCK)]
    values = np.concatenate(blocks)[: len(flat)]
    bad = ~np.isfinite(values)
    if bad.any():
        at = flat[bad][np.argmin(np.abs(flat[bad]))]
        raise refuse(name, f"it is {values[bad][0]} at x = {at:.6g}")
    return values.reshape(x.shape)


def refuse(name: str, why: str) -> InputError:
    """Return the error of a function that cannot be normalized."""
    return InputError(f"normalize=True: {name} has no mean and variance for x ~ N(0, 1) to divide by: {why}")
