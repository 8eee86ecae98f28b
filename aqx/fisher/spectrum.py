"""From factors to eigenvalues: symmetric eigenvalues without vectors, and the products of a Kronecker block."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from aqx import pallas
from aqx.fisher.factors import Factors, Tap, gpu_in_use
from aqx.fisher.tridiagonal import eigenvalues_by_bisection

_BLOCKED = 256
_LOWER = np.uint8(ord("L"))
# On a GPU without kernels, matrices from this dimension on go by bisection. On an H100 the library's solver takes
# 4,702 µs for each of dimension 577, bisection 214; of 145, 17.5 and 12.4; of 65, 3.7 and 2.1.
_BISECTED = 33


class Factor(NamedTuple):
    """One factor of a layer, for each slice and group, on the way to its eigenvalues."""

    matrices: Float[Array, "S B k k"]
    finite: Bool[Array, ""]  # else the matrices are zeros: LAPACK may not return from a matrix with nan in it
    zeros: int  # eigenvalues known to be zero, besides those of the matrices


def factor_of_A(tap: Tap, sums: Factors, examples: int) -> Factor:
    """A = 1/N Σₙ Σₜ a aᵀ, of a layer that is not one-hot."""
    return _factor(sums.A, jnp.full((1, 1, 1), examples, sums.A.dtype), tap.kept[0])


def factor_of_G(tap: Tap, sums: Factors) -> Factor:
    """G = 1/(N·T) Σₙ Σₜ g gᵀ; zero where the loss never reaches the layer."""
    return _factor(sums.G, jnp.maximum(sums.positions.reshape(-1, 1, 1), 1), tap.kept[1])


def _factor(sums: Float[Array, "S B m d"], count: Float[Array, "#S 1 1"], kept: int) -> Factor:
    zeros = sums.shape[-1] - kept if kept else 0
    if kept:
        sums = jnp.matmul(sums, jnp.swapaxes(sums, -1, -2), precision=jax.lax.Precision.HIGHEST)
    finite = jnp.isfinite(sums).all()
    return Factor(jnp.where(finite, sums, 0) / count[..., None], finite, zeros)


def eigenvalues_of_A(tap: Tap, sums: Factors, examples: int) -> Float[Array, "S B d"]:
    """Eigenvalues of A, ascending, for each slice and group; nan where A is not finite."""
    if tap.rows.one_hot:
        return jnp.sort(sums.A[..., 0] / examples, axis=-1)
    return eigenvalues_of([factor_of_A(tap, sums, examples)])[0]


def eigenvalues_of_G(tap: Tap, sums: Factors) -> Float[Array, "S B p"]:
    """Eigenvalues of G, ascending, for each slice and group; nan where G is not finite."""
    return eigenvalues_of([factor_of_G(tap, sums)])[0]


def eigenvalues_of(factors: Sequence[Factor]) -> list[Float[Array, "_ _ _"]]:
    """Eigenvalues of many factors, ascending; nan for those that are not finite."""
    solved = _eigvalsh_of_all([factor.matrices for factor in factors])
    return [_finished(*each) for each in zip(factors, solved, strict=True)]


def _finished(factor: Factor, values: Float[Array, "S B k"]) -> Float[Array, "S B d"]:
    if factor.zeros:
        # Rounding leaves tiny values on either side of zero, and the exact zeros belong between them.
        zeros = jnp.zeros((*values.shape[:-1], factor.zeros), values.dtype)
        values = jnp.sort(jnp.concatenate([zeros, values], axis=-1), axis=-1)
    return jnp.where(factor.finite, values, jnp.nan)


def products(of_A: Float[Array, "B d"], of_G: Float[Array, "B p"]) -> Float[Array, " B*d*p"]:
    """All products λ_A·λ_G within each group, of all groups together, ascending."""
    return jnp.sort((of_A[:, :, None] * of_G[:, None, :]).reshape(-1))


def eigvalsh(matrices: Float[Array, "*batch d d"]) -> Float[Array, "*batch d"]:
    """Eigenvalues of symmetric matrices, ascending.

    On a CPU straight from LAPACK's syevd in its values-only mode: `jnp.linalg.eigvalsh` computes the vectors too and
    drops them (measured: 1.3 to 2.5 times slower). Large matrices are first reduced by blocks (1.4 to 1.8 times faster
    from 577 on, one thread). On a GPU all go through `eigenvalues_by_kernels` at once; where Pallas has no kernels,
    large ones through `eigenvalues_by_bisection`.
    """
    return _eigvalsh_of_all([matrices])[0]


def _eigvalsh_of_all(batches: Sequence[Array]) -> list[Array]:
    """The eigenvalues of each batch of symmetric matrices."""
    if not batches:
        return []
    # Tracing the other way costs a second where matrices are large.
    on_gpu = dict.fromkeys(("cuda", "rocm"), _by_bisection if pallas.trouble() else _by_kernels) if gpu_in_use() else {}
    return list(jax.lax.platform_dependent(*batches, cpu=_on_cpu, default=_by_jax, **on_gpu))


def _by_jax(*batches: Array) -> tuple[Array, ...]:
    return tuple(map(jnp.linalg.eigvalsh, batches))


def _by_bisection(*batches: Array) -> tuple[Array, ...]:
    flat = [each.reshape(-1, *each.shape[-2:]) for each in batches]
    large = [i for i, each in enumerate(flat) if each.shape[-1] >= _BISECTED]
    found = dict(zip(large, eigenvalues_by_bisection([flat[i] for i in large]) if large else (), strict=True))
    # Small matrices of one size share a call.
    small = sorted(set(range(len(flat))) - {*large}, key=lambda i: flat[i].shape[-1])
    for _, same in itertools.groupby(small, lambda i: flat[i].shape[-1]):
        members = list(same)
        values = jnp.linalg.eigvalsh(jnp.concatenate([flat[i] for i in members]))
        ends = np.cumsum([len(flat[i]) for i in members])
        found.update(zip(members, jnp.split(values, ends[:-1]), strict=True))
    # Of float32 among float64, the values come in float64.
    return tuple(found[i].reshape(each.shape[:-1]).astype(each.dtype) for i, each in enumerate(batches))


def _by_kernels(*batches: Array, interpret: bool = False) -> tuple[Array, ...]:
    from aqx.fisher.triton import eigenvalues_by_kernels  # Pallas takes a fifth of a second to import

    solved = eigenvalues_by_kernels([each.reshape(-1, *each.shape[-2:]) for each in batches], interpret=interpret)
    return tuple(values.reshape(each.shape[:-1]) for each, values in zip(batches, solved, strict=True))


def _on_cpu(*batches: Array) -> tuple[Array, ...]:
    return tuple(map(_by_lapack, batches))


def _by_lapack(matrices: Float[Array, "*batch d d"]) -> Float[Array, "*batch d"]:
    prefix = {"float32": "s", "float64": "d"}.get(str(matrices.dtype))
    if prefix is None or not _lapack_is_bound(prefix):
        return jnp.linalg.eigvalsh(matrices)
    *batch, d, _ = matrices.shape
    # One matrix per call, in a loop: a call for many waits, in a thread of XLA's pool, for others of that pool, and
    # where several programs run at once they have been seen to wait for each other for ever.
    values = jax.vmap(partial(_values_of_one, prefix))(matrices.reshape(-1, d, d))
    return values.reshape(*batch, d)


def _values_of_one(prefix: str, matrix: Float[Array, "d d"]) -> Float[Array, " d"]:
    d, dtype, reduced = len(matrix), matrix.dtype, jnp.int32(0)
    if d >= _BLOCKED:
        # In the values-only mode syevd gets the least workspace, and reduces to tridiagonal form column by column. The
        # reduction alone goes by blocks, and finds nothing left to do in a second pass.
        _, diagonal, off, _, reduced = _lapack(
            f"{prefix}sytrd", ((d, d), dtype), ((d,), dtype), ((d - 1,), dtype), ((d - 1,), dtype), ((), jnp.int32)
        )(matrix, uplo=_LOWER)
        matrix = jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)
    _, values, failed = _lapack(f"{prefix}syevd", ((d, d), dtype), ((d,), dtype), ((), jnp.int32))(
        matrix, mode=np.uint8(ord("N")), uplo=_LOWER
    )
    return jnp.where((failed == 0) & (reduced == 0), values, jnp.nan)


def _lapack(name: str, *results: tuple[tuple[int, ...], Any]) -> Callable[..., Any]:
    """A LAPACK routine that overwrites its matrix.

    A symmetric matrix is its own transpose, so LAPACK's column-major order needs no layouts here.
    """
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
    return jax.ffi.ffi_call(f"lapack_{name}_ffi", shapes, vmap_method="sequential", input_output_aliases={0: 0})


@cache
def _lapack_is_bound(prefix: str) -> bool:
    """Bind LAPACK's routines, which jaxlib does when linear algebra is first lowered for a CPU; False without them.

    Beside a GPU nothing else may be lowered for the CPU, and the call of a routine that is not bound is a segmentation
    fault. Lowering needs no CPU device, and shows whether the routines, whose names are no promise, are still there.
    """
    matrix = jax.ShapeDtypeStruct((2, 2), {"s": jnp.float32, "d": jnp.float64}[prefix])
    both = jax.jit(lambda matrix: (jax.lax.linalg.tridiagonal(matrix), jnp.linalg.eigvalsh(matrix)))
    program = both.trace(matrix).lower(lowering_platforms=("cpu",)).as_text()
    return all(f"@lapack_{prefix}{name}_ffi" in program for name in ("sytrd", "syevd"))
