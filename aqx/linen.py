"""`Act` for Flax Linen: an activation function whose constants are parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx.activation import Activation, learnable
from aqx.errors import InputError
from aqx.learnable import names_of
from aqx.tree import Tree


class Act(nn.Module):
    """An activation function that learns its constants: parameters c0, c1, … that start at the function's own.

    A function without constants stays what it is, and has no parameters; `aqx.parametrised` gives it some.

    Attributes:
        act: the function: a name, its tree or an Activation, which may be traced, as in a population.
        per: "layer" for one set of constants, "channel" for one for each entry of the last axis.
        param_dtype: of the parameters; values have the dtype of the input.

    Example:
        >>> import aqx, jax, jax.numpy as jnp
        >>> module = aqx.linen.Act(aqx.parametrised("swish(x)"))
        >>> variables = module.init(jax.random.key(0), jnp.ones(3))
        >>> {name: float(value) for name, value in variables["params"].items()}
        {'c0': 1.0, 'c1': 1.0}
    """

    act: str | Tree | Activation
    per: str = "layer"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: ArrayLike) -> Float[Array, "..."]:
        """Apply the function with the constants learnt so far."""
        act = learnable(self.act, self.per)
        if self.per == "channel" and not jnp.ndim(x):
            raise InputError('per="channel" needs an input with channels along its last axis, but it is a number')
        shape = jnp.shape(x)[-1:] if self.per == "channel" else ()
        constants = [
            self.param(name, lambda key, number=number: jnp.full(shape, number, self.param_dtype))
            for name, number in zip(names_of(len(act.numbers)), act.numbers, strict=True)
        ]
        return act.applied(x, constants)
