"""Give a function its derivative in closed form."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Elementwise = Callable[[jax.Array], jax.Array]


def with_derivative(derivative: Elementwise) -> Callable[[Elementwise], Elementwise]:
    """Decorate a function of one array, so that JAX differentiates it by the given derivative."""

    def decorate(value: Elementwise) -> Elementwise:
        rule = jax.custom_jvp(value)
        rule.defjvp(lambda x, t: (rule(*x), derivative(*x) * t[0]))

        @functools.wraps(value)
        def function(x: ArrayLike) -> jax.Array:
            x = jnp.asarray(x)
            wide = jnp.promote_types(x.dtype, jnp.float32)
            if wide == x.dtype:
                return rule(x)
            y = rule(x.astype(wide))
            return y.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else y

        return function

    return decorate
