"""Task `digits`: real handwritten digits, few of them, and a deep narrow network that not every activation can train.

Data: Alpaydin, E. & Kaynak, C. (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning Repository; the
1797 images of 8×8 pixels that come with scikit-learn.
"""

from __future__ import annotations

from functools import cache

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx.activation import Activation
from aqx.losses import softmax_cross_entropy
from aqx.population import TrainMany
from aqx.tasks.builtin.array_training import Recipe, train_classifier, train_classifiers
from aqx.tasks.builtin.blocks import repeat, unrolled
from aqx.tasks.builtin.data import Split, cached_arrays
from aqx.tasks.task import Task

# Measured, 5 seeds: 200 rows or 16 layers double the spread between seeds; 8 layers halve that between functions.
DEPTH, WIDTH, TRAINING_ROWS = 12, 32, 300
RECIPE = Recipe(steps=400, batch=100, rate=2e-3)


class Layer(nn.Module):
    """One hidden layer, in the form that `repeat` takes."""

    act: Activation

    @nn.compact
    def __call__(self, x: Float[Array, "N D"], _: None) -> tuple[Float[Array, "N D"], None]:
        return self.act(nn.Dense(WIDTH)(x)), None


class DeepMLP(nn.Module):
    """A linear projection of 64 pixels to 32 numbers, 12 hidden layers of 32 units, and 10 outputs."""

    act: Activation

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "N 64"]) -> Float[Array, "N 10"]:
        hidden = nn.Dense(WIDTH)(jnp.asarray(x))
        layers = repeat(Layer, DEPTH, unrolled(DEPTH))
        hidden, _ = layers(self.act)(hidden, None)
        return nn.Dense(10)(hidden)


@cache
def load_data() -> Split:
    """Return 300 training, 746 validation and 751 test images as rows of 64 pixels in [-1, 1], stratified by digit."""
    arrays = cached_arrays("digits-1", _make)
    x, y = arrays["x"], arrays["y"]
    generator = np.random.default_rng(0)
    parts: tuple[list[int], ...] = ([], [], [])
    for digit in range(10):
        rows = generator.permutation(np.flatnonzero(y == digit))
        per_digit = TRAINING_ROWS // 10
        middle = (per_digit + len(rows)) // 2
        for part, taken in zip(parts, np.split(rows, [per_digit, middle]), strict=True):
            part.extend(taken.tolist())
    train, val, test = (generator.permutation(part) for part in parts)
    return Split(x[train], y[train], x[val], y[val], x[test], y[test])


def _make() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return {"x": (np.asarray(x, np.float32) - 8) / 8, "y": np.asarray(y, np.int32)}


def build_model(act: Activation) -> DeepMLP:
    """Return the deep network with an activation."""
    return DeepMLP(act)


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Return all training rows: the Fisher features are computed on them."""
    data = load_data()
    return data.x, data.y


def train(act: Activation, seed: int) -> dict[str, float]:
    """Train the network for 400 steps; return accuracy and loss on train, val and test rows."""
    return train_classifier(build_model, act, load_data(), seed, RECIPE)


train_many: TrainMany = train_classifiers(build_model, load_data, RECIPE)

task: Task = Task(
    name="digits",
    build_model=build_model,
    batch=batch,
    loss=softmax_cross_entropy,
    train=train,
    train_many=train_many,
)
