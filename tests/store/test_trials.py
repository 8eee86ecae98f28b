"""Trials: a function is trained once at a time, no result is lost, none is overwritten."""

from __future__ import annotations

import contextlib
import math
import uuid
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_helpers import start_python

from aqx.errors import InputError
from aqx.metrics import REASON_LENGTH
from aqx.search import RetryPolicy
from aqx.store import (
    Database,
    Purpose,
    Status,
    TrialRow,
    add_result,
    add_results,
    claim,
    clock,
    count_trials,
    fail,
    finish,
    get_trial,
    heartbeat,
    list_trials,
    lose,
    prune,
    release,
    remove,
    report,
    retry,
)
from aqx.text import clipped

RELU, TANH = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
NASTY_TEXTS = ["it's", "'; DROP TABLE trials; --", 'a "b" {c}', "ünï→💡", "nul\0byte", "", "y" * 1_000_000]


class Clock:
    """The store's clock, in the hands of a test."""

    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1)

    def __call__(self) -> datetime:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(clock, "now", moved)
    return moved


@pytest.fixture
def db(db_path: Path) -> Database:
    return Database(db_path, create=True)


def take(db: Database, class_id: str | None = RELU, **options: Any) -> TrialRow | None:
    return claim(db, 1, **{"class_id": class_id, "name": "relu(x)", "seed": 0, "lease_seconds": 60.0} | options)


def taken(db: Database, class_id: str | None = RELU, **options: Any) -> TrialRow:
    trial = take(db, class_id, **options)
    assert trial is not None
    return trial


def counts(db: Database) -> dict[str, int]:
    return {status: number for status, number in count_trials(db, 1).items() if number}


def test_a_claim_carries_everything(db: Database, time: Clock):
    trial = taken(db, seed=7, worker="host:1", purpose="baseline")
    lease = time.time + timedelta(seconds=60)
    expected = TrialRow(
        1,
        1,
        RELU,
        "relu(x)",
        7,
        Purpose.BASELINE,
        Status.RUNNING,
        None,
        None,
        "host:1",
        time.time,
        time.time,
        lease,
        None,
    )
    assert trial == expected == get_trial(db, 1)
    time.move(5)
    done = finish(db, 1, 0.5, {"val_acc": 0.5})
    assert done == replace(expected, status=Status.DONE, objective=0.5, metrics={"val_acc": 0.5}, finished_at=time.time)
    assert (list_trials(db, 1), list_trials(db, 2)) == ([done], [])


def test_ids_are_consecutive_whatever_becomes_of_the_trials(db: Database):
    trials = [taken(db, str(uuid.UUID(int=n))) for n in range(4)]
    fail(db, 1, "boom")
    release(db, 4)
    trials.append(taken(db, str(uuid.UUID(int=9))))
    assert [trial.trial_id for trial in trials] == [1, 2, 3, 4, 5]
    assert claim(db, 2, class_id=RELU, name="relu(x)", seed=0, lease_seconds=1).trial_id == 6  # type: ignore[union-attr]


def test_a_seed_can_be_made_from_the_id(db: Database):
    taken(db, TANH)
    assert taken(db, seed=lambda trial_id: 100 + trial_id).seed == 102


# What stands in the way of a claim: what was there, the claim, whether it is granted.
ENDS = {
    "running": lambda db: None,
    "done": lambda db: finish(db, 1, 0.5, {}),
    "failed": lambda db: fail(db, 1, "boom"),
    "pruned": lambda db: prune(db, 1, 0.1, {}),
    "queued": lambda db: release(db, 1),
}
FIRST = {"search": {}, "baseline": {"purpose": "baseline"}, "confirm": {"purpose": "confirm"}}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ({}, {}, True),
        ({}, {"seed": 5}, True),
        ({}, {"purpose": "baseline"}, True),
        ({"purpose": "baseline"}, {}, True),
        ({}, {"class_id": TANH}, False),
        ({}, {"purpose": "confirm"}, False),
        ({"purpose": "confirm"}, {}, False),
        ({"purpose": "confirm"}, {"purpose": "confirm"}, True),
        ({"purpose": "confirm"}, {"purpose": "confirm", "seed": 5}, False),
        ({"class_id": None}, {"class_id": None}, True),
        ({"class_id": None}, {"class_id": None, "name": "mine(x)"}, False),
        ({"class_id": None}, {}, False),
    ],
)
def test_a_function_is_claimed_once(db: Database, first: dict, second: dict, clash: bool, end: str):
    taken(db, **{"class_id": RELU} | first)
    ENDS[end](db)
    again = take(db, **{"class_id": RELU} | second)
    if not clash:
        assert again is not None and again.trial_id == 2
    elif end == "queued":
        assert again is not None and (again.trial_id, again.seed, again.status) == (1, 0, "running")
    else:
        assert again is None
    if clash and end != "queued":
        granted = take(db, **{"class_id": RELU} | second, settled=RetryPolicy(failed=1).settles) is not None
        assert granted == (end == "failed")


def test_a_claim_that_is_not_renewed_goes_stale_and_its_late_result_is_accepted(db: Database, time: Clock):
    first = taken(db)
    time.move(59)
    assert heartbeat(db, first.trial_id, 60)
    time.move(59)
    assert take(db) is None and counts(db) == {"running": 1}
    time.move(2)
    assert counts(db) == {"stale": 1} and [t.status for t in list_trials(db, 1, status="stale")] == ["stale"]
    assert heartbeat(db, first.trial_id, 60), "nobody has taken over: the claim stands again"
    assert counts(db) == {"running": 1}
    time.move(61)
    second = taken(db)
    assert second.trial_id == 2
    assert not heartbeat(db, first.trial_id, 60)
    assert finish(db, first.trial_id, 0.5, {}).status == "done"
    assert finish(db, second.trial_id, 0.6, {}).status == "done"
    assert [t.objective for t in list_trials(db, 1)] == [0.5, 0.6]


@pytest.mark.parametrize("jump", [-1e6, 1e6], ids=["back", "forward"])
def test_a_clock_that_jumps_loses_no_result(db: Database, time: Clock, jump: float):
    trial = taken(db)
    time.move(jump)
    assert heartbeat(db, trial.trial_id, 60)
    time.move(-jump)
    assert finish(db, trial.trial_id, 0.5, {"a": 1}).objective == 0.5
    assert counts(db) == {"done": 1}


@pytest.mark.parametrize("end", ["done", "failed"])
def test_a_result_is_never_overwritten(db: Database, end: str):
    trial = taken(db)
    before = finish(db, 1, 0.5, {"a": 1}) if end == "done" else fail(db, 1, "boom", {"a": 1})
    for again in (
        lambda: finish(db, trial.trial_id, 0.9, {}),
        lambda: fail(db, trial.trial_id, "late"),
        lambda: report(db, trial.trial_id, {"a": 2}),
    ):
        with pytest.raises(InputError, match=f"trial 1 .* is {end} already") as error:
            again()
        assert "\n" not in str(error.value)
    assert not release(db, 1) and not heartbeat(db, 1, 60)
    assert list_trials(db, 1) == [before]


@pytest.mark.parametrize("objective", [math.nan, math.inf, -math.inf, np.float64("nan")], ids=str)
def test_a_result_that_is_no_number_is_a_failure(db: Database, objective: float):
    taken(db)
    for trial in (
        finish(db, 1, objective, {"val_acc": objective}),
        add_result(db, 1, class_id=TANH, name="tanh(x)", seed=1, objective=objective, metrics={"val_acc": objective}),
    ):
        assert (trial.status, trial.objective, trial.reason) == ("failed", None, f"objective is {float(objective)}")
        assert str(trial.metrics["val_acc"]) == str(float(objective))
    with db.read() as con:  # as a script would read it
        rows = con.execute("SELECT (metrics->>'val_acc')::DOUBLE FROM trials").fetchall()
    assert [str(value) for (value,) in rows] == [str(float(objective))] * 2


def test_reports_merge(db: Database):
    taken(db)
    report(db, 1, {"loss": 2.0, "steps": [1]})
    report(db, 1, {"loss": 1.0})
    assert get_trial(db, 1).metrics == {"loss": 1.0, "steps": [1]}
    assert finish(db, 1, 0.5, {"val_acc": 0.5}).metrics == {"loss": 1.0, "steps": [1], "val_acc": 0.5}


@pytest.mark.parametrize("text", NASTY_TEXTS, ids=lambda text: repr(text[:20]))
def test_any_text_is_data(db: Database, text: str):
    trial = taken(db, None, name=text, worker=text)
    report(db, trial.trial_id, {text: text})
    failed = fail(db, trial.trial_id, text, {"also " + text: [text]})
    assert (failed.name, failed.worker) == (text, text)
    assert failed.reason == (clipped(text, REASON_LENGTH) or "no reason given")
    assert failed.metrics == {text: text, "also " + text: [text]}
    assert take(db, None, name=text) is None


def test_what_cannot_be_stored_is_refused_before_anything_is(db: Database):
    for options, words in [
        ({"purpose": "fun"}, "purpose must be one of"),
        ({"seed": 2**63}, "64 bits"),
        ({"name": "\ud800"}, "valid Unicode"),
    ]:
        with pytest.raises(InputError, match=words):
            take(db, **options)
    taken(db)
    with pytest.raises(InputError, match="metric 'a'"):
        finish(db, 1, 0.5, {"a": object()})
    with pytest.raises(InputError, match="metric 'a'"):
        add_result(db, 1, class_id=None, name="f", seed=0, objective=1.0, metrics={"a": {}})
    with pytest.raises(InputError, match="trial_id 7 is not"):
        finish(db, 7, 0.5, {})
    with pytest.raises(InputError, match="status must be one of"):
        list_trials(db, 1, status="lost")
    assert counts(db) == {"running": 1}


WORK = """
import sys, uuid, random
from aqx.store import Database, claim, fail, finish, heartbeat, report
db, worker, order = Database(sys.argv[1]), sys.argv[2], list(range(24))
random.Random(worker).shuffle(order)
for number in order:
    trial = claim(
        db, 1, class_id=str(uuid.UUID(int=number)), name=f"f{number}", seed=0, lease_seconds=600.0, worker=worker
    )
    if trial:
        print(trial.trial_id, flush=True)
        report(db, trial.trial_id, {"worker": worker})
        heartbeat(db, trial.trial_id, 600.0)
        fail(db, trial.trial_id, "boom") if number % 5 == 0 else finish(db, trial.trial_id, float(number), {})
"""


def test_processes_share_the_work_and_lose_none(db: Database):
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(start_python(WORK, str(db.path), str(n))) for n in range(4)]
        told = [worker.communicate()[0].split() for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * 4
    assert sorted(int(number) for numbers in told for number in numbers) == list(range(1, 25))
    trials = list_trials(db, 1)
    assert sorted(trial.name for trial in trials) == sorted(f"f{n}" for n in range(24))
    for trial in trials:
        number = int(trial.name[1:])
        assert (trial.status, trial.objective) == (("failed", None) if number % 5 == 0 else ("done", number))
        assert trial.metrics == {"worker": trial.worker}
        assert str(trial.trial_id) in told[int(trial.worker or -1)]


def test_a_killed_worker_leaves_its_claim_to_the_next(db: Database, time: Clock):
    code = WORK.replace("report(", "import time; time.sleep(60); report(")
    with start_python(code, str(db.path), "0") as worker:
        assert worker.stdout and worker.stdout.readline() == "1\n"
        worker.kill()
        worker.wait()
    trial = get_trial(db, 1)
    time.time = trial.started_at
    assert take(db, trial.class_id, name=trial.name) is None
    time.move(601)
    assert get_trial(db, 1).status == "stale"
    assert taken(db, trial.class_id, name=trial.name).trial_id == 2


def test_a_lost_trial_is_stale_at_once_and_its_late_result_is_accepted(db: Database):
    first = taken(db)
    assert (lose(db, 1, "its machine is gone").status, get_trial(db, 1).reason) == ("stale", "its machine is gone")
    assert taken(db).trial_id == 2
    done = finish(db, first.trial_id, 0.5, {}, seconds=3.5, environment={"host": "a"})
    assert (done.status, done.reason, done.seconds, done.environment) == ("done", None, 3.5, {"host": "a"})
    assert lose(db, 1, "too late") == done, "what has a result stays as it is"


@pytest.mark.parametrize("last", [None, math.nan, math.inf])
def test_a_pruned_trial_without_a_value_is_a_failed_one(db: Database, last: float | None):
    taken(db)
    pruned = prune(db, 1, last, {"a": 1})
    assert (pruned.status, pruned.objective, pruned.metrics) == ("failed", None, {"a": 1})
    assert pruned.reason and taken(db, TANH) and prune(db, 2, 0.25, {}).objective == 0.25


@pytest.mark.parametrize("end", [end for end in ENDS if end not in ("running", "queued")])
def test_a_function_is_trained_again_when_somebody_asks_for_it(db: Database, end: str):
    taken(db)
    ENDS[end](db)
    before = get_trial(db, 1)
    (queued,) = retry(db, 1, [1], lambda trial_id: 100 + trial_id)
    assert (queued.trial_id, queued.status, queued.retry_of, queued.seed) == (2, "queued", 1, 102)
    with pytest.raises(InputError, match=r"trial 1 \(relu\(x\)\) is queued as trial 2"):
        retry(db, 1, [1])
    again = taken(db)
    assert (again.trial_id, again.seed) == (2, 102) and take(db) is None
    fail(db, 2, "boom")
    assert take(db) is None and get_trial(db, 1) == before
    retry(db, 1, [1, 2])
    assert [trial.retry_of for trial in list_trials(db, 1)] == [None, 1, 2], "one function is queued once"


def test_a_retry_of_a_confirmation_keeps_its_seed(db: Database):
    taken(db, purpose="confirm", seed=7)
    fail(db, 1, "boom")
    assert retry(db, 1, [1], lambda trial_id: 0)[0].seed == 7
    assert taken(db, purpose="confirm", seed=7).trial_id == 2


def test_what_is_not_there_or_not_over_is_not_retried(db: Database):
    taken(db)
    for task, trial_id, words in ((1, 1, "is running itself"), (1, 9, "not in this database"), (2, 1, "another task")):
        with pytest.raises(InputError, match=words):
            retry(db, task, [trial_id])
    assert len(list_trials(db, 1)) == 1


def test_removed_trials_are_gone_and_their_numbers_with_them(db: Database):
    for n, end in enumerate(("done", "failed", "pruned", "queued", "running"), 1):
        trial = taken(db, str(uuid.UUID(int=n)))
        if end in ("done", "failed", "pruned"):
            {"done": finish, "failed": lambda db, i, *_: fail(db, i, "boom"), "pruned": prune}[end](
                db, trial.trial_id, 0.5, {}
            )
    release(db, 4)
    claim(db, 2, class_id=RELU, name="relu(x)", seed=0, lease_seconds=60)
    assert remove(db, 1, {"failed", "queued", "stale"}) == 2
    assert [trial.status for trial in list_trials(db, 1)] == ["done", "pruned", "running"]
    assert remove(db, 1, {"done", "pruned", "running"}) == 3 and remove(db, 2, {"running"}) == 1
    with pytest.raises(InputError, match="trial_id 5 is not in this database"):
        finish(db, 5, 0.5, {})
    assert taken(db).trial_id == 7


def test_many_results_are_added_at_once_or_not_at_all(db: Database):
    taken(db)

    def add(names: list[str], **other: list[Any]) -> tuple[int, int]:
        n = len(names)
        columns = {"class_ids": [None] * n, "seeds": [0] * n, "objectives": [0.5] * n, "reasons": [None] * n}
        columns |= {"metrics": [{"acc": 0.5}] * n}
        return add_results(db, 1, names=names, worker="test", **(columns | other))

    assert add(NASTY_TEXTS) == (len(NASTY_TEXTS), 0)
    assert add(["x", "x", NASTY_TEXTS[0]]) == (1, 0)
    assert add(["x", "x"], seeds=[-(2**63), 2**63 - 1], objectives=[None, 0.5], reasons=[None, "late"]) == (2, 2)
    assert add([]) == (0, 0)
    before = list_trials(db, 1)
    assert [trial.trial_id for trial in before] == list(range(1, len(NASTY_TEXTS) + 5))
    assert [trial.name for trial in before[1:-3]] == NASTY_TEXTS
    assert [(trial.status, trial.reason) for trial in before[-2:]] == [
        ("failed", "objective is nan"),
        ("failed", "late"),
    ]
    for wrong in ({"seeds": [0, 2**63]}, {"metrics": [{}, {"acc": object()}]}, {"names": ["y", "a\ud800"]}):
        with pytest.raises(InputError):
            add(**({"names": ["y", "z"]} | wrong))
    assert list_trials(db, 1) == before


def test_a_second_result_is_refused_in_the_same_microsecond_too(db_path: Path, monkeypatch: pytest.MonkeyPatch):
    db = Database(db_path, create=True)
    trial = claim(db, 1, class_id=RELU, name="relu(x)", seed=0, lease_seconds=60.0)
    assert trial is not None
    moment = datetime(2030, 1, 1)
    monkeypatch.setattr(clock, "now", lambda: moment)
    finish(db, trial.trial_id, 0.5, {})
    with pytest.raises(InputError, match="is done already with objective 0.5"):
        finish(db, trial.trial_id, 0.7, {})
    assert [row.objective for row in list_trials(db, 1)] == [0.5]
