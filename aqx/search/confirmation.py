"""Confirmation: the search's winners and the baselines, trained again on the same fresh seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from aqx.errors import InputError
from aqx.search.ledger import Ledger, done_in_search, rank_functions, rank_in_turn
from aqx.search.queue import Queue
from aqx.search.retraining import Retraining, fresh_seeds
from aqx.search.verdict import SCREENED, Confirmation, judge, reported_metric, with_costs, without_metric
from aqx.simplify import full_name
from aqx.store.claims import Wanted
from aqx.store.trial_rows import Purpose, Status
from aqx.tree import parse


@dataclass(frozen=True)
class Choice:
    """What is to be confirmed.

    Attributes:
        top: how many of the search's best functions are reported.
        seeds: trainings of each function.
        functions: these instead of the search's best.
        baselines: these instead of the task's.
        reference: what the others are compared with; default the first baseline.

    Raises:
        InputError: a number is too small, or a name does not parse.
    """

    top: int = 5
    seeds: int = 10
    functions: Sequence[str] = ()
    baselines: Sequence[str] = ()
    reference: str | None = None

    def __post_init__(self) -> None:
        if self.top < 1:
            raise InputError(f"top={self.top} is too few; give 1 or more")
        if self.seeds < 2:
            raise InputError(f"seeds={self.seeds} is too few for an interval; give 2 or more")
        for argument in ("functions", "baselines"):
            given = getattr(self, argument)
            if isinstance(given, str):
                raise InputError(f"{argument}={given!r} is one name; give a list of names")
            object.__setattr__(self, argument, tuple(str(parse(full_name(name))) for name in given))
        if self.reference is not None:
            object.__setattr__(self, "reference", str(parse(full_name(self.reference))))


@dataclass(frozen=True, eq=False)
class Plan:
    """The trainings of one confirmation; `str(plan)` says how many are left, and about how long they take.

    Attributes:
        ledger: where they are stored.
        queue: by which they are claimed.
        choice: what was asked for.
        winners: the functions in question, by class.
        baselines: those to compare with, by class.
        metric: what is reported.
        seeds: which each of them has.
        searched: what the search saw, by name.
        lacking: functions of the search whose results lack the metric.
        other_versions: trials of another version of the task's code, which do not count.
    """

    ledger: Ledger
    queue: Queue
    choice: Choice
    winners: dict[str | None, str]
    baselines: dict[str | None, str]
    metric: str
    seeds: list[int]
    searched: dict[str, float]
    lacking: tuple[str, ...]
    other_versions: frozenset[int]

    @cached_property
    def trainings(self) -> Retraining:
        """All trainings, seed by seed."""
        names = self.winners | self.baselines
        jobs = [Wanted(id_, name, Purpose.CONFIRM, seed) for seed in self.seeds for id_, name in names.items()]
        return Retraining(self.ledger, self.queue, jobs, self.other_versions)

    @property
    def is_screened(self) -> bool:
        """Whether more winners are retrained than are reported: fresh validation chooses, the test metric reports."""
        return not self.choice.functions and self.metric != self.ledger.objective

    def __str__(self) -> str:
        jobs, left = len(self.trainings.jobs), len(self.trainings.left())
        functions = f"{len(self.winners)} functions and {len(self.baselines)} baselines"
        text = f"{functions} on {len(self.seeds)} fresh seeds: {jobs:,} trials, {left:,} of them left"
        if self.is_screened:
            text += f"; fresh {self.ledger.objective} chooses {min(self.choice.top, len(self.winners))} to report"
        took = [trial.seconds for trial in self.ledger.records(status=Status.DONE) if trial.seconds is not None]
        if took and left:
            text += f"; about {_written(left * statistics.median(took))} one after another"
        return text

    def verdict(self) -> Confirmation:
        """Judge by what has ended so far."""
        found = judge(
            {(record.class_id, record.seed): record for record in self.trainings.results().values()},
            self.winners,
            self.baselines,
            self.seeds,
            self.metric,
            self.ledger.goal,
            self.choice.top,
            self.searched,
            chosen=tuple(self.winners) if self.choice.functions else (),
            reference=self.choice.reference,
            lacking=self.lacking,
        )
        return with_costs(found, self.ledger)

    def note(self) -> None:
        """Store what a report must know to judge alike."""
        choice = self.choice
        asked = [*(self.ledger.notes().get("confirmed_functions") or ()), *choice.functions]
        self.ledger.note(
            reference=choice.reference,
            confirmed_functions=list(dict.fromkeys(asked)) or None,
            confirmed_baselines=list(self.baselines.values()) if choice.baselines or choice.reference else None,
        )


def plan_confirmation(ledger: Ledger, queue: Queue, choice: Choice, version: str | None) -> Plan:
    """Choose what is retrained; see `Study.confirm`.

    Args:
        ledger: the results so far.
        queue: of the study.
        choice: what is asked for.
        version: of the task's code; results of another one do not count.

    Raises:
        InputError: there is nothing to confirm, or nothing to compare with.
    """
    of_version = ledger.counts_as(version)
    stored = ledger.records()
    records = [record for record in stored if of_version(record)]
    task, goal = queue.task, ledger.goal
    baselines: dict[str | None, str] = {ledger.class_id(name): name for name in choice.baselines or task.baselines}
    functions = {ledger.class_id(name): name for name in choice.functions}
    if choice.reference is not None and (compared := ledger.class_id(choice.reference)) not in functions:
        baselines.setdefault(compared, choice.reference)
    if not baselines:
        raise InputError(f"task {task.name!r} has no baselines to compare with; give Task(baselines=…)")
    other_versions = frozenset(record.trial_id for record in stored if not of_version(record))
    searched = rank_functions(done_in_search(records), goal)
    if not searched and not choice.functions:
        if done_in_search(stored):
            raise InputError(
                f"nothing has been trained with the code of task {task.name!r} as it is now (version {version}); "
                "search again under another name or database, or say that the change does not matter: "
                "--accept-changed, Study(accept_changed=True)"
            )
        raise InputError("nothing has been trained yet; search first")
    metric = reported_metric(records, goal.metric)
    found = [ranking for ranking in searched if ranking.class_id not in baselines]
    best = found if functions else rank_in_turn(found, queue.believed(other_versions), goal)
    best = best[: choice.top if metric == goal.metric else SCREENED * choice.top]
    winners: dict[str | None, str] = {ranking.class_id: ranking.name for ranking in best}
    if functions:
        winners = {class_id: name for class_id, name in functions.items() if class_id not in baselines}
    reference = choice.reference and (winners | baselines)[ledger.class_id(choice.reference)]
    return Plan(
        ledger,
        queue,
        Choice(choice.top, choice.seeds, choice.functions, choice.baselines, reference),
        winners,
        baselines,
        metric,
        confirmation_seeds(queue.settings.seed, choice.seeds),
        {ranking.name: ranking.objective for ranking in searched},
        () if metric == goal.metric else without_metric(records, metric),
        other_versions,
    )


def confirmation_seeds(study_seed: int, n: int) -> list[int]:
    """Return the seeds of the first n confirmations of every function; no trial of a search has them."""
    return fresh_seeds(study_seed, n, 0xC0F)


def _written(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
