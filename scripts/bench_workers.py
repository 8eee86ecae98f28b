"""Measure many processes that ask and tell on one database, and check that nothing is lost or claimed twice.

scripts/bench_workers [--workers 16] [--trials 1000] [--only steady killed] [--json]
scripts/bench_workers --on FILE [--workers 8] [--trials 400] [--policy ensemble] [--json]

Every worker is a process of its own: ask, a training of 5 ms (a sleep), tell, until each candidate has a result; the
policy is `random`. The clock starts once all workers are ready. `steady` leaves them alone; in `killed`, one of them is
killed (SIGKILL) every second and another started in its place. Each worker writes what it claims and tells to a log of
its own, outside of the database, before and after it does so; the database is checked against these logs at the end.

With a database that somebody has filled (`aqx enumerate`), a copy of it is worked on, for so many trials in all: how
long each worker's first ask takes, for which it reads all candidates, and later ones and answers; and their CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

import aqx
from aqx.enumeration import enumerate_space
from aqx.errors import Exhausted
from aqx.store import Database, count_trials, list_trials

TRAINING_SECONDS = 0.005
# A killed worker's claim lapses soon, as nobody beats for it; longer than any wait for the lock.
LEASE_SECONDS = 15.0


@dataclass(frozen=True)
class Report:
    """What was measured and found."""

    case: str
    workers: int
    trials: int
    seconds: float
    per_second: float
    kills: int
    told: int
    retried: int
    claimed_twice: int
    lost: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Many processes that ask and tell on one file.")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=["steady", "killed"], default=["steady", "killed"])
    parser.add_argument("--on", type=Path, metavar="FILE", help="A database with candidates, which is copied.")
    parser.add_argument("--policy", default="random", help="What chooses, with --on.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.on:
        with tempfile.TemporaryDirectory() as folder:
            found = measure_on(options.on, Path(folder), options.workers, options.trials, options.policy)
            print(json.dumps(found, indent=2))
        return
    reports = []
    for case in options.only:
        with tempfile.TemporaryDirectory() as folder:
            reports.append(measure(Path(folder), case, options.workers, options.trials))
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
        return
    print("| case | workers | trials | s | trials/s | kills | told | retried | claimed twice | results lost |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for r in reports:
        print(
            f"| {r.case} | {r.workers} | {r.trials} | {r.seconds:.1f} | {r.per_second:.1f} | {r.kills} | {r.told} | "
            f"{r.retried} | {r.claimed_twice} | {r.lost} |"
        )


def measure_on(database: Path, folder: Path, workers: int, trials: int, policy: str) -> dict[str, float]:
    """Let the workers take and answer so many trials each on a copy, and return seconds of asking and of telling."""
    path = folder / "large.duckdb"
    shutil.copyfile(database, path)
    Database(path)
    context = multiprocessing.get_context("spawn")
    queue: Queue[tuple[float, list[float], list[float], float]] = context.Queue()
    begin, share = context.Barrier(workers + 1), trials // workers
    arguments = str(path), share, begin, queue, policy
    running = [context.Process(target=ask_and_tell, args=arguments) for _ in range(workers)]
    for process in running:
        process.start()
    begin.wait()
    began = time.monotonic()
    found = [queue.get(timeout=600) for _ in running]
    seconds = time.monotonic() - began
    for process in running:
        process.join()
    first = [ask for ask, *_ in found]
    asks = [seconds for _, later, *_ in found for seconds in later]
    tells = [seconds for *_, answers, _ in found for seconds in answers]
    return {
        "first_ask_mean": float(np.mean(first)),
        "first_ask_max": max(first),
        "ask_median": float(np.median(asks)),
        "ask_99": float(np.quantile(asks, 0.99)),
        "tell_median": float(np.median(tells)),
        "tell_99": float(np.quantile(tells, 0.99)),
        "trials_per_second": workers * share / (seconds - min(first)),
        "processor": sum(cpu for *_, cpu in found),
    }


def ask_and_tell(
    path: str, trials: int, begin: Barrier, queue: Queue[tuple[float, list[float], list[float], float]], policy: str
) -> None:
    """What a worker of `measure_on` does."""
    study = aqx.Study(path, task(), surrogate=policy)
    asks: list[float] = []
    tells: list[float] = []
    begin.wait()
    processor = time.process_time()
    for _ in range(trials):
        began = time.monotonic()
        trial = study.ask()
        asks.append(time.monotonic() - began)
        time.sleep(TRAINING_SECONDS)
        began = time.monotonic()
        study.tell(trial, val_acc=random.random())
        tells.append(time.monotonic() - began)
    queue.put((asks[0], asks[1:], tells, time.process_time() - processor))


def task() -> aqx.Task:
    """A task without a model: only its name and objective count here."""

    def nothing(*_: object) -> None:
        return None

    return aqx.Task("sleep", build_model=nothing, batch=nothing, loss=nothing, baselines=())


def measure(folder: Path, case: str, workers: int, trials: int) -> Report:
    """Fill a database with so many candidates, let the workers train them all, and compare with their logs."""
    path = folder / "shared.duckdb"
    names = fill(path, trials)
    # The server has imported everything, so that starting a worker in a killed one's place takes no second.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aqx.search.study", "aqx.surrogate.models", "jax", "pyarrow"])
    running = [start(context, path, folder, number) for number in range(workers)]
    while len(list(folder.glob("*.ready"))) < workers:
        time.sleep(0.05)
    (folder / "go").touch()
    began = time.monotonic()
    kills = watch(running, case == "killed", lambda number: start(context, path, folder, number))
    seconds = time.monotonic() - began
    return check(path, folder, case, workers, names, seconds, kills)


def fill(path: Path, trials: int) -> int:
    """Enumerate until there are so many candidates, and hide the rest; return how many there are."""
    db = Database(path, create=True)
    enumerate_space(db, aqx.Space.act_bench(), sample=2 * trials + 200, points=8)
    with db.transaction() as con:
        con.execute(
            """
            UPDATE class_info SET constant = true WHERE class_id NOT IN (
                SELECT class_id FROM class_info WHERE finite AND NOT constant ORDER BY size, name LIMIT ?)
            """,
            [trials],
        )
        ((candidates,),) = con.execute("SELECT count(*) FROM class_info WHERE finite AND NOT constant").fetchall()
    return candidates


def start(context: ForkServerContext, path: Path, folder: Path, number: int) -> ForkServerProcess:
    process = context.Process(target=work, args=(str(path), str(folder), number))
    process.start()
    return process


def watch(running: list[ForkServerProcess], kill: bool, replace: Callable[[int], ForkServerProcess]) -> int:
    """Wait for the workers to end, killing one of them every second where asked to; return how many were killed."""
    chance = random.Random(0)
    kills, last = 0, time.monotonic()
    while any(process.is_alive() for process in running):
        time.sleep(0.05)
        if kill and time.monotonic() - last >= 1:
            last = time.monotonic()
            place = chance.choice([i for i, process in enumerate(running) if process.is_alive()] or [0])
            if running[place].is_alive():
                running[place].kill()
                running[place].join()
                kills += 1
                running[place] = replace(len(running) + kills)
    return kills


def work(path: str, folder: str, number: int) -> None:
    """Ask, train, tell, and write down what was claimed and told."""
    # However often its workers are killed, no function is given up.
    study = aqx.Study(path, task(), surrogate="random", retry=aqx.RetryPolicy(lost=1000))
    with contextlib.suppress(Exhausted):  # so that the candidates have been read
        study.suggest(1)
    with open(Path(folder, f"{number}.log"), "a", buffering=1) as log:
        Path(folder, f"{number}.ready").touch()
        while not Path(folder, "go").exists():  # a semaphore would be held for ever by a worker killed in it
            time.sleep(0.01)
        while True:
            try:
                trial = study.ask(LEASE_SECONDS)
            except Exhausted:
                counts = count_trials(study.db, study.task_id)
                if not counts["running"]:  # what a killed worker left is stale by then, and was claimed
                    return
                time.sleep(0.2)
                continue
            log.write(f"claimed {trial.id} {time.time()} {trial.name}\n")
            time.sleep(TRAINING_SECONDS)
            value = random.random()
            log.write(f"telling {trial.id} {value!r} {trial.name}\n")
            study.tell(trial, val_acc=value)
            log.write(f"told {trial.id} {value!r} {trial.name}\n")


def check(path: Path, folder: Path, case: str, workers: int, names: int, seconds: float, kills: int) -> Report:
    """Compare the trials in the database with the logs."""
    rows = {row.trial_id: row for row in list_trials(Database(path), 1)}
    told: dict[int, float] = {}
    telling: dict[int, float] = {}
    claims: list[int] = []
    for log in folder.glob("*.log"):
        for line in log.read_text().splitlines():
            what, trial_id, value, *_ = line.split(" ", 3)
            if what == "claimed":
                claims.append(int(trial_id))
            elif what in ("told", "telling"):
                (told if what == "told" else telling)[int(trial_id)] = float(value)
    done = {trial_id: row for trial_id, row in rows.items() if row.status == "done"}
    by_class: dict[str | None, int] = {}
    for row in done.values():
        by_class[row.class_id] = by_class.get(row.class_id, 0) + 1
    lost = sum(trial_id not in done or done[trial_id].objective != value for trial_id, value in told.items())
    # A trial whose worker was killed before "told" was written may be stored; its value must be what was being told.
    invented = sum(telling.get(trial_id) != row.objective for trial_id, row in done.items())
    twice = len(claims) - len(set(claims)) + sum(count - 1 for count in by_class.values())
    if len(by_class) != names:
        lost += names - len(by_class)
    return Report(
        case,
        workers,
        names,
        seconds,
        len(done) / seconds,
        kills,
        len(told),
        sum(row.status == "stale" for row in rows.values()),
        twice,
        lost + invented,
    )


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
