"""The search loop, and the trainings it sends to an executor."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from aqx.activation import Activation
from aqx.errors import AqxError, Exhausted, InputError, TaskError, one_line, traceback_of
from aqx.search.preemption import sigterm_ends_block
from aqx.search.retry import GIVEN_UP
from aqx.search.trial import LEASE_SECONDS, Outcome, Record, Trial, heartbeats
from aqx.store import outcomes as store
from aqx.store.encoding import plain_metrics
from aqx.store.trial_rows import ENDED, Brief, by_training
from aqx.tasks import Task
from aqx.training.environment import environment
from aqx.training.processes import ThisProcess, WorkerPool

if TYPE_CHECKING:
    from aqx.search.study import Study

_log = logging.getLogger("aqx")

Progress = Callable[[int, int, str], None] | None


def search(
    study: Study, budget: int, executor: Executor | None, workers: int | None, spectra: int, progress: Progress
) -> list[Record]:
    """Train baselines and suggestions until `budget` suggestions have a result; see `Study.search`."""
    if not isinstance(budget, int) or budget < 0:
        raise InputError(f"budget={budget!r} is not a number of trainings; give an integer from 0")
    if not isinstance(spectra, int) or spectra < 0:
        raise InputError(f"spectra={spectra!r} is not a number of candidates; give an integer from 0")
    baselines = len(study.task.baselines)

    def show(trials: Sequence[Brief | Record], note: str) -> None:
        if progress:
            ended = sum(trial.status in ENDED and trial.purpose in ("search", "baseline") for trial in trials)
            progress(ended, budget + baselines, note)

    def describe(trials: list[Brief]) -> None:
        nonlocal spectra
        try:
            if spectra:
                study.describe_promising(
                    spectra, trials, lambda done, total, _: show(trials, f"{done:,} of {total:,} Fisher spectra")
                )
        except AqxError as error:
            spectra = 0
            _log.warning("aqx: the search goes on without more Fisher spectra: %s", error)

    def next_trial() -> Trial | None:
        # Counted anew each time: other processes may work on the same study.
        trials = study.trials()
        suggested = sum(trial.purpose == "search" and trial.status in (*ENDED, "running") for trial in trials)
        if suggested < budget:
            describe(trials)
        try:
            return study.claim_next(LEASE_SECONDS, suggestions=suggested < budget)
        except Exhausted:
            if suggested == 0 < budget:
                raise  # there is nothing to search in, which the user should hear
            return None

    finished: list[Record] = []

    def finish(record: Record) -> None:
        finished.append(record)
        records = study.records()
        _stop_if_hopeless(study, records, baselines)
        best = study.best(records)
        show(records, f"best {best.objective:.4f} {best.name}" if best else "")

    show(study.trials(), "")
    train_all(study, next_trial, executor, workers, finish)
    return finished


def _stop_if_hopeless(study: Study, records: list[Record], baselines: int) -> None:
    """When every baseline fails, the fault is the task's, and no suggestion will do better."""
    tried = by_training(record for record in records if record.purpose == "baseline")
    hopeless = (
        study.retry_policy.settles(group) and all(record.status == "failed" for record in group) for group in tried
    )
    if baselines and len(tried) == baselines and all(hopeless):
        raise TaskError(f"every baseline of task {study.task.name!r} failed; the first: {tried[0][-1].reason}")


def train_all(
    study: Study,
    next_trial: Callable[[], Trial | None],
    executor: Executor | None,
    workers: int | None,
    finish: Callable[[Record], None],
) -> None:
    """Run the task's training for every trial, here or in an executor, storing each result as it comes.

    A training that is lost with its process is stale at once, and `next_trial` may offer its function again.
    """
    if study.task.train is None:
        raise TaskError(f"task {study.task.name!r} has no train function; give Task(train=…), or use ask and tell")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} is too few; give 1 or more")
    if executor is not None:
        width = workers or getattr(executor, "_max_workers", None) or 1
        _train_in(executor, width, study, next_trial, finish)
        return
    with WorkerPool(workers) if workers and workers > 1 else ThisProcess() as own:
        _train_in(own, workers or 1, study, next_trial, finish)


def train(task: Task, act: Activation, seed: int) -> Outcome:
    """Run a task's training and return what came of it; whatever the training raises becomes a reason."""
    assert task.train is not None
    started = time.monotonic()
    metrics: dict[str, Any] = {}
    reason = None
    try:
        returned = task.train(act, seed)
        if not isinstance(returned, dict):
            raise TaskError(f"train must return a dict of metrics, but returned {type(returned).__name__}")
        metrics = plain_metrics(returned)
        task.goal.of(metrics)
    except Exception as error:
        reason = one_line(error)
        metrics = {**metrics, "traceback": traceback_of(error)}
    return Outcome(metrics, reason, time.monotonic() - started, environment(task))


def train_pickled(work: bytes) -> Outcome:
    """Unpickle (task, activation, seed) and train: an error in that is an answer, where an executor would break."""
    return train(*pickle.loads(work))


def _train_in(
    executor: Executor,
    workers: int,
    study: Study,
    next_trial: Callable[[], Trial | None],
    finish: Callable[[Record], None],
) -> None:
    running: dict[Future[Outcome], Trial] = {}
    claimed: list[int] = []
    lost_in_a_row = 0

    def submit(trial: Trial) -> Future[Outcome]:
        work = (study.task, trial.activation, trial.seed)
        if isinstance(executor, ThisProcess | ThreadPoolExecutor):
            return executor.submit(train, *work)
        try:
            pickled = pickle.dumps(work)
        except (AqxError, pickle.PicklingError, AttributeError, TypeError):
            return executor.submit(train, *work)  # it may need no pickle, and says so if it does
        return executor.submit(train_pickled, pickled)

    def settle(future: Future[Outcome]) -> Record | None:
        nonlocal lost_in_a_row
        try:
            outcome = future.result()
        except AqxError:
            raise  # the task or the activation cannot be had where the work is done: no training will do better
        except Exception as error:
            # What a training raises comes as an outcome: this befell its process, or the way to it.
            lost_in_a_row += 1
            trial = forget(future)
            reason = f"lost with its worker ({one_line(error)})"
            store.lose(study.db, trial.id, reason)
            _log.warning("aqx: trial %d, %s: %s", trial.id, trial.name, reason)
            if lost_in_a_row >= max(GIVEN_UP, 2 * workers):
                raise TaskError(
                    f"{lost_in_a_row} trainings in a row were lost, the last by {one_line(error)}"
                ) from error
        else:
            lost_in_a_row = 0
            try:
                record = running[future].end(outcome)
            except InputError as error:  # somebody else has told its result meanwhile, which stays
                _log.warning("aqx: %s", error)
                forget(future)
            else:
                forget(future)
                return record
        return None

    def forget(future: Future[Outcome]) -> Trial:
        trial = running.pop(future)
        claimed.remove(trial.id)
        return trial

    with heartbeats(study.db, claimed), sigterm_ends_block():
        try:
            while True:
                while len(running) < workers and (trial := next_trial()):
                    claimed.append(trial.id)
                    try:
                        running[submit(trial)] = trial
                    except RuntimeError as error:  # broken, or shut down
                        raise TaskError(
                            f"the executor takes no more work ({one_line(error)}); "
                            "run the same again with a new one to go on"
                        ) from error
                if not running:
                    return
                # All results are stored before anybody hears of one: a callback may raise.
                settled = [settle(future) for future in wait(running, return_when=FIRST_COMPLETED).done]
                for record in filter(None, settled):
                    study.announce(record)
                    finish(record)
        finally:
            for future in running:
                future.cancel()
            for trial_id in claimed:
                store.release(study.db, trial_id)
