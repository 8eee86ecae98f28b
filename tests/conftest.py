"""What every test runs under: JAX on the CPU, aqx with its array shapes checked, hypothesis reproducible in CI."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Both before the first import of jax and aqx: the environment reaches worker processes too, and the hook has every
# annotated shape in aqx checked at run time.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test has compiled, another test, worker or process need not. It goes when the tests end, while the folder
    # that scripts/test names stays.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="aqx-compiled-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
_PACKAGE = Path(__file__).parents[1] / "aqx"
install_import_hook(
    [  # in the other modules it would check plain types alone, which pyright does: a quarter of the tests' time
        ".".join(file.relative_to(_PACKAGE.parent).with_suffix("").parts)
        for file in _PACKAGE.rglob("*.py")
        if "jaxtyping" in file.read_text("utf-8")
    ],
    "beartype.beartype",
)
gc.set_threshold(200_000, 20, 50)  # tracing makes many objects and few cycles: to look for these took an eighth

settings.register_profile("aqx", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("aqx"), derandomize=True, print_blob=True)
settings.load_profile("ci" if "CI" in os.environ else "aqx")


@pytest.fixture(autouse=True)
def _restore_operators() -> Iterator[None]:
    """A test may register operators of its own; the next test does not see them."""
    from aqx import operators

    before = operators._in_force
    yield
    operators._in_force = before


@pytest.fixture
def float64() -> Iterator[None]:
    """JAX computes in float64 where it is asked to."""
    import jax

    with jax.enable_x64(True):
        yield


_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_WITHOUT_MLIR = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def _quick_options() -> dict[str, Any]:
    """What XLA leaves out: newer ones have no option for the MLIR of fusions any more."""
    import jax

    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=_WITHOUT_MLIR)
    except jax.errors.JaxRuntimeError:
        return {}
    return _WITHOUT_MLIR


@pytest.fixture(scope="module")
def quick_to_compile() -> Iterator[None]:
    """XLA leaves out most of LLVM's optimisations and the MLIR of its fusions, for laws that hold with and without.

    The first saves 40 % of such a file's time, the second 30 to 50 % of the rest.
    """
    import jax
    from jax._src import compiler

    usual, chosen = compiler.get_compile_options, _quick_options()

    def quick(*args: Any, env_options_overrides: dict[str, Any] | None = None, **given: Any) -> Any:
        options: Any = {**chosen, **(env_options_overrides or {})}
        return usual(*args, env_options_overrides=options, **given)

    flags = " ".join(f"--{name}={str(value).lower()}" for name, value in (_QUICKLY | chosen).items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", quick)
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip())  # of processes it starts
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def quick_map() -> Iterator[None]:
    """Maps of candidates by principal components: UMAP compiles for half a minute (tests/surrogate/test_umap.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aqx.surrogate.atlas._UMAP_ROWS", 10**9)
        yield


@pytest.fixture
def db_path(tmp_path: Path) -> Path:
    """A path at which a test may make its database."""
    return tmp_path / "test.duckdb"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
