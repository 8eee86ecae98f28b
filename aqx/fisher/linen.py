"""The flavour of Flax Linen: an interceptor adds the taps, and the dummies live beside the kernels in `params`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.core import meta, unfreeze

from aqx.fisher import rows
from aqx.fisher.einsum import einsum_rows
from aqx.fisher.factors import Attach
from aqx.fisher.kinds import Kind, Use, few_bits, kind_of
from aqx.fisher.layers import Apply, Sightings, shape_of

KINDS: dict[type, Kind] = {
    nn.Dense: Kind(rows.dense_rows),
    nn.DenseGeneral: Kind(rows.dense_general_rows),
    nn.Conv: Kind(rows.conv_rows),
    nn.ConvTranspose: Kind(rows.conv_transpose_rows),
    nn.Embed: Kind(rows.embed_rows, kernel="embedding"),
    nn.Einsum: Kind(einsum_rows),
}


def default_apply(model: nn.Module, variables: Any, x: Any) -> Any:
    """As `Flavour.default_apply`."""
    return model.apply(variables, x)


def split(model: nn.Module, variables: Any) -> tuple[nn.Module, Any]:
    """As `Flavour.split`: a Linen model is a structure as it is."""
    return model, variables


def merge(structure: nn.Module, state: Any) -> tuple[nn.Module, Any]:
    """As `Flavour.merge`."""
    return structure, state


def parameters(state: Any) -> dict[str, dict[str, Any]]:
    """As `Flavour.parameters`."""
    held: dict[str, dict[str, Any]] = {}
    for (*path, name), leaf in traverse_util.flatten_dict(meta.unbox(unfreeze(state.get("params", {})))).items():
        held.setdefault("/".join(path), {})[name] = leaf
    return held


def replaced(state: Any, parameters: Mapping[str, Mapping[str, Any]]) -> Any:
    """As `Flavour.replaced`."""
    flat = {
        (*filter(None, path.split("/")), name): leaf for path, held in parameters.items() for name, leaf in held.items()
    }
    return {**state, "params": traverse_util.unflatten_dict(flat)}


def structure(build: Callable[[], nn.Module]) -> nn.Module:
    """As `Flavour.structure`."""
    return build()


def discover(model: nn.Module, variables: Mapping[str, Any], x: Any, apply: Apply) -> Sightings:
    """As `Flavour.discover`."""
    held = parameters(variables)
    sightings = Sightings({path: {name: shape_of(leaf) for name, leaf in held[path].items()} for path in held})
    reparametrised: list[str] = []
    plainly = _Plainly()

    def watch(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if isinstance(module, nn.WeightNorm | nn.SpectralNorm):
            reparametrised.append(type(module).__name__)
            out = call(*args, **kwargs)
            reparametrised.pop()
        else:
            out = plainly(call, args, kwargs, context)
        if module.scope is None:
            return out
        path, kind = "/".join(module.scope.path), kind_of(type(module), KINDS)
        if kind is None:
            sightings.other(path, type(module))
        elif context.method_name == "attend" and isinstance(module, nn.Embed):
            sightings.attend(path)
        elif context.method_name == "__call__" and reparametrised:
            sightings.refuse(path, f"{reparametrised[-1]} changes its weights")
        elif context.method_name == "__call__":
            return sightings.use(path, _use(kind, module, args, kwargs), out)
        return out

    # nn.jit reuses a trace for every module that looks alike, so that `watch` would miss all but the first.
    with nn.intercept_methods(watch), jax.disable_jit():
        jax.eval_shape(lambda v, x: apply(model, v, x), dict(variables), x)
    return sightings


def run(
    model: nn.Module,
    variables: Mapping[str, Any],
    dummies: Mapping[str, Mapping[str, Any]],
    x: Any,
    apply: Apply,
    attach: Attach,
    wide: bool = False,
) -> Any:
    """As `Flavour.run`."""
    # nn.jit keeps its traces by the structure of the variables, so the names say what is attached.
    prefix = f"aqx_{hash(attach) % 2**64:x}_"
    plainly = _Plainly()

    def intercept(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        dtype, narrow = getattr(module, "dtype", None), wide and few_bits(module)
        if narrow:
            object.__setattr__(module, "dtype", jnp.float32)  # as a module is frozen
        try:
            out = plainly(call, args, kwargs, context)
        finally:
            if narrow:
                object.__setattr__(module, "dtype", dtype)
        kind = kind_of(type(module), KINDS) if context.method_name == "__call__" else None
        if kind is None or module.scope is None:
            return out
        names = [name for name in module.variables.get("params", {}) if name.startswith(prefix)]
        if not names:
            return out
        mine = {name.removeprefix(prefix): module.get_variable("params", name) for name in names}
        use = _use(kind, module, args, kwargs)
        return attach("/".join(module.scope.path), use.rows, use.a, out, mine)

    params = unfreeze(variables.get("params", {}))
    for path, beside in dummies.items():
        params = inner = dict(params)
        for part in path.split("/") if path else ():
            inner[part] = inner = dict(inner[part])
        inner.update({prefix + name: value for name, value in beside.items()})
    with nn.intercept_methods(intercept):
        return apply(model, {**variables, "params": params}, x)


class _Plainly:
    """Calls a method; of an optimised LSTM cell that of the plain one, which has the same weights in layers."""

    def __init__(self) -> None:
        self._inside: nn.Module | None = None

    def __call__(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        cell = context.module
        if type(cell) is not nn.OptimizedLSTMCell or context.method_name != "__call__" or self._inside is cell:
            return call(*args, **kwargs)
        self._inside = cell
        try:
            return nn.LSTMCell.__call__(cast(Any, cell), *args, **kwargs)
        finally:
            self._inside = None


def _use(kind: Kind, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Use:
    kernel = meta.unbox(module.get_variable("params", kind.kernel))
    has_bias = module.has_variable("params", kind.bias)
    return kind.use(module, tuple(kernel.shape), has_bias, type(module).__call__, args, kwargs)
