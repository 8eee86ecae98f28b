"""Your own Flax NNX model and training, with aqx choosing the activation function.

scripts/enumerate digits.duckdb --space act_bench
scripts/eigs digits.duckdb --task scripts/train_digits_nnx.py:task
python scripts/train_digits_nnx.py digits.duckdb --trials 20

In NNX a model's attributes are part of what a program is compiled for: a model that holds its activation is compiled
anew for every candidate. So the model may also be called as `model(x, act)`. Training does that, and compiles once for
all functions of a shape; aqx, which asks `build_model` for a model with the candidate in it, does not need to.

The task knows its training, so `aqx search digits.duckdb --task scripts/train_digits_nnx.py:task` works as well,
`--workers 4` included, and so do scripts/search_dask.py, scripts/slurm_array.sh and scripts/log_trials.py.
"""

import argparse
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import aqx

STEPS = 300
adam = optax.adam(3e-3)  # once: a new one would be new functions, and the step compiled anew
images, labels = map(np.asarray, load_digits(return_X_y=True))
order = np.random.default_rng(0).permutation(len(labels))
x, y = np.float32(images[order] / 16).reshape(-1, 8, 8, 1), labels[order]
train_x, train_y, val_x, val_y, test_x, test_y = x[:300], y[:300], x[300:1000], y[300:1000], x[1000:], y[1000:]


class CNN(nnx.Module):
    """Two convolutions with the activation, and ten outputs."""

    def __init__(self, act: aqx.Activation | None, rngs: nnx.Rngs):
        self.act = act
        self.first = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Linear(2 * 2 * 32, 10, rngs=rngs)

    def __call__(self, x: jax.Array, act: aqx.Activation | None = None) -> jax.Array:
        """Apply the model with this activation, or else with its own."""
        act = self.act if act is None else act
        assert act is not None
        x = act(self.second(act(self.first(x))))
        return self.out(x.reshape(len(x), -1))


@nnx.jit  # at the top of the file, and with `act` as an argument
def step(act, model, optimizer, x, y):
    def mean_loss(model):
        return aqx.losses.softmax_cross_entropy(model(x, act), y).mean()

    optimizer.update(model, nnx.grad(mean_loss)(model))


@nnx.jit
def correct(act, model, x, y):
    return (model(x, act).argmax(-1) == y).mean()


def train(act, seed) -> dict[str, Any]:
    """Train a model from this seed; without an activation of its own it is the same to NNX whatever `act` is."""
    model, generator = CNN(None, nnx.Rngs(seed)), np.random.default_rng(seed)
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    for _ in range(STEPS):
        rows = generator.integers(len(train_x), size=64)
        step(act, model, optimizer, train_x[rows], train_y[rows])
    return {
        "val_acc": float(correct(act, model, val_x, val_y)),  # what the search goes by
        "test_acc": float(
            correct(act, model, test_x, test_y)
        ),  # what `study.confirm` reports: the search never sees it
    }


task = aqx.Task(
    "my-nnx-cnn",
    CNN,
    batch=lambda: (train_x, train_y),
    loss=aqx.losses.softmax_cross_entropy,
    train=train,
    objective="val_acc",
    baselines=("relu(x)", "swish(x)", "gelu(x)", "elu(x)", "tanh(x)"),
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    study = aqx.Study(args.database, task)
    for _ in range(args.trials):
        with study.trial() as trial:
            trial.report(**train(trial.activation, trial.seed))
        print(f"{trial.name:32} {trial.metrics['val_acc']:.4f}")
    best = study.best()
    print("best:", best and f"{best.name} {best.objective:.4f}")
