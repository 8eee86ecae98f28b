"""Fisher spectra on the device: those of the CPU, then how many in a second, and the whole of `aqx eigs`."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _gpu import Figure, Row, on_gpu
from _models import NAMES, spectra_plainly, tasks
from _timing import seconds
from jax.sharding import Mesh

import aqx
from aqx.fisher.tridiagonal import eigenvalues_by_bisection
from aqx.fisher.triton import eigenvalues_by_kernels
from aqx.spectra.devices import AXIS, full_precision
from aqx.spectra.engine import Engine
from aqx.spectra.quantiles import spectrum_features
from aqx.spectra.subject import prepare

# Candidates measured, on a GPU and small; a CPU compiles the others for longer than the stage may take.
CANDIDATES = {"mlp": 8192, "cnn": 1024, "allcnn": 32}
SMALL = {"mlp": 16}
MATRICES = ((4096, 65), (512, 577))  # how many, of which dimension
SMALL_MATRICES = ((2, 40),)


def main(small: bool) -> Iterator[Row]:
    """Check and measure matrices, three models, and `aqx eigs`, with an empty cache of programs and a filled one."""
    for count, d in SMALL_MATRICES if small else MATRICES:
        yield Row(f"{count} matrices of {d}: eigenvalues", matrices(count, d))
    for name, count in (SMALL if small else CANDIDATES).items():
        if name == "allcnn":
            yield command_line(small)  # quick, and the largest model may be too slow for the stage
        yield Row(f"{tasks(256)[name][0]}: spectra", rate(name, count))
    if small:
        yield command_line(small)


def matrices(count: int, d: int) -> dict[str, Figure]:
    """Return what one takes by the kernels, by what GPUs without them use, and by JAX's library, of 8 matrices alone.

    Each is checked against float64 before.
    """
    ways = {
        "kernels": lambda some: eigenvalues_by_kernels([some], interpret=not on_gpu())[0],
        "in_JAX": lambda some: eigenvalues_by_bisection([some])[0],
        "library": jnp.linalg.eigvalsh,
    }
    figures: dict[str, Figure] = {}
    with full_precision():
        roots = jax.random.normal(jax.random.key(d), (count, d, d))
        all_ = jnp.einsum("kij,kmj->kim", roots, roots) / d  # positive semidefinite, as factors are
        expected = np.linalg.eigvalsh(np.asarray(all_[:4], np.float64))
        for name, way in ways.items():
            some, solve = all_[:8] if name == "library" else all_, jax.jit(way)
            np.testing.assert_allclose(solve(some)[:4], expected, atol=1e-5 * expected.max(), err_msg=name)
            took = seconds(lambda solve=solve, some=some: jax.block_until_ready(solve(some)), 3)
            figures[f"{name}_us_each"] = 1e6 * took / len(some)
    return figures


def rate(name: str, count: int) -> dict[str, Figure]:
    """Return spectra per second, the width that the engine chose, and seconds until the first of them were there."""
    acts = [aqx.activation(name) for name in itertools.islice(itertools.cycle(NAMES), count)]
    started = time.perf_counter()
    with Engine(prepare(tasks(256)[name][1]), mesh_of(jax.devices()[0])) as engine:
        engine.start(acts)()
        first = time.perf_counter() - started
        # All-CNN-C on a CPU takes too long; with few examples its matrices are as large.
        off = check_few_examples(name) if name == "allcnn" else check(engine, 12)
        took = seconds(lambda: engine.start(acts)(), 3)
        return {"per_s": count / took, "width": min(engine.width, count), "first_s": first} | off


def mesh_of(device: Any) -> Mesh:
    """Return the mesh of one device."""
    return Mesh(np.array([device]), (AXIS,))


def check_few_examples(name: str) -> dict[str, float]:
    """Check a model on 8 examples."""
    with Engine(prepare(tasks(8)[name][1]), mesh_of(jax.devices()[0])) as engine:
        return check(engine, 2)


def check(engine: Engine, count: int) -> dict[str, float]:
    """Return how far the device's spectra are from the CPU's, a CPU's from those of the plain way."""
    acts = [aqx.activation(name) for name in NAMES[:count]]
    task, found = engine.subject.task, engine.start(acts)()
    if not on_gpu():
        for path, slow in spectra_plainly(task, NAMES[0]).items():
            of_A, of_G = (part[0, 0] for part in found.pairs[path])
            np.testing.assert_allclose(np.sort(np.outer(of_A, of_G).ravel()), slow, rtol=2e-3, atol=4e-6 * slow.max())
        return {}
    cpu = jax.devices("cpu")[0]
    weights = engine.subject.probe.coverage.weights
    with jax.default_device(cpu), Engine(prepare(task), mesh_of(cpu)) as other:
        slow = spectrum_features(other.start(acts)().pairs, weights)
    fast = spectrum_features(found.pairs, weights)
    assert found.features is not None
    np.testing.assert_allclose(found.features, fast, rtol=1e-4, atol=1e-6)
    distances = np.abs(slow[:, None] - slow[None]).sum(-1)[np.triu_indices(count, 1)]
    off = float(np.abs(slow - fast).sum(-1).max() / np.median(distances))
    assert off < 1e-2, f"{task.name}: spectra on {jax.devices()[0]} are {off:.1e} median distances from the CPU's"
    return {"medians_from_the_CPU": off}


def command_line(small: bool) -> Row:
    """Measure `aqx eigs` as a user runs it, with an empty cache of compiled programs and with what that run left."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        # This process holds most of the GPU's memory.
        environment |= {"XDG_CACHE_HOME": folder, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        environment["PYTHONPATH"] = f"{Path(__file__).parents[1]}:{environment.get('PYTHONPATH', '')}"
        aqx_command = [sys.executable, "-m", "aqx"]
        functions = ["--schema", "unary(x)"] if small else ["--space", "act_bench"]
        database, copy = Path(folder, "all.duckdb"), Path(folder, "copy.duckdb")
        enumerate_ = [*aqx_command, "enumerate", database, *functions, "--quiet"]
        subprocess.run(enumerate_, env=environment | {"JAX_PLATFORMS": "cpu"}, check=True, stdout=subprocess.DEVNULL)
        figures: dict[str, Figure] = {}
        for cache in ("cold", "warm"):
            shutil.copy(database, copy)
            started = time.perf_counter()
            eigs = [*aqx_command, "eigs", copy, "--task", "mnist1d", "--quiet"]
            done = subprocess.run(eigs, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            figures[f"{cache}_s"] = time.perf_counter() - started
            figures["spectra"] = int(done.stdout.split()[0].replace(",", ""))
        where = "unary functions" if small else "act_bench"
        return Row(f"aqx eigs, {where} × mnist1d{'' if on_gpu() else ', on a CPU'}", figures)
