"""Eigenvalues of many symmetric matrices at once: blocked Householder reduction, then bisection with Sturm counts.

For devices whose solver takes large matrices one by one and that have no kernels for it (`aqx.fisher.triton`), and for
few large matrices where there are kernels. Every step works on all matrices together, and those of a smaller dimension
join when the larger ones are reduced to it. A matrix passes through memory once per column, so that 577 × 577 moves
0.5 GB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Columns reduced before the rest of the matrix is brought up to date: that moves two matrices' bytes a panel, and each
# column six rows for each of the panel. Of 577 × 577, 16 columns move 0.53 GB in all, 32 columns 0.59.
_PANEL = 16
# A loop over panels takes this part of the columns, then it is made smaller: each loop compiles for 0.3 s. 512 spectra
# of a CNN with factors of 577 and 289 move 348 GB by 24 loops with 4, 371 by 20 with 3, 430 by 15 with 2.
_SHARE = 3
_WHOLE = 128  # what is as small goes on to its end in one loop
# Steps of the Sturm recurrence in one kernel: 256 matrices of 577 take 9.4 ms with 16, 3.8 with 32, 7.5 with 64.
_UNROLLED = 32


class Reduced(NamedTuple):
    """Tridiagonal matrices of one size: those that joined the reduction together."""

    members: list[tuple[int, int]]  # which batches, and how many zeros stand before the diagonal of each
    diagonal: Float[Array, "K d"]
    off: Float[Array, "K d-1"]


def eigenvalues_by_bisection(
    batches: Sequence[Float[Array, "_ _ _"]], panel: int | None = None
) -> list[Float[Array, "_ _"]]:
    """Eigenvalues of batches of symmetric matrices, ascending, to a few roundings of the largest of a matrix.

    Args:
        batches: [K, d, d] each, of finite matrices; both triangles are read.
        panel: as in `tridiagonalise`.

    Returns:
        The eigenvalues [K, d] of each batch.

    Example:
        >>> import jax.numpy as jnp
        >>> (values,) = eigenvalues_by_bisection([jnp.array([[[2.0, 1.0], [1.0, 2.0]]])])
        >>> [round(float(value), 4) for value in values[0]]
        [1.0, 3.0]
    """
    return list(_solver(panel)(*batches))


@cache
def _solver(panel: int | None) -> Callable[..., tuple[Float[Array, "_ _"], ...]]:
    return more_matrices(partial(_solve, panel))


def more_matrices(solve: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """What solves batches of matrices, where vmap makes more matrices of each batch.

    JAX's own rule would write each column's v and w by a scatter, in five kernels instead of one.
    """
    solver = jax.custom_batching.custom_vmap(solve)

    @solver.def_vmap
    def _(size: int, batched: Sequence[bool], *batches: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        many = [
            each if is_batched else jnp.broadcast_to(each, (size, *each.shape))
            for each, is_batched in zip(batches, batched, strict=True)
        ]
        values = solver(*[each.reshape(-1, *each.shape[2:]) for each in many])
        return tuple(each.reshape(size, -1, each.shape[-1]) for each in values), (True,) * len(values)

    return solver


def _solve(panel: int | None, *batches: Float[Array, "_ _ _"]) -> tuple[Float[Array, "_ _"], ...]:
    scales, scaled = zip(*map(to_about_one, batches), strict=True)
    found: dict[int, Array] = {}
    for reduced in tridiagonalise(scaled, panel):
        counts = [len(batches[i]) for i, _ in reduced.members]
        lacking = np.repeat([lack for _, lack in reduced.members], counts)
        values = tridiagonal_eigenvalues(_with_lowest(reduced.diagonal, reduced.off, lacking), reduced.off)
        parts = jnp.split(values, np.cumsum(counts)[:-1])
        for (i, lack), part in zip(reduced.members, parts, strict=True):
            found[i] = part[:, lack:] * scales[i]
    return tuple(found[i] for i in range(len(batches)))


def to_about_one(matrices: Float[Array, "K d d"]) -> tuple[Float[Array, "K 1"], Float[Array, "K d d"]]:
    """A scale for each matrix, and the matrix in it, its largest element between 1 and 2.

    So no square over- or underflows where it matters; the scales are powers of two, which round nothing.
    """
    largest = jnp.max(jnp.abs(matrices), axis=(1, 2), keepdims=True, initial=0)
    scale = _power_of_two(largest)
    return scale[:, 0], matrices / jnp.where(scale == 0, 1, scale)


def _with_lowest(diagonal: Float[Array, "K d"], off: Float[Array, "K d-1"], lacking: np.ndarray) -> Array:
    """The diagonal with a bound of all eigenvalues from below in the place of its first few, so that it sorts first."""
    if not lacking.any():
        return diagonal
    lowest = (diagonal - _radii(off)).min(1, keepdims=True)
    return jnp.where(np.arange(diagonal.shape[1]) < lacking[:, None], lowest, diagonal)


def _radii(off: Float[Array, "K _"]) -> Float[Array, "K d"]:
    """How far from each element of the diagonal an eigenvalue may lie (Gershgorin)."""
    beside = jnp.pad(jnp.abs(off), ((0, 0), (1, 1)))
    return beside[:, :-1] + beside[:, 1:]


def _power_of_two(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The largest power of two up to each value, from its exponent bits; 0 for a subnormal one."""
    information = jnp.finfo(values.dtype)
    bits = lax.bitcast_convert_type(values, jnp.dtype(f"int{information.bits}"))
    return lax.bitcast_convert_type((bits >> information.nmant) << information.nmant, values.dtype)


def tridiagonalise(batches: Sequence[Float[Array, "_ _ _"]], panel: int | None = None) -> list[Reduced]:
    """Reduce symmetric matrices to tridiagonal ones of the same eigenvalues, those of similar size together.

    Householder reflections v are gathered in panels, A ← A − V Wᵀ − W Vᵀ: within a panel A is only read, once per
    column, and the update is one matrix product. Matrices that are smaller wait until the others are reduced to their
    size; what they still lack, less than a panel, is filled up with zeros before the diagonal.

    Args:
        batches: [K, d, d] each, of elements up to about 2.
        panel: columns per panel.

    Source: Dongarra, Hammarling & Sorensen 1989 (LAPACK's latrd and sytrd).
    """
    width = panel or _PANEL
    whole = _WHOLE if panel is None else _SHARE * panel
    sizes = [each.shape[-1] for each in batches]
    waiting = sorted(range(len(batches)), key=lambda i: -sizes[i])
    size = sizes[waiting[0]]
    matrices = jnp.zeros((0, size, size), batches[0].dtype)
    groups: list[tuple[list[tuple[int, int]], list[Array]]] = []
    counts: list[int] = []
    while size:
        members: list[tuple[int, int]] = []
        while waiting and size - sizes[waiting[0]] < width:
            i, lack = waiting[0], size - sizes[waiting[0]]
            matrices = jnp.concatenate([matrices, jnp.pad(batches[i], ((0, 0), (lack, 0), (lack, 0)))])
            members.append((waiting.pop(0), lack))
        if members:
            groups.append((members, []))
            counts.append(sum(len(batches[i]) for i, _ in members))
        panels = (size - sizes[waiting[0]]) // width if waiting else -(-size // width)
        if size > whole:
            panels = min(panels, max(1, size // (_SHARE * width)))
        matrices, found = lax.scan(partial(_reduce_panel, width), matrices, width * jnp.arange(panels))
        done = min(size, panels * width)  # columns beyond the last find nothing to do, and are cut off
        columns = found.reshape(panels * width, 2, -1)[:done]
        for (_, parts), part in zip(groups, jnp.split(columns, np.cumsum(counts)[:-1], axis=2), strict=True):
            parts.append(part)
        matrices, size = matrices[:, done:, done:], size - done
    ends = [(members, jnp.concatenate(parts)) for members, parts in groups]
    return [Reduced(members, columns[:, 0].T, columns[:-1, 1].T) for members, columns in ends]


def _reduce_panel(
    width: int, A: Float[Array, "K d d"], start: Array
) -> tuple[Float[Array, "K d d"], Float[Array, "w 2 K"]]:
    """A after the reduction of some columns from `start` on, and what these leave on the diagonal and beside it.

    What is left of and above a reduced column is not kept up, and not looked at again.
    """
    count, d, _ = A.shape
    place = jnp.arange(d)
    # Of a column that is this small against A, squares are lost, and it is as good as zero.
    negligible = jnp.finfo(A.dtype).eps ** 4

    def reduce(pairs: Array, j: Array) -> tuple[Array, None]:
        i = start + j
        of_pairs = lax.dynamic_slice_in_dim(pairs, i, 1, axis=3)[:, :, ::-1]
        column = lax.dynamic_slice_in_dim(A, i, 1, axis=1)[:, 0] - (pairs * of_pairs).sum((1, 2))
        below = jnp.where(place > i + 1, column, 0)
        first = lax.dynamic_slice_in_dim(column, i + 1, 1, axis=1)
        square = (below * below).sum(1, keepdims=True)
        trivial = square < negligible
        length = jnp.sqrt(first * first + square)
        beta = jnp.where(trivial, first, jnp.where(first > 0, -length, length))
        tau = jnp.where(trivial, 0, (beta - first) / jnp.where(trivial, 1, beta))
        v = jnp.where(place == i + 1, 1, below / jnp.where(trivial, 1, first - beta))
        # Else v might be computed anew for every row of A.
        v = lax.optimization_barrier(v)
        pairs_v = (pairs * v[:, None, None]).sum(3)[:, :, ::-1, None]
        w = tau * ((A * v[:, None]).sum(2) - (pairs * pairs_v).sum((1, 2)))
        w -= tau / 2 * (w * v).sum(1, keepdims=True) * v
        # At place i, v is 0 and w is not looked at: there is room for what the column leaves.
        here = place == i
        pair = jnp.stack([jnp.where(here, column, v), jnp.where(here, beta, w)], axis=1)
        return lax.dynamic_update_slice_in_dim(pairs, pair[:, None], j, axis=1), None

    pairs, _ = lax.scan(reduce, jnp.zeros((count, width, 2, d), A.dtype), jnp.arange(width))
    found = jnp.where(place == start + jnp.arange(width)[:, None, None], pairs, 0).sum(3)
    # V Wᵀ + W Vᵀ as one product, which cuBLAS adds to A in place.
    V_W, W_V = (part.reshape(count, 2 * width, d) for part in (pairs, pairs[:, :, ::-1]))
    update = jnp.matmul(-jnp.swapaxes(V_W, 1, 2), W_V, precision=lax.Precision.HIGHEST)
    return A + update, jnp.moveaxis(found, 0, 2)


def tridiagonal_eigenvalues(diagonal: Float[Array, "K d"], off: Float[Array, "K d-1"]) -> Float[Array, "K d"]:
    """Eigenvalues of K symmetric tridiagonal matrices, ascending, by bisection.

    The number of eigenvalues below x is that of the negative terms of qᵢ = dᵢ − x − eᵢ₋₁² / qᵢ₋₁. All eigenvalues halve
    their intervals at the same time; those of one interval go apart in order, so that they end ascending.

    Args:
        diagonal: d, elements of about 1 at most.
        off: e, likewise.

    Source: Barth, Martin & Wilkinson 1967; the guard of small pivots is LAPACK's (laebz).
    """
    d, dtype = diagonal.shape[1], diagonal.dtype
    information = jnp.finfo(dtype)
    squares = jnp.pad(off * off, ((0, 0), (1, 0)))
    smallest = information.tiny * jnp.maximum(1, squares.max(1, keepdims=True))
    radius = _radii(off)
    norm = (jnp.abs(diagonal) + radius).max(1, keepdims=True)
    margin = 4 * information.eps * norm + 2 * smallest
    low, high = (diagonal - radius).min(1, keepdims=True) - margin, (diagonal + radius).max(1, keepdims=True) + margin
    low, high = (jnp.broadcast_to(end, diagonal.shape) for end in (low, high))
    rows = (diagonal.T[..., None], squares.T[..., None])
    wanted = jnp.arange(d)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        x = low + (high - low) / 2

        def step(carry: tuple[Array, Array], row: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            q, below = carry
            q = row[0] - x - row[1] / q
            q = jnp.where(jnp.abs(q) < smallest, -smallest, q)
            return (q, below + (q < 0)), None

        start = (jnp.ones_like(x), jnp.zeros(x.shape, jnp.int32))
        below = lax.scan(step, start, rows, unroll=min(d, _UNROLLED))[0][1]
        left = below > wanted
        return jnp.where(left, low, x), jnp.where(left, x, high)

    low, high = lax.fori_loop(0, halvings(dtype), halve, (low, high))
    return low + (high - low) / 2


def halvings(dtype: Any) -> int:
    """How often an interval of at most 2 norms is halved, so that a quarter of a rounding of the norm is left."""
    return 3 - round(math.log2(jnp.finfo(dtype).eps))
