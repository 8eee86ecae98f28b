"""The contract `Task`: what it takes, what it refuses, and what `check_task` finds out about a model and its data."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from aqx import losses
from aqx.activation import activation, stack
from aqx.errors import TaskError
from aqx.tasks import Task, apply_model, build_model, check_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])


class Net(nn.Module):
    act: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.act(nn.Dense(5)(x)))


class NormedNet(nn.Module):
    act: Any

    @nn.compact
    def __call__(self, x, scale, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dense(3)(self.act(x)) * scale


class NnxNet(nnx.Module):
    def __init__(self, act, rngs):
        self.act = act
        self.first, self.second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(self.act(self.first(x)))


def make(**changes: Any) -> Task:
    arguments: dict[str, Any] = {
        "name": "net",
        "build_model": Net,
        "batch": lambda: (X, Y),
        "loss": losses.softmax_cross_entropy,
        "baselines": ("relu(x)", "tanh(x)"),
    }
    return Task(**(arguments | changes))


def message(task: Task, **options: Any) -> str:
    with pytest.raises(TaskError) as caught:
        check_task(task, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"name": ""}, "name=''"),
        ({"name": 3}, "name=3"),
        ({"name": "two\nlines"}, "name="),
        ({"objective": None}, "objective=None"),
        ({"build_model": "CNN"}, "build_model='CNN'"),
        ({"build_model": None}, "build_model=None"),
        ({"batch": (1, 2)}, "batch="),
        ({"loss": None}, "loss=None"),
        ({"apply": 1}, "apply=1"),
        ({"train": "yes"}, "train='yes'"),
        ({"init": 3}, "init=3"),
        ({"train_many": "yes"}, "train_many='yes'"),
        ({"direction": "max"}, "direction='max'"),
        ({"learnable": "row"}, "learnable='row'"),
        ({"baselines": "relu(x)"}, "baselines='relu(x)'"),
        ({"baselines": 3}, "baselines=3"),
        ({"baselines": ("relu(x)", "rleu(x)")}, "did you mean relu"),
        ({"baselines": ("relu(x)", 3)}, "baselines: 3"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"seed": True}, "seed=True"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(changes: dict[str, Any], argument: str):
    # Made by hand, because the type checks that tests run under would refuse some of these first.
    task = object.__new__(Task)
    good = make()
    for field in dataclasses.fields(Task):
        object.__setattr__(task, field.name, changes.get(field.name, getattr(good, field.name)))
    with pytest.raises(TaskError) as caught:
        task.__post_init__()
    assert argument in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_is_frozen_hashable_and_canonical():
    task = make(baselines=["relu( x )", "relu(x)", "max(x, tanh(x))"], seed=3)
    assert task.baselines == ("relu(x)", "max(x,tanh(x))")
    assert task.identity() == {"name": "net", "objective": "val_acc", "direction": "maximize", "seed": 3}
    assert task == dataclasses.replace(task) and hash(task) == hash(dataclasses.replace(task))
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.seed = 4  # type: ignore[misc]


def test_default_baselines_are_operators():
    assert "relu(x)" in Task("t", Net, lambda: (X, Y), losses.softmax_cross_entropy).baselines


def test_report_of_a_linen_model():
    report = check_task(make())
    assert report.kind == "Flax Linen" and report.parameters == 4 * 5 + 5 + 5 * 3 + 3
    assert list(report.losses) == ["relu(x)", "tanh(x)"]
    model: Any = Net(jax.nn.relu)
    logits = model.apply(model.init(jax.random.key(0), X), X)
    expected = float(-jax.nn.log_softmax(logits)[jnp.arange(6), Y].mean())
    assert math.isclose(report.losses["relu(x)"], expected, rel_tol=1e-5)
    text = str(report)
    assert "43 parameters" in text and "[6, 4] float32" in text and "[6, 3] float32" in text and "none" in text


@pytest.mark.parametrize(
    "build",
    [
        NnxNet,
        partial(NnxNet),
        lambda act, rngs: NnxNet(act, rngs),
        lambda act, *, rngs: NnxNet(act, rngs),
        lambda f, r: NnxNet(f, r),
    ],
)
def test_report_of_an_nnx_model(build):
    report = check_task(make(build_model=build))
    assert report.kind == "Flax NNX" and report.parameters == 43


def test_the_seed_decides_the_weights():
    act = activation("relu(x)")
    kernels = [build_model(make(seed=s), act, X)[1]["params"]["Dense_0"]["kernel"] for s in (0, 0, 1)]
    assert (kernels[0] == kernels[1]).all() and not (kernels[0] == kernels[2]).any()


@pytest.mark.parametrize("mutable", [False, True])
def test_a_model_with_extra_inputs_is_initialised_through_apply(mutable: bool):
    def apply(model, variables, x):
        if not mutable:
            return model.apply(variables, x, 2.0, train=False)
        outputs, _ = model.apply(variables, x, 2.0, train=True, mutable=["batch_stats"])
        return outputs

    task = make(build_model=NormedNet, apply=apply)
    model, variables = build_model(task, activation("relu(x)"), X)
    expected = NormedNet(jax.nn.relu).init(jax.random.key(0), X, 2.0, train=False)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), variables["params"], expected["params"]))
    assert apply_model(task, model, variables, X).shape == (6, 3)
    assert check_task(task).parameters == 43 + 10


def with_bad(array, value, *index):
    copy = array.astype(np.float32)
    copy[index] = value
    return copy


def raising(*args, **kwargs):
    raise RuntimeError("out of\ncheese")


class LabelsOfAll(nn.Module):
    act: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.act(x)).mean(0, keepdims=True)


def squares(outputs, y):
    return (outputs - jax.nn.one_hot(y, 3)) ** 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": lambda: X}, ["batch must return (x, y)", "ndarray"]),
        ({"batch": lambda: (X, Y, Y)}, ["batch must return (x, y)", "3 values"]),
        ({"batch": lambda: (X, Y[:5])}, ["same number of examples", "[6, 4]", "[5]"]),
        ({"batch": lambda: (X[:0], Y[:0])}, ["same number of examples", "[0, 4]"]),
        ({"batch": lambda: (X, 3)}, ["batch: y must be arrays"]),
        ({"batch": lambda: (X, np.array(["a"] * 6))}, ["batch: y must be arrays"]),
        ({"batch": lambda: (with_bad(X, np.nan, 4, 2), Y)}, ["batch: x is nan at [4, 2]", "1 of 24"]),
        (
            {"batch": lambda: (jnp.asarray(with_bad(X, np.inf, 1), jnp.bfloat16), Y)},
            ["batch: x is inf at [1, 0]", "4 of 24"],
        ),
        ({"batch": lambda: (X, with_bad(Y, np.inf, 3))}, ["batch: y is inf at [3]"]),
        ({"batch": raising}, ["batch raised RuntimeError: out of", "test_task.py, line"]),
        ({"build_model": raising}, ["build_model raised RuntimeError"]),
        ({"build_model": lambda act: act}, ["build_model must return a Flax Linen or NNX module", "Activation"]),
        ({"build_model": lambda act: Net}, ["build_model must return a Flax Linen or NNX module"]),
        ({"build_model": NormedNet}, ["build_model raised TypeError"]),
        ({"apply": raising}, ["raised RuntimeError"]),
        ({"apply": lambda model, variables, x: x}, ["apply never calls model.apply"]),
        ({"build_model": LabelsOfAll}, ["outputs of 6 examples", "[1, 3]"]),
        ({"loss": lambda o, y: squares(o, y).mean()}, ["per example, shape [6]", "one number", "mean over the batch"]),
        ({"loss": squares}, ["per example, shape [6]", "[6, 3]"]),
        ({"loss": lambda o, y: jnp.full(len(o), squares(o, y).mean())}, ["depends on the others"]),
        ({"loss": raising}, ["loss raised RuntimeError"]),
        (
            {"loss": lambda o, y: losses.softmax_cross_entropy(o, y + 7)},
            ["loss is nan for relu(x), at example 0 (6 of 6)"],
        ),
        ({"loss": lambda o, y: jnp.log(-squares(o, y).sum(-1))}, ["loss is nan for relu(x)"]),
        ({"train": lambda: {}}, ["train must accept (act, seed)"]),
        ({"train_many": lambda acts: {}}, ["train_many must accept (acts, seeds)"]),
    ],
)
def test_broken_promises_are_told_in_one_line(changes: dict[str, Any], said: list[str]):
    text = message(make(**changes))
    assert all(part in text for part in said), text


def test_a_baseline_other_than_relu_may_fail():
    report = check_task(make(baselines=("reciprocal(zero(x))",)))
    assert list(report.losses) == ["relu(x)", "reciprocal(zero(x))"]
    assert not math.isfinite(report.losses["reciprocal(zero(x))"])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (0.9, ["dict of metrics", "float"]),
        ({}, ["objective 'val_acc'"]),
        ({"accuracy": 0.9}, ["objective 'val_acc'", "accuracy"]),
        ({"val_acc": "good"}, ["numbers", "val_acc"]),
        ({"val_acc": np.zeros(3)}, ["numbers", "val_acc", "[3]"]),
        ({"val_acc": math.nan}, ["val_acc=nan"]),
    ],
)
def test_training_that_returns_the_wrong_thing(returned: Any, said: list[str]):
    text = message(make(train=lambda act, seed: returned), run_training=True)
    assert all(part in text for part in said), text


def test_training_runs_only_on_request():
    calls = []

    def train(act, seed):
        calls.append((act.name, seed))
        return {"val_acc": jnp.float32(0.5), "epochs": 3}

    task = make(train=train)
    assert "not run" in check_task(task).training and not calls
    report = check_task(task, run_training=True)
    assert calls == [("relu(x)", 0)] and report.metrics == {"val_acc": 0.5, "epochs": 3.0}
    assert "raised RuntimeError: out of" in message(make(train=raising), run_training=True)


def give(act, seed):
    metrics = {"val_acc": float(act(2.0)) + seed, "name": act.name, "val_loss": np.float32(seed)}
    return metrics | {"odd": 1} if seed else metrics


def give_many(acts, seeds):
    return {"val_acc": np.asarray(seeds) / 2, "val_loss": np.asarray(acts.opcodes[0]) * 1.0}


def test_many_are_trained_from_one():
    task = make(train=give)
    assert task.train is give and not task.trains_together
    names = ["relu(x)", "square(x)", "negative(x)"]
    found = task.train_many(stack([activation(name) for name in names]), [0, 5, 2**40])
    assert {name: values.tolist() for name, values in found.items() if name != "odd"} == {
        "val_acc": [2.0, 9.0, 2.0**40 - 2],
        "val_loss": [0.0, 5.0, 2.0**40],
    }
    np.testing.assert_array_equal(found["odd"], [np.nan, 1, 1])


def test_one_is_trained_from_many():
    task = make(train_many=give_many)
    assert task.train_many is give_many and task.trains_together
    act = activation("square(x)")
    assert task.train(act, 7) == {"val_acc": 3.5, "val_loss": float(act.opcodes[0])}
    assert type(task.train(act, 7)["val_acc"]) is float
    assert "defined" in check_task(task).training
    both = make(train=give, train_many=give_many)
    assert (both.train, both.train_many) == (give, give_many) and both.trains_together
    assert make().train is None and make().train_many is None and not make().trains_together


def test_a_copy_derives_from_what_it_is_given():
    task, act = make(train=give), activation("relu(x)")
    copy = dataclasses.replace(task, train=lambda act, seed: {"val_acc": 0.25})
    assert copy.train_many(stack([act]), [0])["val_acc"].tolist() == [0.25]
    many = make(train_many=give_many)
    copy = dataclasses.replace(many, train_many=lambda acts, seeds: {"val_acc": np.zeros(len(seeds))})
    assert copy.train(act, 3) == {"val_acc": 0.0}
    assert dataclasses.replace(many) == many and hash(dataclasses.replace(task)) == hash(task)
    assert dataclasses.replace(copy, train=give, train_many=None) == dataclasses.replace(
        many, train=give, train_many=None
    )


def test_derived_training_is_of_the_users_module():
    assert make(train_many=give_many).train.__module__ == __name__ == make(train=give).train_many.__module__


def test_two_are_trained_together_on_request():
    task = make(train=give_numbers, train_many=give_many)
    assert "two together" not in check_task(task).training
    assert "; two together in " in check_task(task, run_training=True).training
    assert "together" not in check_task(make(train=give_numbers), run_training=True).training


def give_numbers(act, seed):
    return {"val_acc": 0.5}


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (0.9, ["objective 'val_acc'", "0.9"]),
        ({"accuracy": np.zeros(2)}, ["objective 'val_acc'", "accuracy"]),
        ({"val_acc": 0.5}, ["one value per member, [2]", "val_acc", "float"]),
        ({"val_acc": np.zeros(2), "val_loss": np.zeros((2, 3))}, ["one value per member, [2]", "val_loss", "[2, 3]"]),
    ],
)
def test_training_together_that_returns_the_wrong_thing(returned: Any, said: list[str]):
    task = make(train=give_numbers, train_many=lambda acts, seeds: returned)
    text = message(task, run_training=True)
    assert all(part in text for part in said), text
