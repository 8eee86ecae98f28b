"""Measure trainings: one compiled program for all functions of a shape, against a fresh jit for each, in one run.

scripts/bench_training [--task mnist1d] [--repeat 3]
"""

from __future__ import annotations

import argparse
import os

import jax
from _timing import seconds

import aqx

FUNCTIONS = ("tanh", "swish", "erf", "softsign", "sigmoid", "elu", "arctan", "cosh")


def trainings_per_second(task: aqx.Task, repeat: int) -> tuple[float, float]:
    """Return trainings per second, one compiled program for all and a fresh jit for each."""
    names = iter([f"mul({a}(x),{b}(x))" for a in FUNCTIONS for b in ("sigmoid", "tanh")])

    def train() -> None:
        assert task.train is not None and task.train(aqx.activation(next(names)), seed=0)["val_acc"] > 0.2

    def train_afresh() -> None:
        jax.clear_caches()
        train()

    train()
    return 1 / seconds(train, 2 * repeat), 1 / seconds(train_afresh, repeat)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mnist1d", help="a built-in task")
    parser.add_argument("--repeat", type=int, default=3, help="repeats of each measurement")
    args = parser.parse_args()
    task = aqx.load_task(args.task)
    fast, afresh = trainings_per_second(task, args.repeat)
    print("| trainings | aqx | a fresh jit for each | ratio |\n|---|---|---|---|")
    print(f"| {task.name} | {fast:.3g}/s | {afresh:.3g}/s | {fast / afresh:.0f}× |")
    print(f"\n{os.cpu_count()} cores, jax {jax.__version__}.")


if __name__ == "__main__":
    main()
