"""Gradients of each example's loss with respect to the model's outputs, for the three kinds of Fisher matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from aqx import losses
from aqx.errors import InputError, UnsupportedError

Fisher = Literal["empirical", "exact", "sampled"]
Loss = Callable[[Any, Any], Any]


def output_gradients(
    fisher: str, loss: Loss, outputs: Any, y: Any, examples: int, key: Key[Array, ""]
) -> tuple[Float[Array, " N"], Any]:
    """Losses, and S gradients per example (leaves [S, N, …]) whose outer products sum to the Fisher of the outputs.

    empirical: the gradient at the true label (S = 1).
    exact: a root of the output Hessian: √p_c (p − e_c) per class for softmax, √(σ(1−σ)/D) e_d per output for binary
    cross-entropy and √(2/D) e_d for mean squared error, both of which average D outputs.
    sampled: one draw with that second moment (S = 1).

    Raises:
        InputError: the loss is not per example.
        UnsupportedError: `fisher` is not defined for this loss or these outputs.
    """
    losses_, pull_back = jax.vjp(lambda out: per_example_losses(loss, out, y, examples), outputs)
    if fisher == "empirical":
        (true_gradient,) = pull_back(jnp.ones_like(losses_))
        return losses_, jax.tree.map(lambda g: g[None], true_gradient)
    if loss not in _ROOTS:
        raise UnsupportedError(
            f'fisher="{fisher}" needs one of the losses {", ".join(f"aqx.losses.{f.__name__}" for f in _ROOTS)}, '
            f'but got {getattr(loss, "__name__", loss)!r}; use fisher="empirical"'
        )
    if not hasattr(outputs, "shape"):
        raise UnsupportedError(f'fisher="{fisher}" needs one array of outputs; use fisher="empirical"')
    exact, sampled = _ROOTS[loss]
    if fisher == "sampled":
        return losses_, sampled(outputs, key)[None]
    if outputs.ndim > 2:
        raise UnsupportedError(
            f'fisher="exact" needs outputs of shape [N, C], but got {outputs.shape}; use fisher="sampled"'
        )
    return losses_, exact(outputs.reshape(examples, -1)).reshape(-1, *outputs.shape)


def per_example_losses(loss: Loss, outputs: Any, y: Any, examples: int) -> Float[Array, " N"]:
    """loss(outputs, y), which must be one value per example.

    Raises:
        InputError: it is not.
    """
    values = loss(outputs, y)
    if getattr(values, "shape", None) != (examples,):
        raise InputError(
            f"loss returned {_describe(values)}, but one value per example is needed, shape ({examples},); "
            "leave out the mean over examples"
        )
    return values


def _exact_softmax(z: Float[Array, "N C"]) -> Float[Array, "C N C"]:
    p = jax.nn.softmax(z)
    identity = jnp.eye(z.shape[1], dtype=z.dtype)
    return jnp.sqrt(p.T)[:, :, None] * (p[None] - identity[:, None, :])


def _sampled_softmax(z: Float[Array, "N *T C"], key: Key[Array, ""]) -> Float[Array, "N *T C"]:
    drawn = jax.nn.one_hot(jax.random.categorical(key, z), z.shape[-1], dtype=z.dtype)
    # The loss averages the positions; independent draws at T of them have T times the second moment of the mean.
    return (jax.nn.softmax(z) - drawn) / jnp.sqrt(z[0, ..., 0].size).astype(z.dtype)


def _exact_binary(z: Float[Array, "N D"]) -> Float[Array, "D N D"]:
    root = jnp.sqrt(jax.nn.sigmoid(z) * jax.nn.sigmoid(-z) / z.shape[1])
    return root[None] * jnp.eye(z.shape[1], dtype=z.dtype)[:, None, :]


def _sampled_binary(z: Float[Array, "N *D"], key: Key[Array, ""]) -> Float[Array, "N *D"]:
    p = jax.nn.sigmoid(z)
    return (p - jax.random.bernoulli(key, p)) / jnp.sqrt(z[0].size).astype(z.dtype)


def _exact_squared(z: Float[Array, "N D"]) -> Float[Array, "D N D"]:
    root = jnp.sqrt(jnp.asarray(2 / z.shape[1], z.dtype))
    return root * jnp.ones_like(z)[None] * jnp.eye(z.shape[1], dtype=z.dtype)[:, None, :]


def _sampled_squared(z: Float[Array, "N *D"], key: Key[Array, ""]) -> Float[Array, "N *D"]:
    return jax.random.normal(key, z.shape, z.dtype) * jnp.sqrt(jnp.asarray(2 / z[0].size, z.dtype))


_ROOTS: dict[Loss, tuple[Callable[..., Any], Callable[..., Any]]] = {
    losses.softmax_cross_entropy: (_exact_softmax, _sampled_softmax),
    losses.binary_cross_entropy: (_exact_binary, _sampled_binary),
    losses.mean_squared_error: (_exact_squared, _sampled_squared),
}


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}" if shape is None else f"shape {tuple(shape)}"
