"""Which routine computes eigenvalues, and that LAPACK is bound before it is called, whatever device comes first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_kernel import as_if_on_a_gpu

from aqx import pallas
from aqx.fisher import spectrum, triton
from aqx.fisher.spectrum import Factor, eigenvalues_of, eigvalsh
from aqx.fisher.tridiagonal import tridiagonalise

pytestmark = pytest.mark.usefixtures("quick_to_compile")

# As beside a GPU: the program for the CPU is the first linear algebra of the process, and no operation of the default
# device has been lowered for a CPU before. LAPACK's routines that are not bound are null pointers.
FIRST = """
import jax, numpy as np
import jax.numpy as jnp
from jax._src.lax import linalg
from aqx.fisher import spectrum, triton

refused = jnp.linalg.eigvalsh
def on_the_default_device(matrix):
    assert isinstance(matrix, jax.core.Tracer), "computed on the default device"
    return refused(matrix)
jnp.linalg.eigvalsh = on_the_default_device
spectrum.gpu_in_use = lambda: True
matrix = np.diag(np.float32([3, 1, 2]))
with jax.default_device(jax.devices("cpu")[0]):
    print(jax.device_get(jax.jit(spectrum.eigvalsh)(matrix)).tolist())
"""
MATRICES = np.random.default_rng(0).normal(size=(3, 12, 12)).astype(np.float32)
MATRICES += MATRICES.transpose(0, 2, 1)


def test_lapack_is_bound_without_a_run_on_the_default_device():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", FIRST], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[1.0, 2.0, 3.0]\n"


def test_binding_lowers_for_the_cpu_and_asks_for_no_device(monkeypatch: pytest.MonkeyPatch):
    asked = []
    lower = jax.stages.Traced.lower
    monkeypatch.setattr(
        jax.stages.Traced, "lower", lambda self, **options: asked.append(options) or lower(self, **options)
    )
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("there may be no CPU device"))
    assert spectrum._lapack_is_bound.__wrapped__("s")
    assert asked == [{"lowering_platforms": ("cpu",)}]


@pytest.fixture
def beside_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Programs are traced as where JAX's default device is a GPU."""
    monkeypatch.setattr(spectrum, "gpu_in_use", lambda: True)


@pytest.fixture
def with_kernels(beside_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    """Programs are traced as where Pallas' kernels compile for that GPU too."""
    monkeypatch.setattr(pallas, "trouble", lambda: None)


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
def test_a_gpu_takes_large_matrices_together(platform: str, beside_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spectrum, "_BISECTED", 12)
    programs = {
        d: jax.jit(eigvalsh).trace(jax.ShapeDtypeStruct((3, d, d), jnp.float32)).lower(lowering_platforms=(platform,))
        for d in (11, 12)
    }
    assert "solver_syevd" in programs[11].as_text()
    assert "solver" not in programs[12].as_text() and "lapack" not in programs[12].as_text()


def test_a_cpu_beside_a_gpu_computes_as_one_alone(beside_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spectrum, "_BISECTED", 12)
    program = jax.jit(eigvalsh).lower(MATRICES)
    assert "lapack_ssyevd_ffi" in program.as_text()
    expected = np.linalg.eigvalsh(MATRICES.astype(np.float64))
    np.testing.assert_allclose(program.compile()(MATRICES), expected, atol=1e-5)


# A panel of 16 columns reduces 53 to 37, which the next three join; 11 is too small.
SIZES = ((2, 53), (1, 37), (3, 35), (1, 34), (2, 11), (1, 11))


def interpreted(*batches: jax.Array) -> tuple[jax.Array, ...]:
    """What the kernels of a GPU give, computed here."""
    return spectrum._by_kernels(*batches, interpret=True)


@pytest.mark.parametrize("solve", [spectrum._by_bisection, interpreted])
def test_a_gpu_solves_matrices_of_all_sizes_together(solve: Callable, beside_a_gpu: None):
    """By the programs for a GPU, computed here."""
    random = np.random.default_rng(1)
    batches = [random.normal(size=(count, 1, d, d)).astype(np.float32) for count, d in SIZES]
    batches = [each + each.swapaxes(-1, -2) for each in batches]  # of both signs
    found = jax.jit(solve)(*batches)
    under_vmap = jax.jit(jax.vmap(solve, (None, 0, 0, 0, 0, 0)))(
        batches[0][0], *(np.stack([each, 2 * each]) for each in batches[1:])
    )
    for i, (each, values) in enumerate(zip(batches, found, strict=True)):
        expected = np.linalg.eigvalsh(each.astype(np.float64))
        np.testing.assert_allclose(values, expected, atol=2e-6 * np.abs(expected).max())
        twice = np.stack([expected[0], expected[0]] if i == 0 else [expected, 2 * expected])
        np.testing.assert_allclose(under_vmap[i], twice, atol=4e-6 * np.abs(expected).max())


def test_who_is_reduced_together():
    reduced = tridiagonalise([jnp.zeros((count, d, d)) for count, d in SIZES[:4]])
    assert [each.members for each in reduced] == [[(0, 0)], [(1, 0), (2, 2), (3, 3)]]


def all_together(*batches: jax.Array) -> list[jax.Array]:
    return spectrum._eigvalsh_of_all(batches)


def lowered(solve: Callable, *batches: jax.ShapeDtypeStruct, platform: str = "cuda") -> str:
    with as_if_on_a_gpu(), pallas.quiet():
        return jax.jit(solve).trace(*batches).lower(lowering_platforms=(platform,)).as_text()


def test_sizes_share_kernels(with_kernels: None):
    shapes = [jax.ShapeDtypeStruct((count, 1, d, d), jnp.float32) for count, d in SIZES]
    text = lowered(all_together, *shapes)
    # Up to 16, and up to 64: the reduction and the bisection of each; not a product, not a solver.
    assert text.count("aqx_tridiagonal") == text.count("aqx_bisection") > 0
    assert len(re.findall(r"custom_call @\S*triton", text)) == 4
    assert "dot_general" not in text and "solver" not in text and "lapack" not in text
    assert "lapack" in lowered(all_together, *shapes, platform="cpu")


def test_few_large_matrices_have_all_of_the_gpu_each(with_kernels: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton, "_LARGE", 36)
    monkeypatch.setattr(triton, "_MANY", 4)

    def by_kernels(solve: Callable, *shapes: tuple[int, ...]) -> list[str]:
        text = lowered(solve, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
        assert "dot_general" in text  # the others, in JAX
        return re.findall(r"\(tensor<\w+xi32>, tensor<(\w+)xf32>\)", text)

    few = (3, 150, 150), (1, 140, 140), (3, 12, 12)
    assert by_kernels(all_together, *few) == ["3x16x16"]
    # Under vmap there are more, but of the second.
    under_vmap = jax.vmap(all_together, (0, None, None))
    assert by_kernels(under_vmap, (2, *few[0]), *few[1:]) == ["6x152x152", "6x16x16"]

    random = np.random.default_rng(2)
    batches = [random.normal(size=shape).astype(np.float32) for shape in ((3, 40, 40), (3, 12, 12))]
    batches = [each + each.swapaxes(1, 2) for each in batches]
    for each, values in zip(batches, jax.jit(interpreted)(*batches), strict=True):
        np.testing.assert_allclose(values, np.linalg.eigvalsh(each.astype(np.float64)), atol=5e-5)


@pytest.mark.parametrize("large", [512, 32])
@pytest.mark.parametrize("solve", [spectrum._by_bisection, interpreted])
def test_a_gpu_keeps_the_dtype_of_each(solve: Callable, large: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton, "_LARGE", large)
    with jax.enable_x64(True):
        single, double = np.eye(35, dtype=np.float32)[None], np.eye(40)[None]
        found = [np.asarray(values) for values in jax.jit(solve)(single, double)]
    assert [values.dtype for values in found] == [np.float32, np.float64]
    assert (found[0] == 1).all() and (found[1] == 1).all()


def test_factors_that_are_not_finite_or_lack_rows_on_a_gpu(beside_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spectrum, "_BISECTED", 4)
    yes, no = jnp.array(True), jnp.array(False)
    squares = MATRICES @ MATRICES  # positive semidefinite, as factors are
    factors = [
        Factor(jnp.asarray(squares[:2, None]), yes, 0),
        Factor(jnp.asarray(squares[None, :, :5, :5]), yes, 3),
        Factor(jnp.asarray(squares[None, 2:, :11, :11]), yes, 0),
        Factor(jnp.asarray(squares[None, 2:]), no, 0),
    ]
    solved = []
    monkeypatch.setattr(
        spectrum,
        "eigenvalues_by_bisection",
        lambda batches: solved.append([each.shape for each in batches]) or list(map(jnp.linalg.eigvalsh, batches)),
    )
    monkeypatch.setattr(spectrum, "_on_cpu", spectrum._by_bisection)
    found = [np.asarray(values) for values in eigenvalues_of(factors)]
    assert solved and all(shapes == [(2, 12, 12), (3, 5, 5), (1, 11, 11), (1, 12, 12)] for shapes in solved)
    assert [values.shape for values in found] == [(2, 1, 12), (1, 3, 8), (1, 1, 11), (1, 1, 12)]
    truth = squares.astype(np.float64)
    np.testing.assert_allclose(found[0][:, 0], np.linalg.eigvalsh(truth[:2]), atol=1e-4)
    with_zeros = np.sort(np.hstack([np.zeros((3, 3)), np.linalg.eigvalsh(truth[:, :5, :5])]))
    np.testing.assert_allclose(found[1][0], with_zeros, atol=1e-4)
    np.testing.assert_allclose(found[2][0], np.linalg.eigvalsh(truth[2:, :11, :11]), atol=1e-4)
    assert np.isnan(found[3]).all()
