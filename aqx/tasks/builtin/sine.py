"""Task `sine`: regression of a sum of sines of one number by an MLP; the mean squared error is minimised."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx.activation import Activation
from aqx.losses import mean_squared_error
from aqx.tasks.builtin.array_training import Recipe, train_regressor, train_regressors
from aqx.tasks.builtin.data import Split
from aqx.tasks.task import Task

# Measured, Spearman's correlation between 2 seeds over random functions of act_bench: 0.98, and 0.80 in the top third;
# ReLU's error is 0.14, swish's 0.31, the best of 60 0.014, and that of the noise 0.01.
FREQUENCIES = (1.0, 2.0, 4.0, 7.0)
NOISE = 0.1
TRAINING_ROWS, OTHER_ROWS = 512, 1000
RECIPE = Recipe(steps=1000, batch=64, rate=5e-3)
# Answering 0 has an error of 1; those of 1e31, which some functions reach, would only blind a surrogate.
DIVERGED = 100.0
FISHER_BATCH = 256


class MLP(nn.Module):
    """Dense layers 1-64-64-1."""

    act: Activation

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "N 1"]) -> Float[Array, "N 1"]:
        hidden = jnp.asarray(x)
        for _ in range(2):
            hidden = self.act(nn.Dense(64)(hidden))
        return nn.Dense(1)(hidden)


@cache
def load_data() -> Split:
    """Return 512 training, 1000 validation and 1000 test rows: x and y of variance about 1, and noise in y."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (TRAINING_ROWS + 2 * OTHER_ROWS, 1))
    y = sum(np.sin(np.pi * f * x + f) for f in FREQUENCIES) * np.sqrt(2 / len(FREQUENCIES))
    y = y + NOISE * generator.standard_normal(y.shape)
    split = [TRAINING_ROWS, TRAINING_ROWS + OTHER_ROWS]
    parts = zip(np.split(np.float32(x * 1.7), split), np.split(np.float32(y), split), strict=True)
    return Split(*(array for part in parts for array in part))


def build_model(act: Activation) -> MLP:
    """Return the MLP with an activation."""
    return MLP(act)


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Return the training rows that the Fisher features are computed on."""
    data = load_data()
    return data.x[:FISHER_BATCH], data.y[:FISHER_BATCH]


def train(act: Activation, seed: int) -> dict[str, float]:
    """Train the MLP for 1000 steps; return the mean squared error on train, val and test rows, nan if it diverged."""
    metrics = train_regressor(build_model, act, load_data(), seed, RECIPE)
    return metrics if metrics["val_loss"] < DIVERGED else dict.fromkeys(metrics, np.nan)


_trained = train_regressors(build_model, load_data, RECIPE)


def train_many(acts: Activation, seeds: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Train the network with K activations of a shape together; metrics are those of `train` [K]."""
    metrics = _trained(acts, seeds)
    kept = metrics["val_loss"] < DIVERGED
    return {name: np.where(kept, values, np.nan) for name, values in metrics.items()}


task: Task = Task(
    name="sine",
    build_model=build_model,
    batch=batch,
    loss=mean_squared_error,
    train=train,
    train_many=train_many,
    objective="val_loss",
    direction="minimize",
)
