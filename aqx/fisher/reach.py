"""How many gradient rows reach each layer, and whether each belongs to one example; counted without computing them.

A second size of batch tells the axis of the examples from others that happen to be as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aqx.errors import UnsupportedError
from aqx.fisher.factors import looking_at
from aqx.fisher.flavour import Flavour
from aqx.fisher.layers import Apply, Layer, LeftOut
from aqx.fisher.outputs import Loss, per_example_losses
from aqx.fisher.rows import Rows


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _counted(rows: Rows, out: Array, zero: Float[Array, "1 1 2"]) -> Array:
    """Identity on `out`; the cotangent of `zero` counts the gradient rows, and those on the leading axis."""
    return out


def _forward(rows: Rows, out: Array, zero: Float[Array, "1 1 2"]) -> tuple[Array, None]:
    return out, None


def _backward(rows: Rows, _: None, g: Array) -> tuple[Array, Float[Array, "1 1 2"]]:
    leading, positions = jax.eval_shape(rows.gradients, g).shape[:2]
    return g, looking_at(g, jnp.asarray([[[leading * positions, leading]]], jnp.float32))


_counted.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Counting:
    """Attaches a counter to each layer."""

    def __call__(self, path: str, rows: Rows, a: Array, out: Array, dummies: Mapping[str, Array]) -> Array:
        return _counted(rows, out, dummies["rows"])


def rows_reached(
    flavour: Flavour,
    layers: Sequence[Layer],
    model: Any,
    variables: Any,
    apply: Apply,
    loss: Loss,
    x: Any,
    y: Any,
) -> dict[str, Float[np.ndarray, "S 2"]]:
    """Count the gradient rows at each slice of each layer: N·T, or 0 where the loss never reaches it.

    And how many of them lie on the leading axis of each use, all uses together.
    """
    examples = jax.tree.leaves(x)[0].shape[0]
    structure, state = flavour.split(model, variables)

    @jax.jit
    def count(state: Any, x: Any, y: Any) -> dict[str, Float[Array, "S 2"]]:
        pair = flavour.merge(structure, state)

        def total(dummies: Mapping[str, Mapping[str, Array]]) -> Float[Array, ""]:
            outputs = flavour.run(*pair, dummies, x, apply, _Counting())
            return per_example_losses(loss, outputs, y, examples).sum()

        # Loss and model as one function: an output that the loss ignores passes nothing back, and no array of zeros.
        zeros = {layer.path: {"rows": jnp.zeros(layer.stored((1, 1, 2)), jnp.float32)} for layer in layers}
        counts = jax.grad(total)(zeros)
        # Only counts leave the program, so that XLA drops its arithmetic.
        return {layer.path: layer.fronted(counts[layer.path]["rows"]).reshape(-1, 2) for layer in layers}

    return jax.device_get(count(state, x, y))


def keeping_few_rows(layer: Layer, reached: Float[np.ndarray, "S 2"], fisher: str) -> Layer:
    """The layer with its rows kept where they are fewer than a factor's dimension and all come from one use.

    Uses add up in a factor, and so do the classes of an exact G; rows cannot.
    """
    if layer.tap.rows.one_hot or not layer.count or (reached[:, 0] != layer.count).any():
        return layer
    (_, _, d), (_, _, p) = layer.eigenvalue_shapes
    rows = layer.tap.settings.examples if layer.tap.settings.sharing == "reduce" else layer.count
    kept = rows if rows < d else 0, rows if rows < p and fisher != "exact" else 0
    return replace(layer, tap=replace(layer.tap, kept=kept))


def without_shared_rows(
    layers: Sequence[Layer],
    once: Mapping[str, Float[np.ndarray, "S 2"]],
    count: Callable[[Any, Any], dict[str, Float[np.ndarray, "S 2"]]],
    sharing: str,
    x: Any,
    y: Any,
) -> tuple[tuple[Layer, ...], tuple[LeftOut, ...]]:
    """Leave out layers with rows that examples share, as of a position embedding that is broadcast later.

    The gradient of such a row is a sum over examples already, and its square no sum of squares. Twice the examples have
    twice the rows where each row is one example's.

    Args:
        layers: all of a model that are Kronecker.
        once: count(x, y).
        count: count(x, y) returns the rows that reach each slice of each of them.
        sharing: "reduce" needs the examples on the leading axis.
        x: a batch.
        y: its labels.

    Returns:
        The layers that stay, and those that do not.

    Raises:
        UnsupportedError: sharing="reduce", and the leading axis of a layer is as long as the batch but another one.
    """
    examples = jax.tree.leaves(x)[0].shape[0]

    def doubled(leaf: Array) -> Array:
        return jnp.concatenate([leaf, leaf]) if leaf.shape[:1] == (examples,) else leaf

    try:
        twice = count(*jax.tree.map(doubled, (x, y)))
    except Exception:  # whatever Flax or the model raises: it takes this size of batch alone
        # Then the numbers show only rows that cannot be the same number per example.
        twice = {path: np.where(rows % examples, rows, 2 * rows) for path, rows in once.items()}
        if sharing == "reduce":
            for path, rows in once.items():
                # Of one axis there is no doubt, nor of others that are not as long.
                twice[path][rows[:, 0] == examples * rows[:, 1], 1] = 0
    stay, left_out = [], []
    for layer in layers:
        before, leading = once[layer.path].T
        after, leading_after = twice[layer.path].T
        if (after < 2 * before * (1 - 1e-6)).any():
            part = "its input" if (after == before).all() else "some of its input"
            reason = f"{part} is the same for every example, so that its gradient is a sum over examples"
            left_out.append(LeftOut(layer.path, layer.weights, reason))
            continue
        if sharing == "reduce" and ((leading_after != 2 * leading) & (leading % examples == 0)).any():
            raise UnsupportedError(
                f'sharing="reduce" needs the examples on the leading axis of every layer, but that of {layer.path} is '
                f'as long as the batch, {examples}, and does not grow with it; use sharing="expand"'
            )
        stay.append(layer)
    return tuple(stay), tuple(left_out)
