"""`Results`: what a database holds of a task's search, read without the task's own code."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from aqx.errors import InputError
from aqx.search.confirmation import SCREENED, Confirmation, judge, reported_metric
from aqx.search.trial import SEARCHED, Ranking, Record, as_record
from aqx.store import Database, trial_rows
from aqx.store.tasks import TaskRow, list_tasks


@dataclass(frozen=True)
class Results:
    """The trials of one task.

    Attributes:
        db: where they are stored.
        task: its name and what identifies it.
        trials: in the order of their ids.
    """

    db: Database
    task: TaskRow
    trials: list[Record]

    @property
    def objective(self) -> str:
        """The metric that the search makes higher or lower."""
        return str(self.task.identity["objective"])

    @property
    def sign(self) -> int:
        """1 where a higher objective is better, else -1."""
        return 1 if self.task.identity["direction"] == "maximize" else -1

    @property
    def searched(self) -> list[Record]:
        """The trials that the search learns from: all but the confirmations."""
        return [trial for trial in self.trials if trial.purpose in SEARCHED]

    @property
    def baselines(self) -> dict[str | None, str]:
        """Names of the baselines by class, in the order of the task."""
        baselines: dict[str | None, str] = {}
        for trial in self.trials:
            if trial.purpose == "baseline":
                baselines.setdefault(trial.class_id, trial.name)
        return baselines

    @property
    def ranking(self) -> list[Ranking]:
        """The functions of the search by the mean of their results, the best first."""
        return rank_functions(self.searched, self.sign)

    def confirmation(self) -> Confirmation | None:
        """Return the verdict on what `confirm` has retrained, by the seeds that every function has had so far.

        None where these are fewer than two, or no baseline is among the functions.
        """
        confirmed = [
            trial for trial in self.trials if trial.purpose == "confirm" and trial.status in ("done", "failed")
        ]
        names = {trial.class_id: trial.name for trial in confirmed}
        baselines = {class_id: name for class_id, name in self.baselines.items() if class_id in names}
        results = {(trial.class_id, trial.seed): trial for trial in confirmed}
        seeds = [
            seed
            for seed in dict.fromkeys(trial.seed for trial in confirmed)
            if all((class_id, seed) in results for class_id in names)
        ]
        if not baselines or len(seeds) < 2:
            return None
        winners = {class_id: name for class_id, name in names.items() if class_id not in baselines}
        metric = reported_metric(self.trials, self.objective)
        return judge(
            results,
            winners,
            baselines,
            seeds,
            (self.objective, metric),
            self.sign,
            top=len(winners) if metric == self.objective else -(-len(winners) // SCREENED),
            searched={ranking.name: ranking.objective for ranking in self.ranking},
        )


def rank_functions(records: Iterable[Record], sign: int) -> list[Ranking]:
    """Order functions by the mean of their results, the best first.

    Args:
        records: trials of the search.
        sign: 1 where higher is better, else -1.
    """
    results: dict[str, list[Record]] = {}
    for record in records:
        if record.status == "done":
            results.setdefault(record.class_id or record.name, []).append(record)
    ranking = [
        Ranking(group[0].name, group[0].class_id, statistics.fmean(r.objective or 0.0 for r in group), len(group))
        for group in results.values()
    ]
    return sorted(ranking, key=lambda r: -sign * r.objective)


def load_results(db: str | os.PathLike[str] | Database, task: str | None = None) -> Results:
    """Read the trials of a task.

    Args:
        db: a database.
        task: the task's name; may be left out where there is only one.

    Returns:
        The results of all its trials.

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
    trials = [as_record(row) for row in trial_rows.list_trials(db, found[0].task_id)]
    return Results(db, found[0], trials)
