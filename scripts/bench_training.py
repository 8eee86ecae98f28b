"""Measure trainings and suggestions against the plain way, in the same run; bench_fisher measures spectra.

scripts/bench_pipeline [--task mnist1d] [--repeat 3]

The plain ways: a fresh jit per training; the published surrogate refitted for every suggestion.
Prints one table in Markdown. Each step checks its answer first, warms up, and reports the median of its repeats.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from pathlib import Path

import jax
import numpy as np
from _timing import seconds

import aqx
from aqx import surrogate
from aqx.enumeration import enumerate_space
from aqx.store import Database, invalid_spectra
from aqx.store.features import load_features

FUNCTIONS = ("tanh", "swish", "erf", "softsign", "sigmoid", "elu", "arctan", "cosh")


# Training


def bench_training(task: aqx.Task, repeat: int) -> tuple[float, float]:
    """Return trainings per second, one compiled program for all and a fresh jit for each."""
    names = iter([f"mul({a}(x),{b}(x))" for a in FUNCTIONS for b in ("sigmoid", "tanh")])

    def train() -> None:
        assert task.train is not None and task.train(aqx.activation(next(names)), seed=0)["val_acc"] > 0.2

    def train_afresh() -> None:
        jax.clear_caches()
        train()

    train()
    return 1 / seconds(train, 2 * repeat), 1 / seconds(train_afresh, repeat)


# Suggestions


def bench_suggestions(folder: Path, task: aqx.Task, repeat: int) -> dict[str, tuple[float, float]]:
    """Return seconds of a first and of a repeated suggestion, aqx and the published surrogate refitted each time."""
    path = folder / "suggest.duckdb"
    enumerate_space(Database(path, create=True), aqx.Space.act_bench())
    aqx.fisher.compute_spectra(Database(path), task)
    rng = np.random.default_rng(0)
    study = aqx.Study(path, task)
    table = load_features(study.db, study.task_id)
    broken = invalid_spectra(study.db, study.task_id).keys()
    usable = [name for name in table.names if study.class_id(name) not in broken]
    for name in rng.choice(usable, 100, replace=False):
        study.add(str(name), val_acc=float(rng.random()))

    def refit() -> None:
        surrogate.embed(surrogate.Features(table.names.tolist(), table.outputs, table.spectra), "paper", 0)

    refit()
    plain = seconds(refit, 1)
    first = seconds(lambda: aqx.Study(path, task).suggest(), repeat)
    return {"first": (first, plain), "repeated": (seconds(lambda: study.suggest(), 2 * repeat + 1), plain)}


def main() -> None:
    """Run all steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist1d", help="a built-in task, for trainings and suggestions")
    parser.add_argument("--repeat", type=int, default=3, help="repeats of each measurement")
    args = parser.parse_args()
    task = aqx.load_task(args.task)
    print("| step | aqx | the plain way | ratio |\n|---|---|---|---|")

    def row(step: str, fast: float, plain: float, unit: str, smaller_is_better: bool = False) -> None:
        ratio = plain / fast if smaller_is_better else fast / plain
        print(f"| {step} | {fast:,.3g} {unit} | {plain:,.3g} {unit} | {ratio:,.0f}× |", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row(f"train on {task.name}", *bench_training(task, args.repeat), "trainings/s")
        for which, figures in bench_suggestions(folder, task, args.repeat).items():
            row(f"a {which} suggestion, act_bench with 100 results", *figures, "s", smaller_is_better=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nPeak memory, plain ways included: {peak:.2f} GiB; {os.cpu_count()} cores, jax {jax.__version__}.")


if __name__ == "__main__":
    main()
