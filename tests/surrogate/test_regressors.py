"""Every regressor of scikit-learn as a surrogate: its own predictions, or a random choice where it has none."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from sklearn.base import clone
from sklearn.ensemble import BaggingRegressor, ExtraTreesRegressor, RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import BayesianRidge, Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import all_estimators

from aqx import Study
from aqx.surrogate import as_preset, fit

RNG = np.random.default_rng(0)
X, QUERY = RNG.normal(size=(40, 6)).astype(np.float32), RNG.normal(size=(30, 6)).astype(np.float32)
Y = X[:, 2] + 0.5 * X[:, 4] + 0.01 * RNG.normal(size=40)
NEEDED = {"estimator": Ridge(), "estimators": [("a", Ridge()), ("b", BayesianRidge())]}
# Those that cannot learn one number per row from any numbers, and so leave the choice to chance.
CANNOT = {
    *("IsotonicRegression", "GammaRegressor", "PoissonRegressor", "CCA", "PLSCanonical"),
    *("MultiTaskElasticNet", "MultiTaskElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV"),
    *("MultiOutputRegressor", "RegressorChain"),
}


def made(kind: type) -> Any:
    parameters = inspect.signature(kind).parameters.values()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # one of them is on its way out
        return kind(**{p.name: NEEDED[p.name] for p in parameters if p.default is p.empty})


def seeded(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = clone(model)
    return model.set_params(**{name: 7 for name in model.get_params() if name.split("__")[-1] == "random_state"})


REGRESSORS = {name: made(kind) for name, kind in all_estimators("regressor")} | {
    "bagging of some columns": BaggingRegressor(max_features=0.5),
    "bagging of lines": BaggingRegressor(Ridge()),
    "pipeline with a spread": make_pipeline(StandardScaler(), BayesianRidge()),
    "pipeline without": make_pipeline(StandardScaler(), Ridge()),
}


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_predicts_as_it_does_by_itself(name: str):
    model = REGRESSORS[name]
    found = as_preset(model).model
    assert found is not None
    mean, spread = found(X, Y, QUERY, 7)
    assert mean.shape == spread.shape == (30,)
    if name in CANNOT:
        assert np.isnan(mean).all() and np.isnan(spread).all()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = seeded(model).fit(X, Y).predict(QUERY)
    np.testing.assert_allclose(mean, np.ravel(expected), rtol=1e-5, atol=1e-7)
    has_spread = isinstance(
        model, GaussianProcessRegressor | BayesianRidge | ExtraTreesRegressor | RandomForestRegressor
    ) or name in ("ARDRegression", "pipeline with a spread")
    assert (spread[np.isfinite(mean)] > 0).any() == has_spread


def test_what_cannot_learn_from_few_results_chooses_at_random_and_says_so_once(caplog: pytest.LogCaptureFixture):
    embedding = np.random.default_rng(1).normal(size=(200, 24)).astype(np.float32)
    picks = set()
    for seed in range(4):
        fitted = fit(embedding, np.arange(8), np.arange(8.0), [9], preset=KNeighborsRegressor(20), seed=seed)
        chosen = fitted.suggest(2)
        assert np.isnan(chosen.mean).all() and not set(chosen.index) & {*range(8), 9}
        assert not len(fitted.rank()) and not len(fitted.undescribed(np.zeros(200, bool), 10))
        picks.update(chosen.index.tolist())
    assert len(picks) > 4
    (said,) = caplog.messages
    assert "KNeighborsRegressor(n_neighbors=20) cannot predict from 8 results (ValueError: " in said
    enough = fit(embedding, np.arange(30), embedding[:30, 0], preset=KNeighborsRegressor(20))
    assert np.isfinite(enough.suggest().mean).all() and len(enough.rank()) == 200


def test_a_study_goes_on_where_its_regressor_cannot(tmp_path: Path):
    path = toy.candidates(tmp_path / "found.duckdb", ["unary(unary(x))"], ["relu", "tanh", "sin", "square", "abs"])
    study = Study(path, toy.make_task(baselines=("relu(x)", "tanh(x)", "sin(x)")), surrogate=KNeighborsRegressor(9))
    assert len(study.search(budget=4, spectra=0)) == 7
