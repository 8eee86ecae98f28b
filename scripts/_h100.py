"""Programs for an H100, compiled without one: XLA needs the CUDA plugin and a description of the GPU alone."""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aqx import pallas
from aqx.spectra.devices import AXIS

NAME = "NVIDIA H100 80GB HBM3"
TARGET = f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{NAME}"
"""


def device() -> Any:
    """Return an H100 to compile for.

    Raises:
        RuntimeError: JAX's CUDA plugin is not installed, or this JAX cannot.
    """
    jax.devices()  # finds the plugins
    client = importlib.import_module("jaxlib.xla_client")
    if not client.pjrt_plugin_loaded("cuda"):
        raise RuntimeError("JAX's CUDA plugin is not installed; pip install 'jax[cuda13]' brings it, and needs no GPU")
    if not client.pjrt_plugin_initialized("cuda"):
        client.initialize_pjrt_plugin("cuda")
    (found,) = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology="1x1x1").devices
    return found


@contextlib.contextmanager
def as_if_there() -> Iterator[None]:
    """Programs are traced as where an H100 is JAX's default device."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(pallas, "trouble", lambda: None))
        stack.enter_context(pallas.quiet())
        stack.enter_context(mock.patch.object(jax, "default_backend", lambda: "gpu"))
        with contextlib.suppress(AttributeError, TypeError):  # newer versions of Pallas ask which GPU they lower for
            device = jax.sharding.AbstractDevice(NAME, None, "gpu")
            mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        yield


@dataclass(frozen=True)
class Compiled:
    """A program, and how long it took to make.

    Attributes:
        text: what XLA made of it.
        bytes: of its intermediate values.
        trace_s: seconds to trace and lower it.
        compile_s: seconds to compile it.
    """

    text: str
    bytes: int
    trace_s: float
    compile_s: float


def compiled(
    program: Any,
    *arguments: Any,
    on: Any,
    split: int = 0,
    finish: Callable[[Any], Any] = lambda lowered: lowered.compile(),
) -> Compiled:
    """Compile a jitted program for a device.

    Args:
        program: the program.
        arguments: arrays of the shapes and dtypes that it takes.
        on: the device.
        split: so many of the arguments are stacks of candidates.
        finish: how to compile what is lowered.
    """
    mesh = mesh_of(on)
    specs = [PartitionSpec(AXIS)] * split + [PartitionSpec()] * (len(arguments) - split)
    shapes = [
        jax.tree.map(lambda x, spec=spec: _shape(x, NamedSharding(mesh, spec)), argument)
        for argument, spec in zip(arguments, specs, strict=True)
    ]
    started = time.perf_counter()
    with as_if_there():
        lowered = program.trace(*shapes).lower(lowering_platforms=("cuda",))
    traced = time.perf_counter()
    found = finish(lowered)
    ended = time.perf_counter()
    return Compiled(found.as_text(), found.memory_analysis().temp_size_in_bytes, traced - started, ended - traced)


def mesh_of(on: Any) -> Mesh:
    """Return the mesh of one device."""
    return Mesh(np.array([on]), (AXIS,))


def _shape(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    array = jax.numpy.asarray(x) if np.ndim(x) == 0 else x
    return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype), sharding=sharding)


# What a program does, told from its text


_BYTES = {"pred": 1, "bf16": 2}  # per element; else the bits are in the name, as in f32
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_NO_WORK = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"}


@dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    def called(self, attribute: str) -> str | None:
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.rest)
        return found[1] if found else None


@dataclass(frozen=True)
class Work:
    """What a program does in one run.

    Attributes:
        kernels: different ones.
        launches: of kernels, those in loops once per turn.
        bytes: that kernels read and write.
    """

    kernels: int
    launches: int
    bytes: int


def work(text: str) -> Work:
    """Return what a compiled program does, loops of a known number of turns multiplied."""
    computations, entry = _computations(text)
    totals = [0, 0, 0]

    def walk(name: str, times: int) -> None:
        types = {each.name: each.type for each in computations[name]}
        for each in computations[name]:
            if each.operation == "while":
                turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', each.rest)
                walk(each.called("body") or "", times * int(turns[1]) if turns else times)
            elif each.operation == "call":
                walk(each.called("to_apply") or "", times)
            elif each.operation not in _NO_WORK and not each.operation.endswith("-done"):
                totals[0] += 1
                totals[1] += times
                operands = [types.get(name, "") for name in each.operands]
                totals[2] += times * _moved(each, operands, computations.get(each.called("calls") or "", []))

    walk(entry, 1)
    return Work(*totals)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    found: dict[str, list[_Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            found[name] = []
            entry = name if start[1] else entry
        elif match := _INSTRUCTION.match(line):
            found[name].append(_Instruction(*match.groups()[1:]))
    return found, entry


def _moved(instruction: _Instruction, operands: list[str], fused: list[_Instruction]) -> int:
    """Bytes that an instruction reads and writes: of an operand that is only cut from, or written into, just that."""
    if not fused:
        return _size(instruction.type) + sum(map(_size, operands))
    types = {each.name: each.type for each in fused}
    moved = 0
    for parameter in (each for each in fused if each.operation == "parameter"):
        users = [each for each in fused if parameter.name in each.operands]
        if users and all(_is_first(parameter.name, each, "slice", "dynamic-slice") for each in users):
            moved += sum(_size(each.type) for each in users)
        elif not users or not all(_is_first(parameter.name, each, "dynamic-update-slice") for each in users):
            moved += _size(operands[int(parameter.rest.partition(")")[0])])
    written = _size(fused[-1].type)  # of the instruction, where it runs beside others, operands are a part
    for each in (each for each in fused if each.operation == "dynamic-update-slice"):
        written += _size(types.get(each.operands[1], "")) - _size(each.type)
    return moved + max(0, written)


def _is_first(operand: str, instruction: _Instruction, *operations: str) -> bool:
    return instruction.operation in operations and instruction.operands[0] == operand


def _size(type_: str) -> int:
    found = 0
    for dtype, shape in _ARRAY.findall(type_):
        bytes_each = _BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8
        found += bytes_each * math.prod(int(length) for length in shape.split(",") if length)
    return found
