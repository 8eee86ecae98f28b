"""The surrogate on plain arrays: geometry, determinism, failures, pending candidates, and that it beats chance."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from aqx.errors import Exhausted, InputError
from aqx.surrogate import PRESETS, Features, Preset, Projection, as_preset, embed, rank, suggest, undescribed
from aqx.surrogate.embeddings import fit_components, principal_components, project_on, squash
from aqx.surrogate.gaussian_process import _telling, fit_kernel, gaussian_process
from aqx.surrogate.models import nearest_neighbours
from aqx.surrogate.prediction import normal_scores
from aqx.surrogate.symmetry import mid_quantiles, parts
from aqx.surrogate.trees import extra_trees

WITHOUT_UMAP = ["ensemble", "random"]
NO_SPECTRA = np.empty((0, 0))


def family(count: int = 300, seed: int = 0, spectra: int = 12) -> tuple[Features, np.ndarray]:
    """Candidates a·tanh(b·x) + c·x² whose result is a smooth function of (a, b, c), seen through noisy spectra too."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.uniform(-2, 2, (3, count, 1))
    b = 1.2 + 0.5 * b  # positive: (a, b) and (-a, -b) would be one function with two results
    x = np.linspace(-2.5, 2.5, 40)
    outputs = a * np.tanh(b * x) + c * x**2
    mixing = rng.normal(size=(3, spectra))
    values = -((a - 1) ** 2 + (b - 0.9) ** 2 + (c + 0.7) ** 2)[:, 0]
    features = Features([f"f{i}" for i in range(count)], outputs, np.hstack([a, b, c]) @ mixing)
    return features, values


def replay(embedding: np.ndarray, values: np.ndarray, preset: object, seed: int, budget: int = 40) -> float:
    """Return the regret of a search that starts with five random results."""
    observed = list(np.random.default_rng(seed).choice(len(values), 5, replace=False))
    while len(observed) < budget:
        observed.append(
            suggest(embedding, observed, values[observed], preset=preset, seed=1000 * seed + len(observed)).index[0]
        )
    return values.max() - values[observed].max()


@pytest.fixture(scope="module")
def planted() -> tuple[Features, np.ndarray]:
    return family()


@pytest.fixture(scope="module")
def forest_embedding(planted) -> np.ndarray:
    return embed(planted[0], "ensemble")


def test_import_of_the_room_loads_neither_umap_nor_sklearn():
    code = "import sys, aqx.surrogate; assert not {'umap', 'sklearn', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Features


def test_features_mark_rows_without_a_spectrum():
    spectra = np.ones((3, 4))
    spectra[1, 2] = np.nan
    assert Features(["a", "b", "c"], np.zeros((3, 2)), spectra).has_spectrum.tolist() == [True, False, True]
    assert not Features(["a", "b", "c"], np.zeros((3, 2))).has_spectrum.any()


@pytest.mark.parametrize(
    ("names", "outputs", "spectra", "message"),
    [
        (["a", "b"], np.zeros((3, 4)), NO_SPECTRA, "outputs has the shape"),
        (["a", "b"], np.zeros(2), NO_SPECTRA, "outputs has the shape"),
        (["a", "b"], np.zeros((2, 4)), np.zeros((1, 4)), "spectra has the shape"),
        (["a", "b"], np.array([[0.0], [np.inf]]), NO_SPECTRA, "outputs of 'b'"),
        (["a"], np.array([[1e300]]), NO_SPECTRA, "outputs of 'a'"),
    ],
)
def test_features_that_do_not_fit_are_refused(names, outputs, spectra, message):
    with pytest.raises(InputError, match=message):
        Features(names, outputs, spectra)


# Embeddings


def test_principal_components_are_those_of_the_singular_value_decomposition():
    rows = np.random.default_rng(0).normal(size=(20_000, 6)).astype(np.float32) * [9, 5, 3, 1, 0.5, 0.1] + 40
    rows = rows.astype(np.float32)
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    expected = (left * scale)[:, :3]
    found = principal_components(rows, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-3)


def test_principal_components_without_variance_are_zero():
    rows = np.outer(np.arange(5.0), np.ones(4)).astype(np.float32)
    found = principal_components(rows, 3)
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found[:, 0], 2 * (np.arange(5) - 2), atol=1e-5)
    assert not found[:, 1:].any()


def test_components_of_very_many_candidates_are_those_of_a_sample():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(150_000, 3)) * [4, 2, 1]).astype(np.float32)
    loadings = fit_components(rows, 3)[:, 1:]
    np.testing.assert_allclose(np.abs(loadings), np.eye(3), atol=0.02)


def test_a_projection_does_not_depend_on_the_rows_beside():
    rows = np.random.default_rng(0).normal(size=(10_000, 40)).astype(np.float32)
    components = fit_components(rows, 5, squash)
    together = project_on(components, rows, squash)
    for part in (slice(1), slice(5, 8), slice(8190, 8195), slice(0, None, 7)):
        np.testing.assert_array_equal(project_on(components, rows[part], squash), together[part])


def test_what_joins_an_embedding_gets_the_place_it_would_have_had(planted):
    features, _ = planted
    projection = PRESETS["ensemble"].embed
    assert isinstance(projection, Projection)
    loadings = projection.fit(features)
    some = Features(features.names[40:60], features.outputs[40:60], features.spectra[40:60])
    np.testing.assert_array_equal(projection.project(some, loadings), embed(features, "ensemble")[40:60])
    bare = projection.project(Features(some.names, some.outputs), loadings)
    known = PRESETS["ensemble"].outputs_alone
    assert bare.shape == (20, known + 8) and np.isnan(bare[:, known:]).all()
    np.testing.assert_array_equal(bare[:, :known], projection.project(some, loadings)[:, :known])


def test_squash_keeps_sign_order_and_range():
    values = np.array([-3e38, -1.0, -0.0, 0.0, 1e-8, 1.0, 3e38], np.float32)
    squashed = squash(values)
    assert (np.diff(squashed) >= 0).all() and np.isfinite(squashed).all()
    np.testing.assert_array_equal(squashed, -squash(-values))


@pytest.mark.parametrize("preset", WITHOUT_UMAP)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("spectra", ["none", "some", "all"])
@pytest.mark.parametrize("outputs", ["varied", "equal", "huge"])
def test_tiny_and_degenerate_inputs_embed(preset, count, spectra, outputs):
    features = degenerate(count, spectra, outputs)
    embedding = embed(features, preset)
    assert embedding.shape[0] == count and embedding.dtype == np.float32
    assert np.isfinite(embedding[:, : PRESETS[preset].outputs_alone]).all()
    assert np.isfinite(embedding[features.has_spectrum]).all()


def degenerate(count: int, spectra: str, outputs: str) -> Features:
    rng = np.random.default_rng(0)
    values = {
        "varied": rng.normal(size=(count, 8)),
        "equal": np.ones((count, 8)),
        "huge": rng.choice([-3e38, 0, 3e38], (count, 8)),
    }[outputs]
    rows = rng.normal(size=(count, 6))
    rows[{"none": slice(None), "some": slice(0, None, 2), "all": slice(0)}[spectra]] = np.nan
    return Features([f"f{i}" for i in range(count)], values, rows)


def test_candidates_without_spectra_are_predicted_from_outputs(planted, forest_embedding):
    """By all results; the others, of which more is known, by those of their own kind."""
    values = planted[1]
    partial = forest_embedding.copy()
    partial[::2, PRESETS["ensemble"].outputs_alone :] = np.nan
    observed = np.arange(0, 60)
    order = rank(partial, observed, values[observed])
    assert sorted(order) == list(range(len(values)))
    rest = order[order >= 60]
    half = len(rest) // 2
    for kind in (rest % 2 == 0, rest % 2 == 1):
        best, worst = rest[kind & (np.arange(len(rest)) < half)], rest[kind & (np.arange(len(rest)) >= half)]
        assert values[best].mean() > values[worst].mean()


def test_spectra_are_asked_for_where_the_best_predictions_lack_them(planted, forest_embedding):
    values = planted[1]
    known = PRESETS["ensemble"].outputs_alone
    bare = forest_embedding.copy()
    bare[:, known:] = np.nan
    described = np.zeros(len(bare), bool)
    observed = np.arange(30)
    wanted = undescribed(bare, observed, values[observed], described, 20)
    order = rank(bare, observed, values[observed])
    assert set(wanted) == set(observed) | set(order[order >= 30][:20])
    described[wanted] = True
    bare[wanted] = forest_embedding[wanted]
    few = undescribed(bare, observed, values[observed], described, 20)
    assert not len(few) or 4 <= len(few) <= 20 and not described[few].any()
    assert not len(undescribed(bare, [], [], described, 20))
    assert not len(undescribed(forest_embedding, observed, values[observed], ~np.zeros(len(bare), bool), 20))


# What a network hardly notices


POINTS = {
    "quantiles": mid_quantiles(64),
    "random": np.clip(np.random.default_rng(0).normal(size=400), -5, 5),
}


@pytest.mark.parametrize("points", POINTS.values(), ids=POINTS)
def test_mirrored_and_negated_functions_have_the_same_parts(points):
    functions = [np.tanh, np.cosh, lambda x: np.maximum(x, 0), lambda x: x * np.tanh(x) - 2, lambda x: np.exp(x) - x**2]
    for f in functions:
        four = np.array([f(points), -f(points), f(-points), -f(-points)], np.float32)
        *alike, orientation = parts(four, points)
        for part in alike:
            # Random points leave the mirror image to interpolation, roughest at the outermost ones.
            assert np.abs(part - part[0]).mean() < (1e-5 if len(points) == 64 else 0.02)
        assert (np.sign(orientation[1]) == -np.sign(orientation[0])).all()
        np.testing.assert_allclose(np.abs(orientation).std(axis=0), 0, atol=0.1)


def test_parts_give_the_function_back():
    x = mid_quantiles(32)
    outputs = np.array([np.exp(x), x, x**2 - 7, np.ones(32)], np.float32)
    found = parts(outputs, x)
    scale = np.exp(found.scale)
    odd, even = scale * found.odd, scale * (found.even + np.sinh(found.mean))
    mirrored = outputs[:, ::-1]
    np.testing.assert_allclose(np.abs(odd), np.abs(outputs - mirrored) / 2, atol=1e-5)
    np.testing.assert_allclose(np.abs(even), np.abs(outputs + mirrored) / 2, atol=1e-5)
    assert (found.odd @ x >= -1e-9).all() and (found.even @ x**2 >= -1e-9).all()


# Suggestions


@pytest.mark.parametrize("preset", ["ensemble", "random", "knn"])
def test_suggestions_are_determined_by_the_seed(planted, forest_embedding, preset):
    preset = Preset("knn", PRESETS["ensemble"].embed, nearest_neighbours) if preset == "knn" else preset
    observed, values = np.arange(12), planted[1][:12]
    first, again = (suggest(forest_embedding, observed, values, [20], preset=preset, seed=5, n=3) for _ in range(2))
    np.testing.assert_array_equal(first.index, again.index)
    np.testing.assert_array_equal(first.mean, again.mean)
    np.testing.assert_array_equal(first.spread, again.spread)


def test_forest_beats_chance_on_a_planted_structure(planted, forest_embedding):
    _, values = planted
    forest = np.mean([replay(forest_embedding, values, "ensemble", seed) for seed in range(3)])
    chance = np.mean([replay(forest_embedding, values, "random", seed) for seed in range(40)])
    assert forest < chance / 3


@pytest.mark.slow
def test_forest_learns_from_spectra_alone(planted):
    features, values = planted
    embedding = embed(Features(features.names, np.zeros_like(features.outputs), features.spectra), "ensemble")
    forest = np.mean([replay(embedding, values, "ensemble", seed) for seed in range(3)])
    chance = np.mean([replay(embedding, values, "random", seed) for seed in range(40)])
    assert forest < chance / 3


def test_rank_targets_ignore_the_scale_of_results(planted, forest_embedding):
    observed, values = np.arange(30), planted[1][:30]
    diverging = np.where(values < np.median(values), -(10 ** (-4.0 * values)), values)
    plain = suggest(forest_embedding, observed, values, seed=1)
    assert suggest(forest_embedding, observed, diverging, seed=1).index == plain.index


@pytest.mark.parametrize("preset", ["ensemble", "random", "knn"])
@pytest.mark.parametrize(
    "values",
    [
        [],
        [np.nan],
        [0.5],
        [0.5] * 12,
        [np.nan] * 12,
        [0.5] + [np.nan] * 11,
        [np.inf, -np.inf, 0.1, 0.2] * 3,
        [1e308, -1e308, 0.0] * 4,
    ],
    ids=["none", "one failed", "one", "equal", "all failed", "one good", "infinite", "huge"],
)
def test_any_results_lead_to_a_new_candidate(forest_embedding, preset, values):
    preset = Preset("knn", PRESETS["ensemble"].embed, nearest_neighbours) if preset == "knn" else preset
    observed = np.arange(len(values))
    picks = {int(suggest(forest_embedding, observed, values, preset=preset, seed=s).index[0]) for s in range(6)}
    assert not picks & set(range(len(values)))
    if len(set(map(str, values))) <= 1:
        assert len(picks) > 1, "without information the choice must not always be the same"


def test_failed_results_teach_the_surrogate_to_keep_away():
    line = np.arange(200, dtype=np.float32)[:, None]
    observed = np.arange(5, 200, 10)
    values = np.where(observed > 100, np.nan, 0.01 * observed)
    picks = [int(suggest(line, observed, values, seed=s).index[0]) for s in range(10)]
    assert np.mean([70 < pick < 105 for pick in picks]) > 0.8


def test_observed_pending_and_masked_candidates_are_never_suggested(forest_embedding, planted):
    values = planted[1]
    mask = np.zeros(len(values), bool)
    mask[:40] = True
    observed, pending = np.arange(0, 20), np.arange(20, 30)
    found = suggest(forest_embedding, observed, values[observed], pending, candidates=mask, n=50)
    assert sorted(found.index) == list(range(30, 40))


def test_workers_that_ask_in_turn_get_different_candidates(planted, forest_embedding):
    values = planted[1]
    observed = np.arange(30)
    asked: list[int] = []
    for worker in range(6):
        asked.extend(suggest(forest_embedding, observed, values[observed], asked, seed=worker).index)
    assert len(set(asked)) == 6


def test_repeated_results_of_one_candidate_count_once():
    line = np.arange(50, dtype=np.float32)[:, None]
    once = suggest(line, [5, 15, 25, 35, 45], [0.1, 0.2, 0.9, 0.2, 0.1], seed=3)
    thrice = suggest(line, [5, 15, 25, 25, 25, 35, 45], [0.1, 0.2, 0.8, np.nan, 1.0, 0.2, 0.1], seed=3)
    assert once.index == thrice.index and once.mean == pytest.approx(thrice.mean)


def test_predictions_are_in_the_unit_of_the_results(planted, forest_embedding):
    features, values = planted
    observed = np.arange(0, 300, 2)
    held_out = np.zeros(300, bool)
    held_out[1::2] = True
    found = suggest(forest_embedding, observed, values[observed], candidates=held_out, n=5)
    assert np.abs(found.mean - values[found.index]).max() < 0.25 * np.ptp(values)
    assert (found.spread >= 0).all()


def test_rows_without_coordinates_are_never_suggested():
    line = np.arange(30, dtype=np.float32)[:, None]
    line[10:] = np.nan
    found = suggest(line, [0, 1, 2, 12], [0.0, 1.0, 2.0, 9.0], pending=[15], preset=as_preset("ensemble"), n=20)
    assert set(found.index) == set(range(3, 10))


def test_nothing_left_is_said():
    with pytest.raises(Exhausted):
        suggest(np.zeros((2, 1), np.float32), [0], [1.0], pending=[1])
    with pytest.raises(Exhausted):
        suggest(np.zeros((0, 1), np.float32), [], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observed": [0, 1]}, "values has 1 entries"),
        ({"observed": [9]}, "observed must be row numbers from 0 to 3"),
        ({"observed": np.array([0.5])}, "observed must be row numbers"),
        ({"pending": [-1]}, "pending must be row numbers"),
        ({"n": 0}, "n=0"),
        ({"candidates": np.ones(3, bool)}, "candidates has the shape"),
        ({"preset": "nosuch"}, "surrogate='nosuch' is not one; give one of ensemble, paper, random"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = {"observed": [0], "values": [1.0]}
    with pytest.raises(InputError, match=message):
        suggest(np.zeros((4, 1), np.float32), **{**good, **arguments})


# Models


def test_nearest_neighbours_are_three():
    x = np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)
    mean, spread = nearest_neighbours(x, np.array([1.0, 2.0, 6.0, 100.0]), np.array([[0.9]], np.float32), 0)
    assert mean == pytest.approx([3.0])
    assert spread == pytest.approx([np.std([1.0, 2.0, 6.0])])


def test_extra_trees_are_those_of_scikit_learn():
    from sklearn.ensemble import ExtraTreesRegressor

    rng = np.random.default_rng(0)
    x, query = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=(50_000, 3)).astype(np.float32)
    y = x[:, 0] - x[:, 1] ** 2
    forest = ExtraTreesRegressor(n_estimators=300, random_state=7).fit(x, y)
    each = np.stack([tree.predict(query) for tree in forest.estimators_])
    mean, spread = extra_trees(x, y, query, 7)
    # Other seeds, so alike up to chance: 50 trees' mean is off by a seventh of their spread.
    assert np.abs(mean - each.mean(axis=0)).mean() < each.std(axis=0).mean() / 5
    assert spread.mean() == pytest.approx(each.std(axis=0).mean(), rel=0.1)


@pytest.mark.parametrize("results", [40, 150])
def test_the_gaussian_process_is_that_of_scikit_learn(results):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    rng = np.random.default_rng(0)
    x, query = rng.normal(size=(results, 3)), rng.normal(size=(500, 3)).astype(np.float32)
    y = np.sin(x[:, 0]) - x[:, 1] + rng.normal(scale=0.1, size=results)
    lengths, amplitude, noise = fit_kernel(x, y - y.mean(), [slice(0, 2), slice(2, 3)])
    each = np.exp([lengths[0], lengths[0], lengths[1]])
    kernel = ConstantKernel(np.exp(amplitude)) * Matern(each, nu=1.5) + WhiteKernel(np.exp(noise))
    fitted = GaussianProcessRegressor(kernel, optimizer=None).fit(x, y - y.mean())
    expected, deviation = fitted.predict(query, return_std=True)
    mean, spread = gaussian_process((2, 1))(x.astype(np.float32), y, query, 0)
    np.testing.assert_allclose(mean, expected + y.mean(), atol=2e-4)
    # Theirs is of a noisy result, ours of the function.
    np.testing.assert_allclose(spread**2, deviation**2 - np.exp(noise), atol=2e-4)
    assert lengths[1] > lengths[0], "the coordinate that does not matter has the longer scale"
    # At the optimum nothing near is likelier.
    best = fitted.log_marginal_likelihood_value_
    for step in (-0.5, 0.5):
        other = ConstantKernel(np.exp(amplitude)) * Matern(each, nu=1.5) + WhiteKernel(np.exp(noise + step))
        refitted = GaussianProcessRegressor(other, optimizer=None).fit(x, y - y.mean())
        assert refitted.log_marginal_likelihood_value_ < best + 0.2


def test_the_gaussian_process_learns_from_the_telling_ones_of_thousands_of_results():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 2)).astype(np.float32)
    y = -(x[:, 0] ** 2) - x[:, 1]
    query = rng.normal(size=(300, 2)).astype(np.float32)
    mean, _ = gaussian_process((1, 1))(x, y, query, 0)
    expected = -(query[:, 0] ** 2) - query[:, 1]
    assert np.corrcoef(mean, expected)[0, 1] > 0.99
    kept = _telling(y)
    assert len(set(kept)) == 512 and set(np.argsort(-y)[:256]) <= set(kept)
    assert y[kept].min() == y.min()


@pytest.mark.parametrize("rows", [2, 5, 60])
def test_the_gaussian_process_takes_equal_rows_and_huge_coordinates(rows):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, 4)).astype(np.float32) * np.float32([1, 1e4, 0, 1e-6])
    x[1] = x[0]
    mean, spread = gaussian_process((2, 1, 1))(x, rng.normal(size=rows), np.vstack([x, x * 1e3]), 0)
    assert np.isfinite(mean).all() and (spread > 0).all()


@pytest.mark.parametrize("kind", ["ensemble", "gaussian process", "ridge pipeline", "neighbours"])
def test_scikit_learn_regressors_serve_as_surrogates(planted, forest_embedding, kind):
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regressor = {
        "ensemble": RandomForestRegressor(n_estimators=20),
        "gaussian process": make_pipeline(StandardScaler(), GaussianProcessRegressor(RBF(3.0) + WhiteKernel(0.1))),
        "ridge pipeline": make_pipeline(StandardScaler(), Ridge()),
        "neighbours": KNeighborsRegressor(2),
    }[kind]
    observed, values = np.arange(20), planted[1][:20]
    found, again = (suggest(forest_embedding, observed, values, preset=regressor, seed=3) for _ in range(2))
    assert found.index == again.index and found.index[0] >= 20
    assert np.isfinite(found.mean).all() and (found.spread >= 0).all()
    assert not hasattr(regressor, "n_features_in_"), "the user's own instance stays unfitted"
    if kind in ("ensemble", "gaussian process"):
        assert found.spread > 0


@pytest.mark.parametrize("surrogate", ["umap", None, 3, object()])
def test_what_is_no_surrogate_is_refused(surrogate):
    with pytest.raises(InputError, match="is not one; give one of ensemble, paper, random, or a scikit-learn"):
        as_preset(surrogate)


def test_a_regressor_class_is_not_an_instance():
    from sklearn.linear_model import Ridge

    with pytest.raises(InputError, match="instance"):
        as_preset(Ridge)


def test_normal_scores_are_quantiles_of_ranks():
    from scipy.stats import norm, rankdata

    values = np.array([3.0, -np.inf, 1e33, 3.0, 0.1, -np.inf])
    np.testing.assert_allclose(normal_scores(values), norm.ppf((rankdata(values) - 0.5) / 6))
