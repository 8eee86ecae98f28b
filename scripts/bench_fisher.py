"""Measure Fisher spectra per candidate, against the plain way and against what the operations alone would take.

scripts/bench_fisher [--repeat 3] [--only mlp cnn allcnn]

The plain way: a fresh jit for each candidate, patches by loops in NumPy, float64 scipy.linalg.eigh.
The floor: floating-point operations of the gradients and factors (the first layer's A and its input gradient left out)
over the measured rate of XLA's matrix product on all cores, plus the eigenvalues of each factor at the measured time of
one, shared out over the cores. Each model runs in a process of its own, checks its answer first, and reports the median
of its repeats; "first" is the time until the first spectrum is there, "again" the same with the compilation cache.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from _models import NAMES, spectra_plainly, tasks
from _timing import seconds

import aqx
from aqx.fisher.patches import is_quicker
from aqx.fisher.rows import ConvRows
from aqx.fisher.spectrum import eigvalsh
from aqx.spectra.engine import Engine
from aqx.spectra.quantiles import spectrum_features
from aqx.spectra.subject import fixed_inputs, prepare

CANDIDATES = {"mlp": 600, "cnn": 40, "allcnn": 4}


def measure(name: str, repeat: int, quick: bool) -> dict[str, float]:
    """Return seconds per candidate of aqx, of the plain way and of the floor, and seconds to the first spectrum."""
    _, task = tasks(32)[name]
    candidates = [aqx.activation(NAMES[i % len(NAMES)]) for i in range(CANDIDATES[name])]
    started = time.perf_counter()
    subject = prepare(task)
    with Engine(subject) as engine:
        first = engine.start(candidates[:1])()
        figures = {"first": time.perf_counter() - started}
        if quick:
            return figures
        check(first, spectra_plainly(task, NAMES[0]))

        def fast() -> None:
            spectrum_features(engine.start(candidates)().pairs, subject.probe.coverage.weights)

        fast()
        figures["aqx"] = seconds(fast, repeat) / len(candidates)
        before = peak()
        engine.start(candidates * 3)()
        figures["growth"] = peak() - before
        figures["floor"] = floor(engine)
    names = iter(NAMES)
    figures["plain"] = seconds(lambda: spectra_plainly(task, next(names)), repeat)
    return figures | {"peak": before}


def check(first, plain: dict[str, np.ndarray]) -> None:
    """Compare the spectrum of the first candidate with the plain way's."""
    for path, slow in plain.items():
        of_A, of_G = (part[0, 0] for part in first.pairs[path])
        fast = np.sort(np.outer(of_A, of_G).ravel())
        np.testing.assert_allclose(fast, slow, rtol=2e-3, atol=4e-6 * slow.max())


def floor(engine: Engine) -> float:
    """Return the seconds that a candidate's operations alone would take on all cores."""
    probe, subject = engine.subject.probe, engine.subject
    fixed = fixed_inputs(subject)
    square = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)
    operations_per_second = 2 * 1024**3 / timed(lambda: product(square))
    operations, eigenvalues = 0.0, 0.0
    for number, layer in enumerate(probe.layers):
        (_, _, d), (_, _, p) = layer.eigenvalue_shapes
        operations += 2 * layer.count * d * p * (2 if number else 1)  # forward, and back to its input
        operations += layer.count * p * p
        if layer.path not in fixed:
            operations += of_moment(layer.tap.rows, layer.count, d)
            eigenvalues += of_matrix(min(d, layer.count))
        eigenvalues += of_matrix(p)
    return operations / operations_per_second + eigenvalues / (os.cpu_count() or 1)


def of_moment(rows, count: int, d: int) -> float:
    """Return the operations of A: half a product of the rows, or one product for each distance of kernel positions."""
    if not isinstance(rows, ConvRows) or not is_quicker(rows) or count < d:
        return count * d * min(d, count)
    distances = math.prod(
        len({(i % s, j - i) for i in range(k) for j in range(k)})
        for k, s in zip(rows.kernel, rows.strides, strict=True)
    )
    return count * (d // math.prod(rows.kernel)) ** 2 * distances


def of_matrix(d: int) -> float:
    """Return the seconds that the eigenvalues of one matrix take on one core."""
    rows = np.random.default_rng(0).normal(size=(2 * d, d)).astype(np.float32)
    matrix, values = jnp.asarray(rows.T @ rows), jax.jit(eigvalsh)
    return timed(lambda: values(matrix))


def timed(work) -> float:
    """Return the median seconds of some work on the device after one run to warm up."""
    jax.block_until_ready(work())
    return seconds(lambda: jax.block_until_ready(work()), 5)


def peak() -> float:
    """Return this process's peak memory in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_process(name: str, repeat: int, cache: str | None = None, quick: bool = False) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--repeat", str(repeat), *["--quick"] * quick]
    environment = os.environ | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {})
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure each model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="repeats of each measurement")
    parser.add_argument("--only", nargs="+", choices=[*CANDIDATES], default=[*CANDIDATES], help="these models alone")
    parser.add_argument("--one", choices=[*CANDIDATES], help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.repeat, args.quick)))
        return
    print("| model | aqx | the plain way | ratio | floor | × floor | first | again | peak memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.only:
        with tempfile.TemporaryDirectory() as cache:
            found = in_process(name, args.repeat)
            first = in_process(name, 1, cache, quick=True)["first"]
            again = in_process(name, 1, cache, quick=True)["first"]
        assert found["growth"] < 0.3, "memory grows with the number of candidates"
        fast, plain, least = (1e3 * found[key] for key in ("aqx", "plain", "floor"))
        print(
            f"| {tasks(32)[name][0]} | {fast:,.3g} ms | {plain:,.3g} ms | {plain / fast:,.0f}× | {least:,.3g} ms "
            f"| {fast / least:.1f} | {first:.0f} s | {again:.0f} s | {found['peak']:.1f} GiB |",
            flush=True,
        )
    print(f"\n{os.cpu_count()} cores, jax {jax.__version__}, flax {importlib.import_module('flax').__version__}.")


if __name__ == "__main__":
    main()
