"""A function whose opcodes are traced, as `lax.switch` per node: the form for CPUs and whatever has no kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from aqx.operators import Kind, Operator, OperatorTable
from aqx.tree import Tree


def apply_operator(operator: Operator, *args: Array) -> Array:
    """Return an operator's value in the dtype of its arguments, as all branches of a switch must look the same."""
    # A registered function may return float32 where x is float64.
    return operator.fn(*args).astype(args[0].dtype)


@partial(jax.jit, static_argnums=(0, 1))
def _switch(table: OperatorTable, kind: Kind, opcode: Array, *args: Array) -> Array:
    """Apply the operator of a traced opcode; jitted, so that nodes of one kind and size are traced and lowered once."""
    return jax.lax.switch(opcode, [partial(apply_operator, operator) for operator in table.by_kind[kind]], *args)


def _evaluate(schema: Tree, table: OperatorTable, opcodes: Sequence[ArrayLike], x: Array) -> Array:
    """Value of a tree with traced opcodes.

    XLA compiles every switch anew, which is nearly all that compiling a model with a traced activation costs. So a loop
    runs one switch along a chain of unary operators (four of them compile in half the time, and run no slower).
    """
    if not schema.args:
        return x
    if schema.name == "unary":
        depth = 1
        while (schema := schema.args[0]).name == "unary":
            depth += 1
        y = _evaluate(schema, table, opcodes[depth:], x)
        apply = partial(_switch, table, "unary")
        if depth == 1:
            return apply(opcodes[0], y)
        return jax.lax.scan(lambda y, opcode: (apply(opcode, y), None), y, jnp.stack(opcodes[:depth]), reverse=True)[0]
    kind: Kind = schema.name  # type: ignore[assignment]
    ends = np.cumsum([1] + [arg.size for arg in schema.args])
    parts = [opcodes[i:j] for i, j in pairwise(ends)]
    values = [_evaluate(arg, table, part, x) for arg, part in zip(schema.args, parts, strict=True)]
    return _switch(table, kind, opcodes[0], *values)


def derivatives(
    order: int, schema: Tree, table: OperatorTable, opcodes: tuple[ArrayLike, ...], x: Array
) -> tuple[Array, ...]:
    """Return (f(x), f′(x), …, f⁽ᵒʳᵈᵉʳ⁾(x)) of a function whose opcodes are traced.

    JAX's own backward pass through a switch would keep the residuals of every branch. Here the derivative is computed
    forward along with the value (one switch per node returns both), and is all that the backward pass keeps. The
    rule of order k is the function of order k + 1, so no derivative is ever transposed through a switch: under vmap,
    where a switch selects among the values of all branches, no nan of a branch not taken reaches a gradient.

    Args:
        order: of the last derivative.
        schema: the shape of the function.
        table: the operators.
        opcodes: one per node, in preorder.
        x: any shape.

    Returns:
        Value and derivatives, each of x's shape.
    """
    return _derivatives(order, schema, table, opcodes, x)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _derivatives(
    order: int, schema: Tree, table: OperatorTable, opcodes: tuple[ArrayLike, ...], x: Array
) -> tuple[Array, ...]:
    def taylor(order: int, x: Array) -> tuple[Array, ...]:
        if order == 0:
            return (_evaluate(schema, table, opcodes, x),)
        values, slopes = jax.jvp(partial(taylor, order - 1), (x,), (jnp.ones_like(x),))
        return (*values, slopes[-1])

    return taylor(order, x)


@_derivatives.defjvp
def _derivatives_jvp(
    order: int, schema: Tree, table: OperatorTable, primals: Any, tangents: Any
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    _, slope = tangents
    values = _derivatives(order + 1, schema, table, *primals)
    return values[:-1], tuple(value * slope for value in values[1:])
