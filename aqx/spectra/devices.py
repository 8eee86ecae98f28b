"""Devices: candidates are shared out over all of them, on this host and on others; process 0 leads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aqx.errors import InputError

AXIS = "candidates"
# What takes XLA most of the time to compile for a GPU. It would write dozens of kernels for each matrix product and try
# them all, seconds a product; the library's own choice is as good for float32 in full precision. And it would look for
# a better kernel for each of the small steps between, a third of the time: more than these take for many thousands of
# candidates.
_QUICK = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_experimental_enable_fusion_autotuner": False}


def connect(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the processes of one run, before anything is computed; afterwards all their devices are one mesh.

    Args:
        coordinator: "host:port" of process 0; with all three left out, the cluster (SLURM, Open MPI, …) says.
        processes: how many there are.
        process: which of them this is, from 0.

    Raises:
        InputError: the processes cannot be found, or only some of the three are given.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise InputError("coordinator, processes and process go together; give all three, or none in a cluster job")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"could not join the processes of this run ({reason}); give coordinator, processes and process"
        ) from error


def candidate_mesh() -> Mesh:
    """All devices of all processes, in a row."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def on_every_device(mesh: Mesh, tree: Any) -> Any:
    """Copy arrays to each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def on_cpu() -> contextlib.AbstractContextManager[Any]:
    """A context in which JAX computes on a CPU where there is one: a GPU's compiler takes many times longer."""
    if jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names a GPU alone
        return contextlib.nullcontext()


def full_precision() -> contextlib.AbstractContextManager[Any]:
    """A context in which a GPU multiplies float32 as such.

    Else with the 11 bits of TF32: features were 0.7 % of the median distance from the CPU's.
    """
    return jax.default_matmul_precision("highest")


def compiled_quickly(lowered: Any) -> Any:
    """Compile a program of many matrix products of different shapes for a GPU."""
    options = dict(_QUICK)
    while options:
        try:
            return lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            # Of another version of XLA, which says which one.
            known = {name: value for name, value in options.items() if f"'{name}'" not in str(error)}
            options = known if len(known) < len(options) else {}
    return lowered.compile()


def leads() -> bool:
    """Whether this process is the one that chooses candidates and touches the database."""
    return jax.process_index() == 0


def agreed(number: int) -> int:
    """The number that process 0 has."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def announce(names: Sequence[str]) -> list[str]:
    """Pass names from process 0 to all; the others call it with none and get those of process 0."""
    if jax.process_count() == 1:
        return list(names)
    text = np.frombuffer(json.dumps(list(names)).encode(), np.uint8)
    length = agreed(len(text))
    # Lengths in powers of two, so that few programs are compiled.
    padded = np.zeros(1 << max(10, (length - 1).bit_length()), np.uint8)
    if leads():
        padded[:length] = text
    received = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return json.loads(received[:length].astype(np.uint8).tobytes())
