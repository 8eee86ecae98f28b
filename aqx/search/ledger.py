"""`Ledger`: what has been trained on a task, as it is stored, and how that grows."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aqx.costs import costs_by_name
from aqx.errors import InputError
from aqx.objective import Objective
from aqx.store import Database, StudySettings, TaskRow, TrialRow, claims, clock, functions, outcomes, trials
from aqx.store.claims import Choice, Settled, Snapshot
from aqx.store.costs import precision_of
from aqx.store.endings import Ending
from aqx.store.lease import kept_alive, this_process, worker_name
from aqx.store.studies import list_studies, register_study
from aqx.store.tasks import (
    check_identity,
    find_task,
    list_tasks,
    read_notes,
    register_task,
    tasks_with_trials,
    write_notes,
)
from aqx.store.trial_rows import AnyTrial, Purpose, Status
from aqx.tree import parse

if TYPE_CHECKING:
    from aqx.activation import Activation

LEASE_SECONDS = 120.0  # how long a claim outlives the last heartbeat of its process
HEARTBEAT_SECONDS = 30.0
ASKED_LEASE_SECONDS = 24 * 3600.0  # `ask` leaves no process behind whose heart could beat


class Unattended(float):
    """Seconds that a claim lasts though the process that made it may end: somebody else trains."""


@dataclass(frozen=True)
class Record(TrialRow):
    """A trial as it is stored: what was trained, where and how, and what came of it; see `TrialRow`."""

    @property
    def id(self) -> int:
        """Its number in the database."""
        return self.trial_id

    @property
    def version(self) -> str | None:
        """The version of the task's code that it was trained with; None where that is not known."""
        return self.environment.get("version")

    @cached_property
    def activation(self) -> Activation:
        """The function, ready to be called by a model."""
        from aqx.activation import activation  # brings JAX, which who only reads results does not need

        return activation(self.name)


@dataclass(frozen=True)
class Ranking:
    """A function with the mean of its results; the best of many noisy results looks better than it is.

    Attributes:
        name: the function.
        class_id: its class.
        objective: the mean.
        trials: of how many results.
        costs: what its value and gradient cost relative to relu's, by the device that this was measured on; empty
            unless `Ledger.with_costs` has looked.
        precision: whether 16-bit floats fail it, see `aqx.evaluation.precision`; as `costs`.
    """

    name: str
    class_id: str | None
    objective: float
    trials: int
    costs: Mapping[str, float] = field(default_factory=dict[str, float])
    precision: Mapping[str, bool] = field(default_factory=dict[str, bool])


def _nobody(record: Record) -> None:
    """Whom to tell of a trial that ended, where nobody listens."""


@dataclass(frozen=True, eq=False)
class Ledger:
    """The trials of one task: read, claimed, closed.

    Attributes:
        db: where they are stored.
        task: its name and what identifies it; its number is 0 as long as nothing is stored of it (see `enter`).
        announce: called with every trial that ends through this ledger, once its result is stored.
    """

    db: Database
    task: TaskRow
    announce: Callable[[Record], object] = field(default=_nobody, repr=False)
    _notes: dict[str, Any] = field(default_factory=dict, repr=False)  # to be stored with the task
    _classes: dict[str, str] = field(default_factory=dict, repr=False)  # of the functions that were looked up
    _studies: dict[StudySettings, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of_task(
        cls,
        db: Database,
        name: str,
        identity: Mapping[str, str | int | float],
        announce: Callable[[Record], object] = _nobody,
        notes: Mapping[str, Any] | None = None,
    ) -> Ledger:
        """Return the ledger of a task that the database need not have; who only looks stores nothing.

        Args:
            db: where it is stored, or will be.
            name: the task's name.
            identity: as in `register_task`.
            announce: as the attribute.
            notes: what is stored beside the identity, see `read_notes`.

        Raises:
            StoreError: the name is taken by a task with another identity.
        """
        if (found := find_task(db, name)) is None:
            found = TaskRow(0, name, dict(identity), None, clock.now())
        else:
            check_identity(db, found, identity)
        return cls(db, found, announce, dict(notes or {}))

    @property
    def task_id(self) -> int:
        """The task's number; 0, which no task has, as long as nothing is stored of it."""
        if not self.task.task_id and (found := find_task(self.db, self.task.name)) is not None:
            check_identity(self.db, found, self.task.identity)
            object.__setattr__(self, "task", found)
        return self.task.task_id

    def enter(self) -> int:
        """Store the task where it is new, and return its number: something of it is about to be stored."""
        if not self.task_id:
            register_task(self.db, self.task.name, self.task.identity)
        if self._notes:
            write_notes(self.db, self.task_id, **self._notes)
            self._notes.clear()
        return self.task_id

    @cached_property
    def goal(self) -> Objective:
        """The metric that the search improves, and its direction."""
        return Objective(str(self.task.identity["objective"]), self.task.identity["direction"])

    @property
    def objective(self) -> str:
        """The name of that metric."""
        return self.goal.metric

    @property
    def sign(self) -> int:
        """1 where a higher objective is better, else -1."""
        return self.goal.sign

    @cached_property
    def trials(self) -> list[Record]:
        """The trials in the order of their ids, as they were when this was first asked; `records` reads anew."""
        return self.records()

    @property
    def searched(self) -> list[Record]:
        """Those of `trials` that the search learns from: all but confirmations and comparisons."""
        return [trial for trial in self.trials if trial.purpose.is_searched]

    @property
    def baselines(self) -> dict[str | None, str]:
        """Names of the baselines among `trials` by class, in the order of the task."""
        baselines: dict[str | None, str] = {}
        for trial in self.trials:
            if trial.purpose is Purpose.BASELINE:
                baselines.setdefault(trial.class_id, trial.name)
        return baselines

    @property
    def ranking(self) -> list[Ranking]:
        """The functions among `trials` by the mean of their results in the search, the best first."""
        return rank_functions(self.searched, self.goal)

    def with_costs(self, functions: Sequence[Ranking]) -> list[Ranking]:
        """Return functions with what is stored of their costs and of their precision in 16-bit floats."""
        costs = costs_by_name(self.db, [one.name for one in functions])
        precision = precision_of(self.db, [one.class_id for one in functions])
        return [
            replace(one, costs=costs[one.name], precision=precision.get(one.class_id or "", {})) for one in functions
        ]

    @cached_property
    def settings(self) -> StudySettings | None:
        """The seed, surrogate and pruner of the study that claimed most; None where the database does not know."""
        studies = list_studies(self.db, self.task_id)
        claimed = [trial.study_id for trial in self.trials if trial.study_id in studies]
        return studies[Counter(claimed).most_common(1)[0][0]] if claimed else next(iter(studies.values()), None)

    def notes(self) -> dict[str, Any]:
        """Read what is stored of the task beside its identity and its trials."""
        return read_notes(self.db, self.task_id)

    def note(self, **notes: Any) -> None:
        """Store such things; what is not named stays, and None stands for what is not there."""
        write_notes(self.db, self.enter(), **notes)

    def versions(self) -> dict[str, int]:
        """Return how many results there are of each version of the task's code, the oldest first."""
        return trials.count_versions(self.db, self.task_id)

    def counts_as(self, version: str | None) -> Callable[[Record], bool]:
        """Return whether a trial's version is this one, or one that was accepted as alike; an unknown one is."""
        accepted: list[str] = self.notes().get("accepted", [])
        alike = {version, *(accepted if version in accepted else ())}
        return lambda record: version is None or record.version is None or record.version in alike

    def accept(self, version: str) -> None:
        """Store that all versions so far count as this one."""
        known = self.notes().get("accepted", [])
        write_notes(self.db, self.enter(), accepted=sorted({*known, *self.versions(), version}))

    def class_id(self, name: str) -> str:
        """Return the class of a function, enumerated or not."""
        if name not in self._classes:
            self._classes[name] = class_of(self.db, name)
        return self._classes[name]

    def records(self, purpose: str | None = None, status: str | None = None) -> list[Record]:
        """Read the trials in the order of their ids, all of them or those of one purpose or status."""
        return [as_record(row) for row in trials.list_trials(self.db, self.task_id, status, purpose)]

    def add(self, name: str, seed: int, metrics: Mapping[str, Any]) -> Record:
        """Record a training that nobody claimed; see `Study.add`."""
        name, objective = str(parse(name)), self.goal.of(metrics)
        outcomes.check_result(name, seed, metrics)  # before the task is stored
        class_id = self.class_id(name)
        row = outcomes.add_result(
            self.db,
            self.enter(),
            class_id=class_id,
            name=name,
            seed=seed,
            objective=objective,
            metrics=metrics,
            registered=True,
        )
        return as_record(row)

    def snapshot(self) -> Snapshot:
        """Read what a choice of the next trainings goes by."""
        return claims.take_snapshot(self.db, self.task_id)

    def claim(
        self,
        wanted: Choice,
        lease_seconds: float | int,
        settled: Settled,
        settings: StudySettings,
        most: int = 1,
    ) -> tuple[list[Record], Snapshot | None]:
        """Claim the first of some functions that are free; see `claims.claim_first`.

        The claims end with this process, unless their lease is `Unattended`.
        """
        rows, snapshot = claims.claim_first(
            self.db,
            self.enter(),
            wanted,
            seed=lambda trial_id: seed_of_trial(settings.seed, trial_id),
            lease_seconds=lease_seconds,
            most=most,
            worker=worker_name(),
            settled=settled,
            study=self._number_of(settings),
            process=None if isinstance(lease_seconds, Unattended) else this_process(),
            registered=True,
        )
        return [as_record(row) for row in rows], snapshot

    def _number_of(self, settings: StudySettings) -> int:
        if settings not in self._studies:
            self._studies[settings] = register_study(self.db, self.enter(), settings)
        return self._studies[settings]

    def close(self, trial_id: int, ending: Ending) -> Record:
        """Store how a trial ended, and return it; `announce` is left to the caller."""
        return as_record(outcomes.close(self.db, self.task_id, trial_id, ending))

    def close_all(self, endings: Mapping[int, Ending]) -> tuple[list[Record | InputError], Snapshot]:
        """Store how trials ended, in one transaction; an error stands for one that somebody else had closed."""
        closed, snapshot = outcomes.close_all(self.db, self.task_id, endings)
        return [end if isinstance(end, InputError) else as_record(end) for end in closed.values()], snapshot

    def lose(self, trial_id: int, reason: str) -> None:
        """Note that the process of a trial is gone."""
        claims.lose(self.db, trial_id, reason)

    def release(self, trial_ids: Collection[int]) -> None:
        """Give claims back, so that others may take them up."""
        if trial_ids:
            claims.release(self.db, *trial_ids)

    def kept_alive(self, trial_ids: Iterable[int]) -> AbstractContextManager[None]:
        """Extend claims in a background thread; what is in the collection may change meanwhile."""
        return kept_alive(trial_ids, lambda id_: claims.heartbeat(self.db, id_, LEASE_SECONDS), HEARTBEAT_SECONDS)


def class_of(db: Database, name: str) -> str:
    """Return the class of a function, enumerated or not."""
    if stored := functions.find_class(db, name):
        return stored[0]
    from aqx.evaluation import class_id_of  # brings JAX

    return class_id_of(parse(name))


def as_record(row: TrialRow) -> Record:
    """Return a stored trial as people and scripts see it."""
    return Record(**vars(row))


def seed_of_trial(study_seed: int, trial_id: int) -> int:
    """Return the seed of a trial's training: a function of the study's seed and the trial's id alone."""
    import numpy as np  # who looks at trials needs none of it

    return int(np.random.SeedSequence([study_seed, trial_id]).generate_state(1)[0] >> 1)


def done_in_search(records: Iterable[AnyTrial]) -> list[AnyTrial]:
    """Return the trials of the search that have a result."""
    return [record for record in records if record.status is Status.DONE and record.purpose.is_searched]


def rank_functions(records: Iterable[Record], goal: Objective) -> list[Ranking]:
    """Order functions by the mean of their results, the best first.

    Args:
        records: trials of the search.
        goal: which results are better.
    """
    results: dict[str, list[Record]] = {}
    for record in records:
        if record.status is Status.DONE:
            results.setdefault(record.class_id or record.name, []).append(record)
    ranking = [
        Ranking(group[0].name, group[0].class_id, math.fsum(r.objective or 0.0 for r in group) / len(group), len(group))
        for group in results.values()
    ]
    return sorted(ranking, key=lambda r: -goal.sign * r.objective)


def rank_believed(ranking: Sequence[Ranking], believed: Mapping[str, float], goal: Objective) -> list[Ranking]:
    """Order functions by what their results are believed to be worth, the best first, with that as their objective.

    Args:
        ranking: by their results.
        believed: by class; a function that is not in it is taken as it was seen.
        goal: which results are better.
    """
    worth = [replace(one, objective=believed.get(one.class_id or "", one.objective)) for one in ranking]
    return sorted(worth, key=lambda one: -goal.sign * one.objective)


def rank_in_turn(ranking: Sequence[Ranking], believed: Mapping[str, float], goal: Objective) -> list[Ranking]:
    """Order functions by what is believed of them and by their results, in turn.

    The luckiest of many noisy results is not the best of them; but what the surrogate does not believe may be true.
    Measured: see the guide `early`.
    """
    both = zip(rank_believed(ranking, believed, goal), ranking, strict=True)
    by_name = {one.name: one for one in ranking}
    return [by_name[name] for name in dict.fromkeys(one.name for pair in both for one in pair)]


def load_results(db: str | os.PathLike[str] | Database, task: str | None = None) -> Ledger:
    """Read the trials of a task, without the task's own code.

    Args:
        db: a database.
        task: the task's name; may be left out where there is only one.

    Returns:
        The ledger of its trials.

    Raises:
        InputError: there is no such task, or several and none was named.
        StoreError: the database cannot be read.

    Example:
        >>> import aqx, tempfile
        >>> from aqx.search import load_results
        >>> path = tempfile.mkdtemp() + "/search.duckdb"
        >>> _ = aqx.Study(path, "mnist1d").add("relu(x)", val_acc=0.61)
        >>> load_results(path).ranking[0].name
        'relu(x)'
    """
    db = db if isinstance(db, Database) else Database(db)
    tasks = list_tasks(db)
    names = ", ".join(row.name for row in tasks)
    if task is None and len(tasks) > 1:
        raise InputError(f"task: {db.path} holds several tasks; name one of {names}")
    found = [row for row in tasks if task in (None, row.name)]
    if not found:
        wanted = "no task" if task is None else f"no task {task!r}"
        raise InputError(f"task: {db.path} holds {wanted}" + (f"; it holds {names}" if tasks else "; search first"))
    return Ledger(db, found[0])


def only_task(db: str | os.PathLike[str] | Database) -> str | None:
    """Return the name of the task that is meant where none is named: the only one, or the only one with trials.

    Example:
        >>> import aqx, tempfile
        >>> from aqx.search.ledger import only_task
        >>> study = aqx.Study(tempfile.mkdtemp() + "/search.duckdb", "mnist1d")
        >>> _ = aqx.Study(study.db, "sine"), study.add("relu(x)", val_acc=0.61)
        >>> only_task(study.db)
        'mnist1d'
    """
    db = db if isinstance(db, Database) else Database(db)
    with db.read():
        names = [row.name for row in list_tasks(db)]
        trained = tasks_with_trials(db)
    for held in (trained, names):
        if held:
            return held[0] if len(held) == 1 else None
    return None
