"""Tasks on CIFAR-10 and CIFAR-100: four published models, on data that the user downloads.

The built-in ones are `cifar10-all-cnn-c`, `cifar10-resnet56`, `cifar10-mobilevit`, `cifar10-vit` and the same of
cifar100; `cifar_task` makes others, with other epochs or another folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from aqx.activation import Activation
from aqx.errors import InputError
from aqx.losses import softmax_cross_entropy
from aqx.tasks.builtin.cifar_files import Source, find_cifar, read_cifar
from aqx.tasks.builtin.image_training import (
    ImageRecipe,
    ImageSplit,
    given_numbers,
    standardise,
    train_image_classifier,
)
from aqx.tasks.builtin.models import AllCNNC, MobileViTv2, ResNet, ViT
from aqx.tasks.task import NamedReference, Task, refer_to

FISHER_BATCH = 64


def in_batch_mode(model: Any, variables: Any, x: Any) -> Any:
    """Return the outputs of a model with batch normalisation, normalised by this batch.

    What Fisher features need: an untrained model's running statistics are 0 and 1, as if it had no normalisation.
    """
    return model.apply(variables, x, True, mutable=["batch_stats"])[0]


@dataclass(frozen=True)
class Model:
    """A published model and how to train it.

    Attributes:
        build: `build(act, classes)` returns it.
        apply: how to apply it for Fisher features, None for `model.apply(variables, x)`.
        recipe: the training.
    """

    build: Callable[..., Any]
    apply: Callable[..., Any] | None
    recipe: ImageRecipe


# Rate and decay are among the papers', the schedule and the number of epochs are ours: a search trains a hundred times.
# All-CNN-C has no normalisation: at a rate of 0.05 without warm-up ReLU diverged in six steps, at 0.01 it did not.
MODELS = {
    "all-cnn-c": Model(AllCNNC, None, ImageRecipe("sgd", rate=0.01, decay=1e-3)),
    "resnet56": Model(ResNet, in_batch_mode, ImageRecipe("sgd", rate=0.1, decay=1e-4)),
    "mobilevit": Model(
        partial(MobileViTv2, strides=(1, 1, 1, 2, 2, 2)), in_batch_mode, ImageRecipe("adamw", rate=2e-3, decay=0.05)
    ),
    "vit": Model(ViT, None, ImageRecipe("adamw", rate=1e-3, decay=0.05)),
}


def cifar_task(
    model: str,
    classes: int = 10,
    *,
    folder: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    name: str | None = None,
) -> Task:
    """Return a task that trains a published model on CIFAR.

    The 50,000 training images are split into 45,000 for training and 5,000 for validation, as by He et al. (2016).
    Bind one in a task file, `task = cifar_task("resnet56", epochs=100, folder="…")`, to search with other settings.

    Args:
        model: "all-cnn-c", "resnet56", "mobilevit" (MobileViTv2-0.5) or "vit".
        classes: 10 or 100.
        folder: where the published archives or their unpacked folders lie; default the environment variable AQX_CIFAR
            at the time of reading.
        epochs: passes through the training images; default 60.
        batch: images per step; default 128.
        name: what the database calls the task; default such as "cifar10-resnet56". Tasks that differ in their training
            need different names in one database.

    Returns:
        The task; its data are read when first needed.

    Raises:
        InputError: there is no such model, or a number is not positive.

    Example:
        >>> from aqx.tasks.builtin.cifar import cifar_task
        >>> cifar_task("vit", classes=100, epochs=20).name
        'cifar100-vit'
    """
    if model not in MODELS:
        raise InputError(f"model={model!r} is unknown; give one of {', '.join(MODELS)}")
    if classes not in (10, 100):
        raise InputError(f"classes={classes!r} is not a CIFAR; give 10 or 100")
    recipe = replace(MODELS[model].recipe, **given_numbers(epochs=epochs, batch=batch))
    build = _Build(model, classes)
    return Task(
        name=f"cifar{classes}-{model}" if name is None else name,
        build_model=build,
        batch=partial(_batch, folder, classes),
        loss=softmax_cross_entropy,
        apply=MODELS[model].apply,
        train=partial(_train, build, folder, recipe),
    )


def built_in(name: str) -> Task:
    """Return the built-in task of a name, if its data are where AQX_CIFAR says.

    Raises:
        TaskError: they are not.
    """
    find_cifar(None, 100 if name.startswith("cifar100-") else 10)
    return _BUILT_IN[name]


def _of_name(name: str) -> Task:
    """The built-in task in a worker process, which looks for the data when it needs them."""
    return _BUILT_IN[name]


@dataclass(frozen=True)
class _Build:
    """`build_model` by value: equal ones share their compiled programs."""

    model: str
    classes: int

    def __call__(self, act: Any) -> Any:
        return MODELS[self.model].build(act, self.classes)


def load_split(folder: str | os.PathLike[str] | None = None, classes: int = 10) -> ImageSplit:
    """Return CIFAR with a tenth of its training rows, drawn with a fixed seed, held out for validation.

    Args and Raises are those of `load_cifar`; it is read once per process.
    """
    return _split(find_cifar(folder, classes))


@cache
def _split(source: Source) -> ImageSplit:
    images = read_cifar(source)
    order = np.random.default_rng(0).permutation(len(images.y))
    held, fit = np.split(order, [len(order) // 10])
    x = images.x[fit]
    # By channel in integers: a float64 copy of all images would have a gigabyte.
    counts = np.stack([np.bincount(x[..., channel].ravel(), minlength=256) for channel in range(3)])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(1)
    deviation = np.sqrt(counts @ levels**2 / counts.sum(1) - mean**2)
    standard = mean.astype(np.float32), deviation.astype(np.float32)
    return ImageSplit(x, images.y[fit], images.x[held], images.y[held], images.x_test, images.y_test, *standard)


def _batch(
    folder: str | os.PathLike[str] | None, classes: int
) -> tuple[Float32[np.ndarray, "N 32 32 3"], Int32[np.ndarray, " N"]]:
    data = load_split(folder, classes)
    return standardise(data.x[:FISHER_BATCH], data.mean, data.deviation), data.y[:FISHER_BATCH]


def _train(
    build: _Build, folder: str | os.PathLike[str] | None, recipe: ImageRecipe, act: Activation, seed: int
) -> dict[str, float]:
    return train_image_classifier(build, act, load_split(folder, build.classes), seed, recipe)


_BUILT_IN = {
    task.name: refer_to(task, NamedReference(_of_name, task.name))
    for task in (cifar_task(model, classes) for classes in (10, 100) for model in MODELS)
}
