"""How much memory a computation takes, told from its jaxpr before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def peak_bytes(jaxpr: Jaxpr) -> int:
    """The most that values computed in a jaxpr take at the same time, its inputs left out.

    Each value lives from its equation to its last use, and no two operations are fused: more than a compiled program
    takes, mostly by less than three times.
    """
    ends: dict[Any, int] = {}
    for i, equation in enumerate(jaxpr.eqns):
        ends |= {variable: i for variable in equation.invars if not isinstance(variable, Literal)}
    ends |= {variable: len(jaxpr.eqns) for variable in jaxpr.outvars if not isinstance(variable, Literal)}
    dying: dict[int, list[Any]] = {}
    for variable, end in ends.items():
        dying.setdefault(end, []).append(variable)
    outside = {*jaxpr.invars, *jaxpr.constvars}
    alive = most = 0
    for i, equation in enumerate(jaxpr.eqns):
        made = _bytes(equation.outvars)
        inner = max((peak_bytes(part) for part in _jaxprs(equation.params.values())), default=0)
        most = max(most, alive + max(made, inner))
        alive += made
        alive -= _bytes(variable for variable in dying.get(i, ()) if variable not in outside)
        # What nobody reads is never there.
        alive -= _bytes(variable for variable in equation.outvars if variable not in ends)
    return most


def _jaxprs(params: Iterable[Any]) -> Iterator[Jaxpr]:
    for value in params:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)


def _bytes(variables: Iterable[Any]) -> int:
    avals = (variable.aval for variable in variables)
    return sum(aval.size * aval.dtype.itemsize for aval in avals if hasattr(aval, "dtype"))
