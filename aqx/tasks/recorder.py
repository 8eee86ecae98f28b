"""`InitRecorder`: initialises a Linen model by the calls that somebody's `apply` makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


class InitRecorder:
    """Stands in for a Linen model: a call of `apply` first initialises what the model lacks for it, and keeps that.

    Weights are made outside of the transforms that the call stands in (`lax.scan`, `vmap`, `jit`, an ODE solver, …), of
    which nothing but the shapes of its inputs is used: made inside they would be values of that transform, which must
    not leave it. Several calls, of several methods too, add up.

    Args:
        model: the model.
        key: of its initial weights.
        variables: what it has already, and what its calls add to.
    """

    def __init__(self, model: Any, key: jax.Array, variables: dict[str, Any] | None = None):
        self._model, self._key = model, key
        self.variables: dict[str, Any] = {} if variables is None else variables

    def apply(self, variables: Any, *args: Any, rngs: Any = None, **kwargs: Any) -> Any:
        """As `model.apply`, of which `mutable` and `capture_intermediates` do not matter to the initialisation."""
        passed = {name: value for name, value in kwargs.items() if name not in ("mutable", "capture_intermediates")}
        with jax.ensure_compile_time_eval():
            keys = {**(jax.tree.map(_concrete, rngs) if isinstance(rngs, Mapping) else {}), "params": self._key}
            _add(self.variables, self._initialised(keys, *jax.tree.map(_concrete, (args, passed))))
        known = dict(variables or {})
        _add(known, self.variables)
        return self._model.apply(known, *args, rngs=rngs, **kwargs)

    def _initialised(self, keys: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Initialise the model by one program; what is no array in its arguments is as it is, flags for example."""
        leaves, tree = jax.tree.flatten((args, kwargs))
        arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")}

        @jax.jit
        def init(keys: Any, arrays: dict[int, Any]) -> Any:
            args, kwargs = jax.tree.unflatten(tree, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
            return self._model.init(keys, *args, **kwargs)

        return init(keys, arrays)

    def clone(self, *args: Any, **kwargs: Any) -> InitRecorder:
        """As `model.clone`: another configuration of the same weights."""
        return InitRecorder(self._model.clone(*args, **kwargs), self._key, self.variables)

    copy = clone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _concrete(leaf: Any) -> Any:
    """In place of a value of a transform one of its shape and type, and any other as it is."""
    if not isinstance(leaf, Tracer):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        key = jax.random.key(0)
        return jax.random.split(key, leaf.shape) if leaf.shape else key
    return jnp.zeros(leaf.shape, leaf.dtype)


def _add(known: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add what is lacking, at any depth."""
    for name, value in more.items():
        mine = known.get(name)
        if name in known and isinstance(value, Mapping) and isinstance(mine, Mapping):
            known[name] = dict(mine)
            _add(known[name], value)
        elif name not in known:
            known[name] = value
