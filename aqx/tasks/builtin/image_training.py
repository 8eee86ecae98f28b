"""Training of image classifiers with running statistics: cropped and mirrored images, one compiled step for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int32, Key, UInt8

from aqx.activation import Activation, activation
from aqx.errors import InputError
from aqx.linen import Learning, learnt, with_constants
from aqx.losses import softmax_cross_entropy

BORDER = 4  # pixels by which an image may be shifted, He et al. 2016, section 4.2
MOMENTUM = 0.9
WARM_UP = 0.05  # of all steps


class ImageSplit(NamedTuple):
    """Images as bytes and classes of training, validation and test rows, and how to standardise them."""

    x: UInt8[np.ndarray, "N H W D"]
    y: Int32[np.ndarray, " N"]
    x_val: UInt8[np.ndarray, "V H W D"]
    y_val: Int32[np.ndarray, " V"]
    x_test: UInt8[np.ndarray, "U H W D"]
    y_test: Int32[np.ndarray, " U"]
    mean: Float32[np.ndarray, " D"]
    deviation: Float32[np.ndarray, " D"]


@dataclass(frozen=True)
class ImageRecipe:
    """How to train: shuffled batches, the learning rate rising for 5 % of the steps, then falling along a cosine.

    Attributes:
        optimizer: "sgd" has a momentum of 0.9, and its decay is added to the gradient; "adamw" decays apart.
        rate: the highest learning rate.
        decay: weight decay of the kernels.
        epochs: passes through the training rows.
        batch: images per step.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    rate: float = 0.1
    decay: float = 5e-4
    epochs: int = 60
    batch: int = 128


def standardise(images: Array | np.ndarray, mean: Array | np.ndarray, deviation: Array | np.ndarray) -> Any:
    """Return (images / 255 − mean) / deviation in float32, per channel."""
    return (images / np.float32(255) - mean) / deviation


def given_numbers(**numbers: int | None) -> dict[str, int]:
    """Return those of some settings that are given, by their names.

    Raises:
        InputError: one is no whole number from 1.
    """
    given = {key: value for key, value in numbers.items() if value is not None}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{key}={value!r} is not a number of {key}; give an integer from 1")
    return given


def train_image_classifier(
    build_model: Callable[..., Any], act: Activation, data: ImageSplit, seed: int, recipe: ImageRecipe
) -> dict[str, float]:
    """Train a Linen classifier, called as `model(x, train)`, with softmax cross-entropy.

    Args:
        build_model: `build_model(act)` returns the model; the compiled programs belong to it, so give an equal one each
            time.
        act: the activation; those of one shape share the compiled programs.
        data: training, validation and test rows.
        seed: seeds the initial weights, the order of the batches, the crops and what is dropped; any integer ≥ 0.
        recipe: optimizer, rate, epochs and batch size.

    Returns:
        `train_acc`, `val_acc`, `test_acc` (shares of 1), `train_loss`, `val_loss`, `test_loss` (nats); on training rows
        as seen in the last epoch. Training ends with the first epoch whose loss is not finite, and then all are nan.
    """
    size = min(recipe.batch, len(data.y))
    per_epoch = len(data.y) // size
    setup = {"build_model": build_model, "recipe": recipe, "steps": per_epoch * recipe.epochs}
    key = jax.random.key(np.uint32(seed % 2**32))
    held = jax.device_put(data)
    variables = _init(key, data.x[:1], build_model=build_model)
    if isinstance(act, Learning):
        variables = _with_constants(act, variables, data.x[:1], build_model=build_model)
    state = variables, _optimizer(recipe, setup["steps"]).init(variables["params"])
    generator = np.random.default_rng(seed)
    seen: dict[str, np.ndarray] = {}
    for _ in range(recipe.epochs):
        order = generator.permutation(len(data.y)).astype(np.int32)[: per_epoch * size]
        met = []
        for rows in order.reshape(per_epoch, size):
            key, state, values = _step(act, key, state, rows, held, **setup)
            met.append(values)
        seen = jax.tree.map(lambda *steps: np.array(steps), *jax.device_get(met))
        if not np.isfinite(seen["loss"].mean()):
            return dict.fromkeys((f"{part}_{name}" for part in ("train", "val", "test") for name in seen), math.nan)
    metrics = {f"train_{name}": float(np.mean(values)) for name, values in seen.items()}
    for part, x, y in (("val", held.x_val, held.y_val), ("test", held.x_test, held.y_test)):
        values = _evaluate(act, state[0], x, y, held, build_model=build_model, batch=size)
        metrics |= {f"{part}_{name}": float(np.mean(value)) for name, value in values.items()}
    metrics |= {name: float(value) for name, value in learnt(state[0]).items()}
    finite = all(map(math.isfinite, metrics.values()))
    return metrics if finite else dict.fromkeys(metrics, math.nan)


# Initial weights do not depend on the activation. Compiled apart, once for all shapes, they spare each shape's program
# compile time.
@partial(jax.jit, static_argnames="build_model")
def _init(key: Key[Array, ""], x: UInt8[Array, "1 H W D"], *, build_model: Callable[..., Any]) -> Any:
    return build_model(activation("x")).init(key, x.astype(jnp.float32))


@partial(jax.jit, static_argnames="build_model")
def _with_constants(act: Activation, variables: Any, x: UInt8[Array, "1 H W D"], *, build_model: Callable[..., Any]):
    return with_constants(variables, build_model(act), act, x.astype(jnp.float32))


def _optimizer(recipe: ImageRecipe, steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.rate, max(1, int(WARM_UP * steps)), steps)
    if recipe.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=recipe.decay, mask=_kernels)
    decay = optax.add_decayed_weights(recipe.decay, mask=_kernels)
    return optax.chain(decay, optax.sgd(rate, momentum=MOMENTUM, nesterov=True))


def _kernels(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


# A step and not an epoch, as XLA's gradients of convolutions take 20 times as long inside a loop on a CPU.
@partial(jax.jit, static_argnames=("build_model", "recipe", "steps"), donate_argnames="state")
def _step(
    act: Activation,
    key: Key[Array, ""],
    state: tuple[Mapping[str, Any], Any],
    rows: Int32[Array, " B"],
    data: ImageSplit,
    *,
    build_model: Callable[..., Any],
    recipe: ImageRecipe,
    steps: int,
) -> tuple[Key[Array, ""], tuple[Mapping[str, Any], Any], dict[str, Float[Array, ""]]]:
    """Train on one batch; return the next key, the state, and mean loss and accuracy as they were met."""
    model, optimizer = build_model(act), _optimizer(recipe, steps)
    variables, optimizer_state = state
    params = variables["params"]
    key, shifted, dropped = jax.random.split(key, 3)
    x, y = augment(shifted, standardise(data.x[rows], data.mean, data.deviation)), data.y[rows]

    def mean_loss(params: Any) -> Any:
        outputs, changed = model.apply(
            {**variables, "params": params}, x, True, mutable=["batch_stats"], rngs={"dropout": dropped}
        )
        values = {name: value.mean() for name, value in _measures(outputs, y).items()}
        return values["loss"], (values, changed)

    gradient, (values, changed) = jax.grad(mean_loss, has_aux=True)(params)
    updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
    return key, ({**changed, "params": optax.apply_updates(params, updates)}, optimizer_state), values


@partial(jax.jit, static_argnames=("build_model", "batch"))
def _evaluate(
    act: Activation,
    variables: Mapping[str, Any],
    x: UInt8[Array, "N H W D"],
    y: Int32[Array, " N"],
    data: ImageSplit,
    *,
    build_model: Callable[..., Any],
    batch: int,
) -> dict[str, Float[Array, " N"]]:
    """Loss and accuracy of each row, by the running statistics."""
    model, n = build_model(act), len(y)
    rows = np.resize(np.arange(n, dtype=np.int32), (-(-n // batch), batch))

    def measure(rows: Int32[Array, " B"]) -> dict[str, Float[Array, " B"]]:
        return _measures(model.apply(variables, standardise(x[rows], data.mean, data.deviation)), y[rows])

    return {name: values.reshape(-1)[:n] for name, values in jax.lax.map(measure, jnp.asarray(rows)).items()}


def _measures(outputs: Float[Array, "B C"], y: Any) -> dict[str, Float[Array, " B"]]:
    right = jnp.argmax(outputs, axis=-1) == y
    return {"loss": softmax_cross_entropy(outputs, y), "acc": right.astype(jnp.float32)}


def augment(key: Key[Array, ""], images: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    """Shift each image by up to 4 pixels, what comes in being the mean colour, and mirror half of them."""
    b, height, width, d = images.shape
    shift_key, mirror_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (b, 2), 0, 2 * BORDER + 1)
    padded = jnp.pad(images, ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0)))
    crop = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, d)))
    mirrored = jax.random.bernoulli(mirror_key, shape=(b, 1, 1, 1))
    images = crop(padded, shifts)
    return jnp.where(mirrored, images[:, :, ::-1], images)
