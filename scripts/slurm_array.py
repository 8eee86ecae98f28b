"""A search as SLURM job arrays, for clusters on which no process may run for long.

python scripts/slurm_array.py search.duckdb --task file.py:task --rounds 10 --width 16 --sbatch="--time=60 --gres=gpu:1"

Run it where the database lies on a local disk, on a login node for instance: on a network file system it is not safe
when several machines write to it, so no job opens it. Each round

1. claims so many functions and writes them into a folder of `--jobs`, which all nodes must see;
2. submits an array with a job for each, and waits for it; a job trains its function and writes its metrics there;
3. tells the database what came of them.

Interrupt it at any moment: called again, it first tells what has come meanwhile. A job that wrote nothing was lost; its
claim lapses after a day, and the function is claimed once more.

Where one process may stay for the whole search, a driver with an executor is better (scripts/search_dask.py, or
submitit, see the README): it learns from every result at once, and no worker waits for the slowest of a round.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import aqx


def claim(study: aqx.Study, width: int, folder: Path, task: str) -> int:
    """Claim functions, write a file for each job, and return how many they are."""
    for number in range(1, width + 1):
        try:
            trial = study.ask()
        except aqx.Exhausted:
            return number - 1
        job = {"task": task, "name": trial.name, "seed": trial.seed, "trial": trial.id}
        (folder / f"job-{number}.json").write_text(json.dumps(job))
    return width


def train(folder: Path, number: str) -> None:
    """Do the work of one job of the array, on whatever node it runs."""
    job = json.loads((folder / f"job-{number}.json").read_text())
    try:
        task = aqx.load_task(job["task"])
        if task.train is None:
            raise aqx.TaskError(f"task {task.name!r} has no train function")
        answer = {"metrics": task.train(aqx.activation(job["name"]), job["seed"])}
    except Exception as error:  # an error is an answer too
        answer = {"reason": f"{type(error).__name__}: {error}"}
    part = folder / f"result-{number}.part"
    part.write_text(json.dumps(answer | {"trial": job["trial"]}, default=lambda value: value.tolist()))
    part.rename(part.with_suffix(".json"))  # whole or not at all


def tell(study: aqx.Study, jobs: Path) -> None:
    """Store the results that have come."""
    for file in sorted(jobs.glob("*/result-*.json")):
        answer = json.loads(file.read_text())
        try:
            if "reason" in answer:
                record = study.fail(answer["trial"], answer["reason"])
            else:
                record = study.tell(answer["trial"], **answer["metrics"])
            print(f"{record.name:40} {record.reason if record.objective is None else record.objective}", flush=True)
        except aqx.InputError as error:  # told before, or without the objective
            print(f"{file}: {error}", file=sys.stderr)
        file.rename(file.with_suffix(".told"))


def submit(folder: Path, count: int, options: str) -> None:
    """Submit an array of jobs that call this script, and wait; that some of them fail is no reason to stop."""
    job = shlex.join([sys.executable, os.path.abspath(__file__), "--job", str(folder)])
    command = ["sbatch", "--wait", f"--array=1-{count}", f"--output={folder}/%a.log", *shlex.split(options)]
    subprocess.run([*command, f"--wrap={job}"], check=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("database", nargs="?")
    parser.add_argument("--task")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--width", type=int, default=16, help="jobs in a round")
    parser.add_argument("--jobs", type=Path, default=Path("jobs"), help="a folder that all nodes see")
    parser.add_argument("--sbatch", default="", help="more options of sbatch, in one string")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)  # how the jobs call this script
    args = parser.parse_args()
    if args.job:
        train(args.job, os.environ["SLURM_ARRAY_TASK_ID"])
        sys.exit()
    if not args.database or not args.task:
        parser.error("give a database and --task")
    study = aqx.Study(args.database, args.task)
    args.jobs.mkdir(parents=True, exist_ok=True)
    for _ in range(args.rounds):
        tell(study, args.jobs)
        folder = Path(tempfile.mkdtemp(prefix="array-", dir=args.jobs.resolve()))
        count = claim(study, args.width, folder, args.task)
        if not count:
            break
        submit(folder, count, args.sbatch)
    tell(study, args.jobs)
    print("best:", study.best())
