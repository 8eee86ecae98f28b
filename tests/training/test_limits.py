"""A training that hangs is ended, and a search that is asked to stop stops, its processes with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import toy
from click.testing import CliRunner

from aqx.cli import main
from aqx.duration import checked_limit, seconds_of, written
from aqx.errors import InputError, TaskError
from aqx.search import Study, summarize
from aqx.search.summary import unusually_long
from aqx.store import Database
from aqx.tasks import load_task
from aqx.training import processes

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["sin", "tanh", "relu", "square", "identity", "negative", "add", "mul", "sub"]

SOURCE = """
import subprocess, time
import toy
from aqx.tasks import Task, losses

HANGS = {hangs!r}


def train(act, seed):
    if act.name in HANGS:
        with open({folder!r} + "/pids", "a") as log:
            import os
            child = subprocess.Popen(["sleep", "600"])
            print(os.getpid(), child.pid, file=log, flush=True)
        while True:
            {hang}
    return {{"val_acc": float(len(act.name))}}


def train_many(acts, seeds):
    time.sleep(600)


def make(**more):
    return Task("hangs", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, baselines={baselines!r}, **more)


task = make(time_limit={limit!r})
many = make(time_limit=0.5, train_many=train_many)
"""


def hanging_task(
    folder: Path,
    hangs: tuple[str, ...] = ("tanh(x)",),
    limit: float | None = None,
    baselines: tuple[str, ...] = ("relu(x)", "tanh(x)"),
    hang: str = "time.sleep(600)",
) -> str:
    """A task whose training of some functions never ends, in a process that has started another."""
    file = folder / "hangs.py"
    file.write_text(SOURCE.format(folder=str(folder), hangs=hangs, limit=limit, baselines=baselines, hang=hang))
    return f"{file}:task"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(toy.__file__).parent), str(Path.cwd())]))
    return toy.candidates(tmp_path / "toy.duckdb", ["unary(x)", "binary(unary(x),unary(x))"], OPERATORS)


def pids(folder: Path) -> list[int]:
    """Of the processes whose training hangs, and those that they have started."""
    log = folder / "pids"
    return [int(pid) for line in log.read_text().splitlines() for pid in line.split()] if log.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 60.0) -> bool:
    """Whether something comes true; a limit only ends the test."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_that_hangs_is_ended_and_has_failed(path: Path, tmp_path: Path, workers: int | None):
    study = Study(path, hanging_task(tmp_path, limit=2))
    finished = study.search(budget=1, spectra=0, workers=workers)
    assert {(r.name, r.status) for r in study.records() if r.purpose == "baseline"} == {
        ("relu(x)", "done"),
        ("tanh(x)", "failed"),
    }
    assert len(finished) == 3 and sum(r.status == "done" for r in study.records("search")) == 1
    (failed,) = study.records(status="failed")
    assert failed.reason == "took longer than the time limit of 2s, and was ended" and failed.seconds == 2
    assert len(pids(tmp_path)) == 2 and wait_until(lambda: not any(map(is_alive, pids(tmp_path))))


def test_a_worker_that_hangs_while_it_imports_the_task_is_ended(path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(processes, "_IMPORT_SECONDS", 3)
    reference = hanging_task(tmp_path, limit=2)
    file = tmp_path / "hangs.py"
    log = str(tmp_path / "pids")
    file.write_text(
        "import multiprocessing, os, time\n"
        "if multiprocessing.parent_process():\n"
        f"    print(os.getpid(), file=open({log!r}, 'a'), flush=True)\n"
        f"    time.sleep(600)\n{file.read_text()}"
    )
    study = Study(path, reference)
    with pytest.raises(TaskError, match="a worker process took longer than 3s to import what it is to train"):
        study.search(budget=1, spectra=0, workers=2)
    assert wait_until(lambda: not any(map(is_alive, pids(tmp_path))))
    # It is no function's fault, and nothing stays claimed.
    assert {record.status for record in study.records()} <= {"queued", "stale"}


@pytest.mark.slow
def test_a_loop_that_holds_the_interpreter_is_ended_too(path: Path, tmp_path: Path):
    """`bytes.count` gives Python no chance to do anything else in the process."""
    study = Study(path, hanging_task(tmp_path, hang="(b'ab' * 10**9).count(b'a' * 500 + b'b')"))
    study.search(budget=0, spectra=0, time_limit=1)
    assert [record.status for record in study.records()] == ["done", "failed"]


@pytest.mark.slow
def test_trainings_of_one_program_that_hangs_are_tried_one_by_one(path: Path, tmp_path: Path):
    study = Study(path, hanging_task(tmp_path).replace(":task", ":many"))
    study.search(budget=0, spectra=0, together=2)
    assert {r.name: (r.status, r.seconds) for r in study.records(status="failed")} == {"tanh(x)": ("failed", 0.5)}
    assert {r.name for r in study.records(status="done")} == {"relu(x)"}


@pytest.mark.slow
def test_a_confirmation_keeps_the_limit(path: Path, tmp_path: Path):
    study = Study(path, hanging_task(tmp_path))
    for name in ("sin(x)", "relu(x)"):
        study.add(name, val_acc=float(len(name)))
    rows = {row.name: row for row in study.confirm(top=1, seeds=2, time_limit=1).rows}
    assert (rows["tanh(x)"].failed, rows["relu(x)"].seeds, rows["tanh(x)"].verdict) == (2, 2, "failed")


def test_limits_are_times():
    assert [seconds_of(text) for text in ("90", "90s", "30m", "2h", "1.5 m", ".5", "1d")] == [
        90,
        90,
        1800,
        7200,
        90,
        0.5,
        86400,
    ]
    for text in ("", "0", "-3", "0m", "inf", "nan", "1e9", "2 hours", "3x", "٣", "9" * 400):
        with pytest.raises(InputError, match="is not a time above 0; give seconds, or e.g. 90s, 30m or 2h"):
            seconds_of(text)
    for seconds in (0.5, 90, 1800, 5500, 7200, 3 * 86400):
        assert seconds_of(written(seconds)) == pytest.approx(seconds, rel=0.005)
    assert checked_limit(None) is None and checked_limit(3) == 3
    for limit in (0, -1, float("nan"), float("inf"), True, "30m"):
        with pytest.raises(InputError, match="time_limit="):
            checked_limit(limit)
    with pytest.raises(TaskError, match="time_limit=0 is not a time; give seconds above 0, or None for no limit"):
        toy.make_task(time_limit=0)


def test_a_limit_that_is_none_is_one_line(path: Path):
    for command in ("search", "confirm"):
        done = CliRunner().invoke(main, [command, str(path), "--task", "mnist1d", "--time-limit", "soon"])
        assert done.exit_code == 2 and done.stderr.count("\n") == 1
        assert "'soon' is not a time above 0; give seconds, or e.g. 90s, 30m or 2h" in done.stderr


def test_the_summary_names_what_runs_unusually_long(path: Path):
    study = Study(path, toy.task)
    for _ in range(3):
        with study.trial() as trial:
            trial.report(val_acc=0.5)
    study.ask()
    (*_, running) = study.records()
    assert not unusually_long(study.records(), running.started_at + timedelta(seconds=59))
    (long,) = unusually_long(study.records(), running.started_at + timedelta(seconds=61))
    assert (long.trial_id, long.name, long.seconds) == (4, running.name, 61) and long.usual < 6.1
    assert not unusually_long([running], running.started_at + timedelta(days=9)), "nothing to compare with"
    assert not summarize(path)[0].long
    with Database(path).transaction() as con:
        con.execute("UPDATE trials SET started_at = started_at - INTERVAL 2 HOUR, seconds = 300")
    assert not summarize(path)[0].long[1:]
    done = CliRunner().invoke(main, ["summary", str(path)])
    assert f"trial 4, {running.name}, has been running for 2h at " in done.stdout
    assert "where trainings take 5m; --time-limit has aqx search end such" in done.stdout
    assert isinstance(long.seconds, float) and isinstance(running.started_at, datetime)


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTERM, 2), pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow)],
)
def test_a_search_that_is_asked_to_stop_stops_with_its_processes(path: Path, tmp_path: Path, number: int, workers: int):
    task = hanging_task(tmp_path, hangs=("relu(x)", "tanh(x)"))
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom aqx.cli import main\nmain()"
    words = ["search", path, "--task", task, "--workers", workers, "--spectra", 0, "--quiet"]
    command = [sys.executable, "-c", code, *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as search:
        assert wait_until(lambda: len(pids(tmp_path)) == 4)
        asked = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(search.pid, number)  # as a terminal does: to the workers too
        else:
            search.send_signal(number)
        _, said = search.communicate(timeout=60)
        assert time.monotonic() - asked < 10
    assert search.returncode == 128 + number
    how = "interrupted" if number == signal.SIGINT else "terminated"
    assert said == f"{how}; what is stored stays, and the same command goes on from there\n"
    assert wait_until(lambda: not any(map(is_alive, pids(tmp_path))), 10)
    assert [r.status for r in Study(path, load_task(task)).records()] == ["queued"] * 2


def test_a_search_whose_callback_raises_ends_at_once(path: Path, tmp_path: Path):
    def stop(study, record):
        raise RuntimeError("enough")

    study = Study(path, hanging_task(tmp_path), callbacks=[stop])
    with pytest.raises(RuntimeError, match="enough"):
        study.search(budget=0, spectra=0, workers=2)
    assert {r.name: r.status for r in study.records()} == {"relu(x)": "done", "tanh(x)": "queued"}
