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
from aqx.linen import learnt, with_constants
from aqx.losses import mean_squared_error, softmax_cross_entropy
from aqx.population import TrainMany, population
from aqx.tasks.builtin.data import Split

PARTS = ("train", "val", "test")
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


def train_classifiers(build_model: Callable[..., Any], load_data: Callable[[], Split], recipe: Recipe) -> TrainMany:
    """Return `train_many(acts, seeds)`, which trains as `train_classifier` does, K activations of a shape together.

    Args:
        build_model: as of `train_classifier`.
        load_data: returns the rows; called when something is trained first.
        recipe: steps, batch size and learning rate.
    """
    return _together(build_model, load_data, recipe, (("loss", softmax_cross_entropy), ("acc", _is_right)))


def train_regressors(build_model: Callable[..., Any], load_data: Callable[[], Split], recipe: Recipe) -> TrainMany:
    """Return `train_many(acts, seeds)`, which trains as `train_regressor` does, K activations of a shape together."""
    return _together(build_model, load_data, recipe, (("loss", mean_squared_error),))


def _is_right(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.argmax(outputs, axis=-1) == y


def _measure(
    build_model: Callable[..., Any], act: Activation, data: Split, seed: int, recipe: Recipe, measures: Measures
) -> dict[str, float]:
    """Train, and average each measure over the batches of the last epoch, over validation and over test rows."""
    params = _init(np.uint32(seed % 2**32), data.x[:1], build_model=build_model)
    order = _batches(seed, len(data.x), recipe)
    trained = _train(act, params, order, data, build_model=build_model, recipe=recipe, measures=measures)
    values, constants = jax.device_get(trained)
    ends = np.cumsum(_counts(data, recipe))
    means = {
        f"{part}_{name}": float(value.mean())
        for name, of_rows in values.items()
        for part, value in zip(PARTS, np.split(of_rows[order.size - ends[0] :][: ends[-1]], ends[:-1]), strict=True)
    }
    found = {name: float(value) for name, value in _nan_where_diverged(means).items()}
    return found | {name: float(value) for name, value in constants.items()}


def _counts(data: Split, recipe: Recipe) -> list[int]:
    """How many rows the measures of each part are of: the training rows are those of the last epoch."""
    epoch = len(data.x) // recipe.batch * recipe.batch
    return [min(recipe.steps * recipe.batch, epoch), len(data.x_val), len(data.x_test)]


def _of_member(act: Activation, rows: jax.Array) -> jax.Array:
    """The rows as an array of the member's own, though all members have the same.

    Else a GPU multiplies the first layer's weights of all members by one matrix, and moves its values and gradients
    about to have the members first again.
    """
    return rows + (act.opcodes[0] < 0) if act.opcodes else rows  # no opcode is, which the compiler does not know


def _nan_where_diverged(means: dict[str, Any]) -> dict[str, Any]:
    finite = {part: np.isfinite(means["train_loss"] + means[f"{part}_loss"]) for part in PARTS}
    return {name: np.where(finite[name.split("_")[0]], value, np.nan) for name, value in means.items()}


def _together(
    build_model: Callable[..., Any], load_data: Callable[[], Split], recipe: Recipe, measures: Measures
) -> TrainMany:
    def prepare(seed: int) -> tuple[Any, np.ndarray]:
        data = load_data()
        params = _init(np.uint32(seed % 2**32), data.x[:1], build_model=build_model)
        return params, _batches(seed, len(data.x), recipe)

    def sums(act: Activation, prepared: tuple[Any, jax.Array]) -> dict[str, jax.Array]:
        params, order = prepared
        data = load_data()
        start, measured, update = _pieces(act, params, data, build_model, recipe, measures)
        # The part that each row counts for. Values of all rows would take a hundred times the room of the weights.
        first, *_ = counts = _counts(data, recipe)
        part_of_order = np.repeat(np.array([0, 1], np.int8), [order.size - first, first]).reshape(order.shape)
        held_out = _held_out(data, recipe)
        part_of_held_out = np.repeat(np.array([2, 3, 0], np.int8), [*counts[1:], held_out.size - sum(counts[1:])])

        def added(sums: dict[str, jax.Array], values: dict[str, jax.Array], part: jax.Array) -> dict[str, jax.Array]:
            # Not a product with weights, as 0 · nan is nan.
            here = [part == number for number in (1, 2, 3)]
            return {
                name: sums[name] + jnp.stack([jnp.where(of_part, value, 0).sum() for of_part in here])
                for name, value in values.items()
            }

        def train(carry: Any, batch: Any) -> tuple[Any, None]:
            (state, sums), (rows, part) = carry, batch
            state, values = update(state, _of_member(act, rows))
            return (state, added(sums, values, part)), None

        # Unlike in `_train` evaluation has a loop of its own: measured on an H100, it saves 3 to 7 % of the training,
        # and the kernel that stands at one place more costs no time to compile.
        zeros = {name: jnp.zeros(3) for name, _ in measures}
        ((params, _), of_order), _ = jax.lax.scan(train, (start, zeros), (order, part_of_order))

        def evaluate(sums: Any, batch: Any) -> tuple[Any, None]:
            rows, part = batch
            return added(sums, measured(params, _of_member(act, rows)), part), None

        totals, _ = jax.lax.scan(evaluate, of_order, (held_out, part_of_held_out.reshape(held_out.shape)))
        found = {f"{part}_{name}": total[k] for name, total in totals.items() for k, part in enumerate(PARTS)}
        return found | learnt(params)

    trained = population(sums, prepare=prepare)

    def train_many(acts: Activation, seeds: Any) -> dict[str, np.ndarray]:
        """Train K networks, one for each activation of a stack and seed; metrics are those of `train` [K]."""
        count: dict[str, int] = dict(zip(PARTS, _counts(load_data(), recipe), strict=True))
        totals = trained(acts, seeds)
        # Divided here, in float64: shares of rows are then those of a training alone.
        means = {
            name: np.float64(total) / count[name.split("_")[0]] for name, total in totals.items() if "/" not in name
        }
        return _nan_where_diverged(means) | {name: value for name, value in totals.items() if "/" in name}

    train_many.__module__ = build_model.__module__
    return train_many


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
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Train; return each measure of each row of the batches, then of validation and test rows (some of them twice).

    With them goes what the activation has learnt.
    """
    start, _, update = _pieces(act, params, data, build_model, recipe, measures)

    def step(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        rows, training = batch
        stepped, values = update(state, rows)
        return jax.tree.map(partial(jnp.where, training), stepped, state), values

    # Evaluation is more steps of the same loop, which leave the weights alone: a traced activation costs seconds of
    # compile time at every place where it stands, and so it stands at one place fewer.
    held_out = _held_out(data, recipe)
    rows, training = jnp.concatenate([order, held_out]), np.arange(len(order) + len(held_out)) < len(order)
    (params, _), values = jax.lax.scan(step, start, (rows, training))
    return {name: value.ravel() for name, value in values.items()}, learnt(params)


def _pieces(
    act: Activation, params: Any, data: Split, build_model: Callable[..., Any], recipe: Recipe, measures: Measures
) -> tuple[Any, Callable[[Any, Any], dict[str, jax.Array]], Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]]:
    """What a training consists of: its first state, each measure of some rows, and a step on them with its measures."""
    model = build_model(act)
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.rate, recipe.steps))
    x, y = (jnp.concatenate(parts) for parts in (data[::2], data[1::2]))
    params = with_constants(params, model, act, x[:1])

    def measured(params: Any, rows: Any) -> dict[str, jax.Array]:
        outputs = model.apply(params, x[rows])
        return {name: measure(outputs, y[rows]) for name, measure in measures}

    def update(state: Any, rows: Any) -> tuple[Any, dict[str, jax.Array]]:
        def mean_loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            values = measured(params, rows)
            return values[measures[0][0]].mean(), values

        gradient, values = jax.grad(mean_loss, has_aux=True)(state[0])
        updates, optimizer_state = optimizer.update(gradient, state[1])
        return (optax.apply_updates(state[0], updates), optimizer_state), values

    return (params, optimizer.init(params)), measured, update


def _held_out(data: Split, recipe: Recipe) -> np.ndarray:
    """Validation and test rows, which follow the training rows, in batches; the last is filled up from the first."""
    rows = np.arange(len(data.x), len(data.x) + len(data.x_val) + len(data.x_test), dtype=np.int32)
    return np.resize(rows, (-(-len(rows) // recipe.batch), recipe.batch))


def _batches(seed: int, n: int, recipe: Recipe) -> np.ndarray:
    """Rows of each step's batch [steps, batch]: every epoch is a fresh order of all examples, its odd rest left out."""
    per_epoch = n // recipe.batch
    epochs = -(-recipe.steps // per_epoch)
    # By NumPy: sorting random keys with XLA takes a tenth of mnist1d's training.
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n, dtype=np.int32), (epochs, 1)), axis=1)
    return orders[:, : per_epoch * recipe.batch].reshape(-1, recipe.batch)[: recipe.steps]
