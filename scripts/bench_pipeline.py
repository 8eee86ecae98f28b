"""Measure the steps after enumeration against the plain way, in the same run.

scripts/bench_pipeline [--task mnist1d] [--repeat 3]

The plain ways: a fresh jit and full float64 eigendecompositions per candidate; a fresh jit per training; the published
surrogate refitted for every suggestion.
Prints one table in Markdown. Each step checks its answer first, warms up, and reports the median of its repeats.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import scipy.linalg
from _timing import seconds
from flax import linen as nn
from sklearn.datasets import load_digits

import aqx
from aqx import surrogate
from aqx.enumeration import enumerate_space
from aqx.search import candidates
from aqx.store import Database

FUNCTIONS = ("tanh", "swish", "erf", "softsign", "sigmoid", "elu", "arctan", "cosh")


# Spectra


class MLP(nn.Module):
    """64-64-64-10."""

    act: aqx.Activation

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = self.act(nn.Dense(64)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """3×3 convolutions of 32, 64 (stride 2) and 64 channels, then 10 outputs of the mean."""

    act: aqx.Activation

    @nn.compact
    def __call__(self, x):
        for channels, stride in ((32, 1), (64, 2), (64, 1)):
            x = self.act(nn.Conv(channels, (3, 3), strides=stride)(x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


def digits(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return 256 handwritten digits."""
    x, y = map(np.asarray, load_digits(return_X_y=True))
    return np.float32(x[:256] / 16).reshape(256, *shape), y[:256]


def spectra_plainly(task: aqx.Task, name: str) -> dict[str, np.ndarray]:
    """Compute the eigenvalues of one candidate: a fresh jit, patches by loops, full float64 eigendecompositions."""
    x, y = task.batch()
    model = task.build_model(aqx.activation(name))
    variables = model.init(jax.random.key(0), x)

    @jax.jit
    def gradients(zeros):
        def loss(zeros):
            inputs = {}

            def tap(call, args, kwargs, context):
                if context.method_name != "__call__" or not isinstance(context.module, nn.Dense | nn.Conv):
                    return call(*args, **kwargs)
                path = "/".join(context.module.path)
                inputs[path] = args[0]
                return call(*args, **kwargs) + zeros[path]

            with nn.intercept_methods(tap):
                outputs = model.apply(variables, x)
            return task.loss(outputs, y).sum(), inputs

        return jax.grad(loss, has_aux=True)(zeros)

    shapes: dict[str, tuple[int, ...]] = {}

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, nn.Dense | nn.Conv):
            shapes["/".join(context.module.path)] = out.shape
        return out

    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, x)
    found, inputs = gradients({path: np.zeros(shape, np.float32) for path, shape in shapes.items()})
    spectra = {}
    for path, gradient in found.items():
        kernel = variables["params"][path]["kernel"]
        rows = np.asarray(inputs[path], np.float64)
        if kernel.ndim == 4:
            rows = patches(rows, stride=inputs[path].shape[1] // gradient.shape[1])
        rows = rows.reshape(-1, rows.shape[-1])
        rows = np.hstack([rows, np.ones((len(rows), 1))])
        g = np.asarray(gradient, np.float64).reshape(-1, gradient.shape[-1])
        of_a = scipy.linalg.eigh(rows.T @ rows / len(x))[0]
        of_g = scipy.linalg.eigh(g.T @ g / len(g))[0]
        spectra[path] = np.sort(np.outer(of_a, of_g).ravel())
    return spectra


def patches(images: np.ndarray, stride: int) -> np.ndarray:
    """Return the 3×3 patches of SAME padding in (row, column, channel) order, by loops over the positions."""
    n, height, width, channels = images.shape
    out = -(-height // stride)
    total = max((out - 1) * stride + 3 - height, 0)
    padded = np.pad(images, ((0, 0), (total // 2, total - total // 2), (total // 2, total - total // 2), (0, 0)))
    result = np.empty((n, out, out, 9 * channels))
    for i in range(out):
        for j in range(out):
            patch = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            result[:, i, j] = patch.reshape(n, -1)
    return result


def bench_spectra(task: aqx.Task, folder: Path, repeat: int, count: int) -> tuple[float, float]:
    """Return spectra per second, aqx (its one compilation and the database included) and plain."""
    name = "mul(tanh(x),sigmoid(x))"
    x, y = task.batch()
    model = task.build_model(aqx.activation(name))
    variables = model.init(jax.random.key(0), x)
    fast = aqx.fisher.eigenvalues(model, variables, x, y, loss=task.loss)
    for path, slow in spectra_plainly(task, name).items():
        np.testing.assert_allclose(np.asarray(fast[path]), slow, rtol=1e-3, atol=2e-6 * slow.max())
    path = folder / f"{task.name}.duckdb"
    enumerate_space(Database(path, create=True), aqx.Space.act_bench())
    fresh = iter(range(10**6))

    def compute() -> None:
        copy = folder / f"{task.name}{next(fresh)}.duckdb"
        shutil.copy(path, copy)
        report = aqx.fisher.compute_spectra(Database(copy), task, limit=count)
        assert report.computed + sum(report.invalid.values()) == count and report.shapes == 1

    plain = seconds(lambda: spectra_plainly(task, name), 2 * repeat)
    return count / seconds(compute, repeat), 1 / plain


# Training


def bench_training(task: aqx.Task, repeat: int) -> tuple[float, float]:
    """Return trainings per second, one compiled program for all and a fresh jit for each."""
    names = iter([f"mul({a}(x),{b}(x))" for a in FUNCTIONS for b in ("sigmoid", "tanh")])

    def train() -> None:
        assert task.train is not None and task.train(aqx.activation(next(names)), seed=0)["val_acc"] > 0.2

    def train_afresh() -> None:
        jax.clear_caches()
        train()

    train()
    return 1 / seconds(train, 2 * repeat), 1 / seconds(train_afresh, repeat)


# Suggestions


def bench_suggestions(folder: Path, task: aqx.Task, repeat: int) -> dict[str, tuple[float, float]]:
    """Return seconds of a first and of a repeated suggestion, aqx and the published surrogate refitted each time."""
    path = folder / "suggest.duckdb"
    enumerate_space(Database(path, create=True), aqx.Space.act_bench())
    aqx.fisher.compute_spectra(Database(path), task)
    rng = np.random.default_rng(0)
    study = aqx.Study(path, task)
    table = candidates.load(study.db, study.task_id)
    for row in rng.choice(np.flatnonzero(table.usable), 100, replace=False):
        study.add(str(table.names[row]), val_acc=float(rng.random()))

    def refit() -> None:
        features = surrogate.Features(table.names.tolist(), table.outputs, table.spectra)
        surrogate.embed(features, "paper", 0)

    refit()
    plain = seconds(refit, 1)
    first = seconds(lambda: aqx.Study(path, task).suggest(), repeat)
    return {"first": (first, plain), "repeated": (seconds(lambda: study.suggest(), 2 * repeat + 1), plain)}


def main() -> None:
    """Run all steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist1d", help="a built-in task, for trainings and suggestions")
    parser.add_argument("--repeat", type=int, default=3, help="repeats of each measurement")
    args = parser.parse_args()
    task = aqx.load_task(args.task)
    loss = aqx.losses.softmax_cross_entropy
    mlp = aqx.Task("mlp", MLP, functools.partial(digits, (64,)), loss)
    cnn = aqx.Task("cnn", CNN, functools.partial(digits, (8, 8, 1)), loss)
    print("| step | aqx | the plain way | ratio |\n|---|---|---|---|")

    def row(step: str, fast: float, plain: float, unit: str, smaller_is_better: bool = False) -> None:
        ratio = plain / fast if smaller_is_better else fast / plain
        print(f"| {step} | {fast:,.3g} {unit} | {plain:,.3g} {unit} | {ratio:,.0f}× |", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row(
            "1000 Fisher spectra, MLP 64-64-64-10, N = 256", *bench_spectra(mlp, folder, args.repeat, 1000), "spectra/s"
        )
        row(
            "500 Fisher spectra, CNN 32, 64/2, 64 on 8×8, N = 256",
            *bench_spectra(cnn, folder, args.repeat, 500),
            "spectra/s",
        )
        row(f"train on {task.name}", *bench_training(task, args.repeat), "trainings/s")
        for which, figures in bench_suggestions(folder, task, args.repeat).items():
            row(f"a {which} suggestion, act_bench with 100 results", *figures, "s", smaller_is_better=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nPeak memory, plain ways included: {peak:.2f} GiB; {os.cpu_count()} cores, jax {jax.__version__}.")


if __name__ == "__main__":
    main()
