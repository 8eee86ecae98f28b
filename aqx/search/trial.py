"""What a study hands out: trials that are running, and records of what is known."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aqx.activation import Activation, activation
from aqx.errors import AqxError, InputError
from aqx.store import trials as store
from aqx.store.connection import Database
from aqx.store.lease import kept_alive

LEASE_SECONDS = 120.0  # how long a claim outlives the last heartbeat of its process
HEARTBEAT_SECONDS = 30.0
ASKED_LEASE_SECONDS = 24 * 3600.0  # `ask` leaves no process behind whose heart could beat

_log = logging.getLogger("aqx")


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
class Record:
    """A finished trial: what was trained and what came of it."""

    id: int
    name: str
    class_id: str | None
    seed: int
    purpose: str
    status: str
    objective: float | None
    metrics: dict[str, Any]
    reason: str | None

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


@dataclass
class Trial:
    """A claimed training.

    Attributes:
        id: its number in the database.
        name: the function.
        seed: for whatever is random in the training.
    """

    id: int
    name: str
    seed: int
    objective: str
    db: Database = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)

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

    @contextlib.contextmanager
    def running(self) -> Iterator[Trial]:
        """Keep the claim while the block runs, then store its result, or why it failed.

        An exception fails the trial and goes on to the caller; being interrupted gives the claim back.
        """
        with heartbeats(self.db, [self.id]):
            try:
                yield self
            except Exception as error:
                self.fail(error)
                raise
            except BaseException:
                store.release(self.db, self.id)
                raise
        try:
            self.finish()
        except AqxError as error:
            self.metrics.clear()
            self.fail(error)
            raise

    def finish(self) -> Record:
        """Store what was reported as the trial's result; without the objective it is a failed one."""
        if self.objective not in self.metrics:
            seen = ", ".join(self.metrics) or "nothing"
            reason = f"the training ended without reporting {self.objective} (it reported {seen})"
            _log.warning("aqx: trial %d, %s: %s", self.id, self.name, reason)
            return as_record(store.fail(self.db, self.id, reason, self.metrics))
        return as_record(store.finish(self.db, self.id, number(self.objective, self.metrics), self.metrics))

    def fail(self, error: BaseException | str) -> Record:
        """Store that the training failed, and why."""
        metrics = dict(self.metrics)
        if isinstance(error, BaseException):
            metrics["traceback"] = "".join(traceback.format_exception(error))[-4000:]
            error = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return as_record(store.fail(self.db, self.id, error, metrics))


def number(objective: str, metrics: dict[str, Any]) -> float:
    """Return the objective among the metrics as a float.

    Raises:
        InputError: it is missing or not a number.
    """
    if objective not in metrics:
        raise InputError(f"{objective} is missing from the metrics ({', '.join(metrics) or 'none'}); report it")
    try:
        return float(metrics[objective])
    except (TypeError, ValueError):
        raise InputError(f"{objective}={metrics[objective]!r} is not a number; report one") from None


def as_record(row: store.TrialRow) -> Record:
    """Return a stored trial as people and scripts see it."""
    return Record(
        row.trial_id, row.name, row.class_id, row.seed, row.purpose, row.status, row.objective, row.metrics, row.reason
    )


def heartbeats(db: Database, trial_ids: list[int]) -> contextlib.AbstractContextManager[None]:
    """Extend the claims of these trials in a background thread; the list may change meanwhile."""
    return kept_alive(trial_ids, lambda trial_id: store.heartbeat(db, trial_id, LEASE_SECONDS), HEARTBEAT_SECONDS)
