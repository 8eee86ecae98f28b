"""`digest_of`: the batch, the loss and the initial weights of a task in few numbers that rounding does not change."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aqx.tasks import Task
from aqx.tasks.model import losses_of

# Of a wide array its rows of so many values are projected, in place of all values by directions as long.
_WIDTH = 1009
_DIRECTIONS = 4


def digest_of(task: Task, state: Any, x: Any, y: Any, outputs: Any) -> dict[str, str | list[float]]:
    """Return the digest of a batch, a loss and initial weights, as `aqx.store.enter_subject` takes it.

    Arrays of integers count to the last bit. Others, which another machine may have computed with another rounding, are
    told apart by their size and a few random projections. The loss is evaluated at outputs that are noise, so that
    nothing depends on the precision of a device's matrix products.

    Args:
        task: whose loss.
        state: initial weights.
        x: inputs of the batch.
        y: its labels.
        outputs: of the model on this batch, of which shapes and types are used.
    """
    rng = np.random.default_rng(0)

    def noise(leaf: Any) -> Any:
        return jnp.asarray(rng.normal(scale=2.0, size=leaf.shape), leaf.dtype)

    floating = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    parts: dict[str, Any] = {"batch x": x, "batch y": y, "initial weights": _values(state)}
    if floating:
        parts["loss"] = losses_of(task, jax.tree.map(noise, outputs), y)
    return {part: entry for name, value in parts.items() for part, entry in _entries(name, jax.tree.leaves(value))}


def _values(state: Any) -> Any:
    """The numbers of a model's state: keys of random numbers and counters say nothing of its weights."""
    return [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]


def _entries(name: str, leaves: Sequence[Any]) -> list[tuple[str, str | list[float]]]:
    arrays = [np.asarray(leaf) for leaf in leaves]
    exact = [array for array in arrays if array.dtype.kind in "biu"]
    text = hashlib.sha256(repr([array.shape for array in arrays]).encode())
    for array in exact:
        text.update(np.ascontiguousarray(array.astype(np.int64)).tobytes())
    numbers = [number for array in arrays if array.dtype.kind not in "biu" for number in _projections(array)]
    return [(name, text.hexdigest()[:16]), *([(f"{name}: values", numbers)] if numbers else [])]


def _projections(array: np.ndarray) -> list[float]:
    values = np.nan_to_num(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64), posinf=0, neginf=0)
    flat = np.concatenate([values.real.ravel(), values.imag.ravel()] if array.dtype.kind == "c" else [values.ravel()])
    rows = np.pad(flat, (0, -len(flat) % _WIDTH)).reshape(-1, _WIDTH)
    rng = np.random.default_rng(1)
    left, right = (rng.normal(size=(_DIRECTIONS, length)) for length in (len(rows), _WIDTH))
    return [float(np.linalg.norm(flat)), *np.einsum("kr,rk->k", left, rows @ right.T).tolist()]
