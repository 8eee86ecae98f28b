"""Settings of JAX under which aqx's own work runs, whatever somebody has set for theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from aqx.errors import InputError

_GUARDS = ("transfer_guard_host_to_device", "transfer_guard_device_to_device", "transfer_guard_device_to_host")


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Let values be nan or infinite, types and ranks be promoted and arrays be moved, in this thread.

    Candidates that give nan are usual, and are told apart by it; with `jax_debug_nans` the first would end a search.
    """
    with contextlib.ExitStack() as stack:
        for setting in (
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.numpy_rank_promotion("allow"),
            jax.numpy_dtype_promotion("standard"),
            jax.disable_jit(False),
            *(getattr(jax, guard)("allow") for guard in _GUARDS),
        ):
            stack.enter_context(setting)
        yield


@contextlib.contextmanager
def on_host(float64: bool) -> Iterator[None]:
    """Compute on the CPU whatever else there is, so that no class depends on the accelerator at hand.

    Raises:
        InputError: JAX was told to leave the CPU out.
    """
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError as error:
        platforms = jax.config.jax_platforms or "cuda"  # type: ignore[attr-defined]
        raise InputError(
            f"aqx computes values of functions on the CPU, which JAX was told to leave out; "
            f"add it: JAX_PLATFORMS={platforms},cpu"
        ) from error
    with own_settings(), jax.enable_x64(float64), jax.default_matmul_precision(None), jax.default_device(cpu):
        yield
