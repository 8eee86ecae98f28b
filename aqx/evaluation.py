"""Whole families of functions evaluated at once, and the fingerprints that tell equal functions.

A family is all functions of one schema. Its values are computed level by level: every distinct argument once, gathered
into blocks of one fixed size, and one program per kind of node (`lax.switch` over its operators) applied to each block.
So a new schema compiles nothing, and a value never depends on how a space was cut into pieces.
"""

from __future__ import annotations

import functools
import hashlib
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt64

from aqx.operators import KINDS, Operator, operator_table
from aqx.tree import Tree, parse_schema

_BLOCK_VALUES = 1 << 18  # values in one block: 2 MiB of float64, which stays in a core's second-level cache
_BLOCK_ROWS = 1 << 13  # and rows at most, as a block is filled up with padding


@dataclass(frozen=True)
class Family:
    """All functions of one schema over a list of operators, numbered with the root operator as the first digit.

    The index of a function is ((root · n₁) + i₁) · n₂ + i₂ …, where iₖ < nₖ is the index of its k-th argument. The
    operators at a node are numbered alphabetically, so that the order of indices is the order of names.

    Attributes:
        schema: a tree in which kinds may stand for operators.
        operators: the names that kinds stand for.
    """

    schema: Tree
    operators: tuple[str, ...]

    @functools.cached_property
    def choices(self) -> tuple[str, ...]:
        """The operators that may stand at the root; empty for the leaf `x`."""
        if not self.schema.args:
            return ()
        if self.schema.name not in KINDS:
            return (self.schema.name,)
        table = operator_table().by_name
        return tuple(sorted(name for name in self.operators if table[name].kind == self.schema.name))

    @functools.cached_property
    def args(self) -> tuple[Family, ...]:
        """The families of the root's arguments."""
        return tuple(Family(arg, self.operators) for arg in self.schema.args)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """The radices of the index: the number of root operators, then the size of each argument's family."""
        return (len(self.choices), *(arg.size for arg in self.args)) if self.schema.args else ()

    @functools.cached_property
    def size(self) -> int:
        """The number of functions."""
        return math.prod(self.shape)

    @functools.cached_property
    def operators_used(self) -> tuple[str, ...]:
        """The operators that occur in some function of the family, alphabetically."""
        return tuple(sorted(set(self.choices).union(*(arg.operators_used for arg in self.args))))

    def digits(self, indices: Int[np.ndarray, " K"]) -> tuple[Int[np.ndarray, " K"], ...]:
        """Split indices into root opcodes and argument indices."""
        return np.unravel_index(indices, self.shape)

    def names(self, indices: Int[np.ndarray, " K"]) -> list[str]:
        """Return the names of the functions with these indices."""
        if not self.schema.args:
            return ["x"] * len(indices)
        root, *digits = self.digits(indices)
        columns = []
        for arg, digit in zip(self.args, digits, strict=True):
            needed, rows = np.unique(digit, return_inverse=True)
            known = arg.names(needed)
            columns.append([known[row] for row in rows.tolist()])
        heads = [f"{name}(" for name in self.choices]
        if len(columns) == 1:
            return [f"{heads[op]}{arg})" for op, arg in zip(root.tolist(), columns[0], strict=True)]
        return [f"{heads[op]}{','.join(args)})" for op, *args in zip(root.tolist(), *columns, strict=True)]


def evaluate(
    family: Family, indices: Int[np.ndarray, " K"], points: Float[np.ndarray, " P"]
) -> Float[np.ndarray, "K P"]:
    """Evaluate functions of one family at the same points, in the points' own dtype.

    Args:
        family: the schema and its operators.
        indices: which of its functions [K], in any order.
        points: where [P]; float32 or float64.

    Returns:
        values [K, P] of the points' dtype, on the host.

    Example:
        >>> import aqx, numpy as np
        >>> from aqx.evaluation import Family, evaluate
        >>> family = Family(aqx.tree.parse_schema("unary(x)"), ("square", "abs"))
        >>> evaluate(family, np.arange(2), np.array([-3.0, 2.0]))
        array([[3., 2.],
               [9., 4.]])
    """
    with jax.enable_x64(points.dtype == np.float64), jax.default_device(jax.devices("cpu")[0]):
        return _evaluate(family, indices, points, _value)


def finite_gradient_at_0(family: Family, indices: Int[np.ndarray, " K"]) -> Bool[np.ndarray, " K"]:
    """Tell which functions have a finite float32 derivative at 0, by the chain rule that training uses.

    So |x|^½ has none, and neither has relu(1/x), although it has a limit there: 0·∞ is nan in a backward pass.
    """
    at_0 = np.array([0, 1], np.float32)  # value and derivative of x itself
    with jax.default_device(jax.devices("cpu")[0]):
        return np.isfinite(_evaluate(family, indices, at_0, _value_and_derivative)[:, 1])


def _evaluate(
    family: Family, indices: Int[np.ndarray, " K"], leaf: Float[np.ndarray, " P"], rule: Callable[..., Array]
) -> Float[np.ndarray, "K P"]:
    values = np.empty((len(indices), len(leaf)), leaf.dtype)
    for rows, block in _blocks(family, indices, leaf, rule):
        values[rows] = np.asarray(block)[: len(rows)]
    return values


def _blocks(
    family: Family, indices: Int[np.ndarray, " K"], leaf: Float[np.ndarray, " P"], rule: Callable[..., Array]
) -> Iterator[tuple[Int[np.ndarray, " rows"], Array]]:
    """Yield (positions in `indices`, block [rows, P] on the device); rows past the positions are padding."""
    rows_per_block = min(max(1, _BLOCK_VALUES // len(leaf)), _BLOCK_ROWS)
    if not family.schema.args:
        block = jnp.broadcast_to(leaf, (rows_per_block, len(leaf)))
        for start in range(0, len(indices), rows_per_block):
            yield np.arange(start, min(start + rows_per_block, len(indices))), block
        return
    root, *digits = family.digits(indices)
    args = []
    for arg, digit in zip(family.args, digits, strict=True):
        needed, rows = np.unique(digit, return_inverse=True)
        args.append((_evaluate(arg, needed, leaf, rule), rows))
    table = operator_table().by_name
    program = _program(tuple(table[name] for name in family.choices), rule)
    order = np.argsort(root, kind="stable")
    ends = np.searchsorted(root[order], np.arange(len(family.choices) + 1))
    for opcode, (first, last) in enumerate(pairwise(ends)):
        for start in range(first, last, rows_per_block):
            rows = order[start : min(start + rows_per_block, last)]
            padded = np.resize(rows, rows_per_block)
            yield rows, program(np.int32(opcode), *(values[digit[padded]] for values, digit in args))


@functools.lru_cache(maxsize=64)
def _program(operators: tuple[Operator, ...], rule: Callable[..., Array]) -> Callable[..., Array]:
    """One compiled program for all operators of a node; compiling one each would cost ten times the evaluation."""
    branches = [functools.partial(rule, operator) for operator in operators]
    return jax.jit(lambda opcode, *args: jax.lax.switch(opcode, branches, *args))


def _value(operator: Operator, *args: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return operator.fn(*args).astype(args[0].dtype)  # a user's own operator may mean float32 throughout


def _value_and_derivative(operator: Operator, *args: Float[Array, "rows 2"]) -> Float[Array, "rows 2"]:
    values, derivatives = ([arg[:, column] for arg in args] for column in (0, 1))
    return jnp.stack(jax.jvp(functools.partial(_value, operator), values, derivatives), axis=1)


def operator_behaviours(operators: Sequence[str]) -> dict[str, str]:
    """Return a digest of what each operator computes, so that two operators of one name can be told apart."""
    behaviours = {}
    for schema in ("unary(x)", "binary(sinh(x),cosh(x))", "n-ary(sinh(x),x,cosh(x))"):
        family = Family(parse_schema(schema), tuple(operators))
        ids = fingerprints(family, np.arange(family.size)).ids
        behaviours |= {name: row.tobytes().hex() for name, row in zip(family.choices, ids, strict=True)}
    return behaviours


@dataclass(frozen=True)
class Fingerprints:
    """What 36 probe points tell of K functions.

    Attributes:
        ids: the two halves of a 128-bit hash of the quantised values; equal for equal functions.
        constant: the values are all equal.
        affine: the values lie on a straight line (a constant is affine too).
    """

    ids: UInt64[np.ndarray, "K 2"]
    constant: Bool[np.ndarray, " K"]
    affine: Bool[np.ndarray, " K"]


def fingerprints(family: Family, indices: Int[np.ndarray, " K"]) -> Fingerprints:
    """Return what tells functions of one family apart: hashes of their values at fixed probe points.

    The values are computed in float64 and rounded to 20 bits of mantissa, about 1e-6 relative: far above the rounding
    noise of 1e-16 and far below any difference that matters. −0 counts as 0, and everything not finite as one value.

    Args:
        family: the schema and its operators.
        indices: which of its functions [K].

    Example:
        >>> import aqx, numpy as np
        >>> from aqx.evaluation import Family, fingerprints
        >>> family = Family(aqx.tree.parse_schema("mul(unary(x),unary(x))"), ("identity", "abs"))
        >>> ids = fingerprints(family, np.arange(4)).ids  # |x|·|x|, |x|·x, x·|x|, x·x
        >>> [bool((ids[i] == ids[3]).all()) for i in range(3)]
        [True, False, False]
    """
    points = probe_points()
    prints = Fingerprints(
        np.empty((len(indices), 2), np.uint64), np.empty(len(indices), bool), np.empty(len(indices), bool)
    )
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        for rows, block in _blocks(family, indices, points, _value):
            ids, constant, affine = _fingerprint(block, points)
            prints.ids[rows] = np.asarray(ids)[: len(rows)]
            prints.constant[rows] = np.asarray(constant)[: len(rows)]
            prints.affine[rows] = np.asarray(affine)[: len(rows)]
    return prints


@functools.cache
def probe_points() -> Float[np.ndarray, "P"]:
    """Return the 36 points at which functions are compared.

    They are 0 (trainers hit it), 31 points of [-5, 5], denser around 0, and 4 beyond: s·|s|·5 with s = 2·frac(i·φ) − 1,
    φ the golden ratio. Rounded to float32, so that every backend computes at exactly these points.
    """
    golden = (math.sqrt(5) - 1) / 2
    s = 2 * np.modf(golden * np.arange(1, 32))[0] - 1
    return np.concatenate([[0.0], 5 * s * np.abs(s), [-13.1, -6.9, 7.3, 12.7]]).astype(np.float32).astype(np.float64)


@functools.cache
def _hash_keys(n_points: int) -> UInt64[np.ndarray, "P 4"]:
    stream = b"".join(hashlib.sha256(f"aqx fingerprint {i}".encode()).digest() for i in range(n_points))
    return np.frombuffer(stream, "<u8").reshape(n_points, 4)


@jax.jit
def _fingerprint(
    values: Float[Array, "rows P"], points: Float[Array, " P"]
) -> tuple[UInt64[Array, "rows 2"], Bool[Array, " rows"], Bool[Array, " rows"]]:
    # Sign, exponent and 20 bits of mantissa are the upper half of a float64; adding half a step rounds to nearest, so
    # that short binary fractions, the likeliest exact values, sit in the middle of a step and not on its border.
    rounded = (jax.lax.bitcast_convert_type(values, jnp.uint64) + jnp.uint64(1 << 31)) >> 32
    rounded = jnp.where(jnp.abs(values) < 1e-300, jnp.uint64(0), rounded)  # some backends flush subnormals
    rounded = jnp.where(jnp.isfinite(values), rounded, jnp.uint64(0x7FF80000))
    # Multilinear hashing modulo 2^64, upper halves kept: two rows collide in a lane with probability 2^-32
    # (Lemire & Kaser 2014, "Strongly universal string hashing is fast", theorem 2); four lanes make 128 bits.
    keys = jnp.asarray(_hash_keys(values.shape[1]))
    even, odd = rounded[:, 0::2], rounded[:, 1::2]
    lanes = [jnp.sum((even + keys[0::2, lane]) * (odd + keys[1::2, lane]), axis=1) for lane in range(4)]
    ids = jnp.stack([(lanes[i] >> 32 << 32) | (lanes[i + 1] >> 32) for i in (0, 2)], axis=1)
    constant = jnp.all(rounded == rounded[:, :1], axis=1)
    slope = (values[:, 1:2] - values[:, :1]) / (points[1] - points[0])
    line = values[:, :1] + slope * (points - points[0])
    largest = jnp.max(jnp.abs(values), axis=1, keepdims=True)
    affine = jnp.all(jnp.isfinite(values) & (jnp.abs(values - line) <= 1e-9 * largest), axis=1)
    return ids, constant, affine


def class_id_of(tree: Tree) -> str:
    """Return the id of the class of equal functions that a tree belongs to, as UUID text.

    Example:
        >>> import aqx
        >>> from aqx.evaluation import class_id_of
        >>> class_id_of(aqx.parse("max(x,zero(x))")) == class_id_of(aqx.parse("relu(x)"))
        True
    """
    high, low = fingerprints(Family(tree, ()), np.zeros(1, np.int64)).ids[0].tolist()
    return str(uuid.UUID(int=high << 64 | low))
