"""What makes predictions quick changes none: sorted rows, triangles, chunks, sums in place of questions."""

from __future__ import annotations

import numpy as np
import pytest
import store_helpers

from aqx.surrogate import PRESETS
from aqx.surrogate.gaussian_process import _likelihood, gaussian_process
from aqx.surrogate.prediction import Known
from aqx.surrogate.trees import over_trees


@pytest.mark.parametrize("rows", [1, 3, 70_000])
@pytest.mark.parametrize("columns", [1, 3, 20])
def test_every_row_gets_its_own_prediction_by_trees(rows, columns):
    from sklearn.tree import ExtraTreeRegressor

    rng = np.random.default_rng(0)
    x, query = (rng.normal(size=(count, columns)).astype(np.float32) for count in (40, rows))
    trees = [ExtraTreeRegressor(random_state=seed).fit(x, x.sum(axis=1)) for seed in range(4)]
    each = np.stack([tree.predict(query) for tree in trees])
    mean, spread = over_trees(trees, query)
    np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(spread, each.std(axis=0), rtol=1e-6, atol=1e-6)


def test_the_gaussian_process_predicts_a_row_alike_whatever_comes_with_it():
    rng = np.random.default_rng(0)
    x, query = rng.normal(size=(90, 4)).astype(np.float32), rng.normal(size=(5000, 4)).astype(np.float32)
    predict = gaussian_process((3, 1))
    mean, spread = predict(x, x[:, 0], query, 0)
    some = rng.permutation(5000)[:300]
    again, other = predict(x, x[:, 0], query[some], 0)
    # In float32, where the variance before any result is 12.
    np.testing.assert_allclose(again, mean[some], atol=2e-4)
    np.testing.assert_allclose(other**2, spread[some] ** 2, atol=1e-4)


def test_the_likelihood_is_that_of_scipy_and_its_gradient_the_slope():
    from scipy.optimize import approx_fprime
    from scipy.spatial.distance import cdist
    from scipy.stats import multivariate_normal

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    squared = np.stack([cdist(x[:, part], x[:, part]) ** 2 for part in (slice(0, 2), slice(2, 3))])
    pairs = np.tril_indices(30, -1)
    likelihood = _likelihood(np.stack([group[pairs] for group in squared]), y, pairs)
    for theta in (np.zeros(4), np.array([0.5, -0.7, 0.3, -2.0])):
        root = np.sqrt(3 * np.einsum("g,gij->ij", np.exp(-2 * theta[:2]), squared))
        covariance = np.exp(theta[2]) * (1 + root) * np.exp(-root) + (np.exp(theta[3]) + 1e-8) * np.eye(30)
        value, gradient = likelihood(theta)
        expected = -multivariate_normal(np.zeros(30), covariance).logpdf(y) - 15 * np.log(2 * np.pi)
        assert value == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(gradient, approx_fprime(theta, lambda at: likelihood(at)[0]), rtol=1e-4, atol=1e-4)


def test_rows_are_known_where_every_number_is_finite():
    most = np.finfo(np.float32).max
    rows = np.zeros((7, 24), np.float32)
    rows[0, 0], rows[1, 23], rows[2, :2], rows[3, 5] = np.nan, np.nan, (np.inf, -np.inf), -np.inf
    rows[4], rows[5] = most, np.where(np.arange(24) % 2, most, -most)
    known = Known.of(rows, PRESETS["ensemble"])
    assert known.all.tolist() == [False, False, False, False, True, True, True]
    assert known.outputs.tolist() == [False, True, False, False, True, True, True]
    assert Known.of(rows[:, :0], PRESETS["random"]).all.all()


def test_libraries_are_imported_by_the_thread_that_asks():
    """Parts of SciPy import each other in a circle: two threads at it have ended a search with an ImportError."""
    code = """
import sys, threading
import numpy as np
from aqx.surrogate import PRESETS

class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            others.add(name.partition(".")[0])

others = set()
sys.meta_path.insert(0, Watch())
x = np.random.default_rng(0).normal(size=(30, 24)).astype(np.float32)
PRESETS["ensemble"].model(x, x[:, 0], x, 0)
assert "scipy.linalg" in sys.modules and "sklearn.tree" in sys.modules
print(sorted(others & {"scipy", "sklearn"}))
"""
    assert store_helpers.run_python(code).stdout == "[]\n"
