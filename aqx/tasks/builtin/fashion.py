"""Tasks `fashion-cnn` and `fashion-resnet`: clothes in grey, small on a CPU and whole on a GPU.

Data: Xiao, H., Rasul, K. & Vollgraf, R. (2017). Fashion-MNIST. arXiv:1708.07747; its four published files, in the
folder AQX_FASHION or where Debian's package dataset-fashion-mnist puts them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int32

from aqx.activation import Activation
from aqx.errors import InputError
from aqx.losses import softmax_cross_entropy
from aqx.tasks.builtin.blocks import convolution_to_repeat
from aqx.tasks.builtin.cifar import in_batch_mode
from aqx.tasks.builtin.fashion_files import find_fashion, read_fashion
from aqx.tasks.builtin.image_training import (
    ImageRecipe,
    ImageSplit,
    given_numbers,
    standardise,
    train_image_classifier,
)
from aqx.tasks.builtin.models import ResNet
from aqx.tasks.task import NamedReference, Task, refer_to

FISHER_BATCH = 64
VALIDATION_ROWS = 5_000
# On a CPU a search of a hundred trainings should take an hour and not a week.
CPU_ROWS, CPU_HELD_OUT, CPU_EPOCHS, EPOCHS = 4_000, 2_000, 3, 30


class CNN(nn.Module):
    """Three convolutions of 3×3, each half as large as what it sees, and 10 outputs from their mean; 23,946 weights."""

    act: Callable[[Any], Any]

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "N H W 1"], train: bool = False) -> Float[Array, "N 10"]:
        """Return the logits; training is no different."""
        hidden = jnp.asarray(x)
        for features in (16, 32, 64):
            convolve = nn.Conv(features, (3, 3), strides=2, conv_general_dilated=convolution_to_repeat())
            hidden = self.act(convolve(hidden))
        return nn.Dense(10)(hidden.mean(axis=(1, 2)))


@dataclass(frozen=True)
class Model:
    """A model and how to train it, as of `aqx.tasks.builtin.cifar`."""

    build: Callable[..., Any]
    apply: Callable[..., Any] | None
    recipe: ImageRecipe


MODELS = {
    "cnn": Model(CNN, None, ImageRecipe("adamw", rate=5e-3, decay=1e-3)),
    "resnet": Model(partial(ResNet, blocks=1), in_batch_mode, ImageRecipe("sgd", rate=0.1, decay=5e-4)),
}


def fashion_task(
    model: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    rows: int | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    name: str | None = None,
) -> Task:
    """Return a task that trains a small model on Fashion-MNIST.

    Of the 60,000 training images 5,000 are for validation. Bind one in a task file, as
    `task = fashion_task("cnn", rows=10_000, epochs=10, name="fashion-10k")`, to search with other settings.

    Args:
        model: "cnn", three convolutions without normalisation, or "resnet", ResNet-8.
        folder: where the four published files lie; default the environment variable AQX_FASHION at the time of reading,
            or the folder of Debian's package.
        rows: training images; default 4,000 on a CPU (of the others 2,000 each) and else all 55,000.
        epochs: passes through them; default 3 on a CPU, else 30.
        batch: images per step; default 128.
        name: what the database calls the task; default such as "fashion-cnn". Tasks that differ in their training need
            different names in one database.

    Returns:
        The task; its data are read when first needed.

    Raises:
        InputError: there is no such model, or a number is out of range.

    Example:
        >>> from aqx.tasks.builtin.fashion import fashion_task
        >>> fashion_task("cnn", rows=1000, epochs=1).name
        'fashion-cnn'
    """
    if model not in MODELS:
        raise InputError(f"model={model!r} is unknown; give one of {', '.join(MODELS)}")
    given_numbers(rows=rows, epochs=epochs, batch=batch)
    build = _Build(model)
    return Task(
        name=f"fashion-{model}" if name is None else name,
        build_model=build,
        batch=partial(_batch, folder, rows),
        loss=softmax_cross_entropy,
        apply=MODELS[model].apply,
        train=partial(_train, build, folder, rows, epochs, batch),
    )


def built_in(name: str) -> Task:
    """Return the built-in task of a name, if its data are there.

    Raises:
        TaskError: they are not.
    """
    find_fashion(None)
    return _BUILT_IN[name]


def _of_name(name: str) -> Task:
    """The built-in task in a worker process, which looks for the data when it needs them."""
    return _BUILT_IN[name]


@dataclass(frozen=True)
class _Build:
    """`build_model` by value: equal ones share their compiled programs."""

    model: str

    def __call__(self, act: Any) -> Any:
        return MODELS[self.model].build(act)


def load_split(folder: str | os.PathLike[str] | None = None, rows: int | None = None) -> ImageSplit:
    """Return Fashion-MNIST with 5,000 of its training rows, drawn with a fixed seed, held out for validation.

    Args and Raises are those of `fashion_task` and `find_fashion`; it is read once per process.
    """
    small = rows is None and jax.default_backend() == "cpu"
    return _split(find_fashion(folder), CPU_ROWS if small else rows, CPU_HELD_OUT if small else None)


@cache
def _split(folder: Any, rows: int | None, held_out: int | None) -> ImageSplit:
    x, y, x_test, y_test = read_fashion(folder)
    order = np.random.default_rng(0).permutation(len(y))
    held, fit = order[:VALIDATION_ROWS][:held_out], order[VALIDATION_ROWS:][:rows]
    levels, counts = np.arange(256) / 255, np.bincount(x[fit].ravel(), minlength=256)
    mean = np.average(levels, weights=counts)
    deviation = np.sqrt(np.average((levels - mean) ** 2, weights=counts))
    standard = np.array([mean], np.float32), np.array([deviation], np.float32)
    return ImageSplit(x[fit], y[fit], x[held], y[held], x_test[:held_out], y_test[:held_out], *standard)


def _batch(
    folder: str | os.PathLike[str] | None, rows: int | None
) -> tuple[Float32[np.ndarray, "N 28 28 1"], Int32[np.ndarray, " N"]]:
    data = load_split(folder, rows)
    return standardise(data.x[:FISHER_BATCH], data.mean, data.deviation), data.y[:FISHER_BATCH]


def _train(
    build: _Build,
    folder: str | os.PathLike[str] | None,
    rows: int | None,
    epochs: int | None,
    batch: int | None,
    act: Activation,
    seed: int,
) -> dict[str, float]:
    passes = epochs or (CPU_EPOCHS if jax.default_backend() == "cpu" else EPOCHS)
    recipe = replace(MODELS[build.model].recipe, epochs=passes)
    recipe = replace(recipe, batch=batch) if batch else recipe
    return train_image_classifier(build, act, load_split(folder, rows), seed, recipe)


_BUILT_IN = {
    task.name: refer_to(task, NamedReference(_of_name, task.name)) for task in (fashion_task(model) for model in MODELS)
}
