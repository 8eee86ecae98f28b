"""Eigenvalues by Householder reduction and bisection, in JAX and by GPU kernels, against float64 LAPACK."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import Float

from aqx.fisher import triton
from aqx.fisher.tridiagonal import eigenvalues_by_bisection, tridiagonal_eigenvalues, tridiagonalise
from aqx.fisher.triton import eigenvalues_by_kernels

pytestmark = pytest.mark.usefixtures("quick_to_compile")

# Each dimension is one program: the ends of the recurrence, one loop of panels, and with panels of 2 three loops.
DIMENSIONS = (1, 2, 3, 19)
SPECTRA = {
    "even": lambda rng, d: rng.uniform(-1, 1, d),
    "graded": lambda rng, d: np.logspace(0, -12, d),
    "clustered": lambda rng, d: 1 + 1e-6 * rng.normal(size=d),
    "of low rank": lambda rng, d: np.where(np.arange(d) < 2, rng.uniform(1, 2, d), 0),
    "equal": lambda rng, d: np.ones(d),
    "zero": lambda rng, d: np.zeros(d),
}


def matrix(spectrum: str, d: int, seed: int, diagonal: bool, scale: float) -> Float[np.ndarray, "d d"]:
    """A symmetric float32 matrix."""
    rng = np.random.default_rng(seed)
    basis = np.eye(d) if diagonal else np.linalg.qr(rng.normal(size=(d, d)))[0]
    found = (basis * SPECTRA[spectrum](rng, d)) @ basis.T
    return np.float32(scale * (found + found.T) / 2)


WAYS = {
    "JAX": jax.jit(lambda matrices: eigenvalues_by_bisection([matrices], panel=2)[0]),
    "kernels": jax.jit(lambda matrices: eigenvalues_by_kernels([matrices], interpret=True)[0]),
}


@settings(max_examples=160)
@given(
    st.sampled_from(sorted(WAYS)),
    st.sampled_from(sorted(SPECTRA)),
    st.sampled_from(DIMENSIONS),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from([1.0, 1e-30, 1e-37, 1e30, 1e36]),
)
@example("JAX", "graded", 19, 0, False, 1e36)
@example("JAX", "of low rank", 19, 1, False, 1e-30)
@example("JAX", "zero", 19, 0, True, 1.0)
@example("kernels", "graded", 19, 0, False, 1e36)
@example("kernels", "of low rank", 19, 1, False, 1e-30)
@example("kernels", "zero", 19, 0, True, 1.0)
def test_eigenvalues_are_those_of_float64(way: str, spectrum: str, d: int, seed: int, diagonal: bool, scale: float):
    assert_right(WAYS[way], np.stack([matrix(spectrum, d, seed + i, diagonal, scale) for i in range(2)]))


# One dimension for each way to cut matrices into tiles, the last with tiles that lie partly outside.
@pytest.mark.parametrize("d", [33, 70, 150])
def test_kernels_with_several_tiles(d: int):
    few = np.stack([matrix(spectrum, d, 0, False, 1.0) for spectrum in SPECTRA])
    assert_right(WAYS["kernels"], few)


def assert_right(solve: Callable, few: Float[np.ndarray, "K d d"]):
    d = few.shape[-1]
    expected = np.linalg.eigvalsh(few.astype(np.float64))
    found = np.asarray(solve(few))
    assert (np.diff(found, axis=1) >= 0).all(), "not ascending"
    # A few roundings of the largest, as features tell nothing apart below d of them; subnormal elements count for zero.
    bound = 2.0**-20 * np.abs(expected).max(1, keepdims=True) + d * np.finfo(np.float32).tiny
    assert (np.abs(found - expected) <= bound).all(), np.abs(found - expected).max()
    assert found.any() == bool(expected.any()), "zeros must stay zeros"


def by_kernel(diagonal: Float[np.ndarray, "K d"], off: Float[np.ndarray, "K d-1"]) -> jax.Array:
    sizes = jnp.full((len(diagonal), 1), diagonal.shape[1], jnp.int32)
    return triton.tridiagonal_eigenvalues(jnp.asarray(diagonal), jnp.pad(off, ((0, 0), (0, 1))), sizes, interpret=True)


@pytest.mark.parametrize("tridiagonal_eigenvalues", [tridiagonal_eigenvalues, by_kernel])
def test_tridiagonal_eigenvalues_with_pivots_that_vanish(tridiagonal_eigenvalues: Callable):
    # Every second pivot of the recurrence is exactly zero at x = 0, where the first halving looks.
    d, off = np.zeros((1, 19), np.float32), np.ones((1, 18), np.float32)
    expected = 2 * np.cos(np.pi * np.arange(19, 0, -1) / 20)
    np.testing.assert_allclose(jax.jit(tridiagonal_eigenvalues)(d, off)[0], expected, atol=4e-7)
    # Split into blocks by zeros beside the diagonal, one of them tiny against the rest.
    d, off = np.float32([[1, 2, 1e-30, 3e-30, 5]]), np.float32([[0, 0, 1e-30, 0]])
    expected = [(2 - 2**0.5) * 1e-30, (2 + 2**0.5) * 1e-30, 1, 2, 5]
    np.testing.assert_allclose(jax.jit(tridiagonal_eigenvalues)(d, off)[0], expected, atol=2e-6)


@pytest.mark.slow
def test_reduction_keeps_trace_and_norm_in_float64():
    with jax.enable_x64(True):
        few = np.random.default_rng(0).normal(size=(2, 19, 19))
        few += few.transpose(0, 2, 1)
        ((_, diagonal, off),) = tridiagonalise([jnp.asarray(few)], 8)
        np.testing.assert_allclose(diagonal.sum(1), np.trace(few, axis1=1, axis2=2), rtol=1e-12)
        norms = np.sqrt((np.asarray(diagonal) ** 2).sum(1) + 2 * (np.asarray(off) ** 2).sum(1))
        np.testing.assert_allclose(norms, np.linalg.norm(few, axis=(1, 2)), rtol=1e-12)
        for way in (eigenvalues_by_bisection, lambda few: eigenvalues_by_kernels(few, interpret=True)):
            found = jax.jit(lambda few, way=way: way([few])[0])(jnp.asarray(few))
            np.testing.assert_allclose(found, np.linalg.eigvalsh(few), atol=1e-13 * np.abs(few).sum())
