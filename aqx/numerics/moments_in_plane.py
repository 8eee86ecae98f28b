"""Mean and standard deviation of a function of (x, y) ~ N(0, I₂), by adaptive product rules in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from aqx.numerics.moments import refuse, settled

FunctionOfTwo = Callable[[Float64[np.ndarray, "P"], Float64[np.ndarray, "P"]], Float64[np.ndarray, "P"]]

# Not as many along y as along x, so that none lies where x = y, or x = −y, as far as the cells do.
_OF_X, _OF_Y = np.polynomial.legendre.leggauss(10), np.polynomial.legendre.leggauss(9)
_EDGES = np.array([-37.5, -26, -18, -13, *range(-10, 11), 13, 18, 26, 37.5], float)
_TAIL = 30.0
_CELL_ERROR = 1e-9  # relative error at which a cell is done
_TOTAL_ERROR = 1e-4  # what cells that could not be finished may add up to: along a jump they get smaller without end
_LEVELS = 40
_CELLS = 4000  # that are divided at a time, at most
_BLOCK = 1 << 15  # points per call of the function: one size, so that JAX compiles each operator once


def moments_in_plane(f: FunctionOfTwo, name: str) -> tuple[float, float]:
    """Return E[f(x, y)] and the standard deviation of f(x, y) for independent x, y ~ N(0, 1).

    The product of two Gauss–Legendre rules, of 10 and 9 nodes, on cells of [−37.5, 37.5]²; a cell that disagrees with
    its four quarters is replaced by them, so that kinks along a line, as of max(x, y), cost some thousand cells.

    Args:
        f: the function, called with 32,768 pairs of float64 points at a time.
        name: what error messages call it.

    Returns:
        Mean and standard deviation, to about 1e-7 of the standard deviation where f is continuous and piecewise
        smooth, and to 1e-4 where it jumps.

    Raises:
        InputError: f is not finite somewhere, the integrals do not converge, or f is constant.
    """
    with np.errstate(all="ignore"):
        return _integrate(f, name)


def _integrate(f: FunctionOfTwo, name: str) -> tuple[float, float]:
    corners = np.stack(np.meshgrid(_EDGES[:-1], _EDGES[:-1], indexing="ij"), axis=-1).reshape(-1, 2)
    sides = np.stack(np.meshgrid(np.diff(_EDGES), np.diff(_EDGES), indexing="ij"), axis=-1).reshape(-1, 2)

    def values(corners: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and weights, the density included, at the nodes of each cell: [cells, 90] each."""
        (x, of_x), (y, of_y) = (
            _along(corners[:, axis], sides[:, axis], *rule) for axis, rule in enumerate((_OF_X, _OF_Y))
        )
        weight = of_x[:, :, None] * of_y[:, None, :]
        x, y = (np.broadcast_to(each, weight.shape).ravel() for each in (x[:, :, None], y[:, None, :]))
        return _values(f, x, y, name).reshape(len(weight), -1), weight.reshape(len(weight), -1)

    def sums(corners: np.ndarray, sides: np.ndarray) -> np.ndarray:
        """Both moments about the center on each cell: [cells, 2]."""
        value, weight = values(corners, sides)
        part = np.sqrt(weight) * (value - center)  # first: f² alone overflows where f² φ does not
        return np.stack([np.sum(np.sqrt(weight) * part, axis=-1), np.sum(part * part, axis=-1)], axis=-1)

    value, weight = values(corners, sides)
    center = float(np.sum(weight * value))
    coarse = sums(corners, sides)
    done, tail, left_over, worst = np.zeros(2), 0.0, 0.0, (0.0, 0.0)
    quarters = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    for level in range(_LEVELS + 1):
        halves = np.repeat(sides / 2, 4, axis=0)
        inner = np.repeat(corners, 4, axis=0) + halves * np.tile(quarters, (len(corners), 1))
        found = sums(inner, halves)
        fine = found.reshape(-1, 4, 2).sum(axis=1)
        scale = math.sqrt(max(done[1] + fine[:, 1].sum(), (1e-10 * center) ** 2, 1e-300))
        error = np.max(np.abs(fine - coarse) / np.array([scale, scale**2]), axis=-1)
        finished = error <= _CELL_ERROR
        if (level == _LEVELS or np.sum(~finished) > _CELLS) and not finished.all():
            left_over = float(error[~finished].sum())
            worst = tuple((corners + sides / 2)[np.argmax(error)])
            finished[:] = True
        done = done + fine[finished].sum(axis=0)
        outside = np.max(np.abs(corners + sides / 2), axis=1) > _TAIL
        tail += fine[finished & outside, 1].sum()
        if finished.all():
            break
        keep = np.repeat(~finished, 4)
        corners, sides, coarse = inner[keep], halves[keep], found[keep]

    if not left_over <= _TOTAL_ERROR:
        raise refuse(name, f"the integrals do not converge near x = {worst[0]:.6g}, y = {worst[1]:.6g}")
    return settled(name, center, done, tail)


def _along(start: np.ndarray, side: np.ndarray, nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Nodes and weights, the density included, along one side of each cell: [cells, nodes] each."""
    x = start[:, None] + side[:, None] * (nodes + 1) / 2
    return x, side[:, None] / 2 * weights * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _values(f: FunctionOfTwo, x: np.ndarray, y: np.ndarray, name: str) -> np.ndarray:
    padding = (0, -len(x) % _BLOCK)
    padded = [np.pad(each, padding, mode="edge") for each in (x, y)]
    blocks = [f(*(each[i : i + _BLOCK] for each in padded)) for i in range(0, len(padded[0]), _BLOCK)]
    values = np.concatenate(blocks)[: len(x)]
    bad = ~np.isfinite(values)
    if bad.any():
        at = np.flatnonzero(bad)[np.argmin(np.hypot(x[bad], y[bad]))]
        raise refuse(name, f"it is {values[at]} at x = {x[at]:.6g}, y = {y[at]:.6g}")
    return values
