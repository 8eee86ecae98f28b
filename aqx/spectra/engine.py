"""Descriptors of any candidates: one compiled program per shape of function, all devices, as many at once as fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from threadpoolctl import threadpool_limits

from aqx import pallas
from aqx.activation import Activation
from aqx.errors import TaskError, one_line
from aqx.kernel import form_in_use
from aqx.machine import cores, free_memory
from aqx.numerics.settings import own_settings
from aqx.spectra.descriptor import Descriptor
from aqx.spectra.devices import AXIS, agreed, candidate_mesh, compiled_quickly, full_precision, on_every_device
from aqx.spectra.fisher_spectra import FISHER
from aqx.spectra.subject import Subject
from aqx.stopping import is_stop

# Programs kept; the compiled ones of a large model take tens of megabytes each.
_PROGRAMS = 32
# Candidates that one device other than a CPU computes at once by vmap, at most; what that gains levels off (measured on
# an H200, a small MLP: 202 spectra/s one by one, 3,658 by 8, 13,202 by 32, 28,566 by 128).
_WIDEST = 1024
# A program for a wider vmap is compiled for a shape already met where so many times as many candidates come.
_WIDER = 8
# Assumed where the system does not say how much memory is free.
_UNKNOWN_MEMORY = 2 << 30
# The share of the free memory that candidates in flight may take together. A GPU's programs take 0.7 to 1.5 times what
# is told from their values (spectra and short runs of ten tasks, compiled for an H100); with switches in place of the
# kernel, which keep the values of all operators, up to four times.
_MEMORY = 0.5
_MEMORY_WITH_SWITCHES = 0.2


@dataclass
class _Kept:
    """What engines of the same devices need not compile or compute again."""

    programs: dict[Any, Any] = field(default_factory=dict)
    fixed: Any = None


class Engine:
    """Computes the spectra, or another descriptor, of candidates of any shape on all devices of all processes.

    On a CPU candidates go through a program one by one, each in a thread of its own while there are cores, and inside
    of the context each call of LAPACK has one thread: in two threads on 2 cores a small MLP takes 0.55, a CNN 0.6 of
    the time of one after the other. A loop inside of the program was 1.5 times slower (XLA runs its body with less
    parallelism), and vmap evaluates every operator of the table. On other devices vmap takes as many together as come
    and the memory holds, and features are computed there too: a host sorts fewer spectra than a GPU computes.

    Args:
        subject: the task made ready.
        mesh: devices; default all.
        width: candidates that one device computes at once; default 1 on a CPU, elsewhere as the memory allows.
        descriptor: what to compute of each.

    Every process of a run must make the same calls in the same order. What is not computed at the end of the context is
    dropped.
    """

    def __init__(
        self,
        subject: Subject,
        mesh: Mesh | None = None,
        width: int | None = None,
        descriptor: Descriptor[Any] = FISHER,
    ):
        self.subject = subject
        self.descriptor: Descriptor[Any] = descriptor
        self.mesh: Mesh = candidate_mesh() if mesh is None else mesh
        self._on_cpu = _on_cpu(self.mesh)
        alone = self.mesh.size == 1 and jax.process_count() == 1
        self.threads: int = cores() if self._on_cpu and alone else 1
        self._resident = on_every_device(self.mesh, (subject.state, subject.x, subject.y))
        self.width: int = width or (1 if self._on_cpu else self._width_that_fits())
        self._widths: dict[Any, int] = {}
        self._excess = 1.0  # of what the last program needs over what there is
        self._kept: _Kept = subject.kept.setdefault((descriptor.kind, self.mesh), _Kept())
        self._fitting: set[Any] = set()  # programs that are known to fit into memory
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
        """Candidates in flight."""
        return self.mesh.size * self.width * self.threads

    def start(self, activations: Sequence[Activation]) -> Callable[[], Any]:
        """Start computing K candidates; calling what is returned waits for the result, of the descriptor's type.

        What the model, an operator or a compiler raises befalls the candidates that it was raised for alone.

        Raises:
            jax.errors.JaxRuntimeError: when the result is waited for and there was not enough memory; see `halve`.
        """
        leaves: list[list[Any]] = []
        groups: dict[Any, list[int]] = {}
        for i, act in enumerate(activations):
            flat, shape = jax.tree.flatten(act)
            leaves.append(flat)
            groups.setdefault(shape, []).append(i)
        self._shapes.update(groups)
        parts, programs = [], []
        for shape, members in groups.items():
            width = self._width(shape, len(members))
            step = self.mesh.size * width
            for part in (members[i : i + step] for i in range(0, len(members), step)):
                parts.append(part)
                try:
                    programs.append(self._program(shape, [leaves[i] for i in part], width))
                except BaseException as error:
                    programs.append(partial(_raise, _of_candidates(error)))
        submit = self._pool.submit if self.threads > 1 else _now
        futures = [submit(program) for program in programs]
        return lambda: self._collect(parts, futures, len(activations))

    def halve(self) -> None:
        """Compute half as many candidates at once from now on, or fewer where it is known that half will not fit.

        Raises:
            TaskError: it is one already.
        """
        if self.threads > 1:
            self.threads //= 2
        elif self.width > 1:
            # Of a shape that has few candidates so far, less is at once already.
            times = 2 ** max(1, math.ceil(math.log2(max(1.0, self._excess))))
            self.width = max(1, min(self.width, max(self._widths.values(), default=self.width)) // times)
            self._excess = 1.0
            self._widths.clear()
            self._kept.programs.clear()
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

    def _width(self, shape: Any, count: int) -> int:
        """How many of `count` candidates of a shape one device computes at once: one program serves them all."""
        if not shape.num_leaves:  # of x alone there is one
            return 1
        needed = 1 << (-(-count // self.mesh.size) - 1).bit_length()
        known = self._widths.get(shape)
        if known is None or needed >= _WIDER * known:
            self._widths[shape] = min(self.width, needed)
        return self._widths[shape]

    def _width_that_fits(self) -> int:
        """The largest power of two of candidates, up to `_WIDEST`, that the memory holds."""
        share = _MEMORY if self._on_cpu or form_in_use() == "kernel" else _MEMORY_WITH_SWITCHES
        fits = int(share * self._free_memory() / max(1, self.descriptor.bytes_each(self.subject)))
        # Process 0's memory decides for all, as they must run the same programs.
        return agreed(1 << (max(1, min(fits, _WIDEST)).bit_length() - 1))

    @own_settings()
    def _program(self, shape: Any, leaves: Sequence[Sequence[Any]], width: int) -> Callable[[], Any]:
        """What computes up to one full step of candidates of one shape when it is called."""
        step = self.mesh.size * width
        # A step is always full: the last candidate stands in for those that lack.
        filled = [*leaves, *[leaves[-1]] * (step - len(leaves))]
        stacked = jax.tree.unflatten(shape, [np.array(column) for column in zip(*filled, strict=True)])
        if jax.process_count() > 1:
            stacked = jax.device_put(stacked, NamedSharding(self.mesh, PartitionSpec(AXIS)))
        key = (shape, width)
        if self._kept.fixed is None:
            self._kept.fixed = on_every_device(self.mesh, self.descriptor.fixed(self.subject))
        arguments = (stacked, self._kept.fixed, *self._resident)
        programs = self._kept.programs
        if key not in programs:
            while len(programs) >= _PROGRAMS:
                del programs[next(iter(programs))]
            programs[key] = self._compile(arguments, width)
        compiled = programs[key]
        if key not in self._fitting:
            needed = max(1, compiled.memory_analysis().temp_size_in_bytes)
            self.threads = max(1, min(self.threads, int(_MEMORY * self._free_memory() / needed)))
            self._check_memory(needed, width)
            self._fitting.add(key)
        fetched = self.threads > 1

        @own_settings()  # which are of a thread
        def run() -> Any:
            found = compiled(*arguments)
            return jax.device_get(found) if fetched else found

        return run

    def _compile(self, arguments: tuple[Any, ...], width: int) -> Any:
        program = program_for(self.mesh, self.subject, self.descriptor, width)
        if self._on_cpu:
            return program.lower(*arguments).compile()
        with full_precision(), pallas.quiet():
            return compiled_quickly(program.lower(*arguments))

    def _check_memory(self, needed: int, width: int) -> None:
        """Refuse a program that will not fit before it is tried: then it is known how many candidates would."""
        if self._on_cpu or width == 1:
            return
        self._excess = needed / max(1, self._free_memory())
        if self._excess > 1:
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {width} candidates need {needed:,} bytes")

    def _free_memory(self) -> int:
        device = self.mesh.local_devices[0]
        stats = device.memory_stats() if device.platform != "cpu" else None
        if stats and "bytes_limit" in stats:
            return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
        return free_memory() or _UNKNOWN_MEMORY

    @own_settings()
    def _collect(self, parts: Sequence[Sequence[int]], futures: Sequence[Future[Any]], count: int) -> Any:
        steps: list[Any] = []
        failed: dict[int, str] = {}
        for part, future in zip(parts, futures, strict=True):
            try:
                steps.append([np.asarray(array) for array in future.result()])
            except BaseException as error:
                reason = one_line(_of_candidates(error))
                steps.append(None)
                failed |= dict.fromkeys(part, f"its {self.descriptor.one} raised {reason}")
        arrays = self._in_order(parts, steps, count)
        return self.descriptor.gather(self.subject, arrays, failed)

    def _in_order(self, parts: Sequence[Sequence[int]], steps: Sequence[Any], count: int) -> list[np.ndarray]:
        """The arrays of all steps, a row per candidate: steps are filled up, and come in an order of their own."""
        done = [step for step in steps if step is not None]
        if not done:
            return self.descriptor.empty(self.subject, count)
        if len(done) == len(steps):
            rows, start = np.empty(count, int), 0
            for part, step in zip(parts, steps, strict=True):
                rows[part] = start + np.arange(len(part))
                start += len(step[0])
            return [np.concatenate(arrays)[rows] for arrays in zip(*steps, strict=True)]
        whole = [np.zeros((count, *array.shape[1:]), array.dtype) for array in done[0]]
        for part, step in zip(parts, steps, strict=True):
            for array, mine in zip(whole, step or (), strict=False):
                array[list(part)] = mine[: len(part)]
        return whole


def program_for(mesh: Mesh, subject: Subject, descriptor: Descriptor[Any], width: int) -> Any:
    """The jitted program that computes `width` candidates on each device of a mesh.

    It takes a stack of candidates, what is fixed for all of them, and the subject's state, x and y.
    """
    compute = descriptor.program(subject, _on_cpu(mesh))

    def described(acts: Activation, *shared: Any) -> Any:
        if width > 1:
            return jax.vmap(lambda act: compute(act, *shared))(acts)
        act = jax.tree.map(lambda leaf: leaf[0], acts)
        return jax.tree.map(lambda leaf: leaf[None], compute(act, *shared))

    described.__name__ = descriptor.kind.table  # what a compiler's log calls the program
    everywhere, shared = PartitionSpec(), PartitionSpec(AXIS)
    sharded = jax.shard_map(
        described,
        mesh=mesh,
        in_specs=(shared, everywhere, everywhere, everywhere, everywhere),
        out_specs=shared,
        check_vma=False,
    )
    # Process 0 needs what the devices of the others have computed.
    out = None if jax.process_count() == 1 else NamedSharding(mesh, everywhere)
    return jax.jit(sharded, out_shardings=out)


def _of_candidates(error: BaseException) -> Exception:
    """An exception that is the candidates' own; what concerns all of them, and what asks to stop, goes on.

    Raises:
        BaseException: there is too little memory, for which `halve` is the remedy, or somebody asks to stop.
    """
    if is_stop(error) or isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        raise error
    return error if isinstance(error, Exception) else RuntimeError(one_line(error))


def _raise(error: Exception) -> Any:
    raise error


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _now(work: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future
