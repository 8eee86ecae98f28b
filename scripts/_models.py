"""The three models on which Fisher spectra are measured, and the plain way to their spectra."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import scipy.linalg
from flax import linen as nn
from sklearn.datasets import load_digits

import aqx
from aqx.tasks.builtin.models import AllCNNC

FUNCTIONS = ("tanh", "swish", "erf", "softsign", "elu", "arctan", "relu", "arcsinh")
# Sums, as deep models lose the gradient with products of functions that vanish at 0.
NAMES = [f"add({a}(x),{b}(x))" for a, b in itertools.combinations(FUNCTIONS, 2)]


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


def noise(examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images of CIFAR-10's shape: what they show costs nothing."""
    return np.random.default_rng(0).normal(size=(examples, 32, 32, 3)).astype(np.float32), np.arange(examples) % 10


def tasks(examples: int) -> dict[str, tuple[str, aqx.Task]]:
    """Return description and task of each model, All-CNN-C with so many examples."""
    task = functools.partial(aqx.Task, loss=aqx.losses.softmax_cross_entropy)
    return {
        "mlp": ("MLP 64-64-64-10, N = 256", task("mlp", MLP, functools.partial(digits, (64,)))),
        "cnn": ("CNN 32, 64/2, 64 on 8×8, N = 256", task("cnn", CNN, functools.partial(digits, (8, 8, 1)))),
        "allcnn": (f"All-CNN-C, 1.37 M weights, N = {examples}", task("allcnn", AllCNNC, lambda: noise(examples))),
    }


def spectra_plainly(task: aqx.Task, name: str) -> dict[str, np.ndarray]:
    """Compute the eigenvalues of one candidate: a fresh jit, patches by loops, full float64 eigendecompositions."""
    x, y = task.batch()
    model = task.build_model(aqx.activation(name))
    variables = model.init(jax.random.key(task.seed), x)

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
            rows = patches(rows, kernel.shape[0], gradient.shape[1])
        rows = rows.reshape(-1, rows.shape[-1])
        rows = np.hstack([rows, np.ones((len(rows), 1))])
        g = np.asarray(gradient, np.float64).reshape(-1, gradient.shape[-1])
        of_a = scipy.linalg.eigh(rows.T @ rows / len(x))[0]
        of_g = scipy.linalg.eigh(g.T @ g / len(g))[0]
        spectra[path] = np.sort(np.outer(of_a, of_g).ravel())
    return spectra


def patches(images: np.ndarray, size: int, out: int) -> np.ndarray:
    """Return the patches of a square kernel in (row, column, channel) order, by loops over the positions."""
    n, height, _, channels = images.shape
    stride = height // out
    total = max((out - 1) * stride + size - height, 0)
    around = (total // 2, total - total // 2)
    padded = np.pad(images, ((0, 0), around, around, (0, 0)))
    result = np.empty((n, out, out, size * size * channels))
    for i in range(out):
        for j in range(out):
            patch = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            result[:, i, j] = patch.reshape(n, -1)
    return result
