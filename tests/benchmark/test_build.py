"""Tables are built by real processes, some of which are killed; what came out once is never trained again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy

from aqx.benchmark import build_table, load_table
from aqx.errors import InputError, TaskError
from aqx.space import Space
from aqx.tasks import load_task

SPACE = Space(["unary(x)", "unary(unary(x))"], ["sin", "relu", "exp", "square", "zero", "reciprocal"])


def train(act, seed: int) -> dict[str, float]:
    """Give numbers that depend on the function and the seed, without JAX; what has exp in it crashes."""
    if "exp(" in act.name:
        raise FloatingPointError("overflow in exp")
    return {"val_acc": 1 / len(act.name) + seed, "val_loss": float("inf") if act.name == "sin(x)" else 0.0}


TOY = toy.make_task(train=train)


# exp raises, square kills its process; every training leaves a line in a log.
TASK = """
import os, time
import toy
from test_benchmark_build import train as give
LOG = os.environ["TRAINED"]

def train(act, seed):
    with open(LOG, "a") as log:
        log.write(f"{act.name} {seed} {os.getpid()}\\n")
    time.sleep(float(os.environ.get("SLEEP", "0")))
    if act.name == "square(relu(x))":
        os._exit(7)
    return give(act, seed)

task = toy.make_task(name="logged", train=train)
"""


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINED", str(tmp_path / "trained.log"))
    path = tmp_path / "logged.py"
    path.write_text(TASK)
    return path


def trained(folder: Path) -> list[str]:
    return [line.rsplit(" ", 1)[0] for line in (folder / "trained.log").read_text().splitlines()]


def test_every_class_is_trained_once_and_a_failure_says_why(tmp_path: Path):
    out = tmp_path / "table.parquet"
    seen = []
    report = build_table(
        TOY, SPACE, out, seeds=2, workers=1, progress=lambda done, total, note: seen.append((done, total))
    )
    table = load_table(out)
    names = set(table.names)
    assert "sin(x)" in names and "sin(sin(x))" in names
    assert "zero(x)" not in names and "reciprocal(relu(x))" not in names  # constant, not finite
    assert len(table) == report.rows == report.trained == 2 * report.classes == 2 * len(names)
    assert seen[0] == (0, len(table)) and seen[-1] == (len(table), len(table))
    raised = np.array(["exp(" in name for name in table.names])
    assert {table.reasons[row] for row in np.flatnonzero(raised)} == {"FloatingPointError: overflow in exp"}
    assert {table.reasons[row] for row in np.flatnonzero(~raised)} == {None}
    rows = zip(table.names, table.seeds.tolist(), strict=True)
    expected = [np.nan if "exp(" in name else 1 / len(name) + seed for name, seed in rows]
    np.testing.assert_array_equal(table.metrics["val_acc"], expected)
    assert np.isfinite(expected).sum() > 10
    assert np.isinf(table.metrics["val_loss"]).sum() == 2
    assert table.task == "toy"
    assert not (tmp_path / "table.parquet.partial").exists()


def test_a_table_is_extended_and_nothing_is_trained_again(tmp_path: Path, task_file: Path):
    task, out = load_task(f"{task_file}:task"), tmp_path / "table.csv"
    space = Space(["unary(x)"], ["sin", "relu", "tanh"])
    build_table(task, space, out, workers=1)
    build_table(task, space, out, workers=1)
    build_table(task, Space(["unary(x)"], ["sin", "cos"]), out, seeds=2, workers=1)
    assert sorted(trained(tmp_path)) == sorted(
        ["sin(x) 0", "relu(x) 0", "tanh(x) 0", "sin(x) 1", "cos(x) 0", "cos(x) 1"]
    )
    assert len(load_table(out)) == 6
    before = out.read_bytes()
    with pytest.raises(InputError, match="holds results of task 'logged'; give another file"):
        build_table(TOY, space, out, workers=1)
    assert out.read_bytes() == before


def test_a_training_that_kills_its_process_costs_itself_alone(tmp_path: Path, task_file: Path):
    out = tmp_path / "table.parquet"
    build_table(load_task(f"{task_file}:task"), SPACE, out, workers=2)
    table = load_table(out)
    reasons = dict(zip(table.names, table.reasons, strict=True))
    assert reasons.pop("square(relu(x))") == "the training's process died"
    assert {reason for name, reason in reasons.items() if "exp(" not in name} == {None}
    assert len(set(table.names)) == len(table)


def test_killed_it_goes_on_from_there_and_leaves_no_process(tmp_path: Path, task_file: Path):
    out = tmp_path / "table.parquet"
    partial = tmp_path / "table.parquet.partial"
    call = [sys.executable, "-m", "aqx", "bench", "build", "--task", f"{task_file}:task", "--out", str(out)]
    call += ["--schema", "unary(unary(x))", "--sample", "40", "--workers", "2", "--quiet"]
    environment = {
        **os.environ,
        "SLEEP": "0.2",
        "PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path]),
    }
    process = subprocess.Popen(call, env=environment)
    while not partial.exists() or partial.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = {int(line.rsplit(" ", 1)[1]) for line in (tmp_path / "trained.log").read_text().splitlines()}
    for worker in workers:
        wait_until_gone(worker)
    with open(partial, "a") as file:
        file.write('{"task": "logged", "na')  # as if killed while writing
    kept = {json.loads(line)["name"] for line in partial.read_text().splitlines()[:-1]}
    known = len(trained(tmp_path))
    subprocess.run(call, env=environment | {"SLEEP": "0"}, check=True)
    again = trained(tmp_path)[known:]
    table = load_table(out)
    assert len(kept) >= 3 and not kept & {line.split(" ")[0] for line in again}
    assert len(table) == len(set(table.names)) == len(kept) + len(again)
    assert not partial.exists()


def wait_until_gone(process: int) -> None:
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        if "\nState:\tZ" in Path(f"/proc/{process}/status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"worker {process} outlives the process that started it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"workers": 0}, "workers=0"),
        ({"out": "table.txt"}, "neither Parquet nor CSV"),
        ({"task": toy.make_task(train=None)}, "no train function"),
    ],
)
def test_what_cannot_be_used_gets_one_line(tmp_path: Path, changes: dict, message: str):
    arguments = {"task": TOY, "space": SPACE, "out": "table.csv"} | changes
    arguments["out"] = tmp_path / arguments["out"]
    with pytest.raises(InputError, match=message):
        build_table(**arguments)


def test_a_task_that_always_raises_is_told_soon(tmp_path: Path):
    def broken(act, seed):
        raise RuntimeError("no data")

    space = Space(["unary(x)"], "extended")
    with pytest.raises(TaskError, match="each of the first 20 trainings failed, the last by RuntimeError: no data"):
        build_table(toy.make_task(train=broken), space, tmp_path / "table.csv", workers=1)
