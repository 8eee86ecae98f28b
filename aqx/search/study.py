"""`Study`: one search on one task in one database: ask, tell, and all that follows from the answers."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

from aqx import surrogate as surrogates
from aqx.duration import checked_limit, seconds_of
from aqx.enumeration import enumerate_space
from aqx.errors import InputError, TaskError
from aqx.operators import own_operators
from aqx.search.comparison import LearningComparison, LearningPlan, Side, plan_comparison
from aqx.search.confirmation import Choice, Plan, plan_confirmation
from aqx.search.ledger import (
    ASKED_LEASE_SECONDS,
    LEASE_SECONDS,
    Ledger,
    Ranking,
    Record,
    Unattended,
    done_in_search,
    rank_believed,
    rank_functions,
)
from aqx.search.loop import Loop, check_candidates
from aqx.search.pruning import rule_of
from aqx.search.queue import Queue, RetryPolicy, Suggestion
from aqx.search.retraining import Means
from aqx.search.shown import Page, page_of, shown, study_html, table_of
from aqx.search.trial import Trial
from aqx.search.verdict import Confirmation, with_trials
from aqx.space import Space
from aqx.store import Database, StudySettings, functions, outcomes
from aqx.store.kinds import RUNS
from aqx.store.spectra import invalid_spectra
from aqx.store.subjects import remove_spectra
from aqx.store.trial_rows import Status, by_training
from aqx.tasks import Task
from aqx.tasks.loading import as_task, without_learning
from aqx.tasks.task import FileReference, NamedReference
from aqx.tasks.version import version_of_task

_TEN_YEARS = 10 * 365.25 * 24 * 3600
_log = logging.getLogger("aqx")

# Trainings of one program on a GPU. Replayed on mnist1d, 6 searches, regret after 50 and 100 trainings: 8 at once .011
# and .007, 16 at once .017 and .007, 64 at once .026 and .015.
TOGETHER = 8
# Candidates get short runs, unless a search is told otherwise: so many that 20 trainings choose among all of act_bench.
# Measured: see the guide `early`; a part of them was no help on some tables.
RUNS_PER_TRAINING, FEWEST_RUNS, MOST_RUNS = 150, 300, 3000
WORTH_A_START = 10  # times as many classes as trainings: where there are fewer, a start matters little

# What is called with every trial that ends: (study, record).
Callback = Callable[["Study", Record], object]


class Study:
    """A search for activations on one task: any number of processes may hold the same study open.

    Baselines are suggested first, then what the surrogate prefers. Whatever is random depends on the study's seed and
    the trial's id alone.

    Args:
        db: the database's path (made if it does not exist) or a `Database`; `aqx enumerate` and `aqx eigs` fill it.
        task: a `Task`, the name of a built-in one, or "path/to/file.py:task".
        surrogate: a preset's name ("ensemble", "paper", "random") or a scikit-learn regressor.
        seed: of the study.
        retry: how often a function is trained again whose training was lost with its process, or failed.
        pruner: what `Trial.should_prune` goes by: "median", "halving" or "never".
        callbacks: functions that are called as `callback(study, record)` after every trial that ends through this
            object: done, failed or pruned, by `tell`, `fail`, a `trial` block, `search` or `confirm`; in this process,
            in this order, after the result is stored. What one raises goes on to the caller: a search ends with it,
            and the same call resumes it. Intermediate values are in `record.metrics`, as `<metric>_by_step`.
        space: what to search in: a `Space`, or "act_bench", "paper" or "gated"; what the database lacks of it is
            enumerated.
        enter: store the task at once where it is new. False leaves that to the first claim, result or spectrum, so
            that who only looks changes nothing.
        accept_changed: results of earlier versions of the task's code count as those of this one. Else a warning tells
            of them, and no confirmation uses them.

    Raises:
        InputError: the task, the surrogate, the pruner or a callback cannot be used.
        StoreError: the database cannot be used, or holds another task or another operator of this name.

    Example:
        >>> import aqx, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> study = aqx.Study(folder.name + "/search.duckdb", "mnist1d")
        >>> with study.trial() as trial:
        ...     trial.report(val_acc=0.61)
        >>> study.best().name, study.best().objective
        ('relu(x)', 0.61)

        >>> log = aqx.Study(study.db, "mnist1d", callbacks=[lambda study, record: print(record.name, record.status)])
        >>> _ = log.tell(log.ask(), val_acc=0.58)
        swish(x) done
    """

    def __init__(
        self,
        db: str | os.PathLike[str] | Database,
        task: Task | str,
        *,
        surrogate: Any = surrogates.DEFAULT,
        seed: int = 0,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008  (it is frozen)
        pruner: str = "median",
        callbacks: Sequence[Callback] = (),
        space: Space | str | None = None,
        enter: bool = True,
        accept_changed: bool = False,
    ):
        self.task: Task = as_task(task)
        if seed < 0:
            raise InputError(f"seed={seed!r} cannot seed a study; give an integer from 0")
        self.preset: surrogates.Preset = surrogates.as_preset(surrogate)
        rule_of(pruner)
        self.callbacks: tuple[Callback, ...] = _checked(callbacks)
        self.seed: int = seed
        self.retry_policy: RetryPolicy = retry
        self.pruner: str = pruner
        self.db: Database = db if isinstance(db, Database) else Database(db, create=True)
        if space is not None:
            enumerate_space(self.db, Space.preset(space) if isinstance(space, str) else space)
        self._check_meanings()
        self.ledger: Ledger = Ledger.of_task(
            self.db, self.task.name, self.task.identity(), self._announce, _notes(self.task)
        )
        if enter:
            self.ledger.enter()
        settings = StudySettings(seed, self.preset.name, pruner)
        self.queue: Queue = Queue(self.ledger, self.task, self.preset, retry, settings)
        self.version: str | None = version_of_task(self.task)
        self._versions_compared: bool = False
        self._accept_changed: bool = accept_changed
        if accept_changed and self.version is not None:
            self.ledger.accept(self.version)

    @property
    def task_id(self) -> int:
        """The task's number in the database, which has it from now on."""
        return self.ledger.enter()

    def __repr__(self) -> str:
        return f"Study({str(self.db.path)!r}, {self.task.name!r}, surrogate={self.preset.name!r}, seed={self.seed})"

    def ask(self, lease_seconds: float | int = ASKED_LEASE_SECONDS, *, confirm: bool = False, **choice: Any) -> Trial:
        """Claim the next function to train: a baseline that has not run, else what the surrogate prefers.

        The claim lasts a day; `trial()` holds it just as long as the training runs.

        Args:
            lease_seconds: how long others take this training for running; a later result is accepted all the same.
            confirm: claim a training of the confirmation, of the winners and baselines on fresh seeds, instead.
            **choice: with `confirm`, what is confirmed: `top`, `seeds`, … as in the method `confirm`.

        Raises:
            Exhausted: no candidate is left.
            InputError: the lease is no time, or one of more than ten years.
        """
        if not 0 < lease_seconds <= _TEN_YEARS:  # nan is not either
            raise InputError(
                f"lease_seconds={lease_seconds!r} is no time to hold a claim; give seconds, up to ten years"
            )
        return self._trial(Unattended(lease_seconds), confirm, choice)

    def tell(self, trial: Trial | int | str, /, **metrics: Any) -> Record:
        """Store the result of a trial, or of a function that was trained elsewhere, as `aqx tell` does.

        An objective of nan makes it a failed one.

        Args:
            trial: from `ask`, or its id; or the name of a function, which is then as `add`, its `seed` included.
            **metrics: the task's objective, and whatever else is worth keeping.

        Raises:
            InputError: the objective is missing or not a number, or the trial has a result already.
        """
        if isinstance(trial, str):
            return self.add(trial, **metrics)
        goal = self.task.goal
        if isinstance(trial, Trial):
            metrics = {**trial.metrics, **metrics}
            goal.of(metrics)
            trial.metrics = metrics
            return trial.close()
        record = self.ledger.close(trial, outcomes.result(goal.of(metrics), metrics))
        self._announce(record)
        return record

    def fail(self, trial: Trial | int, reason: str) -> Record:
        """Store that a training failed, and why; see `tell`."""
        if isinstance(trial, Trial):
            return trial.close(reason)
        record = self.ledger.close(trial, outcomes.failure(reason))
        self._announce(record)
        return record

    @contextlib.contextmanager
    def trial(self, *, confirm: bool = False, **choice: Any) -> Iterator[Trial]:
        """Claim the next function for the length of a `with` block, in which it is trained and reported.

        The claim's lease is renewed meanwhile. An exception marks the trial failed, with the reason, and goes on to
        the caller; so is a block that ends without the objective. `aqx.Pruned`, or leaving without the objective after
        `trial.should_prune()` said so, marks it pruned. Being interrupted by Ctrl-C or SIGTERM, which schedulers send
        before they take a machine away, is no failure: it gives the claim back.

        Args:
            confirm: claim a training of the confirmation instead; see `ask`.
            **choice: with `confirm`, as in `ask`.

        Raises:
            Exhausted: no candidate is left.
        """
        with self._trial(LEASE_SECONDS, confirm, choice).running() as trial:
            yield trial

    def _trial(self, lease_seconds: float, confirm: bool, choice: dict[str, Any]) -> Trial:
        self._check_meanings()
        if choice and not confirm:
            raise InputError(f"{next(iter(choice))} belongs to a confirmation; give confirm=True with it")
        if confirm:
            return self._confirming(self.confirmation_plan(**choice), lease_seconds)
        self._compare_versions()
        (record,) = self.queue.claim(lease_seconds)
        return self._as_trial(record)

    def _confirming(self, plan: Plan, lease_seconds: float) -> Trial:
        plan.note()
        return self._as_trial(plan.trainings.claim_next(lease_seconds))

    def _as_trial(self, record: Record) -> Trial:
        rule = rule_of(self.pruner)
        return Trial(record.id, record.name, record.seed, self.ledger, self.task, rule, record.token)

    def search(
        self,
        budget: int = 100,
        *,
        executor: Executor | None = None,
        workers: int | None = None,
        together: int | None = None,
        spectra: int = 200,
        runs: int | None = None,
        time_limit: float | int | None = None,
        timeout: float | int | str | None = None,
        max_cost: float | int | None = None,
        progress: Callable[[int, int, str], None] | bool | None = None,
    ) -> list[Record]:
        """Train the baselines, then suggestions by the task's own `train`, until `budget` of them have a result.

        All classes in the database are candidates. Those without a Fisher spectrum are predicted from their outputs;
        before a choice, the most promising of them get their spectra, and are judged by both. So it is with short runs,
        a few steps of training each: in a small space all classes get them before the first choice, and the first
        suggestions are those that do best in them.

        Results of earlier calls count, so the same call resumes what was interrupted. So do those of other processes
        that search the same study: what they are at is waited for at the end, and taken over where they are dead. A
        training that raises or gives nan is a failed trial, and the search goes on; one whose worker process dies is
        tried once more (see `retry`). Only Ctrl-C and SIGTERM end the search, and the processes of its workers with it.

        Args:
            budget: suggestions trained in all, baselines not counted.
            executor: where trainings run: any `concurrent.futures.Executor`, such as a Dask cluster's
                (`client.get_executor()`), submitit's for SLURM or mpi4py's; this process alone opens the database. Task
                and activation travel by pickle.
            workers: jobs at a time; without an executor, more than one are processes of their own.
            together: trainings in one job: functions of one shape are trained by one program where the task has a
                `train_many`. By default 8 where this process trains alone, on a GPU, and the task has one; else 1.
            spectra: how many of the most promising candidates are to have a spectrum; 0 computes none. A model of which
                spectra cannot be computed is searched without, with a warning.
            runs: how many candidates are to have short runs: all of a space that has no more, and else an even sample
                and the most promising; 0 computes none. By default 150 for each training of the budget, and from 300
                to 3,000, so that 20 trainings choose among all of act_bench; but none where `spectra` is 0, nor where
                the budget is a tenth of the space or more, of which a start matters little.
            time_limit: seconds that one training may take, by default the task's: one that takes longer is ended with
                its process, and has failed. With a limit, one worker is a process of its own too, so the task must be
                such that it can be sent there, and a script that searches needs its `if __name__ == "__main__":`. What
                an `executor` runs cannot be ended from here.
            timeout: seconds, or e.g. "90m" or "2h", after which no further training begins; those that run are waited
                for. The same call goes on from there.
            max_cost: leave candidates out, before anything is trained, that cost more than so many times what relu
                does, in value and gradient on this process's device; what is not known of that is measured first.
                Baselines are trained whatever they cost.
            progress: called as progress(done, total, note); True shows a bar, in a terminal or a notebook.

        Returns:
            The trials that this call finished, in order.

        Raises:
            TaskError: the task has no `train`, `check_task` refuses its batch or loss, every baseline fails, or worker
                after worker is lost.
        """
        if not isinstance(budget, int) or budget < 0:
            raise InputError(f"budget={budget!r} is not a number of trainings; give an integer from 0")
        if not isinstance(spectra, int) or spectra < 0:
            raise InputError(f"spectra={spectra!r} is not a number of candidates; give an integer from 0")
        if runs is not None and (not isinstance(runs, int) or runs < 0):
            raise InputError(f"runs={runs!r} is not a number of candidates; give an integer from 0")
        if max_cost is not None and (
            isinstance(max_cost, bool) or not isinstance(max_cost, int | float) or not 0 < max_cost < math.inf
        ):
            raise InputError(f"max_cost={max_cost!r} is not a cost; give a number above 0, of times what relu costs")
        self._check_meanings()
        self.queue.limit_cost(None if max_cost is None else float(max_cost))
        with self.db.read():  # one turn for all
            self._compare_versions()
            snapshot = self.ledger.snapshot()
            if budget and self.task.train is not None:
                check_candidates(self.queue, snapshot)
        if runs is None:
            wanted = spectra > 0 and WORTH_A_START * budget < snapshot.features.classes
            runs = min(max(FEWEST_RUNS, RUNS_PER_TRAINING * budget), MOST_RUNS) if wanted else 0
        with shown(progress, "search") as told:
            if budget and max_cost is not None:
                self.queue.eligible.measure_costs(told)
            until = time.monotonic() + _seconds(timeout)
            limit = checked_limit(time_limit)
            most = self._together(together, executor is None and workers in (None, 1))
            return Loop(self.queue, budget, spectra, runs, most, until, told).train(snapshot, executor, workers, limit)

    def _compare_versions(self) -> None:
        """Warn, once, where results are there of another version of the task's code."""
        if self.version is None or self._versions_compared:
            return
        self._versions_compared = True
        with self.db.read():
            accepted, versions = self.ledger.notes().get("accepted", []), self.ledger.versions()
        alike = {self.version, *(accepted if self.version in accepted else ())}
        others = {version: count for version, count in versions.items() if version not in alike}
        if others:
            _log.warning(
                "aqx: the training code of task %r has changed: %d results are of version %s, it is now %s. The search "
                "counts them all, a confirmation only those of now. Give the changed task another name to search anew "
                "(Task(name=…)); or, where the change does not matter, say so: --accept-changed, "
                "Study(accept_changed=True). Task(version=…) says itself what is a change.",
                self.task.name,
                sum(others.values()),
                ", ".join(others),
                self.version,
            )

    def _check_meanings(self) -> None:
        """Refuse operators that mean something else than when the database was filled; see `check_meanings`."""
        if own_operators():
            from aqx.enumeration.meanings import check_meanings  # brings JAX

            check_meanings(self.db)

    def _together(self, together: int | None, here: bool) -> int:
        """How many trainings a job has; `here` is whether this process trains alone."""
        if together is not None:
            if together < 1:
                raise InputError(f"together={together} is too few; give 1 or more")
            return together
        return TOGETHER if here and self.task.trains_together and _on_gpu() else 1

    def confirm(
        self,
        top: int = 5,
        seeds: int = 10,
        *,
        executor: Executor | None = None,
        workers: int | None = None,
        together: int | None = None,
        time_limit: float | int | None = None,
        progress: Callable[[int, int, str], None] | bool | None = None,
        functions: Sequence[str] = (),
        baselines: Sequence[str] = (),
        reference: str | None = None,
        plan: Plan | None = None,
    ) -> Confirmation:
        """Retrain the best functions and the baselines on the same fresh seeds, and say whether the winners really win.

        What the search saw is the best of many noisy results, and so looks better than it is; these are fresh. Where
        the task returns a test metric (`test_acc` beside `val_acc`), which the search never sees, that is reported:
        then three times `top` functions are retrained, and fresh validation results choose the `top` best of them.

        Where the task has no `train`, what it returns is a loop over the trials to train: answer each with `tell`, and
        call this again for the verdict; or claim them one by one, `with study.trial(confirm=True)`.

        Args:
            top: how many of the search's best functions are reported.
            seeds: trainings of each function, ≥ 2.
            executor: as in `search`.
            workers: as in `search`.
            together: as in `search`.
            time_limit: as in `search`.
            progress: as in `search`.
            functions: names of functions to confirm, instead of the search's best.
            baselines: names of functions to compare with, instead of the task's.
            reference: the one that all are compared with; default the first baseline.
            plan: from `confirmation_plan`, instead of the five above.

        Raises:
            InputError: `top` or `seeds` cannot be used, or nothing has been trained yet.
        """
        plan = plan or self.confirmation_plan(top, seeds, functions, baselines, reference)
        if self.task.train is None:
            plan.note()
            return with_trials(plan.verdict(), lambda: self._confirming(plan, Unattended(ASKED_LEASE_SECONDS)))
        means = self._means(executor, workers, together, time_limit)
        with shown(progress, "confirm") as told:
            plan.note()
            plan.trainings.run(means, told)
        return plan.verdict()

    def confirmation_plan(
        self,
        top: int = 5,
        seeds: int = 10,
        functions: Sequence[str] = (),
        baselines: Sequence[str] = (),
        reference: str | None = None,
    ) -> Plan:
        """Return what `confirm` would train; `str(plan)` says how many trials, and about how long they take.

        The arguments are those of `confirm`.

        Raises:
            InputError: as `confirm` does.
        """
        choice = Choice(top, seeds, functions, baselines, reference)
        self._compare_versions()
        return plan_confirmation(self.ledger, self.queue, choice, self.version)

    def compare_learning(
        self,
        top: int = 5,
        seeds: int = 10,
        *,
        functions: Sequence[str] = (),
        executor: Executor | None = None,
        workers: int | None = None,
        together: int | None = None,
        time_limit: float | int | None = None,
        progress: Callable[[int, int, str], None] | bool | None = None,
        plan: LearningPlan | None = None,
    ) -> LearningComparison:
        """Say whether it paid to learn constants: train functions in three ways on the same fresh seeds.

        "learnt" in this task, which must learn constants (`T+layer`); "plain" in the same task without (`T`), as they
        were found; and "frozen" there too, with the constants written in that were learnt: their means over layers and
        over three more trainings, whose seeds are nobody else's. So no training that is judged has told what is frozen,
        and no test row plays a part in it. A function without constants learns as a·f(b·x); see `aqx.parametrised`.

        Called again it goes on where it was interrupted. The search learns nothing from these trials.

        Args:
            top: how many of the best functions of this task's search.
            seeds: trainings of each function in each way, ≥ 2.
            functions: names of functions to compare, instead of the search's best.
            executor: as in `search`.
            workers: as in `search`.
            together: as in `search`.
            time_limit: as in `search`.
            progress: as in `search`.
            plan: from `learning_plan`, instead of the first three.

        Raises:
            TaskError: the task learns no constants, or has no `train`.
            InputError: `top` or `seeds` cannot be used, or there is nothing to compare.
        """
        plan = plan or self.learning_plan(top, seeds, functions)
        means = self._means(executor, workers, together, time_limit)
        with shown(progress, "compare") as told:
            plan.run(means, told)
        return plan.verdict()

    def learning_plan(self, top: int = 5, seeds: int = 10, functions: Sequence[str] = ()) -> LearningPlan:
        """Return what `compare_learning` would train; the arguments and errors are its own."""
        plain = without_learning(self.task)
        if self.task.train is None:
            raise TaskError(f"task {self.task.name!r} has no train function, without which nothing is compared")
        settings = {"seed": self.seed, "retry": self.retry_policy, "accept_changed": self._accept_changed}
        keeping = Study(self.db, plain, surrogate=self.preset, callbacks=self.callbacks, enter=False, **settings)
        self._compare_versions()
        return plan_comparison(self._side(), keeping._side(), Choice(top, seeds, functions), self.version)

    def _side(self) -> Side:
        of_version = self.ledger.counts_as(self.version)
        others = frozenset(record.trial_id for record in self.ledger.records() if not of_version(record))
        return Side(self.ledger, self.queue, others)

    def _means(
        self, executor: Executor | None, workers: int | None, together: int | None, time_limit: float | int | None
    ) -> Means:
        most, limit = self._together(together, executor is None and workers in (None, 1)), checked_limit(time_limit)
        self._check_meanings()
        return Means(executor, workers, most, limit)

    def add(self, name: str, seed: int = 0, **metrics: Any) -> Record:
        """Record a result that was trained elsewhere, in any framework; `tell(name, …)` is the same.

        Args:
            name: the function.
            seed: of that training.
            **metrics: the task's objective, and whatever else is worth keeping.

        Raises:
            InputError: the name does not parse, or the objective is missing or not a number.
        """
        return self.ledger.add(name, seed, metrics)

    def retry(self, *trial_ids: int) -> list[Record]:
        """Queue functions to be trained once more, whatever came of them; what is stored of them stays.

        The search takes them up before anything else. Without arguments these are the failed and the lost ones, but
        for those that have a result since.

        Returns:
            The queued trials.

        Raises:
            InputError: there is no such trial of this task, or it has not ended.
        """
        if not trial_ids:
            trial_ids = tuple(
                group[-1].trial_id
                for group in by_training(self.ledger.snapshot().trials)
                if {trial.status for trial in group} <= {Status.FAILED, Status.STALE}
            )

        return self.queue.put_back(*trial_ids)

    def reset(self, *, keep_done: bool) -> int:
        """Delete the trials of this task for good, but for those that are running, and return how many they were.

        Args:
            keep_done: keep what has a result, pruned trials included.
        """
        kept = {Status.RUNNING, Status.DONE, Status.PRUNED} if keep_done else {Status.RUNNING}
        return outcomes.remove(self.db, self.ledger.task_id, set(Status) - kept)

    def reset_spectra(self) -> int:
        """Delete the Fisher spectra of this task for good and return how many they were; they can be computed again."""
        return remove_spectra(self.db, self.ledger.task_id)

    def reset_runs(self) -> int:
        """Delete the short runs of this task for good and return how many they were; they can be computed again."""
        return remove_spectra(self.db, self.ledger.task_id, RUNS)

    def best(self, records: Sequence[Record] | None = None) -> Record | None:
        """Return the best trial of the search so far, or None; it is the best of many noisy results (see `confirm`).

        Args:
            records: from `records()`, where they are at hand.
        """
        return self.task.goal.best(done_in_search(self.records() if records is None else records))

    def top(self, n: int = 10) -> list[Ranking]:
        """Return the n best functions by the mean of their results in the search."""
        return rank_functions(done_in_search(self.records()), self.task.goal)[:n]

    def incumbent(self, records: Sequence[Record] | None = None) -> Ranking | None:
        """Return the function that the surrogate believes to be the best of those trained, or None.

        Its `objective` is the mean of the posterior: what the results are believed to be worth without their noise.
        With fewer than 20 results, or a surrogate without a posterior, it is the best by the mean of its results.

        Args:
            records: from `records()`, where they are at hand.
        """
        ranking = rank_functions(done_in_search(self.records() if records is None else records), self.task.goal)
        return next(iter(rank_believed(ranking, self.queue.believed(), self.task.goal)), None)

    def to_dataframe(self) -> Any:
        """Return all trials as a pandas DataFrame, or where pandas is not installed as a dict of NumPy arrays.

        A column per metric that is a number stands beside what `records` has.
        """
        return table_of(self.records())

    def report(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        height: int = 700,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Page:
        """Write the report, and show it where this is the last line of a notebook's cell.

        Args:
            path: the HTML file; default one in a new temporary folder.
            height: in a notebook, in pixels.
            progress: called as progress(done, total, note).
        """
        return page_of(self.db, self.task.name, path, height, progress)

    def _repr_html_(self) -> str:
        records = self.records()
        best = rank_functions(done_in_search(records), self.task.goal)[:5]
        return study_html(f"{self.task.name} in {self.db.path.name}", best, records, self.task.objective)

    def suggest(self, n: int = 1) -> list[Suggestion]:
        """Show the n candidates that would be suggested next, without claiming them.

        Raises:
            Exhausted: no candidate is left.
        """
        return self.queue.peek(n)

    def most_promising(self, runs: bool = False) -> list[str]:
        """Return the ids of the classes without a Fisher spectrum, or short runs, the best prediction first."""
        return self.queue.most_promising(runs)

    def records(self, purpose: str | None = None, status: str | None = None) -> list[Record]:
        """Return the study's trials in the order of their ids, all of them or those of one purpose or status."""
        return self.ledger.records(purpose, status)

    def class_id(self, name: str) -> str:
        """Return the class of a function, enumerated or not."""
        return self.ledger.class_id(name)

    def _announce(self, record: Record) -> None:
        """Call the callbacks with a trial that has ended."""
        for callback in self.callbacks:
            callback(self, record)

    def left_out(self) -> dict[str, int]:
        """Return how many classes the search does not consider, by the reason.

        They are not finite in float32 at some point of the stored outputs, or constant, or the task's model broke with
        them when its Fisher spectra or short runs were computed, or they cost more than the `max_cost` of the last
        search. `add` records a result of any function all the same.
        """
        counts = functions.count_functions(self.db)
        broken = len(
            invalid_spectra(self.db, self.ledger.task_id) | invalid_spectra(self.db, self.ledger.task_id, RUNS)
        )
        found = {"not finite": counts["not finite"], "constant": counts["constant"], "break the model": broken}
        eligible = self.queue.eligible
        if eligible.max_cost is not None:
            found[f"cost more than {eligible.max_cost:g} times relu"] = eligible.too_expensive
        return found


def _checked(callbacks: Any) -> tuple[Callback, ...]:
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise InputError(f"callbacks={callbacks!r} cannot be called; give a list of functions of (study, record)")
    return tuple(callbacks)


def _seconds(timeout: float | int | str | None) -> float:
    """How long a search may go on; forever where nobody says."""
    if timeout is None:
        return math.inf
    seconds = seconds_of(timeout) if isinstance(timeout, str) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise InputError(f"timeout={timeout!r} is not a time; give seconds, or e.g. '90m' or '2h'")
    return float(seconds)


def _notes(task: Task) -> dict[str, Any]:
    """What those need to know who have the database and not the task's code."""
    known: dict[str, Any] = {"baselines": list(task.baselines)}
    if isinstance(task.reference, FileReference):
        known["code"] = f"{task.reference.path}:{task.reference.name}"
    elif isinstance(task.reference, NamedReference):
        known["code"] = task.reference.name
    return known


def _on_gpu() -> bool:
    import jax

    return jax.default_backend() == "gpu"
