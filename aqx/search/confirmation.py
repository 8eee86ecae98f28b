"""Confirmation: the search's winners and the baselines, trained again on the same fresh seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from aqx.errors import Exhausted, InputError
from aqx.search.ledger import LEASE_SECONDS, Ledger, Record, done_in_search, rank_functions
from aqx.search.others import until_others_are_done
from aqx.search.queue import Queue
from aqx.search.trial import train_all
from aqx.search.verdict import SCREENED, Confirmation, judge, reported_metric, with_costs, without_metric
from aqx.simplify import full_name
from aqx.store.claims import Snapshot, Wanted
from aqx.store.trial_rows import Brief, Purpose, Status, by_training, since_retry
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
    _told: set[int] = field(default_factory=set, repr=False)  # trials that are known to be lost with their worker

    @property
    def jobs(self) -> list[Wanted]:
        """All trainings, seed by seed."""
        names = self.winners | self.baselines
        return [Wanted(id_, name, Purpose.CONFIRM, seed) for seed in self.seeds for id_, name in names.items()]

    @property
    def is_screened(self) -> bool:
        """Whether more winners are retrained than are reported: fresh validation chooses, the test metric reports."""
        return not self.choice.functions and self.metric != self.ledger.objective

    def left(self, snapshot: Snapshot | None = None) -> list[Wanted]:
        """Return the trainings that nobody has ended or is at."""
        known = self.confirming(snapshot or self.ledger.snapshot())
        return [job for job in self.jobs if not self.settles(known.get((job.class_id, job.seed), []))]

    def __str__(self) -> str:
        jobs, left = len(self.jobs), len(self.left())
        functions = f"{len(self.winners)} functions and {len(self.baselines)} baselines"
        text = f"{functions} on {len(self.seeds)} fresh seeds: {jobs:,} trials, {left:,} of them left"
        if self.is_screened:
            text += f"; fresh {self.ledger.objective} chooses {min(self.choice.top, len(self.winners))} to report"
        took = [trial.seconds for trial in self.ledger.records(status=Status.DONE) if trial.seconds is not None]
        if took and left:
            text += f"; about {_written(left * statistics.median(took))} one after another"
        return text

    def settles(self, same: Sequence[Brief]) -> bool:
        """Return whether a training has ended, or somebody is at it."""
        same = [trial for trial in same if trial.trial_id not in self.other_versions]
        # A process that was killed says nothing of the function that it was at: without a result there is no verdict.
        silent = {trial.trial_id for trial in same if trial.status is Status.STALE} - self._told
        return self.queue.retry.settles([t for t in since_retry(same) if t.trial_id not in silent]) or any(
            trial.status is Status.RUNNING for trial in same
        )

    def confirming(self, snapshot: Snapshot) -> dict[tuple[str | None, int | None], list[Brief]]:
        """Return the trials that confirm, by class and seed."""
        ours = (t for t in snapshot.trials if t.purpose is Purpose.CONFIRM and t.trial_id not in self.other_versions)
        known: dict[tuple[str | None, int | None], list[Brief]] = {}
        known |= {(group[0].class_id, group[0].seed): group for group in by_training(ours)}
        if any(trial.status is Status.STALE for group in known.values() for trial in group):
            lost = self.ledger.records(Purpose.CONFIRM, Status.STALE)
            self._told.update(trial.trial_id for trial in lost if trial.reason is not None)
        return known

    def claim(self, snapshot: Snapshot, most: int = 1, lease_seconds: float = LEASE_SECONDS) -> list[Record]:
        """Claim the next trainings; none are returned where nothing is left to claim."""
        left = self.left(snapshot)
        while left:
            if claimed := self.queue.claim_these(left[:most], lease_seconds, most, self.settles):
                return claimed
            left = left[most:]  # another process was quicker
        return []

    def claim_next(self, lease_seconds: float) -> Record:
        """Claim the next training for somebody who runs it.

        Raises:
            Exhausted: nothing is left to claim.
        """
        if not (claimed := self.claim(self.ledger.snapshot(), lease_seconds=lease_seconds)):
            raise Exhausted("no training of this confirmation is left; study.confirm or aqx confirm gives the verdict")
        return claimed[0]

    def places(self) -> set[tuple[str | None, int]]:
        """Return class and seed of each training."""
        return {(job.class_id, job.seed) for job in self.jobs if job.seed is not None}

    def verdict(self) -> Confirmation:
        """Judge by what has ended so far."""
        found = judge(
            _results(self.ledger, self.places(), self.other_versions),
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
    best = [ranking for ranking in searched if ranking.class_id not in baselines]
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
        frozenset(record.trial_id for record in stored if not of_version(record)),
    )


def confirm(
    plan: Plan,
    executor: Executor | None,
    workers: int | None,
    together: int,
    time_limit: float | int | None,
    progress: Callable[[int, int, str], None] | None,
) -> Confirmation:
    """Retrain winners and baselines on the same fresh seeds and compare; see `Study.confirm`."""
    ledger, jobs, places = plan.ledger, plan.jobs, plan.places()
    plan.note()

    def claim(snapshot: Snapshot) -> list[Record]:
        return plan.claim(snapshot, together)

    def show(snapshot: Snapshot, note: str) -> None:
        if progress:
            known = plan.confirming(snapshot)
            ended = (Status.DONE, Status.FAILED)
            done = sum(any(t.status in ended for t in known.get((job.class_id, job.seed), [])) for job in jobs)
            progress(done, len(jobs), note)

    def ended(records: list[Record], now: Snapshot) -> None:
        show(now, records[-1].name if records else "")

    def work(snapshot: Snapshot) -> bool:
        show(snapshot, "")
        last = train_all(ledger, plan.queue.task, snapshot, claim, ended, executor, workers, time_limit)
        known = plan.confirming(last)
        groups = [known.get((job.class_id, job.seed), []) for job in jobs]
        return any(not plan.settles(group) or any(t.status is Status.RUNNING for t in group) for group in groups)

    def is_ours(trial: Record | Brief) -> bool:
        return trial.purpose is Purpose.CONFIRM and (trial.class_id, trial.seed) in places

    until_others_are_done(ledger, work, is_ours, show)
    return plan.verdict()


def confirmation_seeds(study_seed: int, n: int) -> list[int]:
    """Return the seeds of the first n confirmations of every function; no trial of a search has them."""
    return [int(np.random.SeedSequence([study_seed, i, 0xC0F]).generate_state(1)[0] >> 1) for i in range(n)]


def _written(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _results(
    ledger: Ledger, places: Collection[tuple[str | None, int]], other_versions: Collection[int]
) -> dict[tuple[str | None, int], Record]:
    """What came of each training: a result, a failure, or no more than losses that are known as such."""
    found: dict[tuple[str | None, int], Record] = {}
    for record in ledger.records(Purpose.CONFIRM):
        place = record.class_id, record.seed
        lost = record.status is Status.STALE and record.reason is not None
        if record.trial_id in other_versions or place not in places:
            continue
        if record.status.is_finished or (lost and place not in found):
            found[place] = record
    return found
