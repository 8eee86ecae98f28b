"""The built-in tasks: their data, their training and what it costs to compile."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from sklearn.datasets import load_digits

from aqx.activation import activation
from aqx.tasks import builtin_tasks, check_task, data, digits, load_task, mnist1d, training

ROOT = Path(__file__).parent.parent
BINARY = [
    f"{outer}({left}(x),{right}(x))"
    for outer in ("add", "mul", "max", "sub")
    for left, right in (("relu", "tanh"), ("swish", "erf"), ("elu", "sigmoid"), ("softplus", "arctan"), ("tanh", "erf"))
]


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


@pytest.mark.parametrize("name", builtin_tasks())
def test_check(name: str):
    # Not all baselines, as each model is built and compiled on its own.
    report = check_task(dataclasses.replace(load_task(name), baselines=("tanh(x)",)))
    assert report.kind == "Flax Linen" and all(map(math.isfinite, report.losses.values()))
    assert all(1.5 < loss < 8 for loss in report.losses.values()), "near log 10, as nothing is learned yet"


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


def test_digits_tell_activations_apart():
    relu, erf, square = (digits.train(activation(name), 1) for name in ("relu(x)", "erf(x)", "square(x)"))
    assert 0.65 < relu["val_acc"] < 0.88 < erf["val_acc"] < 0.95
    assert math.isnan(square["val_acc"]) and math.isnan(square["test_acc"])


class Shallow(nn.Module):
    act: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(self.act(nn.Dense(8)(x)))


def test_training_equals_a_plain_loop():
    recipe, rows = training.Recipe(steps=4, batch=32, rate=1e-2), mnist1d.load_data()
    metrics = training.train_classifier(Shallow, activation("tanh(x)"), rows, 5, recipe)

    params, order = training._start(np.uint32(5), rows.x, build_model=Shallow, recipe=recipe)
    model: Any = Shallow(jnp.tanh)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 4))
    state = optimizer.init(params)

    def loss(params, x, y):
        return -jax.nn.log_softmax(model.apply(params, x))[np.arange(len(y)), y].mean()

    for batch in np.asarray(order):
        updates, state = optimizer.update(jax.grad(loss)(params, rows.x[batch], rows.y[batch]), state)
        params = optax.apply_updates(params, updates)
    for part, x, y in (("train", *rows[:2]), ("val", *rows[2:4]), ("test", *rows[4:])):
        assert math.isclose(metrics[f"{part}_loss"], loss(params, x, y), rel_tol=1e-4)
        assert abs(metrics[f"{part}_acc"] - np.mean(np.argmax(model.apply(params, x), -1) == y)) < 2e-3


def test_batches_are_fresh_orders_of_all_examples():
    order = np.asarray(training._batches(jax.random.key(0), 10, training.Recipe(steps=8, batch=3)))
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
