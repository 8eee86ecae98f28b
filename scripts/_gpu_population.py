"""Stage `population` of scripts/bench_gpu: many functions trained by one program, checked against one at a time."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from _gpu import Figure, Row

import aqx
from aqx.benchmark import load_table
from aqx.enumeration import enumerate_space
from aqx.population import TrainMany, shape_of, stack_of
from aqx.store import Database
from aqx.store.functions import candidate_names
from aqx.tasks.builtin import array_training, mnist1d, mnist1d_cnn


def main(small: bool) -> Iterator[Row]:
    """Check, then measure trainings, a whole command, and a slice of the paper's space."""
    steps = 10 if small else 30
    yield Row("population against one at a time", check(mnist1d, steps, 4 if small else 16))
    for module, sizes in ((mnist1d, (64, 512, 2048)), (mnist1d_cnn, (2048,))):
        train_many = shorter(module, steps) if small else module.train_many
        for count in (3,) if small else sizes:
            first, again = twice(train_many, functions(count))
            figures = {"trainings/s": count / again, "s": again, "with compiling s": first}
            yield Row(f"{module.task.name}, {count} functions together", figures)
    for run in ("cold", "again"):
        yield Row(f"aqx bench build, act_bench × mnist1d, {run}", build(small))
        if small:
            break
    yield from paper(small, steps)


def functions(count: int) -> list[str]:
    """Return functions of act_bench in an order that is always the same."""
    names = list(map(str, aqx.Space.act_bench()))
    np.random.default_rng(0).shuffle(names)
    return names[:count]


def shorter(module: Any, steps: int) -> TrainMany:
    """Return a task's training together, with fewer steps."""
    recipe = dataclasses.replace(module.RECIPE, steps=steps)
    return array_training.train_classifiers(module.build_model, module.load_data, recipe)


def check(module: Any, steps: int, count: int) -> dict[str, Figure]:
    """Compare members with the same functions closed over and trained alone, for a few steps."""
    names = functions(count)
    together = shorter(module, steps)(stack_of(names), [3] * count)["val_loss"]
    recipe, data = dataclasses.replace(module.RECIPE, steps=steps), module.load_data()
    alone = np.array(
        [
            array_training.train_classifier(module.build_model, aqx.activation(name), data, 3, recipe)["val_loss"]
            for name in names
        ]
    )
    finite = np.isfinite(alone) & np.isfinite(together)
    apart = np.abs(together - alone)[finite] / alone[finite]
    assert (np.isfinite(alone) != np.isfinite(together)).sum() <= count // 16, "other members diverge together"
    # Rounding grows in those that nearly diverge; what is exchanged between members would show in the median.
    assert np.median(apart) < 1e-3 and np.quantile(apart, 0.9) < 5e-2, f"losses differ by {np.sort(apart)[-4:]}"
    return {"functions": count, "median difference": float(np.median(apart)), "largest": float(apart.max())}


def twice(train_many: TrainMany, names: list[str]) -> tuple[float, float]:
    """Return the seconds of the first call, and of one that compiles nothing."""
    acts, seconds = stack_of(names), []
    for _ in range(2):
        started = time.perf_counter()
        train_many(acts, [0] * len(names))
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


def build(small: bool) -> dict[str, Figure]:
    """Time the whole command, from the start of Python to the table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "aqx", "bench", "build", "--task", "mnist1d", "--quiet"]
        command += ["--out", f"{folder}/table.parquet", *(["--sample", "4", "--workers", "1"] if small else [])]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        rows = len(load_table(f"{folder}/table.parquet"))
    return {"rows": rows, "s": seconds}


def paper(small: bool, steps: int) -> Iterator[Row]:
    """Time a slice of each shape of the paper's space, and say what the whole would take at that rate."""
    with tempfile.TemporaryDirectory() as folder:
        db = Database(f"{folder}/paper.duckdb", create=True)
        started = time.perf_counter()
        enumerate_space(db, aqx.Space.paper(), sample=60 if small else None)
        by_shape: dict[str, list[str]] = {}
        for name in candidate_names(db).values():
            by_shape.setdefault(shape_of(name)[0], []).append(name)
        total = time.perf_counter() - started
    yield Row("the paper's space, enumerated", {"classes": sum(map(len, by_shape.values())), "s": total})
    train_many = shorter(mnist1d, steps) if small else mnist1d.train_many
    for shape, names in list(by_shape.items())[: 1 if small else None]:
        count = min(len(names), 2 if small else 2048)
        first, again = twice(train_many, names[:: len(names) // count][:count])
        total += first - again + len(names) * again / count
        yield Row(f"{shape}, {count} of {len(names):,}", {"trainings/s": count / again, "with compiling s": first})
    if not small:
        yield Row("the paper's space × mnist1d, extrapolated from these slices", {"minutes": total / 60})
