"""A task so small that a search of it takes seconds: how well an activation's curve fits sin(x) - relu(x) decides."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aqx import losses
from aqx.enumeration import enumerate_space
from aqx.space import Space
from aqx.store import Database
from aqx.tasks import Task

POINTS = np.linspace(-2, 2, 41, dtype=np.float32)


class Net(nn.Module):
    """One hidden layer."""

    act: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.act(nn.Dense(5)(x)))


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 4)).astype(np.float32), rng.integers(3, size=16)


def train(act, seed: int) -> dict[str, float]:
    """Score a function by its distance to sin(x) - relu(x), with some noise by seed; whatever has exp in it crashes."""
    if "exp(" in act.name:
        raise FloatingPointError("overflow in exp")
    error = distance(act)
    noise = np.random.default_rng(seed).normal(scale=0.01)
    return {"val_acc": 1 - error + noise, "test_acc": 1 - error - noise}


def distance(act) -> float:
    """Mean distance of a function's values to those of sin(x) - relu(x)."""
    return float(jnp.mean(jnp.abs(act(POINTS) - (jnp.sin(POINTS) - jnp.maximum(POINTS, 0)))))


def make_task(**changes) -> Task:
    settings = {"name": "toy", "train": train, "baselines": ("relu(x)", "tanh(x)")} | changes
    return Task(build_model=lambda act: Net(act), batch=batch, loss=losses.softmax_cross_entropy, **settings)


task = make_task()


def candidates(path: Path, schemas: list[str], operators: list[str]) -> Path:
    """Fill a database at this path with candidates, and return the path."""
    enumerate_space(Database(path, create=True), Space(schemas, operators), points=32)
    return path
