"""Regressors as one pure function each: results so far and rows to predict → mean and spread."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

# (coordinates of results [N, K], their targets [N], coordinates to predict [M, K], seed) -> mean [M], spread [M]
Model = Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]
_CHUNK = 32768


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
    """Mean and standard deviation over 100 extremely randomised trees (Geurts et al., 2006)."""
    from sklearn.ensemble import ExtraTreesRegressor

    return _over_trees(ExtraTreesRegressor(n_estimators=100, random_state=seed).fit(x, y), query)


def regressor(estimator: Any) -> Model:
    """Wrap a scikit-learn regressor; each prediction fits a clone of it, seeded where it takes a `random_state`.

    The spread is that over the trees of a forest, the regressor's own (`predict(…, return_std=True)`) where it has
    one, and 0 otherwise.
    """

    def fit_predict(x: np.ndarray, y: np.ndarray, query: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.base import clone
        from sklearn.exceptions import ConvergenceWarning

        model: Any = clone(estimator)
        model.set_params(**{name: seed for name in model.get_params() if name.split("__")[-1] == "random_state"})
        with warnings.catch_warnings():
            # A kernel's length at its bound is usual with few results, and would be reported at every suggestion.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        if hasattr(getattr(model, "estimators_", [None])[0], "tree_"):
            return _over_trees(model, query)
        try:
            mean, spread = model.predict(query, return_std=True)
        except TypeError:
            mean, spread = model.predict(query), np.zeros(len(query))
        return np.asarray(mean, np.float64).ravel(), np.asarray(spread, np.float64).ravel()

    return fit_predict


def _over_trees(forest: Any, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over trees; threads share out rows, so that sums do not depend on their number."""
    trees = [tree.tree_ for tree in forest.estimators_]

    def moments(start: int) -> tuple[np.ndarray, np.ndarray]:
        rows = query[start : start + _CHUNK]
        total, squares = np.zeros(len(rows)), np.zeros(len(rows))
        for tree in trees:
            values = tree.predict(rows).ravel()
            total += values
            squares += values * values
        mean = total / len(trees)
        return mean, np.sqrt(np.maximum(squares / len(trees) - mean * mean, 0))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(moments, range(0, len(query), _CHUNK)))
    return np.concatenate([mean for mean, _ in parts]), np.concatenate([spread for _, spread in parts])
