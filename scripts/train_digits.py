"""Your own Flax model and your own training loop, with aqx choosing the activation function.

scripts/enumerate digits.duckdb --space act_bench
scripts/eigs digits.duckdb --task scripts/train_digits.py:task
python scripts/train_digits.py digits.duckdb --trials 20
"""

import argparse

import jax
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import aqx

images, labels = map(np.asarray, load_digits(return_X_y=True))
order = np.random.default_rng(0).permutation(len(labels))
x, y = np.float32(images[order] / 16).reshape(-1, 8, 8, 1), labels[order]
train_x, train_y, val_x, val_y = x[:300], y[:300], x[300:], y[300:]


class CNN(nn.Module):
    """Two convolutions with the activation, and ten outputs."""

    act: aqx.Activation

    @nn.compact
    def __call__(self, x):
        for channels in (16, 32):
            x = self.act(nn.Conv(channels, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


optimizer = optax.adam(3e-3)
task = aqx.Task("my-cnn", CNN, batch=lambda: (train_x, train_y), loss=aqx.losses.softmax_cross_entropy)


@jax.jit  # at the top of the file and with `act` as an argument: compiled once for all functions of a shape
def step(act, params, state, x, y):
    def mean_loss(params):
        return task.loss(CNN(act).apply(params, x), y).mean()

    updates, state = optimizer.update(jax.grad(mean_loss)(params), state)
    return optax.apply_updates(params, updates), state


def train(act, seed):
    generator, params = np.random.default_rng(seed), CNN(act).init(jax.random.key(seed), train_x[:1])
    state = optimizer.init(params)
    for _ in range(300):
        rows = generator.integers(len(train_x), size=64)
        params, state = step(act, params, state, train_x[rows], train_y[rows])
    logits = np.asarray(CNN(act).apply(params, val_x))
    return float(np.mean(logits.argmax(-1) == val_y))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    study = aqx.Study(args.database, task)
    for _ in range(args.trials):
        with study.trial() as trial:
            accuracy = train(trial.activation, trial.seed)
            trial.report(val_acc=accuracy)
        print(f"{trial.name:32} {accuracy:.4f}")
    best = study.best()
    print("best:", best and f"{best.name} {best.objective:.4f}")
