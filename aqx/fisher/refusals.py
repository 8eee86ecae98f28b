"""Layers that are left out because a tap would not see the gradient of their stored weights, and why it would not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from aqx.fisher.cross import Program, Verdict, cross_test, used_elsewhere
from aqx.fisher.layers import Layer, LeftOut

_DERIVATIVE = "a derivative is taken inside the model"


def without_untappable(
    layers: Sequence[Layer], differentiated: Collection[str], why_not: Callable[..., str]
) -> tuple[tuple[Layer, ...], tuple[LeftOut, ...]]:
    """Leave out layers with whose taps the model cannot be traced, as where it is differentiated in forward mode.

    Args:
        layers: all of a model that are Kronecker.
        differentiated: paths of those that the model itself takes a derivative of.
        why_not: why the model cannot be traced with taps on the layers it is given; empty where it can.

    Returns:
        The layers that stay, and those that do not. All stay where it is no single layer's fault.
    """
    if not layers or not why_not(*layers):
        return tuple(layers), ()
    reasons = {layer.path: reason for layer in layers if (reason := why_not(layer))}
    left_out = [
        LeftOut(
            layer.path,
            layer.weights,
            _DERIVATIVE if layer.path in differentiated else f"the model cannot be traced with a tap on it: {reason}",
        )
        for layer in layers
        if (reason := reasons.get(layer.path))
    ]
    return tuple(layer for layer in layers if layer.path not in reasons), tuple(left_out)


def without_other_gradients(
    program: Program, layers: Sequence[Layer], differentiated: Collection[str], state: Any, x: Any, y: Any
) -> tuple[tuple[Layer, ...], tuple[LeftOut, ...], tuple[str, ...]]:
    """Leave out layers that fail the cross test; of the others, keep no rows that are not those of one use.

    Args:
        program: the model.
        layers: all of it that are Kronecker.
        differentiated: paths of those that the model itself takes a derivative of.
        state: as from `Flavour.split`.
        x: a batch.
        y: its labels.

    Returns:
        The layers that stay, those that do not, and the keys of what stays whose gradients are all exactly zero at the
        given weights, and not at others.
    """
    verdicts = cross_test(program, layers, state, x, y)
    failed = [layer for layer in layers if verdicts[layer.path].differs]
    unexplained = [layer for layer in failed if layer.path not in differentiated]
    elsewhere = used_elsewhere(program, unexplained, verdicts, state, x, y) if unexplained else set[str]()

    def why(path: str, verdict: Verdict) -> str:
        if path in differentiated:
            return _DERIVATIVE
        part = " and ".join(verdict.differs)
        if path in elsewhere:
            return f"its {part} {'is' if len(verdict.differs) == 1 else 'are'} also used elsewhere"
        weights = "weights are" if "kernel" in verdict.differs else "bias is"
        if verdict.frozen:
            return f"no gradient reaches its {part}: its {weights} frozen, or computed from others"
        return f"its {weights} computed from others"

    left_out = tuple(LeftOut(layer.path, layer.weights, why(layer.path, verdicts[layer.path])) for layer in failed)
    stay = [layer for layer in layers if not verdicts[layer.path].differs]
    silent = tuple(key for layer in stay if verdicts[layer.path].silent for key in layer.keys)
    return tuple(layer if verdicts[layer.path].one_use else _keeping_none(layer) for layer in stay), left_out, silent


def _keeping_none(layer: Layer) -> Layer:
    return replace(layer, tap=replace(layer.tap, kept=(0, 0)))
