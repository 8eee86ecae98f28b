"""A Gaussian process with one length scale for each group of coordinates, fitted anew at every call."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from aqx.surrogate.models import Model
from aqx.surrogate.threads import in_chunks

_MOST_RESULTS = 512
_JITTER = 1e-8  # on the diagonal of a covariance, so that equal candidates leave it invertible
# Covariances between candidates and results that are worked on at once: as many as stay in a core's cache.
_CHUNK = 1 << 17
_BLOCK = 64


def gaussian_process(groups: Sequence[int]) -> Model:
    """Make a Gaussian process with a Matérn-3/2 kernel, and a length scale for each group of coordinates.

    k(a, b) = σ²·(1 + √3·r)·exp(−√3·r), with r² = Σ over groups |a − b|²/ℓ², and noise on the diagonal. σ, the ℓ and the
    noise maximise the marginal likelihood times log-normal priors around 1, each group's mean square and 0.1, so that a
    handful of results does not lead them astray. Nothing is random, and nothing is remembered between calls.

    Args:
        groups: how many coordinates each group has; fewer coordinates than these are the first groups alone, and what
            is more than these is a group of its own.

    The time grows with the cube of the number of results. Of more than 512 it takes the best 256, and 256 spread evenly
    over the ranks of the others.

    Source: Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), equations 2.25, 2.26, 4.17 and 5.9.
    """
    return functools.partial(_predict_in_one_thread, tuple(groups))


def _predict_in_one_thread(
    groups: tuple[int, ...], x: np.ndarray, y: np.ndarray, query: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    # NumPy's and SciPy's own threads would wait for each other, ten times as long as one needs for such small matrices.
    with _libraries().limit(limits=1, user_api="blas"):
        return _predict(groups, x, y, query)


@functools.cache
def _libraries() -> Any:
    """The libraries whose threads are limited, looked for once: it takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    importlib.import_module("scipy.linalg")  # whose library must be there to be found
    return ThreadpoolController()


def _predict(groups: tuple[int, ...], x: np.ndarray, y: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.linalg import solve_triangular

    groups = (*groups, more) if (more := x.shape[1] - sum(groups)) > 0 else groups
    starts = np.concatenate([[0], np.cumsum(groups)])
    count = int(np.searchsorted(starts, x.shape[1]))
    bounds = [slice(starts[i], min(starts[i + 1], x.shape[1])) for i in range(count)]
    if len(y) > _MOST_RESULTS:
        kept = _telling(y)
        x, y = x[kept], y[kept]
    middle = y.mean()
    # Distances are differences of squares: far from the origin they would drown in rounding.
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x = x.astype(np.float64) - centre
    kernel = fit_kernel(x, y - middle, bounds)
    # √3 in the scale: then the distance is what the exponential takes.
    scale = np.sqrt(3) * np.concatenate(
        [np.full(b.stop - b.start, np.exp(-length)) for b, length in zip(bounds, kernel.log_lengths, strict=True)]
    )
    amplitude, points = np.exp(kernel.log_amplitude), x * scale
    covariance = amplitude * _matern(_squared_distances(points, points))
    covariance[np.diag_indices(len(y))] += np.exp(kernel.log_noise) + _JITTER
    inverse = solve_triangular(np.linalg.cholesky(covariance), np.eye(len(y)), lower=True)
    # In float32 from here: a query may have 400,000 rows. σ² goes with what a covariance is multiplied by.
    weights = (amplitude * (inverse.T @ (inverse @ (y - middle)))).astype(np.float32)
    upper = np.ascontiguousarray(amplitude * inverse.T, np.float32)
    scale = scale.astype(np.float32)
    # |a − b|² is one product: of (a, 1, |a|²) and (−2b, |b|², 1).
    sides = np.hstack([-2 * points, np.square(points).sum(axis=1, keepdims=True), np.ones((len(y), 1))])
    sides = np.ascontiguousarray(sides.T, np.float32)

    def moments(chunk: slice) -> tuple[np.ndarray, np.ndarray]:
        rows = np.ones((len(query[chunk]), len(sides)), np.float32)
        own = rows[:, :-2]
        np.subtract(query[chunk], centre, out=own)
        own *= scale
        np.einsum("ij,ij->i", own, own, out=rows[:, -1])
        squared = rows @ sides
        shared = _matern(np.abs(squared, out=squared))  # what rounding leaves below 0 is as small above
        explained = np.zeros(len(rows), np.float32)
        for start in range(0, len(y), _BLOCK):
            stop = start + _BLOCK  # below them the triangle is empty
            part = shared[:, :stop] @ upper[:stop, start:stop]
            explained += np.einsum("ij,ij->i", part, part)
        return middle + shared @ weights, amplitude - explained

    mean, variance = in_chunks(moments, len(query), max(256, _CHUNK // len(y)))
    return mean, np.sqrt(np.maximum(variance, 1e-12))


def _telling(y: Float[np.ndarray, " N"]) -> Int[np.ndarray, " M"]:
    """The places of the results that a model of at most `_MOST_RESULTS` learns from."""
    order, half = np.argsort(-y, kind="stable"), _MOST_RESULTS // 2
    return np.concatenate([order[:half], order[half:][np.linspace(0, len(y) - half - 1, half).astype(int)]])


class Kernel(NamedTuple):
    """Logarithms of each group's length scale, of the variance and of the noise."""

    log_lengths: Float[np.ndarray, " G"]
    log_amplitude: float
    log_noise: float


def fit_kernel(x: Float[np.ndarray, "N K"], y: Float[np.ndarray, " N"], bounds: Sequence[slice]) -> Kernel:
    """Find the kernel that maximises the posterior; see `gaussian_process`.

    Args:
        x: coordinates, centred.
        y: targets, of mean 0.
        bounds: the coordinates of each group.
    """
    from scipy.optimize import minimize

    pairs = np.tril_indices(len(y), -1)
    distances = np.stack([_squared_distances(x[:, bound], x[:, bound])[pairs] for bound in bounds])
    means = 2 * distances.sum(axis=1) / len(y) ** 2  # of all pairs, both ways, a row with itself too
    # A group in which all results agree tells nothing, whatever its length scale.
    usual = np.where(means > 1e-12, 0.5 * np.log(np.maximum(means, 1e-12)), 0.0)
    centre = np.concatenate([usual, [0.0, np.log(0.1)]])
    width = np.concatenate([np.ones(len(usual)), [1.0, 1.5]])
    likelihood = _likelihood(distances, y, pairs)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = likelihood(theta)
        away = (theta - centre) / width
        return value + 0.5 * float(away @ away), gradient + away / width

    limits = [(low, low + 8) for low in usual - 4] + [(-3, 3), (-6, 1)]
    found = minimize(loss, centre, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 30}).x
    return Kernel(found[:-2], float(found[-2]), float(found[-1]))


def _likelihood(
    distances: np.ndarray, y: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The negative log likelihood of y and its gradient, as a function of a kernel's parameters.

    Every matrix is symmetric: what is computed entry by entry is the triangle below its diagonal.

    Args:
        distances: squared, of each group and each pair [G, P].
        y: the targets [N].
        pairs: the rows and the columns of that triangle [P].
    """
    from scipy.linalg import get_lapack_funcs

    cholesky, invert, solve = get_lapack_funcs(("potrf", "potri", "potrs"), dtype=np.float64)
    count = len(y)
    one, other = pairs
    below, diagonal = one + count * other, np.arange(count) * (count + 1)  # LAPACK has its matrices by columns
    entries = np.zeros(count * count)

    def value_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        squares, amplitude, noise = np.exp(-2 * theta[:-2]), np.exp(theta[-2]), np.exp(theta[-1])
        root = np.sqrt(3 * (squares @ distances))
        decay = np.exp(theta[-2] - root)
        covariance = (1 + root) * decay
        entries[below], entries[diagonal] = covariance, amplitude + noise + _JITTER
        factor, failed = cholesky(entries.reshape(count, count, order="F"), lower=1, clean=0)
        if failed:
            return 1e10, np.zeros(len(theta))
        weights, _ = solve(factor, y, lower=1)
        value = float(0.5 * y @ weights + np.log(factor.diagonal()).sum())
        inverse, _ = invert(factor, lower=1)
        # By each entry, of twice the value; those below the diagonal count twice.
        slope = inverse.ravel(order="F")[below] - weights[one] * weights[other]
        own = 0.5 * (np.trace(inverse) - weights @ weights)
        by_length = 3 * squares * (distances @ (slope * decay))
        return value, np.array([*by_length, slope @ covariance + amplitude * own, noise * own])

    return value_and_gradient


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T, 0)


def _matern(squared: np.ndarray) -> np.ndarray:
    """(1 + d)·exp(−d), of squared distances d²; in their place, as they are many."""
    distance = np.sqrt(squared, out=squared)
    decay = np.negative(distance)
    np.exp(decay, out=decay)
    distance += 1
    distance *= decay
    return distance
