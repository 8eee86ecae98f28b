"""Regressors as one pure function each: results so far and rows to predict → mean and spread."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

# (coordinates of results [N, K], their targets [N], coordinates to predict [M, K], seed) -> mean [M], spread [M]
Model = Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
_CHUNK = 2048
_TREES = 50
_MOST_RESULTS = 512
_JITTER = 1e-8  # on the diagonal of a covariance, so that equal candidates leave it invertible


def nearest_neighbours(
    x: Float32[np.ndarray, "N K"], y: Float[np.ndarray, " N"], query: Float32[np.ndarray, "M K"], seed: int
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Mean and standard deviation of the three nearest results (of all where there are fewer)."""
    from sklearn.neighbors import KNeighborsRegressor

    near = KNeighborsRegressor(n_neighbors=min(3, len(x))).fit(x, y).kneighbors(query, return_distance=False)
    return y[near].mean(axis=1), y[near].std(axis=1)


def extra_trees(
    x: Float32[np.ndarray, "N K"], y: Float[np.ndarray, " N"], query: Float32[np.ndarray, "M K"], seed: int
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Mean and standard deviation over extremely randomised trees (Geurts et al., 2006)."""
    from sklearn import config_context
    from sklearn.tree import ExtraTreeRegressor

    seeds = np.random.SeedSequence(seed).generate_state(_TREES).tolist()
    # Each by itself and unchecked: to clone and check trees one by one takes longer than to grow them.
    x, y = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(y, np.float64)
    with config_context(assume_finite=True, skip_parameter_validation=True):
        trees = [ExtraTreeRegressor(max_features=1.0, random_state=s).fit(x, y, check_input=False) for s in seeds]
    return _over_trees(trees, query)


def gaussian_process(groups: Sequence[int]) -> Model:
    """Make a Gaussian process with a Matérn-3/2 kernel, and a length scale for each group of coordinates.

    k(a, b) = σ²·(1 + √3·r)·exp(−√3·r), with r² = Σ over groups |a − b|²/ℓ², and noise on the diagonal. σ, the ℓ and the
    noise maximise the marginal likelihood times log-normal priors around 1, each group's mean square and 0.1, so that a
    handful of results does not lead them astray. Nothing is random, and nothing is remembered between calls.

    Args:
        groups: how many coordinates each group has; fewer coordinates than these are the first groups alone.

    The time grows with the cube of the number of results. Of more than 512 it takes the best 256, and 256 spread evenly
    over the ranks of the others.

    Source: Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), equations 2.25, 2.26, 4.17 and 5.9.
    """
    return functools.partial(_predict_in_one_thread, tuple(groups))


def _predict_in_one_thread(
    groups: tuple[int, ...], x: np.ndarray, y: np.ndarray, query: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    from threadpoolctl import threadpool_limits

    # NumPy's and SciPy's own threads would wait for each other, ten times as long as one needs for such small matrices.
    with threadpool_limits(1, user_api="blas"):
        return _predict_by_process(groups, x, y, query)


def _predict_by_process(
    groups: tuple[int, ...], x: np.ndarray, y: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.linalg import solve_triangular

    starts = np.concatenate([[0], np.cumsum(groups)])
    count = int(np.searchsorted(starts, x.shape[1]))
    bounds = [slice(starts[i], min(starts[i + 1], x.shape[1])) for i in range(count)]
    if len(y) > _MOST_RESULTS:
        kept = _telling(y)
        x, y = x[kept], y[kept]
    middle = y.mean()
    # Distances are differences of squares: far from the origin they would drown in rounding.
    centre = x.mean(axis=0, dtype=np.float64)
    x = x - centre
    log_lengths, log_amplitude, log_noise = _fit_kernel(x, y - middle, bounds)
    scale = np.concatenate(
        [np.full(b.stop - b.start, np.exp(-length)) for b, length in zip(bounds, log_lengths, strict=True)]
    )
    amplitude, points = np.exp(log_amplitude), x * scale
    covariance = amplitude * _matern(_squared_distances(points, points))
    covariance[np.diag_indices(len(y))] += np.exp(log_noise) + _JITTER
    factor = np.linalg.cholesky(covariance)
    # In float32 from here: a query may have 400,000 rows.
    inverse = solve_triangular(factor, np.eye(len(y)), lower=True).astype(np.float32)
    weights = (inverse.T @ (inverse @ (y - middle))).astype(np.float32)
    points, scale = points.astype(np.float32), scale.astype(np.float32)

    def moments(start: int) -> tuple[np.ndarray, np.ndarray]:
        rows = (query[start : start + _CHUNK] - centre).astype(np.float32) * scale
        shared = np.float32(amplitude) * _matern(_squared_distances(rows, points))
        return middle + shared @ weights, amplitude - np.square(shared @ inverse.T).sum(axis=1)

    mean, variance = _in_chunks(moments, len(query))
    return mean, np.sqrt(np.maximum(variance, 1e-12))


def _telling(y: np.ndarray) -> np.ndarray:
    """The places of the results that a model of at most `_MOST_RESULTS` learns from."""
    order, half = np.argsort(-y, kind="stable"), _MOST_RESULTS // 2
    return np.concatenate([order[:half], order[half:][np.linspace(0, len(y) - half - 1, half).astype(int)]])


def _fit_kernel(x: np.ndarray, y: np.ndarray, bounds: list[slice]) -> tuple[np.ndarray, float, float]:
    """Logarithms of each group's length scale, of the variance and of the noise."""
    from scipy.optimize import minimize

    distances = [_squared_distances(x[:, bound], x[:, bound]) for bound in bounds]
    # A group in which all results agree tells nothing, whatever its length scale.
    usual = np.array([0.5 * np.log(d.mean()) if d.mean() > 1e-12 else 0.0 for d in distances])
    centre = np.concatenate([usual, [0.0, np.log(0.1)]])
    width = np.concatenate([np.ones(len(usual)), [1.0, 1.5]])

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        shares = [d * np.exp(-2 * length) for d, length in zip(distances, theta, strict=False)]
        root = np.sqrt(3 * sum(shares))
        decay = np.exp(theta[-2] - root)
        covariance = (1 + root) * decay
        noise = np.exp(theta[-1])
        total = covariance + (noise + _JITTER) * np.eye(len(y))
        try:
            factor = np.linalg.cholesky(total)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros(len(theta))
        inverse = np.linalg.inv(total)
        weights = inverse @ y
        away = (theta - centre) / width
        value = 0.5 * y @ weights + np.log(np.diag(factor)).sum() + 0.5 * away @ away
        slope = inverse - np.outer(weights, weights)  # of twice the negative log likelihood, by each entry
        gradient = [0.5 * np.sum(slope * (3 * share * decay)) for share in shares]
        gradient += [0.5 * np.sum(slope * covariance), 0.5 * noise * np.trace(slope)]
        return value, np.array(gradient) + away / width

    limits = [(low, low + 8) for low in usual - 4] + [(-3, 3), (-6, 1)]
    found = minimize(loss, centre, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 30}).x
    return found[:-2], float(found[-2]), float(found[-1])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T, 0)


def _matern(squared: np.ndarray) -> np.ndarray:
    root = np.sqrt(3 * squared)
    return (1 + root) * np.exp(-root)


def average(*models: Model) -> Model:
    """Make a model of several: the mean of their means; the spread counts theirs and how far they disagree."""
    return functools.partial(_predict_by_average, models)


def _predict_by_average(
    models: tuple[Model, ...], x: np.ndarray, y: np.ndarray, query: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    means, spreads = zip(*(model(x, y, query, seed) for model in models), strict=True)
    return np.mean(means, axis=0), np.sqrt(np.mean(np.square(spreads), axis=0) + np.var(means, axis=0))


def regressor(estimator: Any) -> Model:
    """Wrap a scikit-learn regressor; each prediction fits a clone of it, seeded where it takes a `random_state`.

    The spread is that over the trees of a forest, the regressor's own (`predict(…, return_std=True)`) where it has
    one, and 0 otherwise.
    """
    return functools.partial(_predict_by_regressor, estimator)


def _predict_by_regressor(
    estimator: Any, x: np.ndarray, y: np.ndarray, query: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning

    model: Any = clone(estimator)
    model.set_params(**{name: seed for name in model.get_params() if name.split("__")[-1] == "random_state"})
    with warnings.catch_warnings():
        # A kernel's length at its bound is usual with few results, and would be reported at every suggestion.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    if hasattr(getattr(model, "estimators_", [None])[0], "tree_"):
        return _over_trees(model.estimators_, query)
    try:
        mean, spread = model.predict(query, return_std=True)
    except TypeError:
        mean, spread = model.predict(query), np.zeros(len(query))
    return np.asarray(mean, np.float64).ravel(), np.asarray(spread, np.float64).ravel()


def _over_trees(trees: Sequence[Any], query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over trees."""

    def moments(start: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.asarray(query[start : start + _CHUNK], np.float32)
        total, squares = np.zeros(len(rows)), np.zeros(len(rows))
        for tree in trees:
            values = tree.tree_.predict(rows).ravel()
            total += values
            squares += values * values
        mean = total / len(trees)
        return mean, np.sqrt(np.maximum(squares / len(trees) - mean * mean, 0))

    return _in_chunks(moments, len(query))


def _in_chunks(moments: Callable[[int], tuple[np.ndarray, np.ndarray]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Threads share out rows, so that no sum depends on their number."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(moments, range(0, rows, _CHUNK)))
    return np.concatenate([mean for mean, _ in parts]), np.concatenate([spread for _, spread in parts])
