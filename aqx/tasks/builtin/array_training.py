"""The training loop that the built-in tasks share: one compiled program serves every activation of a shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aqx.activation import Activation, activation
from aqx.losses import mean_squared_error, softmax_cross_entropy
from aqx.tasks.builtin.data import Split

# By name, what is measured of each example: measure(outputs [N, …], y) -> [N]. The first is the loss that is trained.
Measures = tuple[tuple[str, Callable[[Any, Any], jax.Array]], ...]


@dataclass(frozen=True)
class Recipe:
    """How to train: Adam on shuffled batches, its rate falling to 0 along a cosine."""

    steps: int = 800
    batch: int = 100
    rate: float = 3e-3


def train_classifier(
    build_model: Callable[..., Any], act: Activation, data: Split, seed: int, recipe: Recipe
) -> dict[str, float]:
    """Train a Linen classifier with softmax cross-entropy and return its accuracies and losses.

    Args:
        build_model: `build_model(act)` returns the model; a module's function, as the compiled program belongs to it.
        act: the activation; those of one shape share the compiled program.
        data: training, validation and test rows.
        seed: seeds the initial weights and the order of the batches; any integer ≥ 0.
        recipe: steps, batch size and learning rate.

    Returns:
        `train_acc`, `val_acc`, `test_acc` (shares of 1), `train_loss`, `val_loss`, `test_loss` (nats), on training
        rows as seen in the last epoch. Where the training diverged, so that a loss is not finite, they are nan, and not
        the accuracy of answering 0 always.
    """
    return _measure(build_model, act, data, seed, recipe, (("loss", softmax_cross_entropy), ("acc", _is_right)))


def train_regressor(
    build_model: Callable[..., Any], act: Activation, data: Split, seed: int, recipe: Recipe
) -> dict[str, float]:
    """Train a Linen model by mean squared error and return it as `train_loss`, `val_loss` and `test_loss`.

    Arguments and divergence are those of `train_classifier`; the labels are numbers of the shape of the outputs.
    """
    return _measure(build_model, act, data, seed, recipe, (("loss", mean_squared_error),))


def _is_right(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.argmax(outputs, axis=-1) == y


def _measure(
    build_model: Callable[..., Any], act: Activation, data: Split, seed: int, recipe: Recipe, measures: Measures
) -> dict[str, float]:
    """Train, and average each measure over the batches of the last epoch, over validation and over test rows."""
    params = _init(np.uint32(seed % 2**32), data.x[:1], build_model=build_model)
    order = _batches(seed, len(data.x), recipe)
    values = jax.device_get(_train(act, params, order, data, build_model=build_model, recipe=recipe, measures=measures))
    epoch = len(data.x) // recipe.batch * recipe.batch
    ends = np.cumsum([min(order.size, epoch), len(data.x_val), len(data.x_test)])
    means = {
        f"{part}_{name}": float(value.mean())
        for name, of_rows in values.items()
        for part, value in zip(
            ("train", "val", "test"), np.split(of_rows[order.size - ends[0] :][: ends[-1]], ends[:-1]), strict=True
        )
    }
    finite = {part: np.isfinite(means["train_loss"] + means[f"{part}_loss"]) for part in ("train", "val", "test")}
    return {name: value if finite[name.split("_")[0]] else np.nan for name, value in means.items()}


# Initial weights do not depend on the activation. Compiled apart, once for all shapes, they spare each shape's program
# compile time.
@partial(jax.jit, static_argnames="build_model")
def _init(seed: jax.Array, x: jax.Array, *, build_model: Callable[..., Any]) -> Any:
    return build_model(activation("x")).init(jax.random.key(seed), x)


# Measured: optimisation level 1 compiles a third faster, and the program runs as fast.
@partial(
    jax.jit,
    static_argnames=("build_model", "recipe", "measures"),
    compiler_options={"xla_backend_optimization_level": 1},
)
def _train(
    act: Activation,
    params: Any,
    order: jax.Array | np.ndarray,
    data: Split,
    *,
    build_model: Callable[..., Any],
    recipe: Recipe,
    measures: Measures,
) -> dict[str, jax.Array]:
    """Train; return each measure of each row of the batches, then of validation and test rows (some of them twice)."""
    model = build_model(act)
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.rate, recipe.steps))
    x, y = (jnp.concatenate(parts) for parts in (data[::2], data[1::2]))

    def step(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        rows, training = batch

        def mean_loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            outputs = model.apply(params, x[rows])
            values = {name: measure(outputs, y[rows]) for name, measure in measures}
            return values[measures[0][0]].mean(), values

        gradient, values = jax.grad(mean_loss, has_aux=True)(state[0])

        updates, optimizer_state = optimizer.update(gradient, state[1])
        stepped = optax.apply_updates(state[0], updates), optimizer_state
        return jax.tree.map(partial(jnp.where, training), stepped, state), values

    # Evaluation is more steps of the same loop, which leave the weights alone: a traced activation costs seconds of
    # compile time at every place where it stands, and so it stands at one place fewer.
    held_out = np.arange(len(data.x), len(x), dtype=np.int32)
    held_out = np.resize(held_out, (-(-len(held_out) // recipe.batch), recipe.batch))
    rows, training = jnp.concatenate([order, held_out]), np.arange(len(order) + len(held_out)) < len(order)
    _, values = jax.lax.scan(step, (params, optimizer.init(params)), (rows, training))
    return {name: value.ravel() for name, value in values.items()}


def _batches(seed: int, n: int, recipe: Recipe) -> np.ndarray:
    """Rows of each step's batch [steps, batch]: every epoch is a fresh order of all examples, its odd rest left out."""
    per_epoch = n // recipe.batch
    epochs = -(-recipe.steps // per_epoch)
    # By NumPy: sorting random keys with XLA takes a tenth of mnist1d's training.
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n, dtype=np.int32), (epochs, 1)), axis=1)
    return orders[:, : per_epoch * recipe.batch].reshape(-1, recipe.batch)[: recipe.steps]
