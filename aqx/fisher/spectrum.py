"""From factors to eigenvalues: symmetric eigenvalues without vectors, and the products of a Kronecker block."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aqx.fisher.factors import Factors, Tap

_BLOCKED = 256
_LOWER = np.uint8(ord("L"))


def eigenvalues_of_A(tap: Tap, sums: Factors, examples: int) -> Float[Array, "S B d"]:
    """Eigenvalues of A = 1/N Σₙ Σₜ a aᵀ, ascending, for each slice and group; nan where A is not finite."""
    if tap.rows.one_hot:
        return jnp.sort(sums.A[..., 0] / examples, axis=-1)
    count = jnp.full((1, 1, 1), examples, sums.A.dtype)
    return _eigenvalues(sums.A, count, tap.kept[0])


def eigenvalues_of_G(tap: Tap, sums: Factors) -> Float[Array, "S B p"]:
    """Eigenvalues of G = 1/(N·T) Σₙ Σₜ g gᵀ, ascending; zero where the loss never reaches the layer."""
    return _eigenvalues(sums.G, jnp.maximum(sums.positions.reshape(-1, 1, 1), 1), tap.kept[1])


def _eigenvalues(sums: Float[Array, "S B m d"], count: Float[Array, "#S 1 1"], kept: int) -> Float[Array, "S B d"]:
    width = sums.shape[-1]
    if kept:
        sums = jnp.matmul(sums, jnp.swapaxes(sums, -1, -2), precision=jax.lax.Precision.HIGHEST)
    # LAPACK may not return from a matrix with nan in it.
    finite = jnp.isfinite(sums).all()
    values = eigvalsh(jnp.where(finite, sums, 0) / count[..., None])
    if kept:
        # Rounding leaves tiny values on either side of zero, and the exact zeros belong between them.
        zeros = jnp.zeros((*values.shape[:-1], width - kept), values.dtype)
        values = jnp.sort(jnp.concatenate([zeros, values], axis=-1), axis=-1)
    return jnp.where(finite, values, jnp.nan)


def products(of_A: Float[Array, "B d"], of_G: Float[Array, "B p"]) -> Float[Array, " B*d*p"]:
    """All products λ_A·λ_G within each group, of all groups together, ascending."""
    return jnp.sort((of_A[:, :, None] * of_G[:, None, :]).reshape(-1))


def eigvalsh(matrices: Float[Array, "... d d"]) -> Float[Array, "... d"]:
    """Eigenvalues of symmetric matrices, ascending.

    On a CPU straight from LAPACK's syevd in its values-only mode: `jnp.linalg.eigvalsh` computes the vectors too and
    drops them (measured: 1.3 to 2.5 times slower). Large matrices are first reduced by blocks (1.4 to 1.8 times faster
    from 577 on, one thread).
    """
    return jax.lax.platform_dependent(matrices, cpu=_on_cpu, default=jnp.linalg.eigvalsh)


def _on_cpu(matrices: Float[Array, "*batch d d"]) -> Float[Array, "*batch d"]:
    prefix = {"float32": "s", "float64": "d"}.get(str(matrices.dtype))
    if prefix is None or not _lapack_is_bound():
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
def _lapack_is_bound() -> bool:
    # jaxlib binds LAPACK when a linear-algebra program is first lowered; the target's name is no public promise.
    with jax.ensure_compile_time_eval():
        try:
            jnp.linalg.eigvalsh(jnp.eye(2))
        except jax.errors.JaxRuntimeError:
            return False
    return True
