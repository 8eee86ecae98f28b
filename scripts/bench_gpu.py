"""Check spectra, classes and outputs of this machine's device against its CPU, and measure the device.

scripts/bench_gpu [--quick] [--only mlp cnn allcnn]

Spectra of three models (N = 256) by a loop over candidates and by vmap, and by what the engine chooses itself; raw
evaluation of functions. Where JAX finds no GPU, the same runs on the CPU. `--quick` takes fewer candidates.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _models import NAMES, tasks
from _timing import seconds
from jax.sharding import Mesh

import aqx
from aqx.enumeration import sample_points
from aqx.evaluation import Batch, Family, evaluate_family, fingerprints
from aqx.operators import SETS
from aqx.spectra.devices import AXIS
from aqx.spectra.engine import Engine
from aqx.spectra.quantiles import spectrum_features
from aqx.spectra.subject import prepare
from aqx.tree import parse_schema

# Candidates measured on a GPU and on a CPU, where they take seconds each.
CANDIDATES = {"mlp": (2048, 256), "cnn": (512, 16), "allcnn": (64, 2)}
WIDTH = 32
FAMILY = Family(parse_schema("binary(unary(x),unary(x))"), SETS["paper"])


def mesh_of(device: Any) -> Mesh:
    """Return the mesh of one device."""
    return Mesh(np.array([device]), (AXIS,))


def check_spectra(task: aqx.Task, engine: Engine, count: int) -> float:
    """Return how far an engine's features are from the CPU's, in median distances between two candidates."""
    acts = [aqx.activation(name) for name in NAMES[:count]]
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        other = Engine(prepare(task), mesh_of(cpu))
    slow, fast = (
        spectrum_features(each.start(acts)().pairs, each.subject.probe.coverage.weights) for each in (other, engine)
    )
    distances = np.abs(slow[:, None] - slow[None]).sum(-1)[np.triu_indices(count, 1)]
    worst = float(np.abs(slow - fast).sum(-1).max() / np.median(distances))
    assert worst < 1e-2, f"{task.name}: spectra on {engine.mesh} differ from the CPU's by {worst:.1e} median distances"
    return worst


def check_classes(device: Any) -> tuple[int, float]:
    """Return how many functions have the class they have on the CPU, and how far their values are at most."""
    batch = Batch.of_trees(list(aqx.Space.act_bench()))
    points = sample_points(256, "stratified")
    classes, values = [], []
    for each in (jax.devices("cpu")[0], device):
        with jax.default_device(each):
            classes.append(fingerprints(batch).ids)
            values.append(np.asarray(evaluate_family(FAMILY, jnp.asarray(points), jnp.empty((len(batch), 256)))))
    assert (classes[0] == classes[1]).all(), f"classes on {device} differ from the CPU's"
    slow, fast = values
    finite = np.isfinite(slow)
    assert (finite == np.isfinite(fast)).mean() > 0.999, f"functions overflow elsewhere on {device}"
    finite &= np.isfinite(fast)
    slow, fast = slow[finite], fast[finite]
    return FAMILY.size, float((np.abs(slow - fast) / (1 + np.abs(slow))).max())


def spectra_per_second(engine: Engine, count: int) -> float:
    """Return the rate of an engine, compiled before."""
    acts = [aqx.activation(NAMES[i % len(NAMES)]) for i in range(count)]
    with engine:
        engine.start(acts)()
        return count / seconds(lambda: engine.start(acts)(), 3)


def functions_per_second(points: int) -> float:
    """Return how many functions of act_bench are evaluated in a second, values left on the device."""
    x = jnp.asarray(sample_points(points, "stratified"))
    values = evaluate_family(FAMILY, x, jnp.empty((FAMILY.size, points)))

    def again() -> None:
        nonlocal values
        values = jax.block_until_ready(evaluate_family(FAMILY, x, values))

    again()
    return FAMILY.size / seconds(again, 5)


def main() -> None:
    """Check, measure, print one table in Markdown and the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer candidates, All-CNN-C with 8 examples")
    parser.add_argument("--only", nargs="+", choices=[*CANDIDATES], default=[*CANDIDATES], help="these models alone")
    args = parser.parse_args()
    device = jax.devices()[0]
    on_gpu = device.platform != "cpu"
    kind = device.device_kind
    print(f"{kind} ({device.platform}), jax {jax.__version__}\n")
    figures: dict[str, object] = {"device": kind, "platform": device.platform, "jax": jax.__version__}
    known, apart = check_classes(device)
    print(f"{known} functions have the classes that they have on the CPU; values differ by {apart:.1e} at most")
    print("\n| model | differs from the CPU by | loop | vmap | chosen |\n|---|---|---|---|---|")
    for name in args.only:
        title, task = tasks(8 if args.quick else 256)[name]
        count = CANDIDATES[name][not on_gpu] // (4 if args.quick else 1) or 1
        subject = prepare(task)
        loop = Engine(subject, mesh_of(device), 1)
        worst = check_spectra(task, loop, 4 if name == "allcnn" else 12)
        rates, width = {"loop": spectra_per_second(loop, count)}, 1
        # On a CPU the engine loops, and XLA compiles vmap of a convolution for minutes.
        if on_gpu or name == "mlp":
            rates["vmap"] = spectra_per_second(Engine(subject, mesh_of(device), min(WIDTH, count)), count)
        if on_gpu:
            chosen = Engine(subject, mesh_of(device))
            rates["chosen"] = spectra_per_second(chosen, count)
            width = chosen.width or 1
        figures[name] = rates
        cells = [f"{rates[way]:,.3g}/s" if way in rates else "" for way in ("loop", "vmap", "chosen")]
        cells[2] += f" (width {width})"
        print(f"| {title} | {worst:.0e} median distances | {' | '.join(cells)} |", flush=True)
    rate = functions_per_second(1000)
    figures["functions"] = rate
    print(f"\nEvaluation: {rate:,.3g} functions/s at 1,000 points (5,103 functions, float32).\n{json.dumps(figures)}")


if __name__ == "__main__":
    main()
