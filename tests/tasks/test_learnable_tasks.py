"""Tasks that train with learnable constants: by name, in a population, and what the metrics keep of it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import aqx
from aqx.activation import Activation
from aqx.errors import TaskError
from aqx.linen import Learning
from aqx.spectra.naming import Namer
from aqx.tasks import Task, load_task
from aqx.tasks.builtin.image_training import ImageRecipe, ImageSplit, train_image_classifier
from aqx.tasks.builtin.text import text_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ACTS = Namer(["mul", "tanh", "softplus"])(["mul(1.0,tanh(mul(1.0,x)))", "mul(0.8,softplus(mul(1.5,x)))"])
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)


class Net(nn.Module):
    act: Activation

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(self.act(nn.Dense(3)(self.act(x))))


def train(act: Activation, seed: int) -> dict[str, float]:
    """No training: it tells how many constants the model has, and what they are."""
    params = Net(act).init(jax.random.key(seed), X)["params"]
    held = [value for path, value in jax.tree_util.tree_flatten_with_path(params)[0] if aqx.is_constant(path)]
    return {"val_acc": float(len(held)), "sum": float(sum(value.sum() for value in held))}


def batch():
    return X, jnp.zeros((3, 1))


task = Task("counting", Net, batch, aqx.losses.mean_squared_error, train=train)


@pytest.mark.parametrize(("per", "total"), [("layer", 4.6), ("channel", 0.8 * 5 + 1.5 * 5)])
def test_each_place_has_constants_of_its_own(per: str, total: float):
    learning = replace(task, learnable=per)
    found = learning.train(ACTS[1], 0)
    assert found["val_acc"] == 4
    np.testing.assert_allclose(found["sum"], total, rtol=1e-6)
    assert task.train(ACTS[1], 0)["val_acc"] == 0
    assert learning.train(aqx.activation("tanh(x)"), 0)["val_acc"] == 0, "it has none"
    again = replace(learning, seed=3)
    assert again.train(ACTS[0], 0)["val_acc"] == 4 and not again.trains_together
    assert replace(learning, learnable=None).train(ACTS[0], 0)["val_acc"] == 0
    np.testing.assert_array_equal(learning.train_many(aqx.stack(ACTS), [0, 1])["val_acc"], [4, 4])


def test_a_function_that_learns_is_an_activation():
    act = Learning.of(ACTS[1])
    assert act != ACTS[1] and act == Learning.of(ACTS[1]) and hash(act) == hash(Learning.of(ACTS[1]))
    assert act != Learning.of(ACTS[1], "channel")
    again = pickle.loads(pickle.dumps(act))
    assert isinstance(again, Learning) and again.name == act.name
    np.testing.assert_array_equal(act(X), ACTS[1](X), "outside of a module it is the plain function")
    np.testing.assert_allclose(jax.jit(lambda act, x: act(x))(act, X), ACTS[1](X), rtol=1e-6)
    assert jax.tree.structure(act) != jax.tree.structure(ACTS[1])


def test_a_suffix_makes_a_task_learn_and_it_travels():
    learning = load_task("sine+layer")
    assert (learning.name, learning.learnable, learning.trains_together) == ("sine+layer", "layer", True)
    assert learning.identity() == load_task("sine").identity() | {"name": "sine+layer", "learnable": "layer"}
    assert pickle.loads(pickle.dumps(learning)).learnable == "layer"
    assert "learnable" not in load_task("sine").identity(), "databases know the task as before"
    with pytest.raises(TaskError, match="task='sinus' is not a task"):
        load_task("sinus+layer")


@pytest.mark.slow
def test_builtin_training_learns_and_says_what():
    learning, plain = load_task("sine+layer"), load_task("sine")
    alone = learning.train(ACTS[0], 0)
    assert {name for name in alone if "/" in name} == {f"learnt/Act_{i}/c{j}" for i in (0, 1) for j in (0, 1)}
    assert all(abs(alone[f"learnt/Act_{i}/c1"] - 1) > 0.01 for i in (0, 1))
    together = learning.train_many(aqx.stack([ACTS[0]] * 2), [0, 1])
    for name, value in alone.items():
        np.testing.assert_allclose(together[name][0], value, rtol=2e-2)
    assert plain.train(ACTS[0], 0)["train_loss"] > alone["train_loss"]


@pytest.mark.slow
def test_a_language_model_learns_them_layer_by_layer(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("".join(f"line {number} of a text\n" for number in range(500)))
    small = {"width": 8, "depth": 2, "heads": 2, "context": 8, "steps": 5, "batch": 4, "rate": 1e-2}
    learning = replace(text_task(tmp_path / "notes.txt", **small), learnable="layer")
    found = learning.train(ACTS[1], 0)
    constants = {name: value for name, value in found.items() if name.startswith("learnt/")}
    assert len(constants) == 2 * 2 and 1 < found["val_bpb"] < 9
    assert {0.8, 1.5} - {round(float(value), 6) for value in constants.values()} == {0.8, 1.5}, "they have moved"
    assert not any(name.startswith("learnt/") for name in learning.train(aqx.activation("tanh(x)"), 0))


class Images(nn.Module):
    act: Activation

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(3)(self.act(nn.Conv(2, (3, 3))(x)).mean((1, 2)))


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_an_image_classifier_learns_them(per: str):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (16, 4, 4, 1), np.uint8), rng.integers(3, size=16).astype(np.int32)
    mean = np.full(1, 127.5, np.float32)
    data = ImageSplit(x, y, x, y, x, y, mean, mean / 2)
    found = train_image_classifier(Images, Learning.of(ACTS[1], per), data, 0, ImageRecipe(epochs=1, batch=8))
    constants = [name for name in found if name.startswith("learnt/")]
    assert len(constants) == (2 if per == "layer" else 4), constants
    assert found["val_loss"] > 0
