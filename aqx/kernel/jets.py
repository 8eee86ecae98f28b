"""Values of a tree and partial derivatives by its leaves, node by node: what switch and kernel have in common.

A variable is a number: 0 for the input x, 1 for the second input y, 2 + i for the i-th constant. A partial derivative
is the ascending tuple of the variables that it is by: () is the value, (0, 0) the second derivative by x. A jet holds
those of a set that the leaves below a node have anything to do with; the others are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aqx.tree import INPUTS, Tree

Partial = tuple[int, ...]
Partials = tuple[Partial, ...]
Jet = dict[Partial, Array]
VALUE: Partials = ((),)
X = 0
FIRST_CONSTANT = len(INPUTS)

T = TypeVar("T")


def variables_of(schema: Tree) -> tuple[int, ...]:
    """Return the variables of a schema, ascending; x always, as it gives the values their shape.

    Example:
        >>> from aqx.tree import parse_schema
        >>> variables_of(parse_schema("binary(c,unary(binary(c,x)))"))
        (0, 2, 3)
    """
    inputs = {INPUTS.index(leaf) for leaf in schema.leaves if leaf in INPUTS}
    return (*sorted({X, *inputs}), *(FIRST_CONSTANT + i for i in range(count_constants(schema))))


def count_constants(schema: Tree) -> int:
    """Return how many leaves of a schema stand for constants."""
    return sum(leaf not in INPUTS for leaf in schema.leaves)


def walk(schema: Tree, node: Callable[..., T], leaf: Callable[[int], T]) -> T:
    """Return the value of a tree by what its leaves and nodes are.

    Args:
        schema: the tree.
        node: node(i, kind, *arguments) is what the i-th operator, in preorder, makes of its arguments.
        leaf: leaf(variable) is what stands at a leaf.
    """
    nodes, constants = iter(range(schema.size)), iter(range(FIRST_CONSTANT, FIRST_CONSTANT + len(schema.leaves)))

    def value(tree: Tree) -> T:
        if tree.args:
            index = next(nodes)
            return node(index, tree.name, *[value(arg) for arg in tree.args])
        return leaf(INPUTS.index(tree.name) if tree.name in INPUTS else next(constants))

    return value(schema)


def of_leaf(variable: int, value: Array, wanted: Partials) -> Jet:
    """Return the jet of a variable itself."""
    return {
        partial: value if not partial else (jnp.ones_like if len(partial) == 1 else jnp.zeros_like)(value)
        for partial in wanted
        if {*partial} <= {variable}
    }


def of_node(function: Callable[..., Array], wanted: Partials, *jets: Jet) -> Jet:
    """Return the jet of a function of arguments whose jets are known, by the chain rule forward."""
    mine = expected(wanted, *jets)
    full = [{partial: jet[partial] if partial in jet else jnp.zeros_like(jet[()]) for partial in mine} for jet in jets]
    found: Jet = {}
    for partial in sorted(mine, key=len, reverse=True):
        if partial not in found:
            prefixes = [partial[:length] for length in range(len(partial) + 1)]
            for prefix, value in zip(prefixes, _along(function, partial, full), strict=True):
                found.setdefault(prefix, value)
    return {partial: found[partial] for partial in mine}


def expected(wanted: Partials, *jets: Iterable[Partial]) -> Partials:
    """Return the partial derivatives that a function of such arguments has."""
    variables = {partial[0] for jet in jets for partial in jet if len(partial) == 1}
    return tuple(partial for partial in wanted if {*partial} <= variables)


def with_more(wanted: Partials, variables: Iterable[int]) -> Partials:
    """Return the partial derivatives and, by each variable, theirs; simplest first."""
    more = {plus(partial, variable) for partial in wanted for variable in variables}
    return tuple(sorted({*wanted, *more}, key=lambda partial: (len(partial), partial)))


def plus(partial: Partial, variable: int) -> Partial:
    """Return a partial derivative's own by one variable more."""
    return tuple(sorted((*partial, variable)))


def _along(function: Callable[..., Array], partial: Partial, jets: Sequence[Jet]) -> tuple[Any, ...]:
    """The value, and the derivatives by the first, the first two, … variables of a partial derivative."""
    if not partial:
        return (function(*(jet[()] for jet in jets)),)
    *before, last = partial
    inner = _within(tuple(before))
    primals = [{each: jet[each] for each in inner} for jet in jets]
    tangents = [{each: jet[plus(each, last)] for each in inner} for jet in jets]
    values, slopes = jax.jvp(lambda jets: _along(function, tuple(before), jets), (primals,), (tangents,))
    return (*values, slopes[-1])


def _within(partial: Partial) -> set[Partial]:
    """All partial derivatives on the way to one: by some of its variables."""
    found: set[Partial] = {()}
    for variable in partial:
        found |= {plus(each, variable) for each in found}
    return found
