"""Where JAX computes by default; whether Pallas' kernels compile for the GPU, and of what type their results are."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jaxtyping import Array

_log = logging.getLogger(__name__)


def default_platform() -> str:
    """Return the platform of the device that JAX computes on where nothing else is said, such as "cpu"."""
    chosen: Any = jax.config.jax_default_device  # type: ignore[attr-defined]  # JAX makes its settings at run time
    return jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call in a thread of its own: what is being traced in this one, by jax.shard_map, leaves its marks on programs."""
    with ThreadPoolExecutor(1, "aqx-pallas") as pool:
        return pool.submit(function, *args).result()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lower programs without Pallas' warning that it will drop Triton: once it has, `trouble` tells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@functools.cache
def trouble() -> str | None:
    """Return why there are no kernels here, for people, or None if there are."""
    return apart(_tried)


def _tried() -> str | None:
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        return "no CUDA device"
    try:
        with quiet():
            _compile_a_small_one(device)
    except Exception as error:  # whatever a version of Pallas, Triton or the driver raises
        line = next(iter(str(error).strip().splitlines()), "")
        _log.debug("Pallas has no kernels here", exc_info=True)
        return f"Pallas does not compile for this device ({type(error).__name__}: {line})"
    return None


def _compile_a_small_one(device: Any) -> None:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plt

    def kernel(index: Any, x: Any, y: Any) -> None:
        y[...] = jax.lax.cond(index[0] > 0, jax.numpy.exp, jax.numpy.sin, x[...])

    def run(index: Array, x: Array) -> Array:
        return pl.pallas_call(
            kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), compiler_params=plt.CompilerParams()
        )(index, x)

    with jax.default_device(device):
        shapes = jax.ShapeDtypeStruct((1,), jax.numpy.int32), jax.ShapeDtypeStruct((32,), jax.numpy.float32)
        jax.jit(run).lower(*shapes).compile()


def like(x: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Return a type that varies over the mesh's axes as x does: inside jax.shard_map Pallas wants that said."""
    kind = jax.typeof(x)
    for name in ("manual_axis_type", "vma"):  # its name in newer and in older versions of JAX
        if hasattr(kind, name):
            return jax.ShapeDtypeStruct(shape, dtype, **{name: getattr(kind, name)})
    return jax.ShapeDtypeStruct(shape, dtype)
