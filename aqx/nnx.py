"""`Act` for Flax NNX: an activation function whose constants are parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx.activation import Activation, learnable
from aqx.errors import InputError
from aqx.learnable import names_of
from aqx.tree import Tree


class Act(nnx.Module):
    """An activation function that learns its constants: parameters c0, c1, … that start at the function's own.

    A function without constants stays what it is, and has no parameters; `aqx.parametrised` gives it some.

    Args:
        act: the function: a name, its tree or an Activation, which may be traced, as in a population.
        per: "layer" for one set of constants, "channel" for one for each entry of the last axis.
        features: how many channels there are, for `per="channel"`.
        rngs: taken as all layers take it; constants start at no random values.
        param_dtype: of the parameters; values have the dtype of the input.

    Raises:
        InputError: `per` is unknown, or features are missing, or not for "channel".

    Example:
        >>> import aqx
        >>> from flax import nnx
        >>> act = aqx.nnx.Act("max(x,mul(0.5,x))", rngs=nnx.Rngs(0))
        >>> float(act.c0[...]), float(act(-2.0))
        (0.5, -1.0)
    """

    def __init__(
        self,
        act: str | Tree | Activation,
        *,
        per: str = "layer",
        features: int | None = None,
        rngs: nnx.Rngs | None = None,
        param_dtype: Any = jnp.float32,
    ):
        del rngs
        function = learnable(act, per)
        if (per == "channel") != (features is not None):
            raise InputError(f'features={features} does not go with per={per!r}; give it for "channel", and only there')
        self.act: Activation = function
        self.per: str = per
        shape = () if features is None else (features,)
        for name, number in zip(names_of(len(function.numbers)), function.numbers, strict=True):
            setattr(self, name, nnx.Param(jnp.full(shape, number, param_dtype)))

    def __call__(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "..."]:
        """Apply the function with the constants learnt so far; y is the second input of one that has two."""
        return self.act.applied(x, [getattr(self, name)[...] for name in names_of(len(self.act.numbers))], y)
