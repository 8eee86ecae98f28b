"""Features and `compute_spectra`: the paper's distance, one compilation per shape, invalid candidates, resuming."""

from __future__ import annotations

import gc
import logging
import uuid
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import toy
from flax import nnx
from threadpoolctl import threadpool_limits

from aqx import fisher, losses
from aqx.activation import activation
from aqx.errors import StoreError, TaskError
from aqx.operators import operator_names
from aqx.space import Space
from aqx.spectra.compute import accepted
from aqx.spectra.engine import Engine
from aqx.spectra.quantiles import LOG_OF_ZERO, log_factor, log_spectrum, quantile_means, spectrum_features
from aqx.spectra.subject import fixed_inputs, prepare
from aqx.spectra.traced_features import traced_features
from aqx.store import Database, invalid_spectra, load_spectra, register_task, spectra_form
from aqx.tasks import Task
from aqx.tree import parse

pytestmark = pytest.mark.usefixtures("quick_to_compile")

N, WIDTH = 12, 5


class Mlp(nn.Module):
    """One activation site: compiling is what these tests spend their time on."""

    act: object

    @nn.compact
    def __call__(self, x):
        x = self.act(nn.Dense(WIDTH)(x))
        return nn.Dense(3)(x)


class MlpNnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, act, rngs):
        self.act = act
        self.layers = nnx.List([nnx.Linear(4, WIDTH, rngs=rngs)])
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)


def batch():
    """Inputs [N, 4] and labels [N]."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, 4)).astype(np.float32), np.arange(N) % 3


def make_task(build_model=Mlp, name="toy", batch=batch, loss=losses.softmax_cross_entropy, **options):
    """A tiny task."""
    return Task(name, build_model, batch, loss, **options)


def test_quantile_means_are_means_of_equal_shares():
    values = np.sort(np.random.default_rng(0).normal(size=(2, 96)))
    np.testing.assert_allclose(quantile_means(values, 32), values.reshape(2, 32, 3).mean(-1))
    np.testing.assert_allclose(quantile_means(np.array([[1.0, 4.0]]), 4), [[1, 1, 4, 4]])
    np.testing.assert_allclose(quantile_means(np.array([[2.0]]), 3), [[2, 2, 2]])
    np.testing.assert_allclose(
        quantile_means(np.array([[1.0, 2.0, 6.0]]), 2), [[(1 + 0.5 * 2) / 1.5, (0.5 * 2 + 6) / 1.5]]
    )


def test_feature_distance_is_the_weighted_wasserstein_distance():
    rng = np.random.default_rng(1)
    sizes = {"a": (9, 7), "b": (33, 20), "c": (4, 2)}
    pairs = {
        key: tuple(np.exp(rng.normal(scale=3, size=(2, 1, n)) + 2 * np.arange(2)[:, None, None]) for n in shape)
        for key, shape in sizes.items()
    }
    weights = {key: d * p for key, (d, p) in sizes.items()}
    features = spectrum_features(pairs, weights)
    assert features.shape == (2, 3 * 32) and features.dtype == np.float32
    expected = 0.0
    for key, weight in weights.items():
        logs = log_spectrum(*pairs[key])
        expected += weight / sum(weights.values()) * scipy.stats.wasserstein_distance(*logs)
    # Shares of the mass in which the two quantile functions cross make the distance of features the smaller one.
    distance = np.abs(features[0] - features[1]).sum()
    assert 0.97 * expected <= distance <= expected * (1 + 1e-5)


def test_traced_features_are_those_of_the_host():
    rng = np.random.default_rng(2)
    # Fewer values than quantiles, a multiple of them, and neither; a factor that is zero, and one far below the floor.
    sizes = {"a": (1, 2, 3), "b": (1, 8, 8), "c": (2, 33, 20)}
    pairs = {
        key: tuple(np.float32(np.exp(rng.normal(scale=4, size=(3, groups, n)))) for n in (d, p))
        for key, (groups, d, p) in sizes.items()
    }
    pairs["b"][0][1] = 0
    pairs["c"][1][2, :, 1:] = 1e-12
    weights = {key: groups * d * p for key, (groups, d, p) in sizes.items()}
    traced = jax.jit(jax.vmap(lambda pairs: traced_features(pairs, weights)))(pairs)
    np.testing.assert_allclose(traced, spectrum_features(pairs, weights), rtol=2e-5, atol=1e-7)


def test_factors_are_floored_one_by_one():
    logs = log_factor(np.array([[0.0, 1e-12, 1e-3, 2.0], [-1e-9, 0.0, 0.0, 0.0]]))
    floor = np.log(2.0**-23 * 4 * 2)
    # What float32 flushes to zero, float64 does not hold on to either.
    np.testing.assert_array_equal(
        log_factor(np.array([1e-300, 1e-39, 2**-125])), log_factor(np.float32([0, 0, 2**-125]))
    )
    np.testing.assert_allclose(logs, [[floor, floor, np.log(1e-3), np.log(2)], [LOG_OF_ZERO] * 4])


@pytest.fixture(scope="module")
def names():
    """200 functions of one shape, in no special order."""
    unary = [
        name for name in operator_names("paper")[2:27] if name not in ("exp", "sinh", "cosh", "reciprocal", "expm1")
    ]
    return [f"max({f}(x),{g}(x))" for f in unary for g in unary if f < g][:200]


@pytest.fixture
def db(db_path, names):
    """A database with those functions, each a class of its own."""
    return filled(db_path, names)


def filled(path, names):
    """A database with these functions."""
    database = Database(path, create=True)
    with database.transaction() as con:
        for name in names:
            row = {"id": str(uuid.uuid5(uuid.NAMESPACE_OID, name)), "name": name, "size": parse(name).size}
            con.execute("INSERT INTO functions (name, class_id, size) VALUES ($name, $id, $size)", row)
            con.execute(
                "INSERT INTO class_info (class_id, name, size, finite, finite_at_0, constant) "
                "VALUES ($id, $name, $size, true, true, false)",
                row,
            )
    return database


@pytest.mark.parametrize("build_model", [Mlp, pytest.param(MlpNnx, marks=pytest.mark.slow)])
def test_200_candidates_of_one_shape_compile_once(db, names, build_model, caplog):
    seen = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        report = fisher.compute_spectra(db, make_task(build_model), progress=lambda *step: seen.append(step))
    assert compilations(caplog) == 1
    assert report.computed + sum(report.invalid.values()) == len(names) and report.shapes == 1
    assert seen[0][:2] == (0, len(names)) and seen[-1][:2] == (len(names), len(names))
    ids, features = load_spectra(db, 1)
    assert features.shape == (report.computed, 2 * 32) and np.isfinite(features).all()


@pytest.mark.slow
def test_500_candidates_of_5_shapes_compile_5_programs(db_path, caplog):
    shapes = ["unary(x)", "unary(unary(x))", "binary(unary(x),x)", "binary(x,unary(x))", "unary(binary(x,unary(x)))"]
    functions = [[str(tree) for tree in Space([shape])] for shape in shapes]
    # Distinct names, as many of each shape as there are up to 120, mixed up: 27 + 4 · 120.
    mixed = [name for many in functions for name in many[:: max(1, len(many) // 120)][:120]]
    mixed = np.random.default_rng(0).permutation(mixed)[:500].tolist()
    db = filled(db_path, mixed)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        report = fisher.compute_spectra(db, make_task())
    assert report.computed + sum(report.invalid.values()) == 500
    assert compilations(caplog) == report.shapes == 5


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_candidates(names):
    subject = prepare(make_task())
    engine = Engine(subject)
    acts = [activation(name) for name in names]
    engine.start(acts[:20])()

    def left_over(count):
        engine.start((acts * count)[: 20 * count])()
        gc.collect()
        return len(jax.live_arrays())

    assert left_over(1) == left_over(20)


def test_what_one_call_has_compiled_the_next_does_not(db_path, caplog):
    path = toy.candidates(db_path, ["binary(unary(x),unary(x))"], ["relu", "tanh", "swish", "add", "mul"])
    subject, counts = accepted(toy.task), []
    for _ in range(3):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            assert fisher.compute_spectra(path, toy.task, limit=3, subject=subject).computed == 3
        counts.append(sum("Compiling" in record.getMessage() for record in caplog.records))
    assert compilations(caplog) == 0 < counts[0] and counts[1:] == [0, 0]


def test_a_baseline_counts_under_any_name(db_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("relu(x) is known to work, as add(relu(x),zero(x))")

    monkeypatch.setattr("aqx.spectra.compute.refuse_if_all_baselines_break", refuse)
    path = toy.candidates(db_path, ["binary(unary(x),unary(x))"], ["relu", "zero", "exp", "cosh", "add", "mul"])
    wild = replace(toy.task, batch=lambda: (toy.batch()[0] * 50, toy.batch()[1]), baselines=("relu(x)",))
    for _ in range(2):  # the second time by what is stored
        report = fisher.compute_spectra(path, wild, limit=6)
        assert report.computed and report.invalid


def compilations(caplog):
    """How many programs for spectra XLA compiled."""
    lines = [record.getMessage() for record in caplog.records]
    return sum("Finished XLA compilation" in line and "jit(spectra)" in line for line in lines)


@pytest.mark.parametrize("build_model", [Mlp, pytest.param(MlpNnx, marks=pytest.mark.slow)])
def test_stored_features_are_those_of_eigenvalues(build_model):
    task = make_task(build_model)
    subject = prepare(task)
    names = ["add(relu(x),tanh(x))", "mul(swish(x),erf(x))"]
    spectra = Engine(subject).start([activation(name) for name in names])()
    for i, name in enumerate(names):
        model, variables = subject.model(activation(name), subject.state)
        for compute in (fisher.eigenvalues, fisher.reference):
            expected = compute(model, variables, subject.x, subject.y, loss=task.loss)
            for key, (of_A, of_G) in spectra.pairs.items():
                got = np.sort((of_A[i, :, :, None] * of_G[i, :, None, :]).ravel())
                np.testing.assert_allclose(got, expected[key], atol=2e-6 * np.max(expected[key]))
    assert fisher.check(task, names) < 1e-5


def test_the_first_layer_is_computed_once():
    subject = prepare(make_task())
    assert set(fixed_inputs(subject)) == {"Dense_0"}


def test_a_stopped_run_resumes_to_the_same_rows(db_path, tmp_path, names):
    class Stop(Exception):
        pass

    def stop(done, total, note):
        if done >= 20:
            raise Stop

    task, few = make_task(), names[:50]
    whole = filled(tmp_path / "whole.duckdb", few)
    fisher.compute_spectra(whole, task)
    stopped = filled(db_path, few)
    with pytest.raises(Stop):
        fisher.compute_spectra(stopped, task, batch=10, progress=stop)
    assert 20 <= len(load_spectra(stopped, 1)[0]) < 50
    assert fisher.compute_spectra(stopped, task, limit=7, batch=10).computed == 7
    fisher.compute_spectra(stopped, task, batch=16)
    (ids, features), (same_ids, same_features) = load_spectra(whole, 1), load_spectra(stopped, 1)
    np.testing.assert_array_equal(ids, same_ids)
    np.testing.assert_array_equal(features, same_features)
    assert fisher.compute_spectra(stopped, task).computed == 0


def test_names_form_and_other_form(db, names):
    task = make_task()
    report = fisher.compute_spectra(db, task, names=[names[3].replace(",", ", ")])
    assert report.computed == 1
    task_id = register_task(db, task.name, task.identity())
    form = spectra_form(db, task_id)
    assert form["layers"] == {"Dense_0": 25, "Dense_1": 18} and form["share"] == 1
    with pytest.raises(StoreError, match="sharing"):
        fisher.compute_spectra(db, task, sharing="reduce")


def test_invalid_candidates_are_stored_with_the_reason(db_path):
    # exp of a large number overflows in float32; the others are fine.
    def wide():
        x, y = batch()
        return 100 * x, y

    db = filled(db_path, ["exp(exp(x))", "exp(tanh(x))", "tanh(arctan(x))"])
    report = fisher.compute_spectra(db, make_task(batch=wide))
    assert sum(report.invalid.values()) == 1 and report.computed == 2
    (reason,) = invalid_spectra(db, 1).values()
    assert reason == "the loss is not finite"
    assert "invalid" in str(report)


class Cnn(nn.Module):
    """A convolution of enough channels for the quick moment of patches, between two others."""

    act: object

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3))(x.reshape(-1, 2, 2, 1).repeat(3, 1).repeat(3, 2))
        x = self.act(nn.Conv(3, (2, 2), strides=2)(x))
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.slow
def test_features_do_not_depend_on_threads_nor_on_the_order_of_the_batch(names):
    some = [activation(name) for name in names[::10]]
    x, y = batch()
    order = np.random.default_rng(0).permutation(N)
    tasks = [make_task(Cnn), make_task(Cnn, batch=lambda: (x[order], y[order]))]

    def features(task, threads):
        subject = prepare(task)
        engine = Engine(subject)
        engine.threads = threads
        with threadpool_limits(threads):
            return spectrum_features(engine.start(some)().pairs, subject.probe.coverage.weights)

    base = features(tasks[0], 1)
    distances = np.abs(base[:, None] - base[None]).sum(-1)[np.triu_indices(len(some), 1)]
    for other in (features(tasks[0], 4), features(tasks[1], 2)):
        assert np.abs(other - base).sum(-1).max() < 1e-2 * np.median(distances)


@pytest.mark.slow
def test_rows_whose_products_overflow_are_invalid_and_do_not_hang():
    # Few rows are kept as they are: finite in float32, while their products are not.
    def huge():
        x, y = batch()
        return 90 * x[:3], y[:3]

    subject = prepare(make_task(batch=huge, loss=lambda outputs, y: outputs.sum(1) * 1e-30))
    assert subject.probe.layers[1].tap.kept[0] == 3
    hidden = subject.x @ subject.state["params"]["Dense_0"]["kernel"]
    assert 50 < hidden.max() < 80  # whose exponentials float32 holds, and not their squares
    spectra = Engine(subject).start([activation("exp(x)")])()
    assert spectra.reason(0) == "the spectrum of Dense_1 is not finite"


@pytest.mark.slow
def test_features_agree_between_float32_and_float64_and_batch_sizes(names):
    some = [activation(name) for name in names[::12]]
    task = make_task()
    subject = prepare(task)

    def features(subject, size):
        engine, rows = Engine(subject), []
        for start in range(0, len(some), size):
            spectra = engine.start(some[start : start + size])()
            rows.append(spectrum_features(spectra.pairs, subject.probe.coverage.weights))
        return np.concatenate(rows)

    single = features(subject, 4)
    np.testing.assert_array_equal(single, features(subject, 7))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), subject.state)
        subject64 = prepare(make_task(batch=lambda: (batch()[0].astype(np.float64), batch()[1])))
        double = features(replace(subject64, state=wide), 4)
    distances = np.abs(single[:, None] - single[None]).sum(-1)[np.triu_indices(len(some), 1)]
    assert np.abs(single - double).sum(-1).max() < 1e-2 * np.median(distances)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda out, y: losses.softmax_cross_entropy(out, y).mean()}, "one value per example"),
        ({"batch": lambda: (np.full((4, 4), np.nan), np.arange(4) % 3)}, "nan"),
        ({"batch": lambda: batch()[0]}, r"\(x, y\)"),
        ({"build_model": lambda act: nn.LayerNorm()}, "no layer"),
    ],
)
def test_a_bad_task_is_one_clear_line(options, message):
    with pytest.raises(TaskError, match=message):
        prepare(make_task(**options))
