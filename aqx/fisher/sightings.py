"""What tracing a model once tells about its layers, the same for Linen and NNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from aqx.errors import UnsupportedError
from aqx.fisher.factors import Tap, TapSettings
from aqx.fisher.layers import Layer, LeftOut, stack_axes
from aqx.fisher.rows import Call, MakeRows, Rows


@dataclass
class Sighting:
    """A module with parameters as the trace met it: rows if it is Kronecker, else the reason."""

    kind: str
    rows: Rows | None = None
    reason: str = ""
    kernel: tuple[int, ...] = ()  # shape of the kernel inside, one slice
    dtype: str = "float32"
    count: int = 0  # gradient rows N·T of each call, 0 where calls differ


@dataclass
class Recorder:
    """Collects sightings by path while a model is traced."""

    seen: dict[str, Sighting] = field(default_factory=dict)

    def leaf(self, path: str, make_rows: MakeRows, layer: Any, kernel: Any, call: Call, out: Any) -> None:
        """Note one call of a layer that may be Kronecker."""
        shape = tuple(kernel.shape)
        kind = type(layer).__name__
        try:
            rows = make_rows(layer, shape, call)
        except UnsupportedError as error:
            self.seen[path] = Sighting(kind, reason=str(error))
            return
        given = out.dtype if rows.one_hot else call["inputs"].dtype
        wide = jnp.promote_types(jnp.promote_types(out.dtype, jnp.float32), given)
        groups, _, p = rows.dimensions
        count = out.size // (groups * p)
        before = self.seen.setdefault(path, Sighting(kind, rows, kernel=shape, dtype=str(wide), count=count))
        if before.reason:
            return
        before.dtype = str(jnp.promote_types(before.dtype, wide))
        before.count = count if count == before.count else 0
        if before.rows != rows:
            before.reason = "it is called in two different ways"

    def refuse(self, path: str, kind: str, reason: str) -> None:
        """Note that a module cannot be covered, whatever else is seen of it."""
        self.seen.setdefault(path, Sighting(kind)).reason = reason

    def other(self, path: str, kind: str) -> None:
        """Note a module that is no leaf known to be Kronecker."""
        self.seen.setdefault(path, Sighting(kind, reason=_why_not(kind)))


def sort_out(
    seen: dict[str, Sighting],
    parameters: dict[str, dict[str, tuple[int, ...]]],
    examples: int,
    sharing: str,
    verify: Callable[[Layer], bool],
) -> tuple[tuple[Layer, ...], tuple[LeftOut, ...]]:
    """Divide a model's parameters into covered layers and the rest.

    Args:
        seen: what the trace met, by module path.
        parameters: stored shape of every parameter, by module path and name.
        examples: N.
        sharing: as in `Tap`.
        verify: whether the model still traces with dummies of this layer; asked only where the layout is ambiguous.

    Returns:
        The covered layers in the order of their first call, and what is left out.
    """
    layers, left_out = [], []
    for path, sighting in seen.items():
        held = parameters.get(path, {})
        weight = "embedding" if sighting.rows is not None and sighting.rows.one_hot else "kernel"
        if sighting.rows is None or sighting.reason or weight not in held:
            continue
        if sharing == "reduce" and sighting.rows.one_hot:
            sighting.reason = 'an embedding is covered with sharing="expand" only'
            continue
        tap = Tap(path, sighting.rows, TapSettings(sharing, examples), sighting.dtype)
        weights = sum(math.prod(held[name]) for name in (weight, "bias") if name in held)
        layouts = dict.fromkeys(stack_axes(held[weight], sighting.kernel))
        candidates = [Layer(path, tap, *layout, weights, sighting.count) for layout in layouts]
        candidates = _distinct(candidates)
        fitting = candidates if len(candidates) == 1 else [c for c in candidates if verify(c)]
        if not fitting:
            sighting.reason = f"its stored kernel {held[weight]} is not a stack of {sighting.kernel}"
            continue
        layers.append(fitting[0])
    covered = {layer.path for layer in layers}
    for path, held in parameters.items():
        names = [name for name in held if path not in covered or name not in ("kernel", "bias", "embedding")]
        if not names:
            continue
        sighting = seen.get(path, Sighting("", reason="the model never calls it"))
        reason = sighting.reason if path not in covered else "not part of the kernel and bias"
        count = sum(math.prod(held[name]) for name in names)
        left_out.append(LeftOut(path, count, f"{' and '.join(names)}: {reason}"))
    return tuple(layers), tuple(left_out)


def _distinct(candidates: Sequence[Layer]) -> list[Layer]:
    # Axes that say the same of the kernel may differ for the dummies; only those that do are worth a trace.
    by_layout = {}
    for candidate in candidates:
        by_layout.setdefault(tuple(leaf.shape for leaf in candidate.zeros()) + candidate.axes, candidate)
    return list(by_layout.values())


def _why_not(kind: str) -> str:
    if "Norm" in kind:
        return f"{kind} scales and shifts, which is not Kronecker"
    if kind == "PReLU":
        return "a learned slope is not Kronecker"
    return f"aqx knows no Kronecker form of {kind}"
