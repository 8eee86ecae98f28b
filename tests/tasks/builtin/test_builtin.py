"""The built-in tasks: their data, their training and what it costs to compile."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from sklearn.datasets import load_digits

from aqx.activation import activation, stack
from aqx.tasks import builtin_tasks, check_task, load_task
from aqx.tasks.builtin import array_training as training
from aqx.tasks.builtin import data, digits, mnist1d, sine
from aqx.tasks.builtin.blocks import convolve

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[3]
BINARY = [
    f"{outer}({left}(x),{right}(x))"
    for outer in ("add", "mul", "max", "sub")
    for left, right in (("relu", "tanh"), ("swish", "erf"), ("elu", "sigmoid"), ("softplus", "arctan"), ("tanh", "erf"))
]


# Uncompiled, as check_task runs them, these take seconds.
SLOW_TO_CHECK = ("digits-cnn", "digits-vit", "mnist1d-cnn")


@pytest.fixture
def compiled():
    """Names of the programs compiled since; a listener cannot be removed without private functions, so it stays."""
    events: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **kwargs: (
            events.append(duration_secs) if event.endswith("backend_compile_duration") else None
        )
    )
    return events


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_TO_CHECK)) for name in builtin_tasks()]
)
def test_check(name: str):
    # Not all baselines, as each model is built and compiled on its own.
    task = load_task(name)
    assert task.name == name
    report = check_task(dataclasses.replace(task, baselines=("tanh(x)",)))
    assert report.kind == "Flax Linen" and 1000 < report.parameters < 20_000
    untrained = (0.5, 5) if name == "sine" else (1.5, 8)
    assert all(untrained[0] < loss < untrained[1] for loss in report.losses.values()), "as nothing is learned yet"


@pytest.mark.parametrize("name", builtin_tasks())
def test_rows_are_in_one_part_only(name: str):
    rows = sys.modules[load_task(name).build_model.__module__].load_data()
    together = np.concatenate([part.reshape(len(part), -1) for part in rows[::2]])
    assert len(np.unique(together, axis=0)) == len(together)
    assert all(part.dtype == np.float32 for part in rows[::2])
    x, y = load_task(name).batch()
    assert 128 <= len(x) <= 300, "few enough for spectra to be cheap"
    np.testing.assert_array_equal(x, rows.x[: len(x)])
    np.testing.assert_array_equal(y, rows.y[: len(y)])


def test_mnist1d_data_are_the_packages_own():
    from mnist1d.data import make_dataset

    made, rows = make_dataset(), mnist1d.load_data()
    np.testing.assert_array_equal(np.concatenate([rows.x, rows.x_val]), np.float32(made["x"]))
    np.testing.assert_array_equal(np.concatenate([rows.y, rows.y_val]), made["y"])
    np.testing.assert_array_equal(rows.x_test, np.float32(made["x_test"]))
    np.testing.assert_array_equal(rows.y_test, made["y_test"])
    assert [len(part) for part in rows] == [3000, 3000, 1000, 1000, 1000, 1000]


def test_making_mnist1d_leaves_the_global_generators_alone():
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    mnist1d._make()
    assert (random.random(), np.random.rand()) == expected


def test_digits_are_split_by_digit_and_without_overlap():
    rows = digits.load_data()
    assert [len(part) for part in rows] == [300, 300, 746, 746, 751, 751]
    assert (np.bincount(rows.y) == 30).all() and np.ptp(np.bincount(rows.y_val)) < 8
    images, labels = load_digits(return_X_y=True)
    all_rows = np.column_stack([np.concatenate(rows[::2]) * 8 + 8, np.concatenate(rows[1::2])])
    expected = np.column_stack([images, labels])
    np.testing.assert_array_equal(all_rows[np.lexsort(all_rows.T)], expected[np.lexsort(expected.T)])


def test_cached_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AQX_CACHE", str(tmp_path / "cache"))
    made = []

    def make():
        made.append(1)
        return {"x": np.arange(3), "y": np.ones((2, 2), np.float32)}

    for expected in (1, 1):
        arrays = data.cached_arrays("numbers", make)
        assert arrays["x"].tolist() == [0, 1, 2] and arrays["y"].dtype == np.float32 and len(made) == expected
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:50])
    assert data.cached_arrays("numbers", make)["x"].tolist() == [0, 1, 2] and len(made) == 2
    assert data.cached_arrays("numbers", make)["x"].tolist() == [0, 1, 2] and len(made) == 2
    monkeypatch.setenv("AQX_CACHE", str(path / "not a folder"))
    assert data.cached_arrays("numbers", make)["x"].tolist() == [0, 1, 2] and len(made) == 3
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["numbers.npz"]


@pytest.mark.slow
def test_twenty_candidates_compile_once(compiled: list[float]):
    first = mnist1d.train(activation(BINARY[0]), 0)
    compiled.clear()
    results = [mnist1d.train(activation(name), seed) for seed, name in enumerate(BINARY)]
    assert not compiled
    assert results[0] == first, "deterministic by seed"
    assert len({result["val_acc"] for result in results}) > 10
    relu = mnist1d.train(activation("max(identity(x),zero(x))"), 3)
    assert not compiled and 0.54 < relu["val_acc"] < 0.65 and 0.53 < relu["test_acc"] < 0.63
    assert set(relu) == {f"{part}_{metric}" for part in ("train", "val", "test") for metric in ("acc", "loss")}
    diverged = mnist1d.train(activation("div(one(x),zero(x))"), 0)
    assert not compiled and math.isnan(diverged["val_acc"]) and math.isnan(diverged["test_acc"])


@pytest.mark.slow
def test_digits_tell_activations_apart():
    relu, erf = (
        np.mean([digits.train(activation(name), seed)["val_acc"] for seed in range(5)])
        for name in ("relu(x)", "erf(x)")
    )
    assert 0.7 < relu < erf - 0.03 < 0.91
    square = digits.train(activation("square(x)"), 1)
    assert math.isnan(square["val_acc"]) and math.isnan(square["test_acc"])


def test_sine_is_minimised_and_diverges_to_nan():
    task = load_task("sine")
    assert (task.objective, task.direction) == ("val_loss", "minimize")
    good, weak = (sine.train(activation(name), 0) for name in ("tanh(x)", "negative(x)"))
    assert set(good) == {"train_loss", "val_loss", "test_loss"}
    assert sine.NOISE**2 < good["val_loss"] < weak["val_loss"] / 2
    assert sine.train(activation("tanh(x)"), 0) == good != sine.train(activation("tanh(x)"), 1)
    assert all(map(math.isnan, sine.train(activation("exp(x)"), 0).values())), "its error is 550"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(builtin_tasks()) - {"mnist1d"}))
def test_one_program_serves_a_shape(name: str, compiled: list[float]):
    task: Any = load_task(name)
    first = task.train(activation("max(identity(x),zero(x))"), 0)
    compiled.clear()
    assert task.train(activation("max(identity(x),zero(x))"), 0) == first
    results = [task.train(activation(f), seed)[task.objective] for f in BINARY[:3] for seed in (1, 2)]
    assert not compiled
    assert len({*results, first[task.objective]}) > 4 and all(map(math.isfinite, results))
    diverged = task.train(activation("div(one(x),zero(x))"), 0)
    assert not compiled and math.isnan(diverged[task.objective])
    assert {name.split("_")[0] for name in first} == {"train", "val", "test"}


@pytest.mark.parametrize("name", ["digits", "digits-cnn", "digits-vit", "mnist1d-cnn"])
def test_layers_are_a_loop_on_a_cpu_and_written_out_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch):
    task = load_task(name)
    x = jnp.asarray(task.batch()[0][:4])
    model = task.build_model(activation("add(swish(x),tanh(x))"))
    variables = model.init(jax.random.key(0), x)

    def value(variables):
        return (model.apply(variables, x) ** 2).sum()

    def loops() -> set[int]:
        equations = jax.make_jaxpr(lambda variables: value(variables))(variables).jaxpr.eqns
        return {each.params["length"] // each.params["unroll"] for each in equations if each.primitive.name == "scan"}

    (turns,) = loops()
    looped = jax.jit(jax.value_and_grad(value))(variables)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert turns > 1 and loops() == {1}
    written_out = jax.jit(jax.value_and_grad(lambda variables: value(variables)))(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), looped, written_out)
    with jax.default_device(jax.devices("cpu")[0]):
        assert loops() == {turns}, "what is small is computed on the CPU beside a GPU"


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("shape", "kernel", "strides"), [((3, 11, 2), (5, 2, 4), (4,)), ((2, 8, 7, 3), (3, 2, 3, 5), (2, 1))]
)
def test_convolve(shape: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], padding: str):
    generator = np.random.default_rng(0)
    x, weights = (jnp.float32(generator.standard_normal(size)) for size in (shape, kernel))
    layouts = ("NWC", "WIO", "NWC") if len(strides) == 1 else ("NHWC", "HWIO", "NHWC")

    def values(function):
        outputs, backward = jax.vjp(function, x, weights)
        return outputs, *backward(jnp.sin(outputs))

    ours = values(lambda x, weights: convolve(x, weights, strides, padding))
    lax = partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=layouts)
    for value, other in zip(ours, values(lax), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-4)


class Shallow(nn.Module):
    act: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(self.act(nn.Dense(8)(x)))


def test_training_equals_a_plain_loop():
    recipe, rows = training.Recipe(steps=4, batch=32, rate=1e-2), mnist1d.load_data()
    metrics = training.train_classifier(Shallow, activation("tanh(x)"), rows, 5, recipe)

    params = training._init(np.uint32(5), rows.x[:1], build_model=Shallow)
    model: Any = Shallow(jnp.tanh)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 4))
    state = optimizer.init(params)

    def loss(params, x, y):
        return -jax.nn.log_softmax(model.apply(params, x))[np.arange(len(y)), y].mean()

    def accuracy(params, x, y):
        return np.mean(np.argmax(model.apply(params, x), -1) == y)

    seen = []
    for batch in training._batches(5, len(rows.x), recipe):
        x, y = rows.x[batch], rows.y[batch]
        seen.append((loss(params, x, y), accuracy(params, x, y)))
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state)
        params = optax.apply_updates(params, updates)
    expected = {"train": np.mean(seen, axis=0)}
    for part, x, y in (("val", *rows[2:4]), ("test", *rows[4:])):
        expected[part] = loss(params, x, y), accuracy(params, x, y)
    for part, (mean_loss, share) in expected.items():
        assert math.isclose(metrics[f"{part}_loss"], mean_loss, rel_tol=1e-4)
        assert abs(metrics[f"{part}_acc"] - share) < 2e-3


TOGETHER = ["add(relu(x),tanh(x))", "div(one(x),zero(x))", "mul(sigmoid(x),identity(x))"]


SEEDS = [4, 2, 2**33 + 1]


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        pytest.param(name, seeds, marks=[pytest.mark.slow] * ((name, seeds) != ("digits", SEEDS)))
        for name in builtin_tasks()
        for seeds in (SEEDS, [4, 4, 4])
    ],
)
def test_a_member_of_a_population_is_trained_as_alone(name: str, seeds: list[int]):
    # Few steps: over many, differences of rounding would grow.
    module: Any = sys.modules[load_task(name).build_model.__module__]
    recipe = dataclasses.replace(module.RECIPE, steps=30)
    one, many = training.train_classifier, training.train_classifiers
    if name == "sine":
        one, many = training.train_regressor, training.train_regressors
    acts = [activation(each) for each in TOGETHER]
    train_many = many(module.build_model, module.load_data, recipe)
    found = train_many(stack(acts), seeds)
    for k, (act, seed) in enumerate(zip(acts, seeds, strict=True)):
        alone = one(module.build_model, act, module.load_data(), seed, recipe)
        assert list(alone) == list(found)
        for metric, value in alone.items():
            np.testing.assert_allclose(found[metric][k], value, rtol=1e-4, err_msg=f"{metric} of {act.name}")
    assert np.isnan(found["val_loss"]).tolist() == [False, True, False]


@pytest.mark.slow
def test_all_of_a_training_is_the_same_together():
    names = ["tanh(x)", "exp(x)", "negative(x)"]
    found = sine.task.train_many(stack([activation(name) for name in names]), [0, 0, 1])  # type: ignore[misc]
    for k, (name, seed) in enumerate(zip(names, (0, 0, 1), strict=True)):
        for metric, value in sine.train(activation(name), seed).items():
            np.testing.assert_allclose(found[metric][k], value, rtol=1e-3)
    assert np.isnan(found["val_loss"]).tolist() == [False, True, False]


def test_training_metrics_are_of_the_last_epoch():
    rows = mnist1d.load_data()
    few = rows._replace(x=rows.x[:70], y=rows.y[:70])
    metrics = training.train_classifier(Shallow, activation("tanh(x)"), few, 0, training.Recipe(steps=200, batch=32))
    assert metrics["train_acc"] * 64 == pytest.approx(round(metrics["train_acc"] * 64)), "two batches of 32"


def test_batches_are_fresh_orders_of_all_examples():
    order = training._batches(0, 10, training.Recipe(steps=8, batch=3))
    assert order.shape == (8, 3)
    epochs = order[:6].reshape(2, 9)
    assert all(len(set(epoch)) == 9 and set(epoch) <= set(range(10)) for epoch in epochs.tolist())
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.slow
def test_the_example_script_trains_and_searches(tmp_path: Path):
    script = ROOT / "scripts" / "train_digits.py"
    task = load_task(f"{script}:task")
    assert check_task(task).parameters == 9 * 16 + 16 + 9 * 16 * 32 + 32 + 128 * 10 + 10
    train = vars(sys.modules["_aqx_task_train_digits_" + task.build_model.__module__[-12:]])["train"]
    assert 0.8 < train(activation("relu(x)"), 0) < 1
    database = str(tmp_path / "digits.duckdb")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), database, "--trials", "2"]
    printed = subprocess.run(command, env=env, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert [line.split()[0] for line in printed.stdout.splitlines()] == ["relu(x)", "swish(x)", "best:"]
