"""`Study`: one search on one task in one database: ask, tell, and all that follows from the answers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from aqx import candidates as candidate_room
from aqx import surrogate as surrogates
from aqx.candidates import Candidates
from aqx.errors import Exhausted, InputError
from aqx.evaluation import class_id_of
from aqx.search.confirmation import Confirmation, confirm
from aqx.search.loop import search
from aqx.search.pruning import rule_of
from aqx.search.results import rank_functions
from aqx.search.retry import RetryPolicy
from aqx.search.trial import (
    ASKED_LEASE_SECONDS,
    LEASE_SECONDS,
    SEARCHED,
    Ranking,
    Record,
    Suggestion,
    Trial,
    as_record,
    seed_of_trial,
)
from aqx.store import Database, functions, trial_rows
from aqx.store import outcomes as store
from aqx.store.lease import worker_name
from aqx.store.outcomes import Wanted
from aqx.store.spectra import invalid_spectra
from aqx.store.tasks import register_task
from aqx.store.trial_rows import ENDED, STATUSES, Brief, by_training
from aqx.tasks import Task, load_task
from aqx.tree import parse

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

    Raises:
        InputError: the task, the surrogate, the pruner or a callback cannot be used.
        StoreError: the database cannot be used, or holds another task of this name.

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
    ):
        self.task: Task = load_task(task) if isinstance(task, str) else task
        if seed < 0:
            raise InputError(f"seed={seed!r} cannot seed a study; give an integer from 0")
        self.preset: surrogates.Preset = surrogates.as_preset(surrogate)
        rule_of(pruner)
        self.callbacks: tuple[Callback, ...] = _checked(callbacks)
        self.seed: int = seed
        self.retry_policy: RetryPolicy = retry
        self.pruner: str = pruner
        self.db: Database = db if isinstance(db, Database) else Database(db, create=True)
        self.task_id: int = register_task(self.db, self.task.name, self.task.identity())
        self._candidates: Candidates | None = None
        self._class_ids: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Study({str(self.db.path)!r}, {self.task.name!r}, surrogate={self.preset.name!r}, seed={self.seed})"

    def ask(self) -> Trial:
        """Claim the next function to train: a baseline that has not run, else what the surrogate prefers.

        The claim lasts a day; `trial()` holds it just as long as the training runs.

        Raises:
            Exhausted: no candidate is left.
        """
        return self.claim_next(ASKED_LEASE_SECONDS)

    def tell(self, trial: Trial | int, **metrics: Any) -> Record:
        """Store the result of a trial; an objective of nan makes it a failed one.

        Args:
            trial: from `ask`, or its id.
            **metrics: the task's objective, and whatever else is worth keeping.

        Raises:
            InputError: the objective is missing or not a number, or the trial has a result already.
        """
        if isinstance(trial, Trial):
            metrics = {**trial.metrics, **metrics}
            self.task.goal.of(metrics)
            trial.metrics = metrics
            return trial.finish()
        value = self.task.goal.of(metrics)
        return self.announce(as_record(store.finish(self.db, trial, value, metrics)))

    def fail(self, trial: Trial | int, reason: str) -> Record:
        """Store that a training failed, and why; see `tell`."""
        if isinstance(trial, Trial):
            return trial.fail(reason)
        return self.announce(as_record(store.fail(self.db, trial, reason)))

    @contextlib.contextmanager
    def trial(self) -> Iterator[Trial]:
        """Claim the next function for the length of a `with` block, in which it is trained and reported.

        The claim's lease is renewed meanwhile. An exception marks the trial failed, with the reason, and goes on to
        the caller; so is a block that ends without the objective. `aqx.Pruned`, or leaving without the objective after
        `trial.should_prune()` said so, marks it pruned. Being interrupted by Ctrl-C or SIGTERM, which schedulers send
        before they take a machine away, is no failure: it gives the claim back.

        Raises:
            Exhausted: no candidate is left.
        """
        with self.claim_next(LEASE_SECONDS).running() as trial:
            yield trial

    def search(
        self,
        budget: int = 100,
        *,
        executor: Executor | None = None,
        workers: int | None = None,
        spectra: int = 200,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> list[Record]:
        """Train the baselines, then suggestions by the task's own `train`, until `budget` of them have a result.

        All classes in the database are candidates. Those without a Fisher spectrum are predicted from their outputs;
        before a choice, the most promising of them get their spectra, and are judged by both.

        Results of earlier calls count, so the same call resumes what was interrupted. A training that raises or gives
        nan is a failed trial, and the search goes on; one whose worker process dies is tried once more (see `retry`).

        Args:
            budget: suggestions trained in all, baselines not counted.
            executor: where trainings run: any `concurrent.futures.Executor`, such as a Dask cluster's
                (`client.get_executor()`), submitit's for SLURM or mpi4py's; this process alone opens the database. Task
                and activation travel by pickle.
            workers: trainings at a time; without an executor, more than one are processes of their own.
            spectra: how many of the most promising candidates are to have a spectrum; 0 computes none. A model of which
                spectra cannot be computed is searched without, with a warning.
            progress: called as progress(done, total, note).

        Returns:
            The trials that this call finished, in order.

        Raises:
            TaskError: the task has no `train`, every baseline fails, or worker after worker is lost.
        """
        return search(self, budget, executor, workers, spectra, progress)

    def confirm(
        self,
        top: int = 5,
        seeds: int = 10,
        *,
        executor: Executor | None = None,
        workers: int | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Confirmation:
        """Retrain the best functions and the baselines on the same fresh seeds, and say whether the winners really win.

        What the search saw is the best of many noisy results, and so looks better than it is; these are fresh. Where
        the task returns a test metric (`test_acc` beside `val_acc`), which the search never sees, that is reported:
        then three times `top` functions are retrained, and fresh validation results choose the `top` best of them.

        Args:
            top: how many of the search's best functions are reported.
            seeds: trainings of each function, ≥ 2.
            executor: as in `search`.
            workers: as in `search`.
            progress: called as progress(done, total, note).

        Raises:
            InputError: `top` or `seeds` cannot be used, or nothing has been trained yet.
        """
        return confirm(self, top, seeds, executor, workers, progress)

    def add(self, name: str, seed: int = 0, **metrics: Any) -> Record:
        """Record a result that was trained elsewhere, in any framework.

        Args:
            name: the function.
            seed: of that training.
            **metrics: the task's objective, and whatever else is worth keeping.

        Raises:
            InputError: the name does not parse, or the objective is missing or not a number.
        """
        tree = parse(name)
        objective = self.task.goal.of(metrics)
        row = store.add_result(
            self.db,
            self.task_id,
            class_id=self.class_id(str(tree)),
            name=str(tree),
            seed=seed,
            objective=objective,
            metrics=metrics,
        )
        return as_record(row)

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
                for group in by_training(self.trials())
                if {trial.status for trial in group} <= {"failed", "stale"}
            )
        return [as_record(row) for row in store.retry(self.db, self.task_id, trial_ids, self.trial_seed)]

    def reset(self, *, keep_done: bool) -> int:
        """Delete the trials of this task for good, but for those that are running, and return how many they were.

        Args:
            keep_done: keep what has a result, pruned trials included.
        """
        kept = {"running", "done", "pruned"} if keep_done else {"running"}
        return store.remove(self.db, self.task_id, set(STATUSES) - kept)

    def best(self, records: Sequence[Record] | None = None) -> Record | None:
        """Return the best trial of the search so far, or None; it is the best of many noisy results (see `confirm`).

        Args:
            records: from `records()`, where they are at hand.
        """
        done = self._done(self.records() if records is None else records)
        return max(done, key=lambda record: self.sign * (record.objective or 0), default=None)

    def top(self, n: int = 10) -> list[Ranking]:
        """Return the n best functions by the mean of their results in the search."""
        return rank_functions(self._done(self.records()), self.sign)[:n]

    def suggest(self, n: int = 1) -> list[Suggestion]:
        """Show the n candidates that would be suggested next, without claiming them.

        Raises:
            Exhausted: no candidate is left.
        """
        table = self._load_candidates()
        chosen = self._choose(n, self.trials(), table)
        class_ids = table.class_ids(chosen.index)
        names = functions.class_names(self.db, class_ids)
        return [
            Suggestion(name, class_id, self.sign * float(mean), float(spread))
            for name, class_id, mean, spread in zip(names, class_ids, chosen.mean, chosen.spread, strict=True)
        ]

    @property
    def sign(self) -> int:
        """1 where a higher objective is better, else -1."""
        return self.task.goal.sign

    def records(self, purpose: str | None = None, status: str | None = None) -> list[Record]:
        """Return the study's trials in the order of their ids, all of them or those of one purpose or status."""
        return [as_record(row) for row in trial_rows.list_trials(self.db, self.task_id, status, purpose)]

    def trials(self) -> list[Brief]:
        """Return the study's trials in the order of their ids, in brief."""
        return trial_rows.list_brief(self.db, self.task_id)

    def announce(self, record: Record) -> Record:
        """Call the callbacks with a trial that has ended, and return it."""
        for callback in self.callbacks:
            callback(self, record)
        return record

    def class_id(self, name: str) -> str:
        """Return the class of a function, enumerated or not."""
        if name not in self._class_ids:
            stored = functions.find_class(self.db, name)
            self._class_ids[name] = stored[0] if stored else class_id_of(parse(name))
        return self._class_ids[name]

    def claim_next(self, lease_seconds: float, suggestions: bool = True) -> Trial:
        """Claim the next function to train for so many seconds.

        Args:
            lease_seconds: how long the claim lasts without a heartbeat.
            suggestions: whether the surrogate may choose, once nothing else is left.

        Raises:
            Exhausted: no candidate is left, or only suggestions are and none is wanted.
        """
        seen: list[Brief] = []
        for name in self.task.baselines:
            self.class_id(name)  # not while others wait: one that was never enumerated is evaluated

        def at_hand(trials: list[Brief]) -> list[Wanted]:
            seen[:] = trials
            return self._given_back(trials) or (self._drawn(trials) if suggestions else [])

        while True:
            if trial := self._claim(at_hand, lease_seconds):
                return trial
            if not suggestions:
                raise Exhausted("nothing is left but suggestions")
            # This takes its time, in which others need not wait; if one of them is quicker, look again.
            table = self._load_candidates()
            wanted = [Wanted(id_, None, "search") for id_ in table.class_ids(self._choose(1, seen, table).index)]
            if trial := self._claim(wanted, lease_seconds):
                return trial

    def claim(self, name: str, class_id: str | None, purpose: str, lease_seconds: float, seed: int) -> Trial | None:
        """Claim this function, or return None where another process was quicker."""
        return self._claim([Wanted(class_id, name, purpose)], lease_seconds, seed)

    def _claim(
        self,
        wanted: list[Wanted] | Callable[[list[Brief]], list[Wanted]],
        lease_seconds: float,
        seed: int | None = None,
    ) -> Trial | None:
        row = store.claim_first(
            self.db,
            self.task_id,
            wanted,
            seed=self.trial_seed if seed is None else seed,
            worker=worker_name(),
            lease_seconds=lease_seconds,
            retry_failed=self.retry_policy.failed > 0,
        )
        return None if row is None else Trial(row.trial_id, row.name, row.seed, self)

    def trial_seed(self, trial_id: int) -> int:
        """Return the seed of a trial's training: a function of the study's seed and the trial's id alone."""
        return seed_of_trial(self.seed, trial_id)

    def _given_back(self, trials: Sequence[Brief]) -> list[Wanted]:
        """Return what is to be claimed before any suggestion: baselines, and what was given back, lost or asked for."""
        baselines = {self.class_id(name): name for name in self.task.baselines}
        open_ = {"queued", "stale"} | ({"failed"} if self.retry_policy.failed else set())
        searched = [trial for trial in trials if trial.purpose in SEARCHED and trial.class_id is not None]
        concerned = {trial.class_id for trial in searched if trial.status in open_} | set(baselines)
        groups = {group[0].class_id: group for group in by_training(t for t in searched if t.class_id in concerned)}
        settled = {class_id for class_id, group in groups.items() if self.retry_policy.settles(group)}
        others = [group[-1] for class_id, group in groups.items() if class_id not in settled | set(baselines)]
        return [
            *(Wanted(class_id, name, "baseline") for class_id, name in baselines.items() if class_id not in settled),
            *(Wanted(trial.class_id, trial.name, "search") for trial in others),
        ]

    def _drawn(self, trials: Sequence[Brief]) -> list[Wanted]:
        """Return a draw of candidates, where the surrogate does nothing but draw and the candidates are at hand."""
        table = self._candidates
        if self.preset.model is not None or table is None:
            return []
        if not candidate_room.is_current(self.db, self.task_id, self.preset, self.seed, table):
            return []
        return [Wanted(id_, None, "search") for id_ in table.class_ids(self._choose(1, trials, table).index)]

    def _choose(self, n: int, trials: Sequence[Brief], table: Candidates) -> surrogates.Suggestions:
        if not len(table):
            raise Exhausted(
                f"{self.db.path} holds no candidates yet; fill it: aqx enumerate {self.db.path} --space act_bench"
            )
        observed, values, pending = self._seen(table, trials)
        return surrogates.suggest(
            table.coordinates,
            observed,
            values,
            pending,
            preset=self.preset,
            seed=self.trial_seed(max((trial.trial_id for trial in trials), default=0) + 1),
            candidates=table.usable,
            n=n,
        )

    def _seen(self, table: Candidates, trials: Sequence[Brief]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of candidates with results, those results (higher is better, nan for failed), rows in training."""
        searched = [trial for trial in trials if trial.purpose in SEARCHED and trial.class_id is not None]
        lost = {trial.class_id for trial in searched if trial.status == "stale"}
        # Lost too often: it may well be the function that kills the process.
        given_up = {
            group[0].class_id
            for group in by_training([trial for trial in searched if trial.class_id in lost])
            if {trial.status for trial in group} == {"stale"} and self.retry_policy.settles(group)
        }
        at = table.rows_of(str(trial.class_id) for trial in searched)
        ended = np.array([t.status in ENDED or t.class_id in given_up for t in searched], bool)
        values = np.array([np.nan if t.objective is None else self.sign * t.objective for t in searched], float)
        running = np.array([t.status == "running" for t in searched], bool)
        return at[ended & (at >= 0)], values[ended & (at >= 0)], at[running & (at >= 0)]

    def most_promising(self) -> list[str]:
        """Return the ids of the classes without a Fisher spectrum, the best prediction first.

        None are returned where too few results exist to predict from. What is known of a class without a spectrum is
        its outputs; the spectra that most deserve to be computed come first.
        """
        table = self._load_candidates()
        observed, values, _ = self._seen(table, self.trials())
        if not len(observed):
            return []
        order = surrogates.rank(table.coordinates, observed, values, preset=self.preset, seed=self.seed)
        return table.class_ids(order[(table.usable & ~table.has_spectrum)[order]])

    def describe_promising(
        self, among: int, trials: Sequence[Brief], progress: Callable[[int, int, str], None] | None = None
    ) -> None:
        """Compute the Fisher spectra that the `among` most promising candidates, and the trained ones, lack.

        Nothing is computed before there are results to predict from, nor for a few candidates only.

        Args:
            among: how many of the most promising candidates are to have a spectrum.
            trials: of this study.
            progress: called as progress(done, total, note).
        """
        table = self._load_candidates()
        settled = table.has_spectrum | ~table.usable
        if settled.all():
            return
        observed, values, _ = self._seen(table, trials)
        rows = surrogates.undescribed(table.coordinates, observed, values, settled, among, self.preset, self.seed)
        if len(rows):
            names = functions.class_names(self.db, table.class_ids(rows))
            from aqx.spectra import compute_spectra  # brings Flax, which is slow to import

            compute_spectra(self.db, self.task, names=names, progress=progress)

    def left_out(self) -> dict[str, int]:
        """Return how many classes the search does not consider, by the reason.

        They are not finite in float32 at some point of the stored outputs, or constant, or the task's model broke with
        them when its Fisher spectra were computed. `add` records a result of any function all the same.
        """
        counts = functions.count_functions(self.db)
        broken = len(invalid_spectra(self.db, self.task_id))
        return {"not finite": counts["not finite"], "constant": counts["constant"], "break the model": broken}

    def _load_candidates(self) -> Candidates:
        self._candidates = candidate_room.load(self.db, self.task_id, self.preset, self.seed, self._candidates)
        return self._candidates

    @staticmethod
    def _done(records: Sequence[Record]) -> list[Record]:
        return [record for record in records if record.status == "done" and record.purpose in SEARCHED]


def _checked(callbacks: Any) -> tuple[Callback, ...]:
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise InputError(f"callbacks={callbacks!r} cannot be called; give a list of functions of (study, record)")
    return tuple(callbacks)
