"""Eigenvalues of many symmetric matrices by two GPU kernels: Householder reduction, then bisection with Sturm counts.

A program of the first reduces a matrix of its own, in place; a thread of the second looks for one eigenvalue. They are
Pallas kernels, lowered to Triton; `aqx.fisher.tridiagonal` does the same where those do not compile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from aqx.fisher.tridiagonal import eigenvalues_by_bisection, halvings, more_matrices, to_about_one
from aqx.pallas import like

# A program has what one multiprocessor reads, some 30 GB/s: of matrices larger than this there have to be so many that
# the kernel ends before JAX's form does, which has all of the GPU for each. Told from bytes and launches, not measured.
_LARGE, _MANY = 512, 64
_THREADS = 128  # of a program of the bisection
_UNROLLED = 8  # steps of the Sturm recurrence without a test for the end


class Tiling(NamedTuple):
    """How a program reads a matrix: tiles of rows and columns, and after how many columns it is brought up to date."""

    rows: int
    columns: int
    panel: int
    warps: int


def tiling_of(d: int) -> Tiling:
    """The tiles for matrices of d × d.

    A panel of b columns reads and writes (1 + 2 / b) matrices for each, and 6 b rows: 8 is least for a few hundred
    columns; of larger matrices, which come from memory where the rows stay in the cache, fewer bytes are better.
    """
    if d <= 32:
        return Tiling(d, d, 8, 1)
    if d <= 128:
        return Tiling(16, d, 8, 4)
    # Two programs share the registers of a multiprocessor; the largest matrices are few, and each has one to itself.
    return Tiling(32, 128, 16, 8) if d <= 1024 else Tiling(64, 128, 16, 16)


def padded(d: int) -> int:
    """The size at which matrices are solved: a power of two, so that sizes share kernels, or else a multiple of 4."""
    return max(16, 1 << max(d - 1, 0).bit_length()) if d <= 128 else -(-d // 4) * 4


def eigenvalues_by_kernels(
    batches: Sequence[Float[Array, "_ _ _"]], *, interpret: bool = False
) -> list[Float[Array, "_ _"]]:
    """Eigenvalues of batches of symmetric matrices, ascending, to a few roundings of the largest of a matrix.

    Args:
        batches: [K, d, d] each, of finite matrices; both triangles are read.
        interpret: whether to run Pallas' interpreter in place of a GPU.

    Returns:
        The eigenvalues [K, d] of each batch.

    Example:
        >>> import jax.numpy as jnp
        >>> (values,) = eigenvalues_by_kernels([jnp.array([[[2.0, 1.0], [1.0, 2.0]]])], interpret=True)
        >>> [round(float(value), 4) for value in values[0]]
        [1.0, 3.0]
    """
    return list(_solver(interpret)(*batches))


@cache
def _solver(interpret: bool) -> Callable[..., tuple[Float[Array, "_ _"], ...]]:
    return more_matrices(partial(_solve, interpret))


def _solve(interpret: bool, *batches: Float[Array, "_ _ _"]) -> tuple[Float[Array, "_ _"], ...]:
    def kind(i: int) -> tuple[int, str]:
        return padded(batches[i].shape[-1]), batches[i].dtype.name

    in_order = sorted(range(len(batches)), key=kind, reverse=True)
    groups = {each: list(group) for each, group in itertools.groupby(in_order, kind)}
    few = [each for each in groups if each[0] > _LARGE and sum(len(batches[i]) for i in groups[each]) < _MANY]
    alone = [i for each in few for i in groups.pop(each)]
    solved = eigenvalues_by_bisection([batches[i] for i in alone]) if alone else []
    found = {i: values.astype(batches[i].dtype) for i, values in zip(alone, solved, strict=True)}
    for (size, _), members in groups.items():
        sizes = [batches[i].shape[-1] for i in members]
        counts = [len(batches[i]) for i in members]
        scales, scaled = zip(*(to_about_one(batches[i]) for i in members), strict=True)
        matrices = jnp.concatenate(
            [jnp.pad(each, ((0, 0), *[(0, size - d)] * 2)) for each, d in zip(scaled, sizes, strict=True)]
        )
        filled = jnp.asarray(np.repeat(sizes, counts)[:, None], jnp.int32)
        diagonal, off = tridiagonalise(matrices, filled, interpret=interpret)
        values = tridiagonal_eigenvalues(diagonal, off, filled, interpret=interpret)
        parts = jnp.split(values, np.cumsum(counts)[:-1])
        found |= {i: part[:, :d] * scale for i, d, scale, part in zip(members, sizes, scales, parts, strict=True)}
    return tuple(found[i] for i in range(len(batches)))


def _each(*shape: int) -> pl.BlockSpec:
    """Of each matrix its own block, whichever else the grid has."""
    return pl.BlockSpec((None, *shape), lambda k, *_: (k, *[0] * len(shape)))


# A GPU rounds divisions and square roots once or twice more, which every reflection would add to the eigenvalues.


def _quotient(x: Array | float, y: Array) -> Array:
    found = x / y
    return found + (x - y * found) / y


def _sqrt(x: Array) -> Array:
    found = jnp.sqrt(x)
    return found + jnp.where(x > 0, (x - found * found) / (2 * found), 0)


def _parts(d: Array, size: int) -> Array:
    """How many parts of a size d elements take; in int32 with jax_enable_x64 too."""
    return lax.div(d + np.int32(size - 1), np.int32(size))


def tridiagonalise(
    matrices: Float[Array, "K D D"], sizes: Int[Array, "K 1"], *, interpret: bool = False
) -> tuple[Float[Array, "K D"], Float[Array, "K D"]]:
    """Reduce symmetric matrices to tridiagonal ones of the same eigenvalues.

    Householder reflections v are gathered in panels, A ← A − V Wᵀ − W Vᵀ: within a panel A is only read, once per
    column. What is left of and above a reduced column is not kept up, and not looked at again.

    Args:
        matrices: of elements up to about 2; zeros beyond their sizes.
        sizes: how many rows and columns there are of each.
        interpret: as in `eigenvalues_by_kernels`.

    Returns:
        The diagonals, and what stands beside them; nothing is said of what lies beyond the sizes.

    Source: Dongarra, Hammarling & Sorensen 1989 (LAPACK's latrd and sytrd).
    """
    count, D, _ = matrices.shape
    dtype = matrices.dtype
    rows, columns, panel, warps = tiling_of(D)
    length = pl.cdiv(D, columns) * columns
    # Of a column that is this small against A, squares are lost, and it is as good as zero.
    negligible = float(jnp.finfo(dtype).eps) ** 4
    places = partial(lax.iota, jnp.int32)

    def wait() -> None:
        """Let every thread see what the others have written, and write where they have read.

        Until then none reads what another writes: several hold copies of an element of a row, and come at their time.
        """
        if not interpret:
            plt.debug_barrier()

    def kernel(sizes: Any, _: Any, A: Any, diagonal: Any, off: Any, V: Any, W: Any, column: Any) -> None:
        d = sizes[0]
        end_rows, end = _parts(d, rows), _parts(d, columns)

        def across(c: Array) -> Any:
            return pl.ds(c * columns, columns)

        def down(r: Array) -> Any:
            return pl.ds(r * rows, rows)

        def mask(c: Array, r: Array | None = None) -> Array | None:
            """Where a tile, or a row of one, lies within A; None where all do."""
            if D % columns == 0:
                return None
            inside = c * columns + places(columns) < D
            return inside if r is None else (r * rows + places(rows) < D)[:, None] & inside

        def load(ref: Any, mask: Array | None) -> Array:
            return plt.load(ref, mask=mask, other=None if mask is None else 0)

        def clear(c: Array, _: None) -> None:
            V[:, across(c)] = W[:, across(c)] = jnp.zeros((panel, columns), dtype)

        def reduce(start: Array, t: Array, _: None) -> None:
            i = start + t
            v_i, w_i = V[:, i], W[:, i]

            def bring_up_to_date(c: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
                place = c * columns + places(columns)
                x = load(A.at[i, across(c)], mask(c))
                x -= (V[:, across(c)] * w_i[:, None] + W[:, across(c)] * v_i[:, None]).sum(0)
                x = jnp.where(place < i, 0, x)
                column[across(c)] = x
                parts = jnp.where(place == i, x, 0), jnp.where(place == i + 1, x, 0), jnp.where(place > i + 1, x * x, 0)
                return jax.tree.map(jnp.add, sums, parts)

            zero = jnp.zeros(columns, dtype)
            sums = lax.fori_loop(i // columns, end, bring_up_to_date, (zero, zero, zero))
            here, first, square = (part.sum() for part in sums)
            trivial = square < negligible
            norm = _sqrt(first * first + square)
            beta = jnp.where(trivial, first, jnp.where(first > 0, -norm, norm))
            tau = jnp.where(trivial, 0, _quotient(beta - first, jnp.where(trivial, 1, beta)))
            factor = jnp.where(trivial, 0, _quotient(1.0, jnp.where(trivial, 1, first - beta)))
            diagonal[i], off[i] = here, beta
            wait()

            def make_v(c: Array, products: tuple[Array, Array]) -> tuple[Array, Array]:
                place = c * columns + places(columns)
                v = jnp.where(place == i + 1, 1, jnp.where(place > i + 1, column[across(c)] * factor, 0))
                # While row t of V is written it may be read: what it adds to V v stands before zeros, row t of W.
                products = products[0] + V[:, across(c)] * v, products[1] + W[:, across(c)] * v
                V[t, across(c)] = v
                return products

            zeros = jnp.zeros((panel, columns), dtype)
            V_v, W_v = (part.sum(1) for part in lax.fori_loop((i + 1) // columns, end, make_v, (zeros, zeros)))
            wait()

            def multiply(r: Array, products: Array) -> Array:
                def add(c: Array, sums: Array) -> Array:
                    return sums + load(A.at[down(r), across(c)], mask(c, r)) * V[t, across(c)]

                zeros = jnp.zeros((rows, columns), dtype)
                A_v = lax.fori_loop((i + 1) // columns, end, add, zeros).sum(1)
                w = tau * (A_v - (V[:, down(r)] * W_v[:, None] + W[:, down(r)] * V_v[:, None]).sum(0))
                column[down(r)] = w
                return products + w * V[t, down(r)]

            w_v = lax.fori_loop((i + 1) // rows, end_rows, multiply, jnp.zeros(rows, dtype)).sum()
            wait()

            def make_w(c: Array, _: None) -> None:
                W[t, across(c)] = column[across(c)] - tau / 2 * w_v * V[t, across(c)]

            lax.fori_loop((i + 1) // columns, end, make_w, None)
            wait()

        def update(r: Array, _: None, start: Array) -> None:
            def update_tile(c: Array, _: None) -> None:
                def subtract(j: Array, tile: Array) -> Array:
                    v, w = (ref[j, down(r)][:, None] for ref in (V, W))
                    return tile - v * W[j, across(c)] - w * V[j, across(c)]

                tile = A.at[down(r), across(c)]
                plt.store(tile, lax.fori_loop(0, np.int32(panel), subtract, load(tile, mask(c, r))), mask=mask(c, r))

            lax.fori_loop(start // columns, end, update_tile, None)

        def reduce_panel(n: Array, _: None) -> None:
            start = n * panel
            lax.fori_loop(start // columns, end, clear, None)
            wait()
            lax.fori_loop(0, jnp.minimum(panel, d - start), partial(reduce, start), None)
            lax.fori_loop((start + panel) // rows, end_rows, partial(update, start=start + panel), None)
            wait()

        lax.fori_loop(0, _parts(d, panel), reduce_panel, None)

    shapes = [(D, D), (D,), (D,), (panel, length), (panel, length), (length,)]
    _, diagonal, off, *_ = pl.pallas_call(
        kernel,
        grid=(count,),
        in_specs=[_each(1), _each(D, D)],
        out_specs=[_each(*shape) for shape in shapes],
        out_shape=[like(matrices, (count, *shape), dtype) for shape in shapes],
        input_output_aliases={1: 0},
        interpret=interpret,
        compiler_params=None if interpret else plt.CompilerParams(num_warps=warps, num_stages=1),
        name="aqx_tridiagonal",
    )(sizes, matrices)
    return diagonal, off


def tridiagonal_eigenvalues(
    diagonal: Float[Array, "K D"], off: Float[Array, "K D"], sizes: Int[Array, "K 1"], *, interpret: bool = False
) -> Float[Array, "K D"]:
    """Eigenvalues of symmetric tridiagonal matrices, ascending, by bisection, as in `aqx.fisher.tridiagonal`.

    Args:
        diagonal: d, elements of about 1 at most.
        off: e, likewise; the last is not looked at.
        sizes: how many elements there are of each diagonal; nothing is said of the values beyond.
        interpret: as in `eigenvalues_by_kernels`.
    """
    count, D = diagonal.shape
    dtype = diagonal.dtype
    information = jnp.finfo(dtype)
    eps, tiny = float(information.eps), float(information.tiny)
    threads = min(_THREADS, padded(D))

    def kernel(sizes: Any, diagonal: Any, off: Any, values: Any) -> None:
        d = sizes[0]
        places = lax.iota(jnp.int32, threads)
        wanted = pl.program_id(1) * threads + places

        def before(i: Array) -> Array:
            """What stands beside the diagonal before place i, or 0."""
            return plt.load(off.at[jnp.maximum(i - 1, 0)], mask=(i > 0) & (i < d), other=0)

        def look(c: Array, seen: tuple[Array, ...]) -> tuple[Array, ...]:
            place = c * threads + places
            inside = place < d
            here = plt.load(diagonal.at[pl.ds(c * threads, threads)], mask=inside, other=0)
            left, right = jnp.abs(before(place)), jnp.abs(before(place + 1))
            low, high, largest = seen
            low = jnp.minimum(low, jnp.where(inside, here - left - right, jnp.inf))
            high = jnp.maximum(high, jnp.where(inside, here + left + right, -jnp.inf))
            return low, high, jnp.maximum(largest, left)

        zeros = jnp.zeros(threads, dtype)
        low, high, largest = lax.fori_loop(0, _parts(d, threads), look, (zeros + jnp.inf, zeros - jnp.inf, zeros))
        low, high, largest = low.min(), high.max(), largest.max()
        smallest = tiny * jnp.maximum(1, largest * largest)
        margin = 4 * eps * jnp.maximum(-low, high) + 2 * smallest

        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            x = low + (high - low) / 2

            def step(n: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
                q, below = carry
                for i in (n * _UNROLLED + u for u in range(_UNROLLED)):
                    e = before(i)
                    q = plt.load(diagonal.at[i], mask=i < d, other=jnp.inf) - x - e * e / q
                    q = jnp.where(jnp.abs(q) < smallest, -smallest, q)
                    below += (q < 0).astype(jnp.int32)
                return q, below

            start = zeros + 1, jnp.zeros(threads, jnp.int32)
            _, below = lax.fori_loop(0, _parts(d, _UNROLLED), step, start)
            left = below > wanted
            return jnp.where(left, low, x), jnp.where(left, x, high)

        low, high = lax.fori_loop(0, halvings(dtype), halve, (zeros + (low - margin), zeros + (high + margin)))
        plt.store(values, low + (high - low) / 2, mask=wanted < D)

    return pl.pallas_call(
        kernel,
        grid=(count, pl.cdiv(D, threads)),
        in_specs=[_each(1), _each(D), _each(D)],
        out_specs=pl.BlockSpec((None, threads), lambda k, t: (k, t)),
        out_shape=like(diagonal, (count, D), dtype),
        interpret=interpret,
        compiler_params=None if interpret else plt.CompilerParams(num_warps=math.ceil(threads / 32), num_stages=1),
        name="aqx_bisection",
    )(sizes, diagonal, off)
