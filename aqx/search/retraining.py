"""`Retraining`: chosen functions trained once on each of chosen seeds, by any number of processes, and found again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from aqx.errors import Exhausted
from aqx.search.ledger import LEASE_SECONDS, Ledger, Record
from aqx.search.others import until_others_are_done
from aqx.search.queue import Queue
from aqx.search.trial import train_all
from aqx.store.claims import Snapshot, Wanted
from aqx.store.trial_rows import Brief, Purpose, Status, by_training, since_retry, training_of

Training = tuple[str | None, ...]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Means:
    """How trainings are run; see `Study.search`."""

    executor: Executor | None = None
    workers: int | None = None
    together: int = 1
    time_limit: float | int | None = None


@dataclass(frozen=True, eq=False)
class Retraining:
    """Trainings of one purpose, apart from the search.

    Attributes:
        ledger: where they are stored.
        queue: by which they are claimed.
        jobs: all of them, in the order in which they are claimed.
        other_versions: trials of another version of the task's code, which do not count.
    """

    ledger: Ledger
    queue: Queue
    jobs: Sequence[Wanted]
    other_versions: frozenset[int]
    _told: set[int] = field(default_factory=set, repr=False)  # trials that are known to be lost with their worker

    @cached_property
    def trainings(self) -> dict[Training, Wanted]:
        """The jobs by what their trials stand for."""
        return {training_of_job(job): job for job in self.jobs}

    def left(self, snapshot: Snapshot | None = None) -> list[Wanted]:
        """Return the trainings that nobody has ended or is at."""
        known = self._known(snapshot or self.ledger.snapshot())
        return [job for training, job in self.trainings.items() if not self._settles(known.get(training, []))]

    def _settles(self, same: Sequence[Brief]) -> bool:
        """Whether a training has ended, or somebody is at it."""
        same = [trial for trial in same if trial.trial_id not in self.other_versions]
        # A process that was killed says nothing of the function that it was at: without a result there is no verdict.
        silent = {trial.trial_id for trial in same if trial.status is Status.STALE} - self._told
        return self.queue.retry.settles([t for t in since_retry(same) if t.trial_id not in silent]) or any(
            trial.status is Status.RUNNING for trial in same
        )

    def _known(self, snapshot: Snapshot) -> dict[Training, list[Brief]]:
        """The trials of these trainings."""
        apart = (t for t in snapshot.trials if not t.purpose.is_searched and t.trial_id not in self.other_versions)
        known = {training_of(group[0]): group for group in by_training(t for t in apart if self.has(t))}
        if any(trial.status is Status.STALE for group in known.values() for trial in group):
            lost = self.ledger.records(status=Status.STALE)
            self._told.update(trial.trial_id for trial in lost if trial.reason is not None)
        return known

    def claim(self, snapshot: Snapshot, most: int = 1, lease_seconds: float = LEASE_SECONDS) -> list[Record]:
        """Claim the next trainings; none are returned where nothing is left to claim."""
        left = self.left(snapshot)
        while left:
            if claimed := self.queue.claim_these(left[:most], lease_seconds, most, self._settles):
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

    def has(self, trial: Record | Brief) -> bool:
        """Return whether a trial is one of these trainings."""
        return not trial.purpose.is_searched and training_of(trial) in self.trainings

    def run(self, means: Means, progress: Progress | None) -> None:
        """Train what is left, wait for what other processes are at, and take that over where they are dead."""

        def claim(snapshot: Snapshot) -> list[Record]:
            return self.claim(snapshot, means.together)

        def show(snapshot: Snapshot, note: str) -> None:
            if progress:
                known = self._known(snapshot).values()
                done = sum(any(t.status in (Status.DONE, Status.FAILED) for t in group) for group in known)
                progress(done, len(self.jobs), note)

        def ended(records: list[Record], now: Snapshot) -> None:
            show(now, records[-1].name if records else "")

        def work(snapshot: Snapshot) -> bool:
            show(snapshot, "")
            task, by = self.queue.task, (means.executor, means.workers, means.time_limit)
            known = self._known(train_all(self.ledger, task, snapshot, claim, ended, *by))
            groups = [known.get(training, []) for training in self.trainings]
            return any(not self._settles(group) or any(t.status is Status.RUNNING for t in group) for group in groups)

        until_others_are_done(self.ledger, work, self.has, show)

    def results(self) -> dict[Training, Record]:
        """Return what came of each training: a result, a failure, or no more than losses that are known as such."""
        found: dict[Training, Record] = {}
        for record in self.ledger.records():
            if record.trial_id in self.other_versions or not self.has(record):
                continue
            training = training_of(record)
            lost = record.status is Status.STALE and record.reason is not None
            if record.status.is_finished or (lost and training not in found):
                found[training] = record
        return found


def training_of_job(job: Wanted) -> Training:
    """Return what the trials of a job stand for."""
    assert job.name is not None and job.seed is not None
    purpose = Purpose(job.purpose)
    return training_of(Brief(0, job.class_id, job.name, job.seed, purpose, Status.QUEUED, None, None))


def fresh_seeds(study_seed: int, n: int, kind: int) -> list[int]:
    """Return n seeds that no trial of a search has, the same for every function; of another `kind` they are others."""
    return [int(np.random.SeedSequence([study_seed, i, kind]).generate_state(1)[0] >> 1) for i in range(n)]
