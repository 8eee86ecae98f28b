"""Spectra of any candidates: one compiled program per shape of function, all devices, as many at once as fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from threadpoolctl import threadpool_limits

from aqx.activation import Activation
from aqx.errors import TaskError
from aqx.machine import cores, free_memory
from aqx.spectra.devices import AXIS, agreed, candidate_mesh, on_every_device
from aqx.spectra.subject import Subject, checks, fixed_inputs, spectra_of

# Programs kept; the compiled ones of a large model take tens of megabytes each.
_PROGRAMS = 32
# Candidates that one device computes at once by vmap, at most; what that gains levels off.
_WIDEST = 32
# Assumed where the system does not say how much memory is free.
_UNKNOWN_MEMORY = 2 << 30
# The share of the free memory that candidates in flight may take together.
_MEMORY = 0.5


@dataclass(frozen=True)
class Spectra:
    """Eigenvalues of the factors of K candidates, and whether each candidate's numbers are finite.

    Attributes:
        pairs: by layer key, eigenvalues of A [K, B, d] and of G [K, B, p].
        finite: by what was looked at ("loss", "gradient at Dense_0", …), in the order of the computation [K].
    """

    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    finite: dict[str, np.ndarray]

    def reason(self, candidate: int) -> str | None:
        """Why a candidate is invalid, or None."""
        for what, ok in self.finite.items():
            if not ok[candidate]:
                return f"the {what} is not finite"
        return None


class Engine:
    """Computes the spectra of candidates of any shape on all devices of all processes.

    On a CPU candidates go through a program one by one, each in a thread of its own while there are cores, and inside
    of the context each call of LAPACK has one thread: in two threads on 2 cores a small MLP takes 0.55, a CNN 0.6 of
    the time of one after the other. A loop inside of the program was 1.5 times slower (XLA runs its body with less
    parallelism), and vmap evaluates every operator of the table. On other devices, what is faster of loop and vmap is
    measured once.

    Args:
        subject: the task made ready.
        mesh: devices; default all.
        width: candidates that one device computes at once; default 1 on a CPU, measured elsewhere.

    Every process of a run must make the same calls in the same order. What is not computed at the end of the context is
    dropped.
    """

    def __init__(self, subject: Subject, mesh: Mesh | None = None, width: int | None = None):
        self.subject = subject
        self.mesh: Mesh = candidate_mesh() if mesh is None else mesh
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        self.width = width or (1 if on_cpu else None)
        alone = self.mesh.size == 1 and jax.process_count() == 1
        self.threads: int = cores() if on_cpu and alone else 1
        self._resident = on_every_device(self.mesh, (subject.state, subject.x, subject.y))
        self._fixed: dict[str, Array] | None = None
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._shapes: set[Any] = set()
        self._executor: tuple[int, ThreadPoolExecutor] | None = None

    def __enter__(self) -> Engine:
        self._blas = threadpool_limits(1, user_api="blas")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._executor:
            # What nobody waits for any more, after Ctrl-C, is not computed.
            self._executor[1].shutdown(wait=False, cancel_futures=True)
        self._blas.restore_original_limits()

    @property
    def at_once(self) -> int:
        """Candidates in flight; before the width is chosen, as many as choosing it takes."""
        return self.mesh.size * (self.width or _WIDEST) * self.threads

    def start(self, activations: Sequence[Activation]) -> Callable[[], Spectra]:
        """Start computing K candidates; calling what is returned waits for the result.

        Raises:
            jax.errors.JaxRuntimeError: when the result is waited for and there was not enough memory; see `halve`.
        """
        groups: dict[Any, list[int]] = {}
        for i, act in enumerate(activations):
            groups.setdefault(jax.tree.structure(act), []).append(i)
        self._shapes.update(groups)
        if self.width is None:
            self.width = self._faster_width([activations[i] for i in max(groups.values(), key=len)])
        step = self.mesh.size * self.width
        parts = [members[i : i + step] for members in groups.values() for i in range(0, len(members), step)]
        programs = [self._program([activations[i] for i in part]) for part in parts]
        submit = self._pool.submit if self.threads > 1 else _now
        futures = [submit(program) for program in programs]
        return lambda: self._collect(parts, futures, len(activations))

    def halve(self) -> None:
        """Compute half as many candidates at once from now on.

        Raises:
            TaskError: it is one already.
        """
        if self.threads > 1:
            self.threads //= 2
        elif self.width and self.width > 1:
            self.width //= 2
            self._programs.clear()
        else:
            raise TaskError(
                f"one candidate of task {self.subject.task.name!r} alone does not fit into memory; "
                "let the task's batch return fewer examples"
            )

    @property
    def shapes(self) -> int:
        """Shapes of functions met so far."""
        return len(self._shapes)

    @property
    def _pool(self) -> ThreadPoolExecutor:
        if self._executor is None or self._executor[0] != self.threads:
            self._executor = self.threads, ThreadPoolExecutor(self.threads, "aqx-spectra")
        return self._executor[1]

    def _program(self, acts: Sequence[Activation]) -> Callable[[], Any]:
        """What computes up to one full step of candidates of one shape when it is called."""
        step = self.mesh.size * (self.width or 1)
        # A step is always full: the last candidate stands in for those that lack.
        filled = [*acts, *[acts[-1]] * (step - len(acts))]
        stacked = jax.tree.map(lambda *leaves: np.array(leaves), *filled)
        if jax.process_count() > 1:
            stacked = jax.device_put(stacked, NamedSharding(self.mesh, PartitionSpec(AXIS)))
        key = (jax.tree.structure(stacked), self.width)
        if self._fixed is None:
            self._fixed = on_every_device(self.mesh, fixed_inputs(self.subject))
        arguments = (stacked, self._fixed, *self._resident)
        if key not in self._programs:
            while len(self._programs) >= _PROGRAMS:
                del self._programs[next(iter(self._programs))]
            compiled = self._compile(arguments)
            needed = max(1, compiled.memory_analysis().temp_size_in_bytes)
            self.threads = max(1, min(self.threads, int(_MEMORY * self._free_memory() / needed)))
            self._programs[key] = compiled
        compiled = self._programs[key]
        if self.threads == 1:
            return lambda: compiled(*arguments)
        return lambda: jax.device_get(compiled(*arguments))

    def _compile(self, arguments: tuple[Any, ...]) -> Any:
        width, subject = self.width or 1, self.subject

        def spectra(acts: Activation, fixed: dict[str, Array], state: Any, x: Any, y: Any) -> Any:
            if width > 1:
                return jax.vmap(lambda act: spectra_of(subject, act, fixed, state, x, y))(acts)
            act = jax.tree.map(lambda leaf: leaf[0], acts)
            return jax.tree.map(lambda leaf: leaf[None], spectra_of(subject, act, fixed, state, x, y))

        everywhere, shared = PartitionSpec(), PartitionSpec(AXIS)
        sharded = jax.shard_map(
            spectra,
            mesh=self.mesh,
            in_specs=(shared, everywhere, everywhere, everywhere, everywhere),
            out_specs=shared,
            check_vma=False,
        )
        # Process 0 needs what the devices of the others have computed.
        out = None if jax.process_count() == 1 else NamedSharding(self.mesh, everywhere)
        return jax.jit(sharded, out_shardings=out).lower(*arguments).compile()

    def _faster_width(self, acts: Sequence[Activation]) -> int:
        """1 or the widest vmap that fits, whichever computes these candidates faster."""
        wide = min(_WIDEST, len(acts) // self.mesh.size)
        if wide < 2:
            return 1
        seconds = {}
        for self.width in (1, wide):
            step = self.mesh.size * self.width
            parts = [acts[i : i + step] for i in range(0, len(acts) - step + 1, step)]
            try:
                jax.block_until_ready(self._program(parts[0])())
                started = time.perf_counter()
                jax.block_until_ready([self._program(part)() for part in parts])
            except jax.errors.JaxRuntimeError:  # too little memory
                continue
            seconds[self.width] = (time.perf_counter() - started) / (len(parts) * step)
        # Process 0's clock decides for all, as they must run the same programs.
        return agreed(min(seconds, key=seconds.__getitem__, default=1))

    def _free_memory(self) -> int:
        device = self.mesh.local_devices[0]
        stats = device.memory_stats() if device.platform != "cpu" else None
        if stats and "bytes_limit" in stats:
            return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        return free_memory() or _UNKNOWN_MEMORY

    def _collect(self, parts: Sequence[Sequence[int]], futures: Sequence[Future[Any]], count: int) -> Spectra:
        values, finite = (np.concatenate(part) for part in zip(*(f.result() for f in futures), strict=True))
        # Steps are filled up, and their candidates come in an order of their own.
        step = len(values) // len(parts)
        rows = np.empty(count, int)
        for number, part in enumerate(parts):
            rows[part] = number * step + np.arange(len(part))
        values, finite = values[rows], finite[rows]
        pairs, end = {}, 0
        for layer in self.subject.probe.layers:
            both = []
            for shape in layer.eigenvalue_shapes:
                start, end = end, end + math.prod(shape)
                both.append(values[:, start:end].reshape(count, *shape))
            pairs |= {key: (both[0][:, i], both[1][:, i]) for i, key in enumerate(layer.keys)}
        return Spectra(pairs, dict(zip(checks(self.subject.probe), finite.T, strict=True)))


def _now(work: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future
