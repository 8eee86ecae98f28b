"""Losses per example, recognised by the exact Fisher: softmax and binary cross-entropy, mean squared error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Real, Shaped

from aqx.errors import InputError

Array = jax.Array | np.ndarray


def softmax_cross_entropy(
    outputs: Float[Array, "N *T C"], y: Integer[Array, "N *T"] | Real[Array, "N *T C"]
) -> Float[jax.Array, " N"]:
    """Cross-entropy of softmax(outputs) with class labels, for each example.

    loss_n = mean_t −Σ_c p_ntc log softmax(outputs_nt)_c, with p the one-hot form of the labels.

    Args:
        outputs: logits [N, C]; of a model with positions [N, T, C].
        y: classes 0 … C−1 as integers [N] (or [N, T]), or one-hot rows or probabilities of the shape of the outputs.

    Returns:
        The loss of each example [N], in nats; further axes are averaged over.

    Raises:
        InputError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from aqx import losses
        >>> print(losses.softmax_cross_entropy(jnp.zeros((1, 10)), jnp.array([3])))
        [2.3025851]
    """
    outputs, y = jnp.asarray(outputs), jnp.asarray(y)
    if outputs.ndim > 1 and y.shape == outputs.shape[:-1] and jnp.issubdtype(y.dtype, jnp.integer):
        return _per_example(_optax().softmax_cross_entropy_with_integer_labels(outputs, y))
    if outputs.ndim > 1 and y.shape == outputs.shape:
        return _per_example(_optax().softmax_cross_entropy(outputs, y.astype(outputs.dtype)))
    raise InputError(
        f"y of shape {y.shape} and type {y.dtype} does not fit outputs {outputs.shape}; "
        f"give integer classes {outputs.shape[:-1]} or one-hot rows {outputs.shape}"
    )


def binary_cross_entropy(outputs: Float[Array, "N *D"], y: Shaped[Array, "N *_"]) -> Float[jax.Array, " N"]:
    """Cross-entropy of sigmoid(outputs) with labels 0 and 1, for each example.

    loss_n = mean_d −[y_nd log σ(outputs_nd) + (1 − y_nd) log(1 − σ(outputs_nd))].

    Args:
        outputs: logits [N] or [N, D]; not probabilities.
        y: labels (or probabilities) of the same shape; [N] also fits outputs [N, 1].

    Returns:
        The loss of each example [N], in nats: the mean over its D outputs.

    Raises:
        InputError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from aqx import losses
        >>> print(losses.binary_cross_entropy(jnp.zeros((2, 1)), jnp.array([0, 1])))
        [0.6931472 0.6931472]
    """
    return _per_example(_optax().sigmoid_binary_cross_entropy(*_same_shape(outputs, y)))


def mean_squared_error(outputs: Float[Array, "N *D"], y: Real[Array, "N *_"]) -> Float[jax.Array, " N"]:
    """Squared error averaged over the outputs, for each example: loss_n = 1/D Σ_d (outputs_nd − y_nd)².

    Args:
        outputs: predictions [N] or [N, D].
        y: targets of the same shape; [N] also fits outputs [N, 1].

    Returns:
        The loss of each example [N], in squared units of y.

    Raises:
        InputError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from aqx import losses
        >>> losses.mean_squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
        [2.5]
    """
    return _per_example(_optax().squared_error(*_same_shape(outputs, y)))


def _same_shape(outputs: Array, y: Array) -> tuple[jax.Array, jax.Array]:
    outputs, y = jnp.asarray(outputs), jnp.asarray(y)
    # Subtracting [N] from [N, 1] would broadcast to [N, N] without a word.
    if outputs.ndim == 0 or y.shape not in (outputs.shape, *([outputs.shape[:-1]] if outputs.shape[-1] == 1 else [])):
        raise InputError(f"y of shape {y.shape} does not fit outputs {outputs.shape}; give y the shape of the outputs")
    return outputs, y.reshape(outputs.shape).astype(outputs.dtype)


def _optax() -> Any:
    from optax import losses  # slow to import, and not needed before something is trained

    return losses


def _per_example(values: jax.Array) -> jax.Array:
    return values.mean(axis=tuple(range(1, values.ndim)))
