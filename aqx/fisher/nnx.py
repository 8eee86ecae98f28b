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
from aqx.fisher.kinds import Kind, Use, few_bits, kind_of
from aqx.fisher.layers import Apply, Sightings, shape_of

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


def parameters(state: Any) -> dict[str, dict[str, Any]]:
    """As `Flavour.parameters`."""
    held: dict[str, dict[str, Any]] = {}
    for (*path, name), variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.Param):
            held.setdefault("/".join(map(str, path)), {})[str(name)] = variable.get_value()
    return held


def replaced(state: Any, parameters: Mapping[str, Mapping[str, Any]]) -> Any:
    """As `Flavour.replaced`."""
    flat = []
    for (*path, name), variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.Param):
            variable = variable.replace(parameters["/".join(map(str, path))][str(name)])
        flat.append(((*path, name), variable))
    return nnx.from_flat_state(flat)


def structure(build: Callable[[], nnx.Module]) -> nnx.GraphDef[Any]:
    """As `Flavour.structure`."""
    # Under eval_shape the new model's own initialisation costs nothing.
    return nnx.graphdef(nnx.eval_shape(build))


def discover(model: nnx.Module, variables: None, x: Any, apply: Apply) -> Sightings:
    """As `Flavour.discover`."""
    held = parameters(nnx.state(model))
    shapes = {path: {name: shape_of(leaf) for name, leaf in here.items()} for path, here in held.items()}
    modules = dict(_modules(model))
    # In the order of the modules; parameters in dicts and lists lie outside of any.
    sightings = Sightings({path: shapes[path] for path in (*modules, *shapes) if path in shapes})
    for path in shapes:
        if path not in modules:
            sightings.refuse(path, "it lies outside of any layer")
    first: dict[int, str] = {}
    for path, module in modules.items():
        for variable in vars(module).values():
            if isinstance(variable, nnx.Param) and (other := first.setdefault(id(variable), path)) != path:
                sightings.refuse(path, f"its weights are also used elsewhere, in {other}")
                sightings.refuse(other, f"its weights are also used elsewhere, in {path}")
        if isinstance(module, nnx.WeightNorm | nnx.SpectralNorm):
            for inner, _ in _modules(module.layer_instance):
                below = "/".join(filter(None, (path, "layer_instance", inner)))
                sightings.refuse(below, f"{type(module).__name__} changes its weights")
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
    wide: bool = False,
) -> Any:
    """As `Flavour.run`."""
    clone = _clone(model)
    modules = dict(_modules(clone))
    for module in modules.values():
        if wide and few_bits(module):
            module.dtype = jnp.float32
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
        return self.aqx_note.sightings.use(self.aqx_note.path, _use(kind, self, layer, args, kwargs), out)

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
    has_bias = getattr(module, kind.bias, None) is not None
    return kind.use(module, tuple(kernel.shape), has_bias, layer.__call__, args, kwargs)


def _clone(model: nnx.Module) -> nnx.Module:
    # `copy=True`: running a model may write to its variables (batch statistics), which are the caller's.
    return nnx.merge(*nnx.split(model), copy=True)


def _modules(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        yield "/".join(map(str, path)), module
