"""Reaching the layers of a Flax NNX model: on a clone each layer's class is swapped for one that adds the tap."""

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
from aqx.fisher.layers import Apply, Layer, LeftOut
from aqx.fisher.sightings import Recorder, sort_out

_ROWS: dict[Callable[..., Any], rows.MakeRows] = {
    nnx.Linear.__call__: rows.dense_rows,
    nnx.LinearGeneral.__call__: rows.dense_general_rows,
    nnx.Conv.__call__: rows.conv_rows,
    nnx.ConvTranspose.__call__: rows.conv_transpose_rows,
    nnx.Embed.__call__: rows.embed_rows,
    nnx.Einsum.__call__: einsum_rows,
}
_PREFIX = "aqx_"


class Dummy(nnx.Param[jax.Array]):
    """A zero beside a kernel whose cotangent is a factor; a Param, so that transforms stack it like the kernel."""


def discover(
    model: nnx.Module, variables: None, x: Any, apply: Apply, sharing: str, examples: int
) -> tuple[tuple[Layer, ...], tuple[LeftOut, ...]]:
    """Trace the model once, without computing, and divide its parameters into covered layers and the rest."""
    recorder = Recorder()
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, module in _modules(model):
        held = {name: value for name, value in vars(module).items() if isinstance(value, nnx.Param)}
        if held:
            shapes[path] = {name: tuple(jnp.shape(value[...])) for name, value in held.items()}
        if type(module).__call__ not in _ROWS:
            recorder.other(path, type(module).__name__)

    def trace(x: Any) -> Any:
        clone = _clone(model)
        for path, module in _modules(clone):
            if type(module).__call__ in _ROWS:
                module.__class__ = _watched(type(module))
                module.aqx_note = _Note(path, recorder)
        return apply(clone, None, x)

    # With nnx.jit a cached trace would pass the recorder by.
    with jax.disable_jit():
        jax.eval_shape(trace, x)

    def verify(layer: Layer) -> bool:
        try:
            jax.eval_shape(
                lambda d: run(model, None, d, x, apply, layer.tap.settings), {layer.path: layer.zeros()._asdict()}
            )
        except Exception:  # whatever Flax or the model raises: these axes are not the ones
            return False
        return True

    return sort_out(recorder.seen, shapes, examples, sharing, verify)


def run(
    model: nnx.Module,
    variables: None,
    dummies: Mapping[str, Mapping[str, Any]],
    x: Any,
    apply: Apply,
    attach: Attach,
) -> Any:
    """The model's outputs, after `attach(path, rows, a, out, dummies)` has taken the place of each layer's output.

    Args:
        model: the model.
        variables: its variables; None for NNX.
        dummies: by layer path and name, in the stored layout; `attach` gets those of one slice, in the same order.
        x: a batch.
        apply: `apply(model, variables, x)`.
        attach: hashable; what it does may depend on nothing but itself and its arguments.
    """
    clone = _clone(model)
    modules = dict(_modules(clone))
    for path, beside in dummies.items():
        module = modules[path]
        module.__class__ = _tapped(type(module))
        module.aqx_attach, module.aqx_path, module.aqx_names = attach, path, tuple(beside)
        for name, value in beside.items():
            setattr(module, _PREFIX + name, Dummy(value))
    return apply(clone, None, x)


class _Note:
    """Where to record a call; static, and equal to itself alone."""

    def __init__(self, path: str, recorder: Recorder):
        self.path, self.recorder = path, recorder


@cache
def _watched(kind: type) -> type:
    make_rows = _ROWS[kind.__call__]

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = kind.__call__(self, *args, **kwargs)
        note = self.aqx_note
        note.recorder.leaf(
            note.path, make_rows, self, _kernel(self), rows.call_of(kind.__call__, self, args, kwargs), out
        )
        return out

    def attend(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.aqx_note.recorder.refuse(self.aqx_note.path, kind.__name__, "its table is also the output layer (attend)")
        return kind.attend(self, *args, **kwargs)

    return type(
        kind.__name__, (kind,), {"__call__": __call__} | ({"attend": attend} if hasattr(kind, "attend") else {})
    )


@cache
def _tapped(kind: type) -> type:
    make_rows = _ROWS[kind.__call__]

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = kind.__call__(self, *args, **kwargs)
        call = rows.call_of(kind.__call__, self, args, kwargs)
        mine = {name: getattr(self, _PREFIX + name)[...] for name in self.aqx_names}
        return self.aqx_attach(self.aqx_path, make_rows(self, _kernel(self).shape, call), call["inputs"], out, mine)

    return type(kind.__name__, (kind,), {"__call__": __call__})


def _clone(model: nnx.Module) -> nnx.Module:
    # `copy=True`: running a model may write to its variables (batch statistics), which are the caller's.
    return nnx.merge(*nnx.split(model), copy=True)


def _modules(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        yield "/".join(map(str, path)), module


def _kernel(module: Any) -> Any:
    return module.embedding[...] if isinstance(module, nnx.Embed) else module.kernel[...]
