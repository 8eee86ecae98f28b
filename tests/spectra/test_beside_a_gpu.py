"""What is computed beside a GPU: small programs on the CPU, and products as the library multiplies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from aqx.spectra.devices import _QUICK, compiled_quickly, on_cpu


def test_beside_a_gpu_small_programs_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with on_cpu():
        assert jax.config.jax_default_device == jax.devices("cpu")[0]

    def none(**_: object):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", none)
    with on_cpu():
        assert jax.config.jax_default_device is None
        assert jnp.zeros(1).sum() == 0


def test_an_option_that_this_xla_does_not_know_is_left_out():
    tried = []

    class Lowered:
        def compile(self, compiler_options: dict[str, bool] | None = None) -> str:
            tried.append(compiler_options)
            if compiler_options:
                raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option: 'xla_gpu_'")
            return "compiled"

    assert compiled_quickly(Lowered()) == "compiled" and len(tried) == 2

    class Older:
        """An XLA that knows all options but one."""

        def compile(self, compiler_options: dict[str, bool] | None = None) -> dict[str, bool] | None:
            if "xla_gpu_enable_triton_gemm" in (compiler_options or {}):
                raise jax.errors.JaxRuntimeError("No such compile option: 'xla_gpu_enable_triton_gemm'")
            return compiler_options

    assert compiled_quickly(Older()) == {"xla_gpu_experimental_enable_fusion_autotuner": False}

    class Full(Lowered):
        def compile(self, compiler_options: dict[str, bool] | None = None) -> str:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        compiled_quickly(Full())


def test_the_options_are_of_this_xla():
    lowered = jax.jit(jnp.matmul).lower(jnp.eye(2), jnp.eye(2))
    lowered.compile(compiler_options=_QUICK)
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        lowered.compile(compiler_options={"xla_gpu_of_no_version": False})
