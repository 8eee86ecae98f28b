"""A function whose opcodes are traced, as `lax.switch` per node: the form for CPUs and whatever has no kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array

from aqx.kernel.jets import (
    FIRST_CONSTANT,
    Jet,
    Partials,
    count_constants,
    expected,
    of_leaf,
    of_node,
    plus,
    variables_of,
    with_more,
)
from aqx.operators import Kind, Operator, OperatorTable
from aqx.tree import INPUTS, Tree


def apply_operator(operator: Operator, *args: Array) -> Array:
    """Return an operator's value in the dtype of its arguments, as all branches of a switch must look the same."""
    # A registered function may return float32 where x is float64.
    return operator.fn(*args).astype(args[0].dtype)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _switch(wanted: Partials, table: OperatorTable, kind: Kind, opcode: Array, *jets: Jet) -> Jet:
    """Apply the operator of a traced opcode; jitted, so that nodes of one kind and size are traced and lowered once."""
    branches = [partial(of_node, partial(apply_operator, operator), wanted) for operator in table.by_kind[kind]]
    return jax.lax.switch(opcode, branches, *jets)


def _evaluate(
    wanted: Partials,
    schema: Tree,
    table: OperatorTable,
    opcodes: Sequence[ArrayLike],
    inputs: dict[int, Array],
    constant: int = FIRST_CONSTANT,
) -> Jet:
    """Value and derivatives of a tree with traced opcodes, whose constants are the variables from `constant` on.

    XLA compiles every switch anew, which is nearly all that compiling a model with a traced activation costs. So a loop
    runs one switch along a chain of unary operators (four of them compile in half the time, and run no slower).
    """
    if not schema.args:
        variable = INPUTS.index(schema.name) if schema.name in INPUTS else constant
        return of_leaf(variable, inputs[variable], wanted)
    if schema.name == "unary":
        depth = 1
        while (schema := schema.args[0]).name == "unary":
            depth += 1
        y = _evaluate(wanted, schema, table, opcodes[depth:], inputs, constant)
        apply = partial(_switch, expected(wanted, y), table, "unary")
        if depth == 1:
            return apply(opcodes[0], y)
        return jax.lax.scan(lambda y, opcode: (apply(opcode, y), None), y, jnp.stack(opcodes[:depth]), reverse=True)[0]
    kind: Kind = schema.name  # type: ignore[assignment]
    ends = np.cumsum([1] + [arg.size for arg in schema.args])
    values = []
    for arg, (i, j) in zip(schema.args, pairwise(ends), strict=True):
        values.append(_evaluate(wanted, arg, table, opcodes[i:j], inputs, constant))
        constant += count_constants(arg)
    return _switch(expected(wanted, *values), table, kind, opcodes[0], *values)


def derivatives(
    wanted: Partials, schema: Tree, table: OperatorTable, opcodes: Sequence[ArrayLike], inputs: Sequence[Array]
) -> tuple[Array, ...]:
    """Return the value and partial derivatives of a function whose opcodes are traced.

    JAX's own backward pass through a switch would keep the residuals of every branch. Here the derivative is computed
    forward along with the value (one switch per node returns both), and is all that the backward pass keeps. The
    rule of order k is the function of order k + 1, so no derivative is ever transposed through a switch: under vmap,
    where a switch selects among the values of all branches, no nan of a branch not taken reaches a gradient.

    Args:
        wanted: the partial derivatives, with all simpler ones; `VALUE` for the value alone.
        schema: the shape of the function.
        table: the operators.
        opcodes: one per node, in preorder.
        inputs: for each of `variables_of(schema)` an array, all of one shape.

    Returns:
        What is wanted, in its order.
    """
    return _derivatives(wanted, schema, table, tuple(opcodes), tuple(inputs))


def sum_of(terms: Sequence[Array], like: Array) -> Array:
    """The sum of some terms; of none the zeros of an array's form."""
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(like)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _derivatives(
    wanted: Partials, schema: Tree, table: OperatorTable, opcodes: tuple[ArrayLike, ...], inputs: tuple[Array, ...]
) -> tuple[Array, ...]:
    jet = _evaluate(wanted, schema, table, opcodes, dict(zip(variables_of(schema), inputs, strict=True)))
    return tuple(jet[each] if each in jet else jnp.zeros_like(jet[()]) for each in wanted)


def _derivatives_jvp(
    wanted: Partials, schema: Tree, table: OperatorTable, primals: Any, tangents: Any
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    along = {
        variable: tangent
        for variable, tangent in zip(variables_of(schema), tangents[1], strict=True)
        if not isinstance(tangent, SymbolicZero)
    }
    more = with_more(wanted, along)
    found = dict(zip(more, _derivatives(more, schema, table, *primals), strict=True))
    slopes = [sum_of([found[plus(each, v)] * tangent for v, tangent in along.items()], found[each]) for each in wanted]
    return tuple(found[each] for each in wanted), tuple(slopes)


_derivatives.defjvp(_derivatives_jvp, symbolic_zeros=True)
