"""The example scripts: each runs offline, in full, with tiny settings."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
import toy

from aqx.activation import activation
from aqx.search import Study
from aqx.tasks import load_task
from aqx.tasks.check import check_task

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
OPERATORS = ["sin", "tanh", "relu", "arctan", "identity", "negative", "add", "sub"]

# A task whose file has a path, as scripts take it; exp fails, for reasons of its own.
TASK = """
import toy
from aqx.tasks import Task, losses

task = Task("toy", toy.Net, toy.batch, losses.softmax_cross_entropy, train=toy.train,
            baselines=("relu(x)", "tanh(x)", "exp(x)"))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy.candidates(tmp_path / "toy.duckdb", ["unary(x)", "binary(unary(x),unary(x))"], OPERATORS)


@pytest.fixture
def task(tmp_path: Path) -> str:
    file = tmp_path / "toy_task.py"
    file.write_text(TASK)
    return f"{file}:task"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """Run a script in this process as `python scripts/NAME ARGUMENTS` would, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> dict:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return run


def elsewhere(tmp_path: Path, *command: object, **environment: str) -> str:
    """Run a command in an empty folder and return what it printed."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_nnx_script_compiles_once_for_all_functions_of_a_shape(tmp_path: Path):
    task = load_task(f"{SCRIPTS}/train_digits_nnx.py:task")
    report = check_task(dataclasses.replace(task, baselines=("relu(x)",)))
    assert report.parameters == 9 * 16 + 16 + 9 * 16 * 32 + 32 + 128 * 10 + 10
    vars(sys.modules[task.train.__module__])["STEPS"] = 2
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **kwargs: compiled.append(event) if "backend_compile" in event else None
    )
    counts = []
    for seed, name in enumerate(("erf(x)", "tanh(x)", "swish(x)", "gelu(x)", "sin(x)")):
        assert set(task.train(activation(name), seed)) == {"val_acc", "test_acc"}
        counts.append(len(compiled))
    assert counts[0] > 0 and counts == counts[:1] * 5
    printed = elsewhere(tmp_path, sys.executable, SCRIPTS / "train_digits_nnx.py", "digits.duckdb", "--trials", 2)
    first, second, best = map(str.split, printed.splitlines())
    assert (first[0], second[0], best[0]) == ("relu(x)", "swish(x)", "best:")
    assert 0.8 < float(first[1]) < 1 and 0.8 < float(second[1]) < 1


# --- logging --------------------------------------------------------------------------------------------------------


@pytest.fixture
def curved(path: Path) -> Callable[..., Study]:
    """Makes a study with these callbacks that has ended a trial with a curve, and a failed one."""

    def make(*callbacks) -> Study:
        study = Study(path, toy.task, callbacks=callbacks)
        with study.trial() as trial:
            for step in (1, 2, 3):
                trial.report(step=step, val_acc=step / 10)
            trial.report(val_acc=0.5, note="fine", loss=float("inf"))
        study.fail(study.ask(), "out of memory")
        return study

    return make


@pytest.mark.slow
def test_log_trials_to_tensorboard(path: Path, task: str, run, capsys: pytest.CaptureFixture[str]):
    run("log_trials.py", path, "--task", task, "--budget", 1, "--tensorboard", "runs")
    assert "best: Record(" in capsys.readouterr().out
    folders = sorted(folder.name for folder in Path("runs/toy").iterdir())
    assert folders == ["00001", "00002", "00003", "00004"], "three baselines, of which one fails, and a suggestion"
    assert b"overflow in exp" in next(Path("runs/toy/00003").iterdir()).read_bytes()


def test_tensorboard_has_curves_and_final_values(run, curved, tmp_path: Path):
    script = runpy.run_path(str(SCRIPTS / "log_trials.py"))
    curved(script["tensorboard"]("runs"))
    events = read_events(next(Path("runs/toy/00001").iterdir()))
    assert [(step, round(value, 6)) for step, value in events["val_acc"]] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert events["final/val_acc"] == [(1, 0.5)] and events["final/loss"] == [(1, float("inf"))]
    assert set(events) == {"val_acc", "final/val_acc", "final/loss", "final/seconds", "trial/text_summary"}


def read_events(file: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in a file of TensorBoard's, as its format says: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = file.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_log_trials_to_mlflow(run, curved, tmp_path: Path):
    mlflow = pytest.importorskip("mlflow")
    script = runpy.run_path(str(SCRIPTS / "log_trials.py"))
    curved(script["mlflow"](f"sqlite:///{tmp_path}/mlflow.db"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == "toy"]
    failed, done = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    assert (done.info.run_name, done.info.status) == ("relu(x)", "FINISHED")
    assert (failed.info.run_name, failed.info.status) == ("tanh(x)", "FAILED")
    assert failed.data.params["reason"] == "out of memory" and done.data.params["function"] == "relu(x)"
    history = client.get_metric_history(done.info.run_id, "val_acc")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 0.5), (1, 0.1), (2, 0.2), (3, 0.3)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_log_trials_to_weights_and_biases(run, curved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    script = runpy.run_path(str(SCRIPTS / "log_trials.py"))
    curved(script["weights_and_biases"]("aqx"))
    first, second = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
    assert b"relu(x)" in first.read_bytes() and b"out of memory" in second.read_bytes()


# --- clusters -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("running", [False, True], ids=["a cluster of its own", "a running one"])
def test_search_dask(path: Path, task: str, tmp_path: Path, running: bool):
    distributed = pytest.importorskip("distributed")
    command = [sys.executable, SCRIPTS / "search_dask.py", path, "--task", task, "--budget", "2"]
    if running:
        scheduler = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], cwd=tmp_path, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        )  # fmt: skip
        try:
            command += ["--address", scheduler.stdout.readline().strip()]
            printed = elsewhere(tmp_path, *command)
        finally:
            scheduler.communicate("\n", timeout=60)
    else:
        printed = elsewhere(tmp_path, *command)
    assert distributed and "best: Record(" in printed and "overflow in exp" in printed
    records = Study(path, task).records()
    assert [record.status for record in records].count("done") == 4 and len(records) == 5


CLUSTER = """
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        print(cluster.scheduler_address, flush=True)
        input()
"""

# Runs what is wrapped once for each job of the array, as SLURM does, and as it does exits with the highest status.
SBATCH = """#!/usr/bin/env python3
import json, os, re, subprocess, sys

with open(os.environ["SBATCH_LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
options = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
assert "wait" in options
worst = 0
for number in range(1, int(options["array"].removeprefix("1-")) + 1):
    if str(number) == os.environ.get("SBATCH_LOSES"):
        worst = 9
        continue
    with open(options["output"].replace("%a", str(number)), "w") as output:
        env = os.environ | {"SLURM_ARRAY_TASK_ID": str(number)}
        status = subprocess.call(options["wrap"], shell=True, env=env, cwd="/", stdout=output, stderr=output)
    worst = max(worst, status)
sys.exit(worst)
"""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """A scheduler of our own on PATH; returns what it was called with."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(SBATCH)
    program.chmod(0o755)
    log = tmp_path / "sbatch.log"
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("SBATCH_LOG", str(log))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_slurm_array(path: Path, task: str, run, sbatch, monkeypatch: pytest.MonkeyPatch, capsys):
    """Two rounds, in which a job is lost; another call goes on."""
    monkeypatch.setenv("SBATCH_LOSES", "2")
    arguments = (path, "--task", task, "--width", 3, "--sbatch=--time=60 --gres=gpu:1")
    run("slurm_array.py", *arguments, "--rounds", 2)
    assert "best: Record(" in capsys.readouterr().out
    study = Study(path, task)
    found = [(record.name, record.status) for record in study.records()]
    assert found[:3] == [("relu(x)", "done"), ("tanh(x)", "running"), ("exp(x)", "failed")] and len(found) == 6
    assert [status for _, status in found[3:]] == ["done", "running", "done"]
    assert study.records()[2].reason == "FloatingPointError: overflow in exp"
    for called in sbatch():
        assert called[:2] == ["--wait", "--array=1-3"] and {"--time=60", "--gres=gpu:1"} <= set(called)
    monkeypatch.delenv("SBATCH_LOSES")
    run("slurm_array.py", *arguments, "--rounds", 1)
    assert len(study.records(status="done")) == 6
    assert len({record.name for record in study.records()}) == 9, "no function twice"


def test_slurm_array_tells_what_came_while_it_was_away(path: Path, task: str, run, sbatch, monkeypatch):
    """Its parts one by one: claimed, killed, trained on other nodes, and told by the next call."""
    script = runpy.run_path(str(SCRIPTS / "slurm_array.py"))
    study = Study(path, task)
    folder = Path("jobs/array-1")
    folder.mkdir(parents=True)
    assert script["claim"](study, 3, folder, task) == 3
    for number in ("1", "3"):
        script["train"](folder, number)
    for _ in range(2):
        run("slurm_array.py", path, "--task", task, "--rounds", 0)
    assert [record.status for record in study.records()] == ["done", "running", "failed"]
    assert sorted(file.name for file in folder.glob("result*")) == ["result-1.told", "result-3.told"]


def test_slurm_array_says_what_is_missing(run, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        run("slurm_array.py")
    assert "give a database and --task" in capsys.readouterr().err
