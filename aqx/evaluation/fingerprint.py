"""Fingerprints: what tells equal functions, and different ones, apart."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt64

from aqx.evaluation.class_ids import texts
from aqx.evaluation.family import Batch, Family
from aqx.evaluation.values import apply, blocks, on_host, value
from aqx.operators import COMMUTATIVE
from aqx.tree import Tree, parse_schema

# Written into databases: classes found by other points or another rounding than these are other classes.
METHOD = "2"

# Numbers of the probe points, i in s = 2·frac(i·φ) − 1. The first 31 tell nearly all functions apart, less 8 and 17,
# where erfc(x) − sinh(erfc(x)) or 1/(arctan x − tanh x) are nothing but rounding noise. But max(f, g) and min(f, g) are
# often g except in a short interval, and 30 more, chosen greedily among 1,000 for the paper's space, lie in such ones:
# of random pairs in one class 5 in 100,000 differ anywhere among the 1,000; by the first 31 alone it would be 80.
_PROBES = (
    *(i for i in range(1, 32) if i not in (8, 17)),
    *(603, 437, 103, 273, 111, 832, 904, 64, 137, 932, 489, 247, 607, 659, 872, 113, 375, 516, 309, 208, 666, 112),
    *(304, 794, 807, 883, 413, 313, 147, 277),
)

# The rounding of `_rounded`, as powers of two.
_CLOSE, _NEAR, _FAR = 0.05, 5.0, 10.0  # |x| less than, up to and beyond these
_BITS, _COARSE_BITS = 20, 10  # of mantissa
_FLOOR, _FAR_FLOOR = -30, -16  # the finest step, relative to the function's scale
_NOISE = -64  # nothing so small is left over by a cancellation of values at this scale
_TINY_BITS = -6  # so of what is smaller only the sign and the exponent count, in steps of 64
_LEAST_SCALE = -14


@dataclass(frozen=True)
class Fingerprints:
    """What 64 probe points tell of K functions.

    Attributes:
        ids: the two halves of a 128-bit hash of the rounded values; equal for equal functions.
        constant: the values are all equal.
        affine: the values lie on a straight line (a constant is affine too).
    """

    ids: UInt64[np.ndarray, "K 2"]
    constant: Bool[np.ndarray, " K"]
    affine: Bool[np.ndarray, " K"]


def fingerprints(batch: Batch) -> Fingerprints:
    """Return what tells functions apart: hashes of their values at fixed probe points.

    The values are computed in float64 and rounded to 20 bits of mantissa, about 1e-6 relative: far above the rounding
    noise of 1e-16 and far below any difference that matters. Below 1e-9 of the function's largest value the rounding is
    absolute, because what a cancellation leaves there is noise: 1 − tanh(3x) and 2 σ(−6x) are one function. The four
    points beyond ±5, which only tell functions that differ grossly out there, count less the farther they are. −0
    counts as 0, and everything not finite as one value.

    Functions of two inputs are compared at 128 points of the plane, by the same rounding; none is a function of one.

    Where arguments commute they are taken in an order of their values, so that a sum's rounding does not depend on how
    its terms are written. Arguments with the same values, bit by bit, are one argument: less is to be computed.

    Args:
        batch: the functions.

    Example:
        >>> import aqx
        >>> from aqx.evaluation import Batch, fingerprints
        >>> names = ["mul(abs(x),abs(x))", "mul(abs(x),elu(x))", "mul(elu(x),abs(x))"]
        >>> ids = fingerprints(Batch.of_trees([aqx.parse(name) for name in names])).ids
        >>> [bool((row == ids[1]).all()) for row in ids]
        [False, True, True]
    """
    fingerprint, points = _fingerprint, probe_points()
    if batch.inputs == 2:
        fingerprint, points = _fingerprint_in_plane, probe_pairs()
    with on_host(float64=True):
        if not batch.args:
            distinct, which = _distinct_values(batch, points)
            padded = np.concatenate([distinct, np.broadcast_to(distinct[:1], (-len(distinct) % 16, points.shape[-1]))])
            ids, constant, affine = (np.asarray(part)[which] for part in fingerprint(padded, points))
            return Fingerprints(ids, constant, affine)
        opcodes, args, which = _distinct_applications(batch, points)
        ids = np.empty((len(opcodes), 2), np.uint64)
        constant, affine = np.empty((2, len(opcodes)), bool)
        for rows, block in blocks(batch.operators, opcodes, args, value):
            for column, found in zip((ids, constant, affine), fingerprint(block, points), strict=True):
                column[rows] = np.asarray(found)[: len(rows)]
    return Fingerprints(ids[which], constant[which], affine[which])


def _distinct_applications(
    batch: Batch, points: Float[np.ndarray, "*I P"]
) -> tuple[Int[np.ndarray, " A"], list[tuple[Float[np.ndarray, "U P"], Int[np.ndarray, " A"]]], Int[np.ndarray, " K"]]:
    """Return opcodes [A] and arguments of the distinct applications among a batch, and which each function is [K]."""
    # One numbering of values for all arguments, in the order of their hashes: the same in every run.
    distinct = (
        arg.kept(("distinct", points.shape), functools.partial(_distinct_values, arg, points)) for arg, _ in batch.args
    )
    tables, numbers = zip(*distinct, strict=True)
    values, renumbered = _unique_rows(np.concatenate(tables))
    starts = np.cumsum([0, *map(len, tables)])
    taken = np.stack(
        [
            renumbered[start + number][rows]
            for start, number, (_, rows) in zip(starts, numbers, batch.args, strict=False)
        ]
    )
    commutes = np.array([name in COMMUTATIVE for name in batch.operators])[batch.opcodes]
    taken[:, commutes] = np.sort(taken[:, commutes], axis=0)
    keys = np.concatenate([batch.opcodes[None], taken])
    sizes = (len(batch.operators), *[len(values)] * len(taken))
    if math.prod(sizes) < 2**63:
        _, first, which = np.unique(np.ravel_multi_index(tuple(keys), sizes), return_index=True, return_inverse=True)
        keys = keys[:, first]
    else:
        which = np.arange(len(batch))
    return keys[0], [(values, column) for column in keys[1:]], which


def _distinct_values(
    batch: Batch, points: Float[np.ndarray, "*I P"]
) -> tuple[Float[np.ndarray, "U P"], Int[np.ndarray, " K"]]:
    """Return the distinct rows of values [U, P] among a batch's functions, and which each function has [K]."""
    if batch.numbers is not None:
        return _unique_rows(np.repeat(batch.numbers[:, None], points.shape[-1], axis=1))
    if not batch.args:
        return np.atleast_2d(points)[int(batch.second)][None], np.zeros(len(batch), np.int64)
    opcodes, args, which = _distinct_applications(batch, points)
    values = np.empty((len(opcodes), points.shape[-1]))
    apply(batch.operators, opcodes, args, value, values)
    distinct, number = _unique_rows(values)
    return distinct, number[which]


def _unique_rows(values: Float[np.ndarray, "K P"]) -> tuple[Float[np.ndarray, "U P"], Int[np.ndarray, " K"]]:
    """Return the rows that differ bit by bit, in the order of their hashes, and which each row is; every nan is one."""
    values[np.isnan(values)] = np.nan
    lanes = _hash(values.view(np.uint32).astype(np.uint64), 2)
    _, first, number = np.unique(_upper_halves(*lanes), return_index=True, return_inverse=True)
    return values[first], number


@functools.cache
def probe_points() -> Float[np.ndarray, "P"]:
    """Return the 64 points [P] at which functions are compared.

    They are 0 (trainers hit it); 59 points of [-5, 5], denser around 0: s·|s|·5 with s = 2·frac(i·φ) − 1, φ the golden
    ratio; and 4 beyond. Short binary fractions are avoided: their squares and products would lie exactly on the border
    between two rounded values, a few of them, and fall to one side or the other with the rounding noise.
    """
    golden = (math.sqrt(5) - 1) / 2
    s = 2 * np.modf(golden * np.array(_PROBES))[0] - 1
    return np.concatenate([[0.0], 5 * s * np.abs(s), [-13.1, -6.9, 7.3, 12.7]])


@functools.cache
def probe_pairs() -> Float[np.ndarray, "2 P"]:
    """Return the 128 points (x, y) [2, P] at which functions of two inputs are compared.

    They are (0, 0), as trainers hit it; three on either axis; 117 in [-5, 5]², denser around 0 as in `probe_points`, by
    the additive recurrence of the plastic number, of which no coordinate lies within 0.05 of 0 or within 0.02 of the
    other or its negative, where a difference of alike terms leaves few digits; and 4 beyond.
    """
    plastic = 1.324717957244746
    s = 2 * np.modf(np.arange(1, 600)[:, None] / plastic ** np.arange(1, 3))[0] - 1
    inner = 5 * s * np.abs(s)
    apart = np.abs(np.abs(inner[:, 0]) - np.abs(inner[:, 1])) > 0.02
    inner = inner[apart & (np.abs(inner).min(axis=1) > _CLOSE)][:117]
    axes = [(0.73, 0.0), (0.0, 0.73), (-1.31, 0.0), (0.0, -1.31), (3.17, 0.0), (0.0, 3.17)]
    beyond = [(-13.1, 7.3), (12.7, -6.9), (7.3, 12.7), (-6.9, -13.1)]
    return np.ascontiguousarray(np.concatenate([[(0.0, 0.0)], axes, inner, beyond]).T)


@functools.cache
def _hash_keys(n_points: int) -> UInt64[np.ndarray, "4 P"]:
    stream = b"".join(hashlib.sha256(f"aqx fingerprint {i}".encode()).digest() for i in range(n_points))
    return np.ascontiguousarray(np.frombuffer(stream, "<u8").reshape(n_points, 4).T)


def _hash(words: UInt64[np.ndarray | Array, "rows P"], n_lanes: int) -> list[UInt64[np.ndarray | Array, " rows"]]:
    """Hash rows of an even number of 32-bit words to 64-bit lanes whose upper halves are good.

    Multilinear hashing modulo 2^64: two rows collide in the upper half of a lane with probability 2^-32 (Lemire & Kaser
    2014, "Strongly universal string hashing is fast", theorem 2).
    """
    keys = _hash_keys(words.shape[1])[:n_lanes]
    even, odd = words[:, 0::2], words[:, 1::2]
    return [((even + key[0::2]) * (odd + key[1::2])).sum(axis=1) for key in keys]


def _upper_halves(one: UInt64[np.ndarray | Array, " rows"], other: UInt64[np.ndarray | Array, " rows"]):
    return (one >> 32 << 32) | (other >> 32)


@jax.jit
def _fingerprint(
    values: Float[Array | np.ndarray, "rows P"], points: Float[Array | np.ndarray, " P"]
) -> tuple[UInt64[Array, "rows 2"], Bool[Array, " rows"], Bool[Array, " rows"]]:
    rounded, tolerance = _rounded(values, points)
    ids, constant, finite = _told(values, rounded, tolerance)
    slope = (values[:, 1:2] - values[:, :1]) / (points[1] - points[0])
    line = values[:, :1] + slope * (points - points[0])
    largest = jnp.max(jnp.abs(values), axis=1, keepdims=True)
    affine = jnp.all(finite & (jnp.abs(values - line) <= 1e-9 * largest + tolerance), axis=1)
    return ids, constant, affine


@jax.jit
def _fingerprint_in_plane(
    values: Float[Array | np.ndarray, "rows P"], points: Float[Array | np.ndarray, "2 P"]
) -> tuple[UInt64[Array, "rows 2"], Bool[Array, " rows"], Bool[Array, " rows"]]:
    rounded, tolerance = _rounded(values, jnp.max(jnp.abs(points), axis=0))
    ids, constant, finite = _told(values, rounded, tolerance)
    # The second and the third point lie on the axes.
    of_x, of_y = ((values[:, i : i + 1] - values[:, :1]) / points[i - 1, i] for i in (1, 2))
    plane = values[:, :1] + of_x * points[0] + of_y * points[1]
    largest = jnp.max(jnp.abs(values), axis=1, keepdims=True)
    affine = jnp.all(finite & (jnp.abs(values - plane) <= 1e-9 * largest + tolerance), axis=1)
    return ids, constant, affine


def _told(
    values: Float[Array | np.ndarray, "rows P"], rounded: Float[Array, "rows P"], tolerance: Float[Array, "rows P"]
) -> tuple[UInt64[Array, "rows 2"], Bool[Array, " rows"], Bool[Array, "rows P"]]:
    """Ids, which functions are constant, and where they are finite."""
    finite = jnp.isfinite(values)
    # Sign, exponent and 20 bits of mantissa are the upper half of a float64.
    words = jax.lax.bitcast_convert_type(rounded, jnp.uint64) >> 32
    words = jnp.where(finite, jnp.where(rounded == 0, jnp.uint64(0), words), jnp.uint64(0x7FF80000))
    lanes = _hash(words, 4)
    ids = jnp.stack([_upper_halves(lanes[i], lanes[i + 1]) for i in (0, 2)], axis=1)
    same = jnp.abs(values - values[:, :1]) <= tolerance + 2.0**-_BITS * jnp.abs(values[:, :1])
    constant = jnp.all(same & finite, axis=1) | ~jnp.any(finite, axis=1)
    return ids, constant, finite


def _rounded(
    values: Float[Array | np.ndarray, "rows P"], points: Float[Array | np.ndarray, " P"]
) -> tuple[Float[Array, "rows P"], Float[Array, "rows P"]]:
    """Round values so that rounding noise disappears and differences stay; return them and the absolute steps."""
    distance = jnp.abs(points)
    near, far = distance <= _NEAR, distance > _FAR
    # The power of two at the function's largest value near 0. Borders between powers lie at 0.646 · 2ᵏ, where functions
    # do not have their largest value by nature, as they have it at 1 or 1/2.
    size = jnp.max(jnp.where(near & jnp.isfinite(values), jnp.abs(values), 0), axis=1, keepdims=True) / 0.646
    scale = jnp.clip(_truncated(size, 0), 2.0**_LEAST_SCALE, 1)
    step = scale * jnp.where(far, 2.0**_FAR_FLOOR, 2.0**_FLOOR)
    absolute = jnp.round(values / step) * step  # exact but for the rounding, as steps are powers of two
    # To nearest, so that short binary fractions, the likeliest exact values, lie in the middle and not on a border.
    # At the far points and those next to 0 expressions such as 1/(arctan x − tanh x) leave few digits.
    coarse = far | ((distance > 0) & (distance < _CLOSE))
    relative = jnp.where(coarse, _truncated(values, _COARSE_BITS, True), _truncated(values, _BITS, True))
    n_bits = jnp.where(coarse, 2.0**_COARSE_BITS, 2.0**_BITS)
    large = jnp.abs(values) >= n_bits * step
    # Values too small to be left over by a cancellation of large ones are what they seem: e^−50 is not 0.
    tiny = near & (jnp.abs(values) < 2.0**_NOISE * scale) & (jnp.abs(values) > 1e-300)
    return jnp.where(large, relative, jnp.where(tiny, _truncated(values, _TINY_BITS), absolute)), step


def _truncated(values: Float[Array | np.ndarray, "rows _"], bits: int, nearest: bool = False) -> Float[Array, "rows _"]:
    """Keep sign, exponent and some bits of mantissa."""
    dropped = 52 - bits
    words = jax.lax.bitcast_convert_type(values, jnp.uint64) + jnp.uint64(nearest << (dropped - 1))
    return jax.lax.bitcast_convert_type(words >> dropped << dropped, jnp.float64)


def class_id_of(tree: Tree) -> str:
    """Return the id of the class of equal functions that a tree belongs to, as UUID text.

    Example:
        >>> import aqx
        >>> from aqx.evaluation import class_id_of
        >>> class_id_of(aqx.parse("max(x,zero(x))")) == class_id_of(aqx.parse("relu(x)"))
        True
    """
    return texts(fingerprints(Batch.of_trees([tree])).ids)[0]


def operator_behaviours(operators: Iterable[str]) -> dict[str, str]:
    """Return a digest of what each operator computes, so that two operators of one name can be told apart."""
    behaviours = {}
    for schema in ("unary(x)", "binary(sinh(x),cosh(x))", "n-ary(sinh(x),x,cosh(x))"):
        family = Family(parse_schema(schema), tuple(operators))
        if family.size:
            ids = fingerprints(family.batch(np.arange(family.size))).ids
            behaviours |= {name: row.tobytes().hex() for name, row in zip(family.choices, ids, strict=True)}
    return behaviours
