"""The flavour of Flax NNX: on a clone each layer's class is swapped for one that adds the tap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from aqx.fisher import rows
from aqx.fisher.einsum import einsum_rows
from aqx.fisher.factors import Attach
from aqx.fisher.kinds import Kind, Use, kind_of
from aqx.fisher.layers import Apply, Sightings

KINDS: dict[type, Kind] = {
    nnx.Linear: Kind(rows.dense_rows),
    nnx.LinearGeneral: Kind(rows.dense_general_rows),
    nnx.Conv: Kind(rows.conv_rows),
    nnx.ConvTranspose: Kind(rows.conv_transpose_rows),
    nnx.Embed: Kind(rows.embed_rows, kernel="embedding"),
    nnx.Einsum: Kind(einsum_rows),
}
_PREFIX = "aqx_"


class Dummy(nnx.Param[jax.Array]):
    """A zero beside a kernel whose cotangent is a factor; a Param, so that transforms stack it like the kernel."""


def default_apply(model: Any, variables: None, x: Any) -> Any:
    """As `Flavour.default_apply`."""
    return model(x)


def split(model: nnx.Module, variables: None) -> tuple[nnx.GraphDef[Any], Any]:
    """As `Flavour.split`."""
    return nnx.split(model)


def merge(structure: nnx.GraphDef[Any], state: Any) -> tuple[nnx.Module, None]:
    """As `Flavour.merge`."""
    return nnx.merge(structure, state), None


def structure(build: Callable[[], nnx.Module]) -> nnx.GraphDef[Any]:
    """As `Flavour.structure`."""
    # Under eval_shape the new model's own initialisation costs nothing.
    return nnx.graphdef(nnx.eval_shape(build))


def discover(model: nnx.Module, variables: None, x: Any, apply: Apply) -> Sightings:
    """As `Flavour.discover`."""
    sightings = Sightings({})
    for path, module in _modules(model):
        held = {name: value for name, value in vars(module).items() if isinstance(value, nnx.Param)}
        if held:
            sightings.parameters[path] = {name: tuple(jnp.shape(value[...])) for name, value in held.items()}
        if kind_of(type(module), KINDS) is None:
            sightings.other(path, type(module))

    def trace(x: Any) -> Any:
        clone = _clone(model)
        for path, module in _modules(clone):
            if kind := kind_of(type(module), KINDS):
                module.__class__ = _watched(type(module), kind)
                module.aqx_note = _Note(path, sightings)
        return apply(clone, None, x)

    # With nnx.jit a cached trace would pass the sightings by.
    with jax.disable_jit():
        jax.eval_shape(trace, x)
    return sightings


def run(
    model: nnx.Module,
    variables: None,
    dummies: Mapping[str, Mapping[str, Any]],
    x: Any,
    apply: Apply,
    attach: Attach,
) -> Any:
    """As `Flavour.run`."""
    clone = _clone(model)
    modules = dict(_modules(clone))
    for path, beside in dummies.items():
        module = modules[path]
        kind = kind_of(type(module), KINDS)
        assert kind, "only layers of a known kind have dummies"
        module.__class__ = _tapped(type(module), kind)
        module.aqx_attach, module.aqx_path, module.aqx_names = attach, path, tuple(beside)
        for name, value in beside.items():
            setattr(module, _PREFIX + name, Dummy(value))
    return apply(clone, None, x)


class _Note:
    """Where to note a call; static, and equal to itself alone."""

    def __init__(self, path: str, sightings: Sightings):
        self.path, self.sightings = path, sightings


@cache
def _watched(layer: type, kind: Kind) -> type:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = layer.__call__(self, *args, **kwargs)
        self.aqx_note.sightings.use(self.aqx_note.path, _use(kind, self, layer, args, kwargs), out)
        return out

    def attend(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.aqx_note.sightings.attend(self.aqx_note.path)
        return layer.attend(self, *args, **kwargs)

    methods = {"__call__": __call__} | ({"attend": attend} if hasattr(layer, "attend") else {})
    return type(layer.__name__, (layer,), methods)


@cache
def _tapped(layer: type, kind: Kind) -> type:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = layer.__call__(self, *args, **kwargs)
        mine = {name: getattr(self, _PREFIX + name)[...] for name in self.aqx_names}
        use = _use(kind, self, layer, args, kwargs)
        return self.aqx_attach(self.aqx_path, use.rows, use.a, out, mine)

    return type(layer.__name__, (layer,), {"__call__": __call__})


def _use(kind: Kind, module: Any, layer: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Use:
    # The type is the one that the module had: the call of the one that it was given takes anything.
    kernel = getattr(module, kind.kernel)[...]
    return kind.use(module, tuple(kernel.shape), layer.__call__, args, kwargs)


def _clone(model: nnx.Module) -> nnx.Module:
    # `copy=True`: running a model may write to its variables (batch statistics), which are the caller's.
    return nnx.merge(*nnx.split(model), copy=True)


def _modules(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        yield "/".join(map(str, path)), module
