"""Trials in one process, step by step against a model of them in memory."""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from aqx.errors import InputError
from aqx.store import (
    Database,
    claim,
    clock,
    fail,
    finish,
    heartbeat,
    list_trials,
    lose,
    prune,
    release,
    remove,
    retry,
)

LEASE = 60.0
ENDED = ("done", "failed", "pruned")


@dataclass(frozen=True)
class Trial:
    """A trial as the model knows it."""

    number: int
    function: int
    status: str
    objective: float | None = None
    expires: datetime | None = None
    retry_of: int | None = None


class Trials(RuleBasedStateMachine):
    """The rules that `aqx.store` documents, written down a second time and more simply."""

    claimed = Bundle("claimed")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.db = Database(Path(self.folder.name, "model.duckdb"), create=True)
        self.now = datetime(2030, 1, 1)
        self.clock = mock.patch.object(clock, "now", lambda: self.now)
        self.clock.start()
        self.model: dict[int, Trial] = {}
        self.last = 0

    def teardown(self) -> None:
        self.clock.stop()
        self.folder.cleanup()

    def state(self, trial: Trial) -> str:
        lapsed = trial.status == "running" and trial.expires is not None and trial.expires < self.now
        return "stale" if lapsed else trial.status

    def same(self, function: int) -> list[Trial]:
        return [trial for trial in self.model.values() if trial.function == function]

    @rule(target=claimed, function=st.integers(0, 2))
    def claims(self, function: int):
        same = self.same(function)
        asked = max((trial.retry_of or 0 for trial in same), default=0)
        taken = any(self.state(trial) == "running" for trial in same) or any(
            trial.status in ENDED for trial in same if trial.number > asked
        )
        row = claim(self.db, 1, class_id=str(uuid.UUID(int=function)), name="f(x)", seed=0, lease_seconds=LEASE)
        assert (row is None) == taken
        if row is None:
            return 0
        queued = [trial.number for trial in same if trial.status == "queued"]
        assert row.trial_id == (queued[-1] if queued else self.last + 1)
        self.last = max(self.last, row.trial_id)
        old = self.model.get(row.trial_id, Trial(row.trial_id, function, "running"))
        self.model[row.trial_id] = replace(old, status="running", expires=self.now + timedelta(seconds=LEASE))
        return row.trial_id

    @rule(number=claimed, verb=st.sampled_from(["done", "failed", "pruned"]), value=st.floats(-1e9, 1e9))
    def ends(self, number: int, verb: str, value: float):
        def store():
            if verb == "failed":
                return fail(self.db, number, "boom")
            return (finish if verb == "done" else prune)(self.db, number, value, {})

        trial = self.model.get(number)
        if trial is None or trial.status in ENDED:
            with pytest.raises(InputError):
                store()
            return
        store()
        self.model[number] = replace(trial, status=verb, objective=None if verb == "failed" else value)

    @rule(number=consumes(claimed))
    def is_released(self, number: int):
        trial = self.model.get(number)
        if trial is None:
            with pytest.raises(InputError):
                release(self.db, number)
            return
        given = release(self.db, number)
        assert given == (trial.status == "running")
        if given:
            self.model[number] = replace(trial, status="queued", expires=None)

    @rule(number=claimed)
    def is_lost(self, number: int):
        trial = self.model.get(number)
        if trial is None:
            return
        lose(self.db, number, "gone")
        if self.state(trial) == "running":
            self.model[number] = replace(trial, expires=self.now - timedelta(microseconds=1))

    @rule(number=claimed)
    def beats(self, number: int):
        trial = self.model.get(number)
        if trial is None:
            return
        later = {self.state(other) for other in self.same(trial.function) if other.number > number}
        stands = self.state(trial) == "running" or (self.state(trial) == "stale" and not later - {"stale"})
        assert heartbeat(self.db, number, LEASE) == stands
        if stands:
            self.model[number] = replace(trial, expires=self.now + timedelta(seconds=LEASE))

    @rule(number=claimed)
    def is_asked_for_again(self, number: int):
        trial = self.model.get(number)
        if trial is None:
            return
        same = self.same(trial.function)
        if any(self.state(other) in ("queued", "running") for other in same):
            with pytest.raises(InputError):
                retry(self.db, 1, [number])
            return
        (queued,) = retry(self.db, 1, [number])
        self.last += 1
        newest = max(other.number for other in same)
        assert (queued.trial_id, queued.retry_of) == (self.last, newest)
        self.model[self.last] = Trial(self.last, trial.function, "queued", retry_of=newest)

    @rule(seconds=st.sampled_from([1.0, 61.0, -3600.0]))
    def time_passes(self, seconds: float):
        self.now += timedelta(seconds=seconds)

    @rule(status=st.sampled_from(["failed", "queued", "stale"]))
    def some_are_removed(self, status: str):
        doomed = [number for number, trial in self.model.items() if self.state(trial) == status]
        assert remove(self.db, 1, {status}) == len(doomed)
        for number in doomed:
            del self.model[number]

    @rule()
    def it_is_opened_anew(self):
        self.db = Database(self.db.path)

    @invariant()
    def the_database_says_the_same(self):
        stored = {row.trial_id: (row.status, row.objective, row.retry_of) for row in list_trials(self.db, 1)}
        assert stored == {
            number: (self.state(trial), trial.objective, trial.retry_of) for number, trial in self.model.items()
        }


Trials.TestCase.settings = settings(max_examples=6, stateful_step_count=30, deadline=None)
TestTrials = Trials.TestCase
