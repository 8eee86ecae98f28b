"""Batches evaluated at once, in blocks of one fixed size and by one program per kind of operator.

Every distinct argument is evaluated once; the functions that share a root operator are gathered into blocks, and a
program that holds all operators of the kind (`lax.switch`) is applied to each block. So a new schema compiles nothing,
and a value never depends on how a space was cut into pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from aqx.errors import InputError
from aqx.evaluation.family import Batch, Family
from aqx.numerics.settings import on_host
from aqx.operators import SETS, Operator, operator_table
from aqx.tree import INPUTS

_BLOCK_BYTES = 1 << 19  # of values in one block: larger ones are padded more, smaller ones dispatched more
_BLOCK_ROWS = 1 << 13  # and rows at most, as a block is filled up with padding
_VECTOR = 16  # rows are a multiple of this: a loop's last odd values could be computed by other instructions

Rule = Callable[..., Array]


def evaluate(
    batch: Batch, points: Float[np.ndarray, "*I P"], out: Float[np.ndarray, "K P"] | None = None
) -> Float[np.ndarray, "K P"]:
    """Evaluate functions at the same points, in the points' own dtype.

    Args:
        batch: the functions.
        points: where [P], or of functions of two inputs [2, P]; float32 or float64.
        out: an array to write to [K, P]; the pages of a new one cost as much as the values in it.

    Returns:
        values [K, P] of the points' dtype, on the host.

    Example:
        >>> import aqx, numpy as np
        >>> from aqx.evaluation import Batch, evaluate
        >>> evaluate(Batch.of_trees([aqx.parse("square(x)"), aqx.parse("abs(x)")]), np.array([-3.0, 2.0]))
        array([[9., 4.],
               [3., 2.]])
    """
    given = np.atleast_2d(points)
    with on_host(float64=points.dtype == np.float64):
        return _evaluate(batch, given, np.ones_like(given[0]), value, out)


def evaluate_family(
    family: Family, points: Float[ArrayLike, "*I P"], out: Float[Array, "size P"]
) -> Float[Array, "size P"]:
    """Evaluate all functions of one family by a program of their own; for evaluating them many times.

    It compiles for half a second, where `evaluate` compiles nothing for a new family; then it is ten times faster where
    the arguments are few, and it runs on whatever device JAX uses.

    Args:
        family: the schema and its operators.
        points: where [P], or of functions of two inputs [2, P].
        out: an array of the result's shape and dtype, such as the result of the last call; it is used up.

    Returns:
        values [size, P], in the order of the family's indices.

    Example:
        >>> import aqx, jax.numpy as jnp
        >>> from aqx.evaluation import Family, evaluate_family
        >>> family = Family(aqx.tree.parse_schema("unary(x)"), ("square", "abs"))
        >>> evaluate_family(family, jnp.array([-3.0, 2.0]), jnp.zeros((2, 2))).tolist()
        [[3.0, 2.0], [9.0, 4.0]]
    """
    table = operator_table()
    program = _family_program(family, tuple(table.by_name[name] for name in family.operators_used))
    return program(points, out)


@functools.lru_cache(maxsize=16)
def _family_program(family: Family, operators: tuple[Operator, ...]) -> Callable[..., Array]:
    by_name = {operator.name: operator for operator in operators}

    def values(family: Family, points: Float[Array, "I P"]) -> Float[Array, "size P"]:
        if not family.schema.args:
            rows = [
                points[INPUTS.index(leaf)] if leaf in INPUTS else jnp.full_like(points[0], float(leaf))
                for leaf in family.leaves
            ]
            return jnp.stack(rows)
        # The barrier has each argument computed once: without it XLA would repeat it in every loop that takes it.
        args = [jax.lax.optimization_barrier(values(arg, points)) for arg in family.args]
        spread = [jnp.expand_dims(arg, [j for j in range(len(args)) if j != i]) for i, arg in enumerate(args)]
        applied = [value(by_name[name], *jnp.broadcast_arrays(*spread)) for name in family.choices]
        return jnp.concatenate([block.reshape(-1, points.shape[1]) for block in applied])

    return jax.jit(lambda points, out: values(family, jnp.atleast_2d(points)), donate_argnums=1, keep_unused=True)


@dataclass(frozen=True)
class FiniteAt:
    """Where K functions are finite in float32 [K]: at 0, at both of ±20, and whether their derivative at 0 is.

    Of two inputs: at (0, 0), at all of (±20, ±20), and whether both derivatives at (0, 0) are.
    """

    zero: Bool[np.ndarray, " K"]
    twenty: Bool[np.ndarray, " K"]
    gradient_at_0: Bool[np.ndarray, " K"]


def finite_at(batch: Batch) -> FiniteAt:
    """Return where functions are finite; the derivative is that of the chain rule, which training uses.

    So |x|^½ has no finite derivative at 0, and neither has relu(1/x), although it has a limit: 0·∞ is nan in a
    backward pass.
    """
    # Values at some points, then the derivatives along x at each of them, or along y.
    values_and_derivatives = np.array([[0, -20, 20, 1, 1, 1]], np.float32)
    if batch.inputs == 2:
        values_and_derivatives = np.array(
            [[0, 0, -20, -20, 20, 20, 1, 0, 1, 1, 1, 1], [0, 0, -20, 20, -20, 20, 0, 1, 1, 1, 1, 1]], np.float32
        )
    half = values_and_derivatives.shape[1] // 2
    of_constants = np.repeat(np.array([1, 0], np.float32), half)
    with on_host(float64=False):
        finite = np.isfinite(_evaluate(batch, values_and_derivatives, of_constants, _value_and_derivative))
    at_0 = slice(0, batch.inputs)
    far, slopes = finite[:, batch.inputs : half], finite[:, half:]
    return FiniteAt(*(np.asarray(each.all(axis=1)) for each in (finite[:, at_0], far, slopes[:, at_0])))


def _evaluate(
    batch: Batch,
    leaves: Float[np.ndarray, "I P"],
    one: Float[np.ndarray, " P"],
    rule: Rule,
    out: Float[np.ndarray, "K P"] | None = None,
) -> Float[np.ndarray, "K P"]:
    """What a rule makes of functions, given what it takes for the leaves `x`, `y` where there is one, and `1.0`."""
    if batch.inputs > len(leaves):
        raise InputError("functions of two inputs are evaluated at points of the plane; give them as an array [2, P]")
    values = np.empty((len(batch), leaves.shape[1]), leaves.dtype) if out is None else out
    if not batch.args or not len(batch):
        values[:] = leaves[int(batch.second)] if batch.numbers is None else batch.numbers[:, None] * one
        return values
    what = rule, leaves.dtype, leaves.tobytes()
    args = [(arg.kept(what, functools.partial(_evaluate, arg, leaves, one, rule)), taken) for arg, taken in batch.args]
    apply(batch.operators, batch.opcodes, args, rule, values)
    return values


def apply(
    operators: tuple[str, ...],
    opcodes: Int[np.ndarray, " K"],
    args: Sequence[tuple[Float[np.ndarray, "_ P"], Int[np.ndarray, " K"]]],
    rule: Rule,
    out: Float[np.ndarray, "K P"],
) -> None:
    """Apply operators to arguments as `blocks` does, and write the values to an array on the host."""
    for rows, block in blocks(operators, opcodes, args, rule):
        out[rows] = np.asarray(block)[: len(rows)]


def blocks(
    operators: tuple[str, ...],
    opcodes: Int[np.ndarray, " K"],
    args: Sequence[tuple[Float[np.ndarray, "_ P"], Int[np.ndarray, " K"]]],
    rule: Rule,
) -> Iterator[tuple[Int[np.ndarray, " rows"], Array]]:
    """Apply operators to arguments, block by block.

    Args:
        operators: names of one kind.
        opcodes: which of them each function has [K].
        args: for each argument, values [U, P] and which row of them each function takes [K].
        rule: `value`, or another meaning of an operator.

    Yields:
        which functions a block holds, and their values on the device; rows beyond those are padding.
    """
    program, branches = _program_of(operators, rule)
    n_rows = min(max(_BLOCK_BYTES // (args[0][0].itemsize * args[0][0].shape[1]), 1), _BLOCK_ROWS)
    n_rows = -(-n_rows // _VECTOR) * _VECTOR
    order = np.argsort(opcodes, kind="stable")
    ends = np.searchsorted(opcodes[order], np.arange(len(operators) + 1))
    for branch, (first, last) in zip(branches, pairwise(ends.tolist()), strict=True):
        for start in range(first, last, n_rows):
            rows = order[start : min(start + n_rows, last)]
            padded = np.concatenate([rows, np.broadcast_to(rows[-1:], n_rows - len(rows))])
            yield rows, program(branch, *(values.take(taken[padded], axis=0) for values, taken in args))


def _program_of(names: tuple[str, ...], rule: Rule) -> tuple[Callable[..., Array], list[np.int32]]:
    """The program of the smallest set that has these operators of one kind, and their numbers in it."""
    table = operator_table().by_name
    kind = table[names[0]].kind
    of_kind = [tuple(name for name in members if table[name].kind == kind) for members in (*SETS.values(), table)]
    branches = next(some for some in of_kind if set(names) <= set(some))
    program = _program(tuple(table[name] for name in branches), rule)
    return program, [np.int32(branches.index(name)) for name in names]


@functools.lru_cache(maxsize=64)
def _program(operators: tuple[Operator, ...], rule: Rule) -> Callable[..., Array]:
    """One compiled program for many operators; compiling one for each would cost ten times the evaluation."""
    branches = [functools.partial(rule, operator) for operator in operators]
    return jax.jit(lambda branch, *args: jax.lax.switch(branch, branches, *args))


def value(operator: Operator, *args: Float[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
    """The operator's value in the dtype of its arguments; a user's own operator may mean float32 throughout."""
    return operator.fn(*map(jnp.asarray, args)).astype(args[0].dtype)


def _value_and_derivative(operator: Operator, *args: Float[Array, "rows _"]) -> Float[Array, "rows _"]:
    values, derivatives = zip(*(jnp.split(arg, 2, axis=1) for arg in args), strict=True)
    return jnp.concatenate(jax.jvp(functools.partial(value, operator), values, derivatives), axis=1)
