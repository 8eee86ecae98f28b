"""`Loop`: a search of a given budget: the baselines, then one suggestion after another, by whoever trains them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from aqx.errors import AqxError, Exhausted, TaskError, one_line
from aqx.search.ledger import LEASE_SECONDS, Record, done_in_search
from aqx.search.others import until_others_are_done
from aqx.search.queue import Queue, suggested
from aqx.search.trial import train_all
from aqx.stopping import is_stop
from aqx.store import functions
from aqx.store.claims import Snapshot
from aqx.store.trial_rows import Brief, Purpose, Status, by_training, since_retry
from aqx.store.trials import get_trial

_WRITTEN = {"spectra": "Fisher spectra", "runs": "short runs"}
_OURS = (Purpose.SEARCH, Purpose.BASELINE)
_log = logging.getLogger("aqx")


@dataclass(eq=False)
class Loop:
    """One call of `Study.search`.

    Attributes:
        queue: of the study.
        budget: suggestions trained in all.
        spectra: how many of the most promising candidates are to have a Fisher spectrum.
        runs: how many candidates are to have short runs.
        together: trainings in one job.
        until: on the monotonic clock, when no further training begins.
        progress: called as progress(done, total, note).
        finished: the trials that have ended so far.
    """

    queue: Queue
    budget: int
    spectra: int
    runs: int
    together: int
    until: float
    progress: Callable[[int, int, str], None] | None
    finished: list[Record] = field(default_factory=list[Record], init=False)

    def train(
        self, latest: Snapshot, executor: Executor | None, workers: int | None, time_limit: float | None
    ) -> list[Record]:
        """Train until the budget is used or the time is over, and return what has ended; see `Study.search`."""
        ledger, task = self.queue.ledger, self.queue.task
        first = True

        def work(snapshot: Snapshot) -> bool:
            nonlocal first
            if first:  # by what is read anyway
                first, snapshot = False, self._hopeless_tried_again(snapshot)
            self._show(snapshot)
            last = train_all(ledger, task, snapshot, self._claim, self._ended, executor, workers, time_limit)
            return time.monotonic() < self.until and self.queue.lacks_results(last, self.budget)

        def is_ours(trial: Record | Brief) -> bool:
            return trial.purpose in _OURS

        if self.budget and task.train is not None:
            self._attempt("spectra", self.queue.make_ready)
        # What another process is at counts towards the budget, but that process may be dead.
        until_others_are_done(ledger, work, is_ours, self._show, latest)
        return self.finished

    def _show(self, snapshot: Snapshot, note: str = "") -> None:
        if self.progress:
            ended = sum(trial.status.is_finished and trial.purpose in _OURS for trial in snapshot.trials)
            self.progress(ended, self.budget + len(self.queue.task.baselines), note)

    def _claim(self, snapshot: Snapshot) -> list[Record]:
        if time.monotonic() >= self.until:
            return []
        # Counted anew each time: other processes may work on the same study.
        try:
            return self.queue.claim(LEASE_SECONDS, self.together, snapshot, self.budget, self._describe)
        except Exhausted:
            if suggested(snapshot.trials) == 0 < self.budget:
                raise  # there is nothing to search in, which the user should hear
            return []

    def _describe(self, snapshot: Snapshot) -> None:
        """Compute the descriptors that the next choice needs."""

        def told(kind: str) -> Callable[[int, int, str], None]:
            return lambda done, total, _: self._show(snapshot, f"{done:,} of {total:,} {_WRITTEN[kind]}")

        self._attempt("runs", lambda: self.queue.describe_by_runs(self.runs, snapshot, told("runs")))
        self._attempt("spectra", lambda: self.queue.describe_promising(self.spectra, snapshot, told("spectra")))

    def _attempt(self, kind: str, step: Callable[[], object]) -> None:
        """Take a step towards descriptors of a kind that is wanted; what the model cannot give is given up."""
        if not getattr(self, kind):
            return
        from aqx.spectra.acceptance import Unacceptable  # brings Flax, which is slow to import

        try:
            step()
        except Unacceptable:
            raise
        except BaseException as error:  # `sys.exit` in the user's model is no reason to end either
            if is_stop(error):
                raise
            setattr(self, kind, 0)
            said = str(error) if isinstance(error, AqxError) else one_line(error)
            _log.warning("aqx: the search goes on without more %s: %s", _WRITTEN[kind], said)

    def _ended(self, records: list[Record], snapshot: Snapshot) -> None:
        self.finished.extend(records)
        self._stop_if_hopeless(snapshot)
        best = self.queue.task.goal.best(done_in_search(snapshot.trials))
        self._show(snapshot, f"best {best.objective:.4f} {best.name}" if best else "")

    def _stop_if_hopeless(self, snapshot: Snapshot) -> None:
        """When every baseline fails, the fault is the task's, and no suggestion will do better."""
        if tried := self._hopeless(snapshot):
            reason = get_trial(self.queue.ledger.db, tried[0][-1].trial_id).reason
            raise TaskError(
                f"every baseline of task {self.queue.task.name!r} failed; the first: {reason}; "
                "the same call tries them again once this is mended"
            )

    def _hopeless_tried_again(self, snapshot: Snapshot) -> Snapshot:
        """Queue the baselines once more where all of them have failed: somebody calls again who has mended the task."""
        tried = self._hopeless(snapshot)
        if not tried:
            return snapshot
        _log.warning("aqx: every baseline of task %r failed before; they are tried again", self.queue.task.name)
        self.queue.put_back(*(group[-1].trial_id for group in tried))
        return self.queue.ledger.snapshot()

    def _hopeless(self, snapshot: Snapshot) -> list[list[Brief]]:
        """The trials of each baseline where every one of them has failed, and none where one has not."""
        tried = by_training(trial for trial in snapshot.trials if trial.purpose is Purpose.BASELINE)
        hopeless = (
            self.queue.retry.settles(group) and all(trial.status is Status.FAILED for trial in since_retry(group))
            for group in tried
        )
        return tried if tried and len(tried) == len(self.queue.task.baselines) and all(hopeless) else []


def check_candidates(queue: Queue, snapshot: Snapshot) -> None:
    """Say before the baselines are trained that nothing is there to search in.

    Raises:
        Exhausted: the database holds no candidates.
    """
    db = queue.ledger.db
    if not functions.count_functions(db)["usable"] and not suggested(snapshot.trials):
        raise Exhausted(f"{db.path} holds no candidates; fill it: aqx enumerate {db.path} --space act_bench")
