"""Regressors as one pure function each: results so far and rows to predict → mean and spread."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from aqx.errors import one_line
from aqx.surrogate.threads import in_threads
from aqx.surrogate.trees import over_trees

_log = logging.getLogger("aqx")
# What models import in their functions. The parts of each import each other in a circle: of two threads that import
# some at the same time, one may find the other's half of a module.
_IMPORTED = ("scipy.linalg", "scipy.optimize", "sklearn.neighbors", "sklearn.tree")

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
    for name in _IMPORTED:
        importlib.import_module(name)
    means, spreads = zip(*in_threads(lambda model: model(x, y, query, seed), models), strict=True)
    return np.mean(means, axis=0), np.sqrt(np.mean(np.square(spreads), axis=0) + np.var(means, axis=0))


def regressor(estimator: Any) -> Model:
    """Wrap a scikit-learn regressor; each prediction fits a clone of it, seeded where it takes a `random_state`.

    The mean is its own prediction. The spread is that over the trees of a forest, the regressor's own
    (`predict(…, return_std=True)`) where it has one, and 0 otherwise. Where it raises, as many do that are given few
    results, both are nan: nothing is known then, and a choice is a random one; that is said once.
    """
    return functools.partial(_predict_by_regressor, estimator)


def _predict_by_regressor(
    estimator: Any, x: np.ndarray, y: np.ndarray, query: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.base import clone

    try:
        with warnings.catch_warnings():
            # That a kernel's length is at its bound, or that a row has no neighbours, is usual with few results, and
            # would be reported at every suggestion.
            warnings.simplefilter("ignore")
            model: Any = clone(estimator)
            model.set_params(**{name: seed for name in model.get_params() if name.split("__")[-1] == "random_state"})
            mean, spread = _mean_and_spread(model.fit(x, y), query)
    except Exception as error:
        _say_once(repr(estimator), type(error), error, len(y))
        return np.full(len(query), np.nan), np.full(len(query), np.nan)
    return np.asarray(mean, np.float64).ravel(), np.asarray(spread, np.float64).ravel()


def _mean_and_spread(model: Any, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

    # Bagging, voting and stacking have `estimators_` too, which see other columns, or are weighted, or no trees.
    if type(model) in (ExtraTreesRegressor, RandomForestRegressor):
        return over_trees(model.estimators_, query)
    if _has_spread(model):
        return model.predict(query, return_std=True)
    return model.predict(query), np.zeros(len(query))


def _has_spread(model: Any) -> bool:
    """Whether `predict` takes `return_std`: by its signature, and for a pipeline by that of its last step."""
    while isinstance(steps := getattr(model, "steps", None), list) and steps:
        model = steps[-1][1]
    return "return_std" in inspect.signature(model.predict).parameters


_said: set[tuple[str, type]] = set()


def _say_once(regressor: str, kind: type, error: Exception, results: int) -> None:
    if (regressor, kind) not in _said:
        _said.add((regressor, kind))
        _log.warning(
            "aqx: %s cannot predict from %d results (%s); where it cannot, choices are random",
            " ".join(regressor.split()),
            results,
            one_line(error),
        )
