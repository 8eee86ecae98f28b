"""Stage `programs` of scripts/bench_gpu: what aqx runs on a GPU, compiled for an H100 on any machine.

Bytes and launches are told from the compiled programs; what they cost on a GPU the other stages measure.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import _h100
import jax
import jax.numpy as jnp
from _gpu import Figure, Row
from _models import NAMES, tasks

import aqx
from aqx.fisher.triton import tiling_of
from aqx.population import stack_of
from aqx.spectra.devices import compiled_quickly, full_precision
from aqx.spectra.engine import program_for
from aqx.spectra.fisher_spectra import FISHER
from aqx.spectra.subject import prepare
from aqx.tasks import load_task

SHAPES = (
    "swish(x)",
    "erf(exp(tanh(x)))",
    "add(swish(x),tanh(x))",
    "max(relu(x),cosh(elu(x)))",
    "sum_n(x,sin(x),exp(x))",
    "mul(0.5,tanh(x))",
    "mul(swish(x),y)",
)
KERNEL = "pallas_call"  # part of the name that a program has for it
DTYPES = ("float32", "bfloat16")
SPECTRA = {"mlp": 1024, "cnn": 512, "allcnn": 32}
POPULATIONS = {"mnist1d": 2048, "mnist1d-cnn": 2048, "digits": 2048, "digits-cnn": 2048, "digits-vit": 2048}


def main(small: bool) -> Iterator[Row]:
    """Compile kernels, spectra and populations; where JAX's CUDA plugin is missing say so."""
    try:
        device = _h100.device()
    except RuntimeError as error:
        yield Row("programs for an H100", {"left_out": str(error)})
        return
    for name in SHAPES[-1:] if small else SHAPES:
        yield Row(f"{name}: values, and gradients of them", kernels(name, device))
    for name, width in {"mlp": 8}.items() if small else SPECTRA.items():
        yield Row(f"{tasks(256)[name][0]}: {width} spectra", spectra(name, width, device))
    for name, count in {"mnist1d": 8}.items() if small else POPULATIONS.items():
        yield Row(f"{name}: {count:,} trained together", population(name, count, device))


def kernels(name: str, device: Any) -> dict[str, Figure]:
    """Return how long the kernels of a function of all dtypes take to compile, of one and of a stack of functions."""
    act = aqx.activation(name)
    stack = aqx.stack([act] * 8)

    def pulled(act: Any, *inputs: Any) -> Any:
        y, pullback = jax.vjp(act, *inputs)
        return y, pullback(y)

    total = 0.0
    for dtype in DTYPES:
        inputs = [jnp.zeros((8, 3, 700), dtype)] * act.inputs
        for program, of in ((jax.jit(pulled), act), (jax.jit(jax.vmap(pulled)), stack)):
            made = _h100.compiled(program, of, *inputs, on=device)
            assert KERNEL in made.text, f"{name} of {dtype} has no kernel"
            total += made.compile_s
    return {"programs": 2 * len(DTYPES), "compile_s": total}


def spectra(name: str, width: int, device: Any) -> dict[str, Figure]:
    """Return what so many spectra take at once."""
    subject = prepare(tasks(256)[name][1])
    acts = aqx.stack([aqx.activation(each) for each in itertools.islice(itertools.cycle(NAMES), width)])
    program = program_for(_h100.mesh_of(device), subject, FISHER, width)
    arguments = (acts, FISHER.fixed(subject), subject.state, subject.x, subject.y)

    with full_precision():
        made = _h100.compiled(program, *arguments, on=device, split=1, finish=compiled_quickly)
    memory = {"MB_each": made.bytes / width / 1e6, "told_MB_each": subject.bytes_each / 1e6}
    return figures(made) | {"GB_in_reductions": bytes_of_reductions(made.text) / 1e9} | memory


_REDUCTION = re.compile(r"\(f32\[(\d+),(\d+),\2\].* custom-call\(.*/aqx_tridiagonal/")


def bytes_of_reductions(text: str) -> float:
    """Return what the kernels that reduce matrices move besides: for each column, what is left of the matrix."""
    found = [tuple(map(int, match.groups())) for match in map(_REDUCTION.search, text.splitlines()) if match]
    return sum(count * 4 * d**3 / 3 * (1 + 2 / tiling_of(d).panel) for count, d in found)


def population(name: str, count: int, device: Any) -> dict[str, Figure]:
    """Return what so many trainings take together."""
    names = [str(tree) for tree in itertools.islice(itertools.cycle(aqx.Space.act_bench()), count)]
    return figures(compiled_population(load_task(name).train_many, stack_of(names), [0] * count, device))


class _Caught(Exception):
    """A population's program, before it is compiled for this machine."""

    def __init__(self, program: Any, arguments: tuple[Any, ...]):
        super().__init__()
        self.program, self.arguments = program, arguments


def compiled_population(train_many: Any, acts: Any, seeds: list[int], device: Any) -> _h100.Compiled:
    """Compile what `train_many` would run where an H100 is."""

    def caught(self: Any, structure: Any, same: bool, devices: Any, mesh: Any, arrays: Any) -> Any:
        program, _, constants = self._traceable(structure, same, False, mesh, arrays)
        raise _Caught(program, (*arrays, constants))

    populations = importlib.import_module("aqx.population")  # whose name is a function's too
    with (
        _h100.as_if_there(),
        mock.patch.object(populations._Population, "_compile", caught),
        mock.patch.object(populations, "_one_by_one", lambda device: False),
    ):
        try:
            train_many(acts, seeds)
        except _Caught as found:
            return _h100.compiled(found.program, *found.arguments, on=device)
    raise AssertionError("nothing was compiled")


def figures(made: _h100.Compiled) -> dict[str, Figure]:
    """Return the figures of a compiled program."""
    does = _h100.work(made.text)
    assert KERNEL in made.text, "functions are evaluated by switches"
    return {
        "trace_s": made.trace_s,
        "compile_s": made.compile_s,
        "kernels": does.kernels,
        "launches": does.launches,
        "GB": does.bytes / 1e9,
    }
