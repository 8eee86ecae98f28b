"""That the reduction has the barriers it needs: its kernel, run with what its threads may see of each other's writing.

Pallas' interpreter has one thread, in which nothing comes too early or too late.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from aqx.fisher import triton

D = 20
TILES = triton.Tiling(rows=4, columns=8, panel=4, warps=1)  # five by three of them, the last partly outside


class Machine:
    """What the kernel runs on in place of Pallas and a GPU.

    Attributes:
        late: whether what is written is seen from the next barrier on only, else at once.
        twice: whether each step reads and computes once more after it has written, as threads do that hold copies of
            the same elements and come later. Of a tile each element belongs to one thread alone.
    """

    def __init__(self, late: bool, twice: bool):
        self.late, self.twice = late, twice
        self.waiting: list[tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray]] = []
        self.crossed = self.tiles_written = self.steps = self.step = 0
        # By element, the steps that have read or written it since the last barrier.
        self.read: dict[tuple[int, int], set[int]] = defaultdict(set)
        self.written: dict[tuple[int, int], set[int]] = defaultdict(set)

    def wait(self) -> None:
        for element, steps in self.written.items():
            # A thread in one step may be ahead of, or behind, one in another.
            assert len(steps | self.read[element]) == 1, "read or written in one step, and written in another"
        self.read.clear()
        self.written.clear()
        self.crossed += 1
        for array, places, values in self.waiting:
            array[places] = values
        self.waiting.clear()

    def loop(self, start: Any, stop: Any, step: Callable[..., Any], carry: Any) -> Any:
        outer = self.step
        for i in range(int(start), int(stop)):
            self.step = self.steps = self.steps + 1
            before = self.crossed, self.tiles_written
            found = step(jnp.int32(i), carry)
            if self.twice and before == (self.crossed, self.tiles_written):
                found = step(jnp.int32(i), carry)
            carry = found
        self.step = outer
        return carry

    def load(self, part: tuple[Memory, Any], mask: Any = None, other: Any = None) -> Any:
        memory, index = part
        return memory[index] if mask is None else jnp.where(mask, memory[index], other)

    def store(self, part: tuple[Memory, Any], values: Any, mask: Any = None) -> None:
        memory, index = part
        memory.write(index, values, True if mask is None else mask)

    def call(self, kernel: Callable[..., None], *, out_shape: list[Any], **_: Any) -> Callable[..., list[Any]]:
        """Run the kernel for the first of the matrices, in place."""

        def run(sizes: Any, matrices: Any) -> list[jax.Array]:
            outputs = [np.full(each.shape[1:], np.nan, each.dtype) for each in out_shape]
            outputs[0][:] = matrices[0]
            kernel(Memory(np.array(sizes[0]), self), None, *(Memory(each, self) for each in outputs))
            self.wait()
            return [jnp.asarray(each[None]) for each in outputs]

        return run


class Memory:
    """An array as a kernel refers to it."""

    def __init__(self, array: np.ndarray, machine: Machine):
        self.array, self.machine = array, machine

    @property
    def at(self) -> Places:
        return Places(self)

    def __getitem__(self, index: Any) -> Any:
        places = self.places(index, inside=True)
        self.note(self.machine.read, places)
        return jnp.asarray(self.array[places])

    def note(self, log: dict[tuple[int, int], set[int]], places: tuple[np.ndarray, ...]) -> None:
        for element in np.ravel_multi_index(places, self.array.shape).ravel():
            log[id(self.array), int(element)].add(self.machine.step)

    def __setitem__(self, index: Any, values: Any) -> None:
        self.write(index, values, True)

    def write(self, index: Any, values: Any, mask: Any) -> None:
        places = self.places(index)
        mask, values, *places = np.broadcast_arrays(mask, values, *places)
        self.machine.tiles_written += self.array.shape == (D, D)
        where = tuple(each[mask] for each in places)
        self.note(self.machine.written, where)
        if self.machine.late:
            self.machine.waiting.append((self.array, where, values[mask]))
        else:
            self.array[where] = values[mask]

    def places(self, index: Any, inside: bool = False) -> tuple[np.ndarray, ...]:
        """Numbers along each axis, of the shape of what lies there; outside, where nothing is looked at, the last."""
        along = []
        for each, length in zip(index if isinstance(index, tuple) else (index,), self.array.shape, strict=True):
            if isinstance(each, slice):
                along.append(np.arange(length))
            elif isinstance(each, pl.Slice):
                along.append(int(each.start) + np.arange(each.size))
            else:
                along.append(np.array(int(each)))
        if inside:
            along = [np.minimum(each, length - 1) for each, length in zip(along, self.array.shape, strict=True)]
        dimensions = sum(each.ndim for each in along)
        before = np.cumsum([0] + [each.ndim for each in along])
        return tuple(
            each.reshape(each.shape + (1,) * (dimensions - start - each.ndim))
            for each, start in zip(along, before, strict=False)
        )


class Places:
    """Where to load or store."""

    def __init__(self, memory: Memory):
        self.memory = memory

    def __getitem__(self, index: Any) -> tuple[Memory, Any]:
        return self.memory, index


def reduced(machine: Machine, matrix: np.ndarray, size: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The eigenvalues of the tridiagonal matrix that the kernel makes."""
    with monkeypatch.context() as patched:
        patched.setattr(triton, "tiling_of", lambda d: TILES)
        patched.setattr(triton.pl, "pallas_call", machine.call)
        patched.setattr(triton.plt, "load", machine.load)
        patched.setattr(triton.plt, "store", machine.store)
        patched.setattr(triton.plt, "debug_barrier", machine.wait)
        patched.setattr(lax, "fori_loop", machine.loop)
        filled = np.zeros((1, D, D), np.float32)
        filled[0, :size, :size] = matrix
        diagonal, off = triton.tridiagonalise(jnp.asarray(filled), jnp.full((1, 1), size, jnp.int32))
    diagonal, off = diagonal[0, :size], off[0, : size - 1]
    return np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))


@pytest.mark.parametrize("size", [D, 13])
@pytest.mark.parametrize(("late", "twice"), [(True, False), (False, True)])
def test_threads_may_come_early_or_late(late: bool, twice: bool, size: int, monkeypatch: pytest.MonkeyPatch):
    matrix = np.random.default_rng(size).normal(size=(size, size)).astype(np.float32)
    matrix += matrix.T
    matrix /= np.abs(matrix).max()
    found = reduced(Machine(late, twice), matrix, size, monkeypatch)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(matrix.astype(np.float64)), atol=2e-6)
