"""`Act` for Flax Linen: an activation function whose constants are parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.errors import CallCompactUnboundModuleError
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx.activation import Activation, learnable
from aqx.errors import InputError
from aqx.learnable import is_constant, names_of
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
    def __call__(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "..."]:
        """Apply the function with the constants learnt so far; y is the second input of one that has two."""
        act = learnable(self.act, self.per)
        shape = ()
        if self.per == "channel":
            # Of two inputs that do not broadcast, the function itself complains.
            shape = max(jnp.shape(x)[-1:], () if y is None else jnp.shape(y)[-1:])
            if not shape:
                raise InputError('per="channel" needs an input with channels along its last axis, but it is a number')
        constants = [
            self.param(name, lambda key, number=number: jnp.full(shape, number, self.param_dtype))
            for name, number in zip(names_of(len(act.numbers)), act.numbers, strict=True)
        ]
        return act.applied(x, constants, y)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, repr=False)
class Learning(Activation):
    """A function that learns its constants wherever a Linen module calls it: there it is an `Act` of that module.

    So a model written for a plain activation, called in `nn.compact`, learns without a change. Elsewhere it is the
    plain function. It is stacked, traced and pickled as any Activation.

    Attributes:
        per: as of `Act`.

    Example:
        >>> import aqx, jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> act = aqx.linen.Learning.of(aqx.activation("max(x,mul(0.5,x))"))
        >>> variables = nn.Sequential([nn.Dense(3), lambda x: act(x)]).init(jax.random.key(0), jnp.ones((1, 2)))
        >>> sorted(variables["params"])
        ['Act_0', 'layers_0']
    """

    per: str = "layer"

    @classmethod
    def of(cls, act: Activation, per: str = "layer") -> Learning:
        """Return the function as one that learns; stacks and traced functions too."""
        return cls(act.schema, act.table, act.opcodes, act.constants, act.numbers, per)

    @property
    def plain(self) -> Activation:
        """The function that learns nothing."""
        return Activation(self.schema, self.table, self.opcodes, self.constants, self.numbers)

    def __call__(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "..."]:
        """Apply the function, with the constants of the module that calls it."""
        if self.numbers:
            try:
                return Act(self.plain, self.per)(x, y)
            except CallCompactUnboundModuleError:  # outside of any module
                pass
        return super().__call__(x, y)

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Return the leaves and the static part, as JAX asks."""
        leaves, static = super().tree_flatten()
        return leaves, (static, self.per)

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: Sequence[Any]) -> Learning:
        """Rebuild a function from whatever JAX puts in place of its leaves."""
        return cls.of(Activation.tree_unflatten(static[0], leaves), static[1])

    @cached_property
    def _value(self) -> tuple[Any, ...]:
        return *super()._value, self.per

    def __reduce__(self) -> tuple[Any, ...]:
        return Learning.of, (self.plain, self.per)


def with_constants(variables: Any, model: nn.Module, act: Any, *args: Any) -> Any:
    """Return a model's variables with the constants that its function starts from, where it learns some.

    Initial weights are made once for all functions; the constants differ from function to function.

    Args:
        variables: of the model with another function.
        model: with the function.
        act: the function.
        args: what the model is called with.
    """
    if not isinstance(act, Learning) or not act.numbers:
        return variables
    whole = jax.tree_util.tree_flatten_with_path(model.init(jax.random.key(0), *args))
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]}
    leaves = [known.get(jax.tree_util.keystr(path), leaf) for path, leaf in whole[0]]
    return jax.tree.unflatten(whole[1], leaves)


def learnt(variables: Any) -> dict[str, Array]:
    """Return the learnt constants among a model's variables, a number each by its name `learnt/…/c0`.

    Channels, and layers that a scan has stacked, are numbered.
    """
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    paths = [([str(getattr(key, "key", key)) for key in path], leaf) for path, leaf in leaves]
    constants = {"/".join(["learnt", *path[path[0] == "params" :]]): leaf for path, leaf in paths if is_constant(path)}
    return {
        "/".join([name, *map(str, at)]): leaf[at] for name, leaf in constants.items() for at in np.ndindex(*leaf.shape)
    }
