"""What a study hands out: trials that are running, and records of what is known."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from aqx.activation import Activation, activation
from aqx.errors import AqxError, InputError, one_line, traceback_of
from aqx.search.preemption import sigterm_ends_block
from aqx.search.pruning import curve_of, rule_of
from aqx.store import outcomes as store
from aqx.store import trial_rows
from aqx.store.connection import Database
from aqx.store.encoding import plain_metrics
from aqx.store.lease import kept_alive
from aqx.training.environment import environment

if TYPE_CHECKING:
    from aqx.search.study import Study

SEARCHED = ("baseline", "search", "added")  # what the search learns from; confirmations stay apart
LEASE_SECONDS = 120.0  # how long a claim outlives the last heartbeat of its process
HEARTBEAT_SECONDS = 30.0
ASKED_LEASE_SECONDS = 24 * 3600.0  # `ask` leaves no process behind whose heart could beat

_log = logging.getLogger("aqx")


class Pruned(Exception):
    """Raised inside `with study.trial()` to stop a hopeless training; it ends the block and goes no further."""


@dataclass(frozen=True)
class Suggestion:
    """A candidate that the surrogate would train next.

    Attributes:
        name: the simplest name of its class.
        class_id: the class.
        mean: predicted objective; nan where the choice was random.
        spread: standard deviation of the prediction.
    """

    name: str
    class_id: str
    mean: float
    spread: float


@dataclass(frozen=True)
class Record(trial_rows.TrialRow):
    """A trial as it is stored: what was trained, where and how, and what came of it; see `TrialRow`."""

    @property
    def id(self) -> int:
        """Its number in the database."""
        return self.trial_id

    @cached_property
    def activation(self) -> Activation:
        """The function, ready to be called by a model."""
        return activation(self.name)


@dataclass(frozen=True)
class Ranking:
    """A function with the mean of its results; the best of many noisy results looks better than it is."""

    name: str
    class_id: str | None
    objective: float
    trials: int


@dataclass(frozen=True)
class Outcome:
    """What a training left behind, wherever it ran.

    Attributes:
        metrics: what it reported.
        reason: why it failed, or None.
        seconds: how long it took.
        environment: where and with what it ran.
    """

    metrics: dict[str, Any]
    reason: str | None
    seconds: float
    environment: dict[str, str]


@dataclass
class Trial:
    """A claimed training.

    Attributes:
        id: its number in the database.
        name: the function.
        seed: for whatever is random in the training.
        metrics: what was reported so far.
    """

    id: int
    name: str
    seed: int
    study: Study = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)
    _hopeless: bool = field(default=False, repr=False)
    _started: float = field(default_factory=time.monotonic, repr=False)

    @cached_property
    def activation(self) -> Activation:
        """The function, ready to be called by a model."""
        return activation(self.name)

    def report(self, step: int | None = None, **metrics: Any) -> None:
        """Report metrics: without `step` final ones, with it intermediate ones; calls merge.

        Args:
            step: when in the training; the values are kept as `<metric>_by_step`, lists of [step, value].
            metrics: numbers by name; the task's objective among the final ones.
        """
        for name, value in metrics.items():
            if step is None:
                self.metrics[name] = value
            else:
                self.metrics.setdefault(f"{name}_by_step", []).append([int(step), value])

    def should_prune(self) -> bool:
        """Return whether the training is hopeless, by the study's pruner and the intermediate values of the objective.

        What was reported is stored, so that other processes compare with it, and theirs is read: two short
        transactions, so not for every step of a fast training. A training whose objective is nan is hopeless.

        Raises:
            InputError: the trial has a result already, or a reported value cannot be stored.

        Example:
            >>> import aqx, tempfile
            >>> folder = tempfile.TemporaryDirectory()
            >>> study = aqx.Study(folder.name + "/search.duckdb", "mnist1d")
            >>> with study.trial() as trial:
            ...     for epoch in range(1, 4):
            ...         trial.report(step=epoch, val_acc=float("nan"))
            ...         if trial.should_prune():
            ...             raise aqx.Pruned
            >>> study.records()[0].status, study.records()[0].reason
            ('failed', 'objective is nan')
        """
        study = self.study
        own = curve_of(plain_metrics(self.metrics), study.task.objective, study.sign)
        if not own:
            return False
        store.report(study.db, self.id, self.metrics)
        if math.isnan(own[-1][1]):
            self._hopeless = True
        else:
            others = [
                curve_of(record.metrics, study.task.objective, study.sign)
                for record in study.records()
                if record.id != self.id and record.purpose in SEARCHED
            ]
            self._hopeless = rule_of(study.pruner)(own, others)
        return self._hopeless

    @contextlib.contextmanager
    def running(self) -> Iterator[Trial]:
        """Keep the claim while the block runs, then store its result, or why it failed.

        An exception fails the trial and goes on to the caller; an interruption (Ctrl-C, SIGTERM) gives the claim back.
        """
        with heartbeats(self.study.db, [self.id]), sigterm_ends_block(), self._given_back_when_interrupted():
            try:
                yield self
            except Pruned:
                self.study.announce(self._prune())
                return
            except Exception as error:
                self.fail(error)
                raise
            try:
                record = self._finish()
            except AqxError as error:
                self.metrics.clear()
                self.fail(error)
                raise
            self.study.announce(record)

    @contextlib.contextmanager
    def _given_back_when_interrupted(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            raise
        except BaseException:
            store.release(self.study.db, self.id)
            raise

    def finish(self) -> Record:
        """Store what was reported as the trial's result; without the objective it is a failed one."""
        return self.study.announce(self._finish())

    def _finish(self) -> Record:
        objective = self.study.task.objective
        if objective in self.metrics:
            value = self.study.task.goal.of(self.metrics)
            return as_record(store.finish(self.study.db, self.id, value, self.metrics, **self._circumstances()))
        if self._hopeless:
            return self._prune()
        seen = ", ".join(self.metrics) or "nothing"
        reason = f"the training ended without reporting {objective} (it reported {seen})"
        _log.warning("aqx: trial %d, %s: %s", self.id, self.name, reason)
        return as_record(store.fail(self.study.db, self.id, reason, self.metrics, **self._circumstances()))

    def fail(self, error: BaseException | str) -> Record:
        """Store that the training failed, and why."""
        try:
            metrics = plain_metrics(self.metrics)
        except InputError:  # what cannot be stored must not hide why it failed
            metrics = {}
        if isinstance(error, BaseException):
            metrics["traceback"] = traceback_of(error)
            error = one_line(error)
        record = as_record(store.fail(self.study.db, self.id, error, metrics, **self._circumstances()))
        return self.study.announce(record)

    def end(self, outcome: Outcome) -> Record:
        """Store what a training that ran elsewhere left behind; the study's callbacks are left to the caller."""
        circumstances = {"seconds": outcome.seconds, "environment": outcome.environment}
        if outcome.reason is not None:
            row = store.fail(self.study.db, self.id, outcome.reason, outcome.metrics, **circumstances)
        else:
            value = self.study.task.goal.of(outcome.metrics)
            row = store.finish(self.study.db, self.id, value, outcome.metrics, **circumstances)
        return as_record(row)

    def _prune(self) -> Record:
        curve = curve_of(plain_metrics(self.metrics), self.study.task.objective, self.study.sign)
        last = self.study.sign * curve[-1][1] if curve else None
        return as_record(store.prune(self.study.db, self.id, last, self.metrics, **self._circumstances()))

    def _circumstances(self) -> dict[str, Any]:
        return {"seconds": time.monotonic() - self._started, "environment": environment(self.study.task)}


def seed_of_trial(study_seed: int, trial_id: int) -> int:
    """Return the seed of a trial's training: a function of the study's seed and the trial's id alone."""
    return int(np.random.SeedSequence([study_seed, trial_id]).generate_state(1)[0] >> 1)


def as_record(row: trial_rows.TrialRow) -> Record:
    """Return a stored trial as people and scripts see it."""
    return Record(**vars(row))


def heartbeats(db: Database, trial_ids: list[int]) -> contextlib.AbstractContextManager[None]:
    """Extend the claims of these trials in a background thread; the list may change meanwhile."""
    return kept_alive(trial_ids, lambda trial_id: store.heartbeat(db, trial_id, LEASE_SECONDS), HEARTBEAT_SECONDS)
