"""Regressors as one pure function each: results so far and rows to predict → mean and spread."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from aqx.surrogate.threads import in_threads
from aqx.surrogate.trees import over_trees

# (coordinates of results [N, K], their targets [N], coordinates to predict [M, K], seed) -> mean [M], spread [M]
Model = Callable[[np.ndarray, np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def nearest_neighbours(
    x: Float32[np.ndarray, "N K"], y: Float[np.ndarray, " N"], query: Float32[np.ndarray, "M K"], seed: int
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Mean and standard deviation of the three nearest results (of all where there are fewer)."""
    from sklearn.neighbors import KNeighborsRegressor

    near = KNeighborsRegressor(n_neighbors=min(3, len(x))).fit(x, y).kneighbors(query, return_distance=False)
    return y[near].mean(axis=1), y[near].std(axis=1)


def average(*models: Model) -> Model:
    """Make a model of several: the mean of their means; the spread counts theirs and how far they disagree."""
    return functools.partial(_predict_by_average, models)


def _predict_by_average(
    models: tuple[Model, ...], x: np.ndarray, y: np.ndarray, query: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    means, spreads = zip(*in_threads(lambda model: model(x, y, query, seed), models), strict=True)
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
        return over_trees(model.estimators_, query)
    try:
        mean, spread = model.predict(query, return_std=True)
    except TypeError:
        mean, spread = model.predict(query), np.zeros(len(query))
    return np.asarray(mean, np.float64).ravel(), np.asarray(spread, np.float64).ravel()
