"""Searches and confirmations beside others, and after others that were killed: budgets are met, verdicts are whole."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from click.testing import CliRunner

from aqx.cli import main
from aqx.search import Study
from aqx.search.confirmation import confirmation_seeds
from aqx.search.ledger import Ledger, Record
from aqx.store import Database, claims, clock

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["sin", "tanh", "relu", "square", "identity", "negative", "add", "mul", "sub"]
COMMAND = """
import sys
import aqx.search.ledger as ledger
ledger.LEASE_SECONDS, ledger.HEARTBEAT_SECONDS = 4.0, 1.0
from aqx.cli import main
main(sys.argv[1:])
"""
SLOWLY = """
import pathlib, time
import toy
from aqx.tasks import Task, losses

GO = pathlib.Path({folder!r}, "go")


def train(act, seed):
    with open({folder!r} + "/begun", "a") as log:
        print(act.name, seed, file=log)
    while not GO.exists():
        time.sleep(0.02)
    return toy.train(act, seed)


task = Task("slow", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, baselines=("relu(x)", "tanh(x)"))
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(toy.__file__).parent), str(Path.cwd())]))
    (tmp_path / "slow.py").write_text(SLOWLY.format(folder=str(tmp_path)))
    return toy.candidates(tmp_path / "toy.duckdb", ["unary(x)", "binary(unary(x),unary(x))"], OPERATORS)


@contextlib.contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, whose claims lapse after 4 s."""
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def begun(path: Path) -> list[str]:
    log = path.parent / "begun"
    return log.read_text().splitlines() if log.exists() else []


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def killed_at_work(path: Path, *words: object) -> None:
    """Run a command, and kill it in the middle of its first training."""
    before = len(begun(path))
    with started(*words) as process:
        wait_until(lambda: len(begun(path)) > before)
        process.kill()


def claim_seed(study: Study, name: str, seed: int, lease_seconds: float = 100.0) -> int:
    trial = claims.claim(
        study.db,
        study.task_id,
        class_id=study.class_id(name),
        name=name,
        seed=seed,
        lease_seconds=lease_seconds,
        purpose="confirm",
    )
    assert trial is not None
    return trial.trial_id


def searched(path: Path, name: str = "toy") -> Study:
    study = Study(path, toy.make_task(name=name))
    for function, value in (("sin(x)", 0.9), ("square(x)", 0.8), ("relu(x)", 0.7)):
        study.add(function, val_acc=value, test_acc=value)
    return study


# --- confirmations


def test_a_confirmation_waits_for_what_another_is_at(path: Path):
    study, expected = searched(path), searched(path.with_name("alone.duckdb")).confirm(top=1, seeds=2)
    held = [claim_seed(study, name, confirmation_seeds(0, 2)[1]) for name in ("sin(x)", "relu(x)")]
    told: list[str] = []

    def other() -> None:
        wait_until(lambda: any("waiting for" in note for note in told))
        for trial_id in held:
            record = next(record for record in study.records() if record.id == trial_id)
            study.tell(trial_id, **toy.train(record.activation, record.seed))

    thread = threading.Thread(target=other)
    thread.start()
    result = study.confirm(top=1, seeds=2, progress=lambda done, total, note: told.append(note))
    thread.join()
    assert result == expected and result.is_complete and "waiting for 2 trainings of other processes" in told


def test_a_confirmation_takes_over_what_a_dead_process_was_at(path: Path):
    study, expected = searched(path), searched(path.with_name("alone.duckdb")).confirm(top=1, seeds=2)
    for seed in confirmation_seeds(0, 2) * 3:  # one function three times, the others never
        claim_seed(study, "sin(x)", seed, lease_seconds=-1.0)
    assert {record.status for record in study.records("confirm")} == {"stale"}
    claim_seed(study, "relu(x)", confirmation_seeds(0, 2)[0], lease_seconds=1.0)
    assert study.confirm(top=1, seeds=2) == expected


@pytest.mark.slow
def test_what_ends_between_two_looks_is_not_missed(path: Path, monkeypatch: pytest.MonkeyPatch):
    study, expected = searched(path), searched(path.with_name("alone.duckdb")).confirm(top=1, seeds=2)
    claim_seed(study, "relu(x)", confirmation_seeds(0, 2)[0], lease_seconds=5.0)
    lapsed, records, told = time.monotonic() + 5.1, Ledger.records, []

    def later(self: Ledger, *args: Any, **kwargs: Any) -> list[Record]:
        if any("waiting for" in note for note in told):  # the claim is running in the snapshot, and lapses before this
            time.sleep(max(0.0, lapsed - time.monotonic()))
        return records(self, *args, **kwargs)

    monkeypatch.setattr(Ledger, "records", later)
    assert study.confirm(top=1, seeds=2, progress=lambda done, total, note: told.append(note)) == expected


def test_without_all_results_there_is_no_verdict(path: Path, monkeypatch: pytest.MonkeyPatch):
    study = Study(path, "mnist1d")
    for name, value in (("sin(x)", 0.9), ("relu(x)", 0.7)):
        study.add(name, val_acc=value)
    for name in ("sin(x)", *study.task.baselines):
        for seed in confirmation_seeds(0, 3)[: 2 if name == "sin(x)" else 3]:
            study.tell(claim_seed(study, name, seed), val_acc=len(name) + seed / 1e10)
    monkeypatch.setattr("aqx.search.retraining.train_all", lambda ledger, task, snapshot, *_: snapshot)
    result = study.confirm(top=1, seeds=3)
    assert not result.is_complete and (result.ended, result.wanted) == (29, 30)
    assert {row.verdict for row in result.rows} == {"reference", "incomplete"}
    assert not any(row.failed for row in result.rows)
    words = ["confirm", str(path), "--task", "mnist1d", "--top", "1", "--seeds", "3", "--quiet"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 3 and "incomplete: 2 of 3 seeds" in done.stdout and "evidence" not in done.stdout
    assert done.stderr == "incomplete: 29 of 30 trainings; run the same again for a verdict\n"


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_a_confirmation_after_one_that_was_killed_or_beside_one(path: Path, tmp_path: Path, beside: bool):
    task = f"{tmp_path}/slow.py:task"
    study = Study(path, task)
    for name, value in (("sin(x)", 0.9), ("square(x)", 0.8), ("relu(x)", 0.7)):
        study.add(name, val_acc=value, test_acc=value)
    words = ("confirm", path, "--task", task, "--top", 1, "--seeds", 3, "--json", "--quiet")
    if beside:
        with started(*words) as first, started(*words) as second:
            wait_until(lambda: len(begun(path)) == 2)
            (tmp_path / "go").touch()
            found = [process.communicate(timeout=120) for process in (first, second)]
            assert (first.returncode, second.returncode) == (0, 0)
    else:
        killed_at_work(path, *words)
        (tmp_path / "go").touch()
        with started(*words) as again:
            found = [again.communicate(timeout=120)]
            assert again.returncode == 0
    alone = Study(path.with_name("alone.duckdb"), task)
    for name, value in (("sin(x)", 0.9), ("square(x)", 0.8), ("relu(x)", 0.7)):
        alone.add(name, val_acc=value, test_acc=value)
    expected = alone.confirm(top=1, seeds=3)
    for said, _ in found:
        rows = json.loads(said)
        assert [(row["name"], row["verdict"], row["seeds"], row["failed"]) for row in rows] == [
            (row.name, row.verdict, row.seeds, row.failed) for row in expected.rows
        ]
        assert [row["mean"] for row in rows] == pytest.approx([row.mean for row in expected.rows])
    assert {row.seeds for row in expected.rows} == {3}


# --- searches


@pytest.mark.slow
def test_a_search_after_one_that_was_killed_meets_its_budget(path: Path, tmp_path: Path):
    task = f"{tmp_path}/slow.py:task"
    study = Study(path, task)
    for name in ("relu(x)", "tanh(x)"):
        with study.trial() as trial:
            trial.report(val_acc=0.1)
            assert trial.name == name
    words = ("search", path, "--task", task, "--budget", 4, "--spectra", 0, "--quiet")
    killed_at_work(path, *words)
    assert [record.status for record in study.records("search")] == ["running"]
    (tmp_path / "go").touch()
    with started(*words) as again:
        said, _ = again.communicate(timeout=120)
    assert "\n4 trainings finished now, 0 of them failed" in said
    counts = Counter(record.status for record in study.records("search"))
    assert counts == {"done": 4, "stale": 1}


@pytest.mark.slow
def test_searches_beside_each_other_meet_the_budget_together(path: Path, tmp_path: Path):
    task = f"{tmp_path}/slow.py:task"
    words = ("search", path, "--task", task, "--budget", 9, "--spectra", 0, "--quiet")
    with started(*words) as first, started(*words, "--workers", 2) as second:
        wait_until(lambda: len(begun(path)) >= 2)
        (tmp_path / "go").touch()
        said = [process.communicate(timeout=120)[0] for process in (first, second)]
    study = Study(path, task)
    assert Counter(record.purpose for record in study.records(status="done")) == {"search": 9, "baseline": 2}
    assert sum(int(text.splitlines()[-1].split()[0]) for text in said) == 11 and len(study.records()) == 11


def test_what_a_script_has_claimed_for_a_day_is_not_waited_for(path: Path):
    study = Study(path, toy.make_task(name="asked"))
    for _ in range(3):
        study.ask()
    assert len(study.search(budget=3, spectra=0)) == 2
    assert Counter(record.status for record in study.records()) == {"running": 3, "done": 2}


def test_what_a_dead_process_was_at_is_trained_within_the_budget(path: Path):
    study = Study(path, toy.make_task(name="dead"))
    claimed = study.queue.claim(1.0, most=2) + study.queue.claim(1.0, most=1)
    assert [(record.status, record.purpose) for record in claimed][-1] == ("running", "search")
    assert len(study.search(budget=1, spectra=0)) == 3
    assert Counter(record.status for record in study.records()) == {"stale": 3, "done": 3}
    assert claimed[-1].name in {record.name for record in study.records(status="done")}


def test_what_ended_badly_elsewhere_is_made_up_for(path: Path):
    """The other process holds the last suggestion of the budget, and gives it back."""
    study = Study(path, toy.make_task(name="returned"))
    study.search(budget=1, spectra=0)
    with Database(path).transaction() as con:
        con.execute("UPDATE trials SET status = 'running', heartbeat_at = ?", [clock.now()])
        con.execute("UPDATE trials SET expires_at = heartbeat_at + INTERVAL 60 SECOND")
    last = study.records()[-1]
    told: list[str] = []

    def other() -> None:
        wait_until(lambda: any("waiting for" in note for note in told))
        claims.release(study.db, *[record.id for record in study.records()])

    thread = threading.Thread(target=other)
    thread.start()
    finished = study.search(budget=1, spectra=0, progress=lambda done, total, note: told.append(note))
    thread.join()
    assert {record.id for record in finished} == {1, 2, last.id}


KILLED = """
import os, signal, sys
import toy
from aqx.search import Study

study = Study(sys.argv[1], toy.make_task(name="killed"))
study.ask(lease_seconds=100.0)
with study.trial():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_was_at_is_taken_up_at_once_and_what_was_asked_for_is_not(path: Path):
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    study = Study(path, toy.make_task(name="killed"))
    assert [(record.name, record.status) for record in study.records()] == [
        ("relu(x)", "running"),
        ("tanh(x)", "running"),
    ]
    with study.trial() as trial:
        assert trial.name == "tanh(x)"
        trial.report(val_acc=0.5)
    assert [record.status for record in study.records()] == ["running", "stale", "done"]
