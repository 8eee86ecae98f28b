"""Reaching the layers of a Flax Linen model: an interceptor adds the taps, the dummies live beside the kernels."""

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
from aqx.fisher.layers import Apply, Layer, LeftOut
from aqx.fisher.sightings import Recorder, sort_out

# A subclass that keeps a layer's own __call__ computes what the layer computes; one that overrides it may not.
_ROWS: dict[Callable[..., Any], rows.MakeRows] = {
    nn.Dense.__call__: rows.dense_rows,
    nn.DenseGeneral.__call__: rows.dense_general_rows,
    nn.Conv.__call__: rows.conv_rows,
    nn.ConvTranspose.__call__: rows.conv_transpose_rows,
    nn.Embed.__call__: rows.embed_rows,
    nn.Einsum.__call__: einsum_rows,
}


def discover(
    model: nn.Module, variables: Mapping[str, Any], x: Any, apply: Apply, sharing: str, examples: int
) -> tuple[tuple[Layer, ...], tuple[LeftOut, ...]]:
    """Trace the model once, without computing, and divide its parameters into covered layers and the rest."""
    recorder = Recorder()
    reparametrised: list[str] = []

    def watch(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module, kind = context.module, type(context.module).__name__
        wraps = isinstance(module, nn.WeightNorm | nn.SpectralNorm)
        reparametrised.extend([kind] * wraps)
        out = call(*args, **kwargs)
        del reparametrised[len(reparametrised) - wraps :]
        if module.scope is None:
            return out
        path = "/".join(module.scope.path)
        make_rows = _ROWS.get(type(module).__call__)
        if make_rows is rows.embed_rows and context.method_name == "attend":
            recorder.refuse(path, kind, "its table is also the output layer (attend)")
        elif make_rows and context.method_name == "__call__" and reparametrised:
            recorder.refuse(path, kind, f"{reparametrised[-1]} changes its weights")
        elif make_rows and context.method_name == "__call__":
            arguments = rows.call_of(type(module).__call__, module, args, kwargs)
            recorder.leaf(path, make_rows, module, _kernel(module), arguments, out)
        elif not make_rows:
            recorder.other(path, kind)
        return out

    # nn.jit reuses a trace for every module that looks alike, so that `watch` would miss all but the first.
    with nn.intercept_methods(watch), jax.disable_jit():
        jax.eval_shape(lambda v, x: apply(model, v, x), dict(variables), x)

    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for (*path, name), leaf in traverse_util.flatten_dict(meta.unbox(unfreeze(variables.get("params", {})))).items():
        shapes.setdefault("/".join(path), {})[name] = jnp.shape(cast(Any, leaf))

    def verify(layer: Layer) -> bool:
        try:
            jax.eval_shape(
                lambda d: run(model, variables, d, x, apply, layer.tap.settings), {layer.path: layer.zeros()._asdict()}
            )
        except Exception:  # whatever Flax or the model raises: these axes are not the ones
            return False
        return True

    return sort_out(recorder.seen, shapes, examples, sharing, verify)


def run(
    model: nn.Module,
    variables: Mapping[str, Any],
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
    # nn.jit keeps its traces by the structure of the variables, so the names say what is attached.
    prefix = f"aqx_{hash(attach) % 2**64:x}_"

    def intercept(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        out = call(*args, **kwargs)
        module = context.module
        make_rows = _ROWS.get(type(module).__call__) if context.method_name == "__call__" else None
        if make_rows is None or module.scope is None:
            return out
        names = [name for name in module.variables.get("params", {}) if name.startswith(prefix)]
        if not names:
            return out
        mine = {name.removeprefix(prefix): module.get_variable("params", name) for name in names}
        path = "/".join(module.scope.path)
        arguments = rows.call_of(type(module).__call__, module, args, kwargs)
        return attach(path, make_rows(module, _kernel(module).shape, arguments), arguments["inputs"], out, mine)

    params = unfreeze(variables.get("params", {}))
    for path, beside in dummies.items():
        params = inner = dict(params)
        for part in path.split("/") if path else ():
            inner[part] = inner = dict(inner[part])
        inner.update({prefix + name: value for name, value in beside.items()})
    with nn.intercept_methods(intercept):
        return apply(model, {**variables, "params": params}, x)


def _kernel(module: nn.Module) -> Any:
    name = "embedding" if isinstance(module, nn.Embed) else "kernel"
    return meta.unbox(module.get_variable("params", name))
