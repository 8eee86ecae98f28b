"""`Trial`: a claimed training in the hands of whoever runs it; and many of them, run by aqx itself."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from aqx.errors import InputError, StoreError, one_line, traceback_of
from aqx.metrics import plain_metrics
from aqx.search.ledger import Ledger, Record
from aqx.search.pruning import Rule, curve, curve_of
from aqx.stopping import is_stop, stoppable, when_let_go
from aqx.store import outcomes
from aqx.store.claims import Snapshot
from aqx.store.endings import Ending
from aqx.tasks import Task
from aqx.training.environment import environment
from aqx.training.run import Job, Lost, Outcome, Training, run, workplace
from aqx.tree import parse

if TYPE_CHECKING:
    from aqx.activation import Activation

_log = logging.getLogger("aqx")


class Pruned(Exception):
    """Raised inside `with study.trial()` to stop a hopeless training; it ends the block and goes no further."""


@dataclass
class Trial:
    """A claimed training.

    Attributes:
        id: its number in the database.
        name: the function.
        seed: for whatever is random in the training.
        token: what a result must bring that comes by its number, from elsewhere.
        metrics: what was reported so far.
    """

    id: int
    name: str
    seed: int
    _ledger: Ledger = field(repr=False)
    _task: Task = field(repr=False)
    _rule: Rule = field(repr=False)
    token: str | None = field(default=None, repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)
    _hopeless: bool = field(default=False, repr=False)
    _started: float = field(default_factory=time.monotonic, repr=False)

    @cached_property
    def activation(self) -> Activation:
        """The function, ready to be called by a model."""
        from aqx.activation import activation

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

        What was reported is stored, so that other processes compare with it, and theirs is read: a short transaction,
        so not for every step of a fast training. A training whose objective is nan is hopeless.

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
        goal = self._ledger.goal
        own = curve_of(plain_metrics(self.metrics), goal.metric, goal.sign)
        if not own:
            return False
        others = outcomes.report(self._ledger.db, self.id, self.metrics, compare=f"{goal.metric}_by_step")
        self._hopeless = math.isnan(own[-1][1]) or self._rule(own, [curve(points, goal.sign) for points in others])
        return self._hopeless

    @contextlib.contextmanager
    def running(self) -> Iterator[Trial]:
        """Keep the claim while the block runs, then store its result, or why it failed.

        An exception, `SystemExit` too, fails the trial and goes on to the caller; an interruption (Ctrl-C, SIGTERM)
        gives the claim back.
        """
        with self._ledger.kept_alive([self.id]), stoppable(), self._given_back_when_interrupted():
            try:
                yield self
            except Pruned:
                self._hopeless = True
                record = self._store(self._stop())
            except StoreError:  # the database's trouble is not the function's
                with contextlib.suppress(StoreError):
                    self._ledger.release([self.id])
                raise
            except BaseException as error:
                if not is_stop(error):
                    self.close(error)
                raise
            else:
                try:
                    record = self._store(self._ending())
                except InputError as error:
                    self.metrics.clear()
                    self.close(error)
                    raise
            self._ledger.announce(record)

    @contextlib.contextmanager
    def _given_back_when_interrupted(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if is_stop(error):
                self._ledger.release([self.id])
            raise

    def close(self, error: BaseException | str | None = None) -> Record:
        """Store what was reported as the trial's result; without the objective, or with an error, it is a failed one.

        Raises:
            InputError: the trial has a result already (which stays), or a metric cannot be stored.
        """
        record = self._store(self._ending() if error is None else self._failure(error))
        self._ledger.announce(record)
        return record

    def _store(self, ending: Ending) -> Record:
        return self._ledger.close(self.id, ending)

    def _ending(self) -> Ending:
        goal = self._ledger.goal
        if goal.metric in self.metrics:
            return outcomes.result(goal.of(self.metrics), self.metrics, **self._circumstances())
        if self._hopeless:
            return self._stop()
        seen = ", ".join(self.metrics) or "nothing"
        reason = f"the training ended without reporting {goal} (it reported {seen})"
        _log.warning("aqx: trial %d, %s: %s", self.id, self.name, reason)
        return outcomes.failure(reason, self.metrics, **self._circumstances())

    def _failure(self, error: BaseException | str) -> Ending:
        try:
            metrics = plain_metrics(self.metrics)
        except InputError:  # what cannot be stored must not hide why it failed
            metrics = {}
        if isinstance(error, BaseException):
            metrics["traceback"] = traceback_of(error)
            error = one_line(error)
        return outcomes.failure(error, metrics, **self._circumstances())

    def _stop(self) -> Ending:
        goal = self._ledger.goal
        own = curve_of(plain_metrics(self.metrics), goal.metric, goal.sign)
        return outcomes.stop(goal.sign * own[-1][1] if own else None, self.metrics, **self._circumstances())

    def _circumstances(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._started
        return {"seconds": seconds, "environment": environment(self._task), "name": self.name, "token": self.token}


def train_all(
    ledger: Ledger,
    task: Task,
    snapshot: Snapshot,
    claim: Callable[[Snapshot], Sequence[Record]],
    ended: Callable[[list[Record], Snapshot], None],
    executor: Executor | None,
    workers: int | None,
    time_limit: float | int | None,
) -> Snapshot:
    """Run the task's training for every trial, here or in an executor, storing each result as it comes.

    A training that is lost with its process is stale at once, and `claim` may take its function up again.

    Args:
        ledger: where the trials are stored.
        task: what is trained.
        snapshot: the trials so far.
        claim: claims the next trials, by what was stored when it is asked; those of one shape are trained together.
        ended: called with the trials that ended together, once all of them are stored and announced.
        executor: as in `training.run`.
        workers: as in `training.run`.
        time_limit: as in `training.run`.

    Returns:
        The trials as they were seen last.
    """
    claimed: dict[int, Record] = {}  # what this process answers for, until it is closed
    waiting: deque[Job] = deque()

    def next_job() -> Job | None:
        nonlocal snapshot
        if not waiting:
            trials = claim(snapshot)
            snapshot = snapshot.with_claimed(trials)
            claimed.update((trial.trial_id, trial) for trial in trials)
            waiting.extend(_jobs(trials))
        return waiting.popleft() if waiting else None

    limit = task.time_limit if time_limit is None else time_limit

    def give_back() -> None:
        ledger.release(list(claimed))

    with (
        workplace(executor, workers, limit) as (place, width),
        ledger.kept_alive(claimed),
        stoppable(),
        when_let_go(give_back),
    ):
        try:
            with contextlib.closing(run(next_job, task, place, width, limit)) as batches:
                for batch in batches:
                    snapshot = _store_batch(ledger, batch, claimed, ended)
        except BaseException:
            with contextlib.suppress(StoreError):  # which would hide why it ended
                give_back()
            raise
        give_back()
    return snapshot


def _store_batch(
    ledger: Ledger,
    batch: Sequence[tuple[Job, list[Outcome] | Lost]],
    claimed: dict[int, Record],
    ended: Callable[[list[Record], Snapshot], None],
) -> Snapshot:
    """Store what came of jobs and let go of their trials; return what was stored then."""
    endings: dict[int, Ending] = {}
    for job, outcome in batch:
        for trial_id in map(_trial_of, job):
            if isinstance(outcome, Lost):
                trial = claimed.pop(trial_id)
                ledger.lose(trial_id, outcome.reason)
                _log.warning("aqx: trial %d, %s: %s", trial_id, trial.name, outcome.reason)
        if not isinstance(outcome, Lost):
            endings |= {i: _ending_of(o, claimed[i], ledger) for i, o in zip(map(_trial_of, job), outcome, strict=True)}
    # All results are stored before anybody hears of one: a callback may raise.
    closed, snapshot = ledger.close_all(endings)
    for trial_id in endings:
        del claimed[trial_id]
    records: list[Record] = []
    for end in closed:
        if isinstance(end, Record):
            records.append(end)
        else:  # somebody else has told its result meanwhile, which stays
            _log.warning("aqx: %s", end)
    for record in records:
        ledger.announce(record)
    ended(records, snapshot)
    return snapshot


def _trial_of(training: Training) -> int:
    assert training.trial_id is not None
    return training.trial_id


def _jobs(trials: Sequence[Record]) -> Iterator[Job]:
    """Group trials by the shape of their functions: those of one are trained by one program."""
    shapes = {trial.name: parse(trial.name).shape for trial in trials}
    for _, group in groupby(sorted(trials, key=lambda trial: shapes[trial.name]), lambda trial: shapes[trial.name]):
        yield tuple(Training(trial.name, trial.seed, trial.trial_id) for trial in group)


def _ending_of(outcome: Outcome, trial: Record, ledger: Ledger) -> Ending:
    of = {"name": trial.name, "token": trial.token}
    circumstances = {"seconds": outcome.seconds, "environment": outcome.environment, **of}
    if outcome.reason is not None:
        return outcomes.failure(outcome.reason, outcome.metrics, **circumstances)
    return outcomes.result(ledger.goal.of(outcome.metrics), outcome.metrics, **circumstances)
