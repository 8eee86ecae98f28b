"""Measure suggestions of a new process: the first, the next ones, and the memory they take.

scripts/bench_suggest [--cycles 11] [--only small runs large] [--data FOLDER] [--no-plain]

Two databases are made first, each with 100 results: `small`, 5,000 classes and some of the paper's space and of
Act-Bench's, all with mnist1d's Fisher spectra, and `large`, the whole space of the paper, about 400,000 classes, all of
them candidates, 500 with spectra. On request there is `runs`, which is `small` with short runs of all classes; these
take some minutes. `fit` is the first suggestion that finds no stored embedding, `first` that of a later
process: its start and imports, opening the study, and the suggestion; `next` is the median of cycles of `ask` and
`tell`, each of which sees one result more; after "of" stand the seconds of the processor, all threads together, which a
busy machine stretches. The answer is checked against an embedding fitted anew. The plain way is the published
surrogate, `paper`, which fits UMAP for every suggestion, on the classes of `small`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import aqx
from aqx import surrogate
from aqx.enumeration import enumerate_space
from aqx.search.ledger import seed_of_trial
from aqx.search.study import Study
from aqx.spectra import compute_runs
from aqx.store import Database, functions, invalid_spectra, load_spectra
from aqx.store.features import load_features
from aqx.store.kinds import RUNS, SPECTRA

TASK = "mnist1d"
RESULTS = 100
SMALL, LARGE_SPECTRA = 5000, 500


def make(path: Path, name: str) -> None:
    """Fill a database with classes, spectra and results, under another name until it is complete."""
    if path.exists():
        return
    draft, task = path.with_suffix(".draft"), aqx.load_task(TASK)
    if name == "runs":
        make(path.with_name("small.duckdb"), "small")
        shutil.copy(path.with_name("small.duckdb"), draft)
        compute_runs(draft, task)
        draft.rename(path)
        return
    db = Database(draft, create=True)
    enumerate_space(db, aqx.Space.act_bench() if name == "small" else aqx.Space.paper())
    missing = SMALL - functions.count_functions(db)["usable"]
    while missing > 0:
        stored = functions.count_functions(db)["functions"]
        enumerate_space(db, aqx.Space.paper(), sample=stored, seed=stored)
        missing = SMALL - functions.count_functions(db)["usable"]
    aqx.fisher.compute_spectra(db, task, limit=None if name == "small" else LARGE_SPECTRA)
    study, rng = Study(db, task), np.random.default_rng(0)
    chosen = rng.choice([*functions.candidate_names(db).values()], RESULTS, replace=False)
    for candidate in [*task.baselines, *chosen[len(task.baselines) :]]:
        study.add(str(candidate), val_acc=float(rng.random()))
    draft.rename(path)


def measure(path: Path, started: float, cycles: int) -> dict[str, object]:
    """Return the seconds of this process until its first suggestion, of the next ones, and its peak memory."""
    imported = time.time()
    study = Study(path, TASK)
    opened = time.time()
    (suggestion,) = study.suggest()
    figures = {"import": imported - started, "open": opened - imported, "suggest": time.time() - opened}
    busy, times, processor = time.process_time(), [], []
    for _ in range(cycles + 1 if cycles else 0):
        begun, clock = time.perf_counter(), time.process_time()
        trial = study.ask()
        study.tell(trial, val_acc=float(np.random.default_rng(trial.seed).random()))
        times.append(time.perf_counter() - begun)
        processor.append(time.process_time() - clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        **figures,
        "first": sum(figures.values()),
        "next": statistics.median(times[1:]) if times else 0.0,  # the first one looks up the baselines
        "processor": (busy, statistics.median(processor[1:]) if times else 0.0),
        "peak": peak,
        "class": suggestion.class_id,
    }


def plain(path: Path, preset: str) -> dict[str, object]:
    """Return what a suggestion is, and the seconds it takes, where all is fitted anew."""
    study = Study(path, TASK)
    rows, described = load_features(study.db, study.task_id), []
    row_of = {class_id: row for row, class_id in enumerate(functions.candidate_names(study.db))}
    stored = [load_spectra(study.db, study.task_id, kind) for kind in (SPECTRA, RUNS)]
    begun = time.perf_counter()
    for class_ids, features in stored:
        described.append(np.full((len(row_of), features.shape[1]), np.nan, np.float32))
        described[-1][[row_of[class_id] for class_id in class_ids]] = features
    spectra, runs = described
    embedding = surrogate.embed(surrogate.Features(rows.names.tolist(), rows.outputs, spectra, runs=runs), preset)
    records = [record for record in study.records() if record.class_id in row_of]
    broken = invalid_spectra(study.db, study.task_id)
    (chosen,) = surrogate.suggest(
        embedding,
        [row_of[str(record.class_id)] for record in records],
        [record.objective for record in records],
        preset=preset,
        seed=seed_of_trial(study.seed, max(record.id for record in records) + 1),
        candidates=np.array([class_id not in broken for class_id in row_of]),
    ).index
    return {"first": time.perf_counter() - begun, "class": list(row_of)[chosen], "classes": len(row_of)}


def in_process(*arguments: object) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments), "--started", str(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure each database and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=11, help="suggestions of which the median is taken")
    parser.add_argument("--only", nargs="+", choices=["small", "runs", "large"], default=["small", "large"])
    parser.add_argument("--data", type=Path, help="a folder that keeps the databases for the next time")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain way, which takes minutes")
    for hidden in ("--make", "--measure", "--plain"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make, args.preset)
        print("{}")
    elif args.measure:
        print(json.dumps(measure(args.measure, args.started, args.cycles)))
    elif args.plain:
        print(json.dumps(plain(args.plain, args.preset)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            table(args, args.data or Path(folder), Path(folder))


def table(args: argparse.Namespace, data: Path, folder: Path) -> None:
    """Make the databases in `data`, measure copies of them in `folder`, and print."""
    print("| classes | fit | first | import | open | suggest | next | peak memory | the plain way |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in args.only:
        kept, path = data / f"{name}.duckdb", folder / f"{name}.copy.duckdb"
        in_process("--make", kept, "--preset", name)
        shutil.copy(kept, path)
        fit = in_process("--measure", path, "--cycles", 0)
        fresh = in_process("--plain", path, "--preset", surrogate.DEFAULT)
        found = in_process("--measure", path, "--cycles", args.cycles)
        assert fit["class"] == found["class"] == fresh["class"], "stored and fresh embeddings suggest different classes"
        path.unlink()
        slow = "–"
        if name == "small" and not args.no_plain:
            slow = f"{in_process('--plain', kept, '--preset', 'paper')['first']:.1f} s"
        first, following = found["processor"]
        columns = [
            f"{fresh['classes']:,}",
            f"{fit['first']:.1f} s of {fit['processor'][0]:.1f} s, {fit['peak']:.1f} GiB",
            f"{found['first']:.1f} s of {first:.1f} s",
            *(f"{found[part]:.1f} s" for part in ("import", "open", "suggest")),
            f"{1e3 * found['next']:,.0f} ms of {1e3 * following:,.0f} ms",
            f"{found['peak']:.2f} GiB",
            slow,
        ]
        print(f"| {' | '.join(columns)} |", flush=True)
    print(f"\n{os.cpu_count()} cores, jax {jax.__version__}.")


if __name__ == "__main__":
    main()
