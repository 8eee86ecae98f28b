"""`Queue`: what is trained next: baselines, what was given back, lost or asked for, then what the surrogate prefers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from aqx import candidates, surrogate
from aqx.candidates import Candidates
from aqx.errors import Exhausted, InputError
from aqx.machine import cores
from aqx.search.eligible import Eligible
from aqx.search.ledger import Ledger, Record, as_record, seed_of_trial
from aqx.store import StudySettings, claims, functions
from aqx.store.claims import Settled, Snapshot, Wanted
from aqx.store.kinds import RUNS
from aqx.store.spectra import described_classes
from aqx.store.trial_rows import AnyTrial, Brief, Purpose, Status, by_training, since_retry
from aqx.surrogate import Fitted, Preset
from aqx.tasks import Task

# Taken in the order of the last fit by who has lost a choice to another process: to fit again and again, each time for
# one choice that all make alike, takes N processes N² fits.
_RUNNERS_UP = 32
_log = logging.getLogger("aqx")


@dataclass(frozen=True)
class Suggestion:
    """A candidate that the surrogate would train next.

    Attributes:
        name: the simplest name of its class.
        class_id: the class.
        mean: predicted objective; nan where the choice was random.
        spread: standard deviation of the prediction.
    """

    name: str
    class_id: str
    mean: float
    spread: float


@dataclass(frozen=True)
class RetryPolicy:
    """How many more times a function is trained whose training gave no result: the one place that decides it.

    Attributes:
        lost: after its process died or was not heard of within the lease.
        failed: after it raised an exception or gave no finite objective.

    Raises:
        InputError: a number that is negative or none.

    Example:
        >>> RetryPolicy().lost, RetryPolicy().failed
        (1, 0)
    """

    lost: int = 1
    failed: int = 0

    def __post_init__(self) -> None:
        for argument in ("lost", "failed"):
            value = getattr(self, argument)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f"{argument}={value!r} is not a number of retries; give an integer from 0")

    def settles(self, same: Sequence[AnyTrial]) -> bool:
        """Return whether trials of one training leave nothing to claim: it runs, has a result, or was tried enough."""
        counts = Counter(trial.status for trial in since_retry(same))
        return (
            any(trial.status is Status.RUNNING for trial in same)
            or counts[Status.DONE] + counts[Status.PRUNED] > 0
            or counts[Status.FAILED] > self.failed
            or counts[Status.STALE] > self.lost
        )


@dataclass(frozen=True, eq=False)
class _Round:
    """One choice: the trials it goes by, the candidates, and the surrogate fitted to both."""

    snapshot: Snapshot
    table: Candidates
    fitted: Fitted


class Queue:
    """What a study trains next; it decides, and the ledger's claims compare before they take.

    Args:
        ledger: the trials so far.
        task: whose baselines come first.
        preset: the surrogate.
        retry: which trainings are tried again.
        settings: what the choices depend on, and are stored with.
    """

    def __init__(self, ledger: Ledger, task: Task, preset: Preset, retry: RetryPolicy, settings: StudySettings):
        self.ledger: Ledger = ledger
        self.task: Task = task
        self.preset: Preset = preset
        self.retry: RetryPolicy = retry
        self.settings: StudySettings = settings
        self.eligible: Eligible = Eligible(ledger, task)
        self._all: Candidates | None = None
        self._table: Candidates | None = None
        self._round: _Round | None = None
        self._subject: Any = None  # the task made ready for spectra, by the first who needs it
        self._bare_subject: Any = None  # the same for short runs, where spectra are not wanted or cannot be computed
        self._undescribed: set[str] = set()  # classes whose spectrum could not be computed
        self._without_runs: set[str] = set()  # classes whose short runs could not be computed

    def peek(self, n: int = 1) -> list[Suggestion]:
        """Return the n candidates that the surrogate prefers, without claiming them.

        Raises:
            Exhausted: no candidate is left.
        """
        ready = self._ready(self.ledger.snapshot())
        chosen = ready.fitted.suggest(n, ready.table.usable)
        class_ids = ready.table.class_ids(chosen.index)
        names = functions.class_names(self.ledger.db, class_ids)
        return [
            Suggestion(name, class_id, self.ledger.sign * float(mean), float(spread))
            for name, class_id, mean, spread in zip(names, class_ids, chosen.mean, chosen.spread, strict=True)
        ]

    def claim(
        self,
        lease_seconds: float | int,
        most: int = 1,
        snapshot: Snapshot | None = None,
        budget: int | None = None,
        prepare: Callable[[Snapshot], object] = lambda _: None,
    ) -> list[Record]:
        """Claim the next functions to train; fewer than `most` where fewer are at hand.

        Args:
            lease_seconds: how long the claims last without a heartbeat.
            most: how many.
            snapshot: the trials, where they are at hand.
            budget: how many suggestions of the surrogate may have been trained or be running in all; None for any.
            prepare: called before the surrogate chooses.

        Raises:
            Exhausted: nothing is left, or nothing but suggestions beyond the budget.
        """
        for name in self.task.baselines:
            self.ledger.class_id(name)  # not while others wait: one that was never enumerated is evaluated
        if snapshot is None and self.preset.model is None and self.ledger.task_id:
            claimed, snapshot = self._take(
                lambda now: self._at_hand(now) or self._drawn(now, most), lease_seconds, most
            )
        else:
            # To read takes half as long as to claim, and shuts no other reader out.
            snapshot = snapshot or self.ledger.snapshot()
            at_hand = self._at_hand(snapshot)
            claimed, now = self._take(at_hand, lease_seconds, most) if at_hand else ([], None)
            snapshot = now or snapshot
        lost = False
        while not claimed:
            assert snapshot is not None
            room = most if budget is None else min(most, budget - suggested(snapshot.trials))
            if room <= 0:
                raise Exhausted("nothing is left but suggestions")
            # This takes its time, in which others need not wait; if one of them is quicker, look again.
            wanted = self._chosen(snapshot, room, lost, prepare)
            claimed, snapshot = self._take(_within(budget, wanted), lease_seconds, room)
            lost = True
        return claimed

    def _chosen(self, snapshot: Snapshot, most: int, lost: bool, prepare: Callable[[Snapshot], object]) -> list[Wanted]:
        """What the surrogate would train next; after a lost choice, its runners-up too.

        More processes that predict than there are cores would be no quicker, and whoever stores a result would wait for
        them.
        """
        self._candidates(snapshot)  # many can read at a time
        with self.ledger.db.few_at_a_time(cores()) as at_once:
            if not at_once:
                snapshot = self.ledger.snapshot()
            prepare(snapshot)
            ready = self._ready(snapshot)
            chosen = ready.fitted.suggest(most, ready.table.usable).index
            if lost:  # among many workers another one may be quicker every time
                chosen = np.append(chosen, ready.fitted.runners_up(_RUNNERS_UP, ready.table.usable))
            return [Wanted(id_, None, Purpose.SEARCH) for id_ in ready.table.class_ids(chosen)]

    def lacks_results(self, snapshot: Snapshot, budget: int) -> bool:
        """Return whether fewer suggestions than `budget` have ended, or a baseline has not."""
        searched = [trial for trial in snapshot.trials if trial.purpose.is_searched]
        ended = {trial.class_id for trial in searched if trial.status.is_finished}
        suggestions = sum(trial.purpose is Purpose.SEARCH and trial.status.is_finished for trial in searched)
        return suggestions < budget or not ended.issuperset(map(self.ledger.class_id, self.task.baselines))

    def claim_these(
        self, wanted: Sequence[Wanted], lease_seconds: float | int, most: int = 1, settled: Settled | None = None
    ) -> list[Record]:
        """Claim the first of these functions that are not settled; none where another process was quicker."""
        return self._take(wanted, lease_seconds, most, settled)[0]

    def _take(
        self,
        wanted: Sequence[Wanted] | Callable[[Snapshot], Sequence[Wanted]],
        lease_seconds: float | int,
        most: int,
        settled: Settled | None = None,
    ) -> tuple[list[Record], Snapshot | None]:
        return self.ledger.claim(wanted, lease_seconds, settled or self.retry.settles, self.settings, most)

    def _at_hand(self, snapshot: Snapshot) -> list[Wanted]:
        """Return what is to be claimed before any suggestion: baselines, and what was given back, lost or asked for."""
        baselines = {self.ledger.class_id(name): name for name in self.task.baselines}
        open_ = {Status.QUEUED, Status.STALE} | ({Status.FAILED} if self.retry.failed else set())
        searched = _searched(snapshot.trials)
        concerned = {trial.class_id for trial in searched if trial.status in open_} | set(baselines)
        groups = {group[0].class_id: group for group in by_training(t for t in searched if t.class_id in concerned)}
        settled = {class_id for class_id, group in groups.items() if self.retry.settles(group)}
        others = [group[-1] for class_id, group in groups.items() if class_id not in settled | set(baselines)]
        return [
            *(Wanted(id_, name, Purpose.BASELINE) for id_, name in baselines.items() if id_ not in settled),
            *(Wanted(trial.class_id, trial.name, Purpose.SEARCH) for trial in others),
        ]

    def _drawn(self, snapshot: Snapshot, most: int) -> list[Wanted]:
        """Return a draw of candidates, where the surrogate does nothing but draw and the candidates are at hand."""
        if self.preset.model is not None or self._table is None or self._table.counts != snapshot.features:
            return []
        ready = self._ready(snapshot)
        chosen = ready.fitted.suggest(most, ready.table.usable).index
        return [Wanted(id_, None, Purpose.SEARCH) for id_ in ready.table.class_ids(chosen)]

    def _ready(self, snapshot: Snapshot) -> _Round:
        """Fit the surrogate to these trials, once."""
        table = self._candidates(snapshot)
        if not len(table):
            path = self.ledger.db.path
            raise Exhausted(f"{path} holds no candidates yet; fill it: aqx enumerate {path} --space act_bench")
        if self._round is None or self._round.snapshot is not snapshot or self._round.table is not table:
            observed, values, pending = self._seen(table, snapshot.trials)
            seed = seed_of_trial(self.settings.seed, max((t.trial_id for t in snapshot.trials), default=0) + 1)
            given = len({t.class_id for t in _searched(snapshot.trials) if t.purpose is not Purpose.SEARCH})
            fitted = surrogate.fit(
                table.coordinates, observed, values, pending, preset=self.preset, seed=seed, given=given
            )
            self._round = _Round(snapshot, table, fitted)
        return self._round

    def _candidates(self, snapshot: Snapshot) -> Candidates:
        if self._table is None or self._table.counts != snapshot.features:
            self._table = self._read_candidates()
        return self._table

    def _read_candidates(self) -> Candidates:
        task_id = self.ledger.task_id  # of a task that is not stored, no embedding is kept
        before = self._all
        self._all = candidates.of_database(
            self.ledger.db, task_id, self.preset, self.settings.seed, before, keep=task_id > 0
        )
        if self._all is before and self._table is not None:
            return self._table
        return self.eligible.among(self._all)

    def limit_cost(self, most: float | None) -> None:
        """Leave candidates out that cost more than so many times what relu does on this device; None leaves all in.

        Baselines, and what was asked for by name, are trained whatever they cost.
        """
        if most != self.eligible.max_cost:
            self.eligible.limit_cost(most)
            self._all = self._table = None

    def _seen(self, table: Candidates, trials: Sequence[Brief]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of candidates with results, those results (higher is better, nan for failed), rows in training."""
        searched = _searched(trials)
        lost = {trial.class_id for trial in searched if trial.status is Status.STALE}
        # Lost too often: it may well be the function that kills the process.
        given_up = {
            group[0].class_id
            for group in by_training([trial for trial in searched if trial.class_id in lost])
            if {trial.status for trial in group} == {Status.STALE} and self.retry.settles(group)
        }
        at = table.rows_of(str(trial.class_id) for trial in searched)
        ended = np.array([t.status.is_finished or t.class_id in given_up for t in searched], bool)
        values = np.array([np.nan if t.objective is None else self.ledger.sign * t.objective for t in searched], float)
        running = np.array([t.status is Status.RUNNING for t in searched], bool)
        return at[ended & (at >= 0)], values[ended & (at >= 0)], at[running & (at >= 0)]

    def most_promising(self, runs: bool = False) -> list[str]:
        """Return the ids of the classes without a Fisher spectrum, the best prediction first.

        None are returned where too few results exist to predict from. What is known of a class without a spectrum is
        its outputs; the spectra that most deserve to be computed come first.

        Args:
            runs: those without short runs instead.
        """
        snapshot = self.ledger.snapshot()
        table = self._candidates(snapshot)
        observed, values, _ = self._seen(table, snapshot.trials)
        if not len(observed):
            return []
        order = surrogate.rank(table.coordinates, observed, values, preset=self.preset, seed=self.settings.seed)
        if runs:
            known = described_classes(self.ledger.db, self.ledger.task_id, RUNS)
            return [class_id for class_id in table.class_ids(order[table.usable[order]]) if class_id not in known]
        return table.class_ids(order[(table.usable & ~table.has_spectrum)[order]])

    def believed(self, other_versions: Collection[int] = ()) -> dict[str, float]:
        """Return what the surrogate believes that results of the search are worth without their noise, by class.

        Args:
            other_versions: trials that do not count.

        Returns:
            Means of the posterior, in the unit of the objective; none where there are too few results, or the surrogate
            has no posterior.
        """
        snapshot = self.ledger.snapshot()
        snapshot = replace(snapshot, trials=[t for t in snapshot.trials if t.trial_id not in other_versions])
        results = sum(trial.status is Status.DONE for trial in _searched(snapshot.trials))
        if self.preset.posterior is None or results < surrogate.ENOUGH or not len(self._candidates(snapshot)):
            return {}
        ready = self._ready(snapshot)
        rows, means = ready.fitted.posterior()
        return dict(zip(ready.table.class_ids(rows), (self.ledger.sign * means).tolist(), strict=True))

    def put_back(self, *trial_ids: int) -> list[Record]:
        """Queue functions to be trained once more, by trials of theirs that have ended; see `Study.retry`."""

        def seed(trial_id: int) -> int:
            return seed_of_trial(self.settings.seed, trial_id)

        rows = claims.retry(self.ledger.db, self.ledger.task_id, trial_ids, seed)
        return [as_record(row) for row in rows]

    def describe_promising(
        self, among: int, snapshot: Snapshot, progress: Callable[[int, int, str], None] | None = None
    ) -> None:
        """Compute the Fisher spectra that the `among` most promising candidates, and the trained ones, lack.

        Nothing is computed before there are results to predict from, nor for a few candidates only.

        Args:
            among: how many of the most promising candidates are to have a spectrum.
            snapshot: the trials so far.
            progress: called as progress(done, total, note).
        """
        table = self._candidates(snapshot)
        settled = table.has_spectrum | ~table.usable | self._among(table, self._undescribed)
        if settled.all():
            return
        rows = self._ready(snapshot).fitted.undescribed(settled, among)
        if len(rows):
            names = functions.class_names(self.ledger.db, table.class_ids(rows))
            from aqx.spectra import compute_spectra  # brings Flax, which is slow to import

            report = compute_spectra(self.ledger.db, self.task, names=names, progress=progress, subject=self._subject)
            self._table = self._read_candidates()
            if report.undescribed:
                known = self._table.has_spectrum | ~self._table.usable
                self._undescribed |= self._still_unknown(
                    table.class_ids(rows), known, "Fisher spectra", report.undescribed
                )

    def describe_by_runs(
        self, most: int, snapshot: Snapshot, progress: Callable[[int, int, str], None] | None = None
    ) -> None:
        """Compute the short runs that candidates lack: of all where there are at most so many, else of some.

        These are a third of `most`, spread evenly over the space, before the first choice; and from then on the
        promising ones, another third, and those that were trained.

        Args:
            most: how many candidates.
            snapshot: the trials so far.
            progress: called as progress(done, total, note).
        """
        if self.preset.without_runs is None:
            return
        if self._subject is None and self._bare_subject is None:
            self._make_ready_for_runs()
        table = self._candidates(snapshot)
        settled = table.has_runs | ~table.usable | self._among(table, self._without_runs)
        if settled.all():
            return
        if len(table) <= most or not table.has_runs.any():
            rows = surrogate.first_runs(len(table), most)
            rows = rows[~settled[rows]]
        else:
            rows = self._ready(snapshot).fitted.undescribed(settled, surrogate.promising_runs(most))
        if len(rows):
            names = functions.class_names(self.ledger.db, table.class_ids(rows))
            from aqx.spectra import compute_runs  # brings Flax, which is slow to import

            subject = self._subject or self._bare_subject
            report = compute_runs(self.ledger.db, self.task, names=names, progress=progress, subject=subject)
            self._table = self._read_candidates()
            if report.undescribed:
                known = self._table.has_runs | ~self._table.usable
                self._without_runs |= self._still_unknown(
                    table.class_ids(rows), known, "short runs", report.undescribed
                )

    def _among(self, table: Candidates, class_ids: Collection[str]) -> Bool[np.ndarray, " C"]:
        """Which candidates are among some classes."""
        rows, found = table.rows_of(class_ids), np.zeros(len(table), bool)
        found[rows[rows >= 0]] = True
        return found

    def _still_unknown(
        self, class_ids: Sequence[str], known: Bool[np.ndarray, " C"], what: str, reasons: Mapping[str, int]
    ) -> set[str]:
        """The classes that could not be described; says why."""
        assert self._table is not None
        for reason, count in reasons.items():
            _log.warning("aqx: %d candidates are judged without their %s: %s", count, what, reason)
        at = self._table.rows_of(class_ids)
        return {class_id for class_id, row in zip(class_ids, at, strict=True) if not known[row]}

    def _make_ready_for_runs(self) -> None:
        """Make the task ready for short runs; those stored of another batch, loss or initial weights are set aside.

        Where it was made ready for spectra, that is done already.
        """
        from aqx.spectra.compute import accepted_without_layers, renewed
        from aqx.spectra.short_runs import SHORT_RUNS

        subject = accepted_without_layers(self.task)  # before anything is stored of the task
        self._bare_subject = renewed(self.ledger.db, self.ledger.enter, subject, SHORT_RUNS)

    def make_ready(self) -> None:
        """Make the task ready for spectra; those stored of another batch, loss or initial weights are set aside.

        Raises:
            TaskError: the model, the batch or the loss cannot be used.
        """
        from aqx.spectra.compute import accepted, renewed
        from aqx.spectra.fisher_spectra import FISHER

        subject = accepted(self.task)  # before anything is stored of the task
        self._subject = renewed(self.ledger.db, self.ledger.enter, subject, FISHER)


def _within(budget: int | None, wanted: Sequence[Wanted]) -> Sequence[Wanted] | Callable[[Snapshot], Sequence[Wanted]]:
    """As many suggestions as the budget leaves when they are claimed: another search may have been quicker."""
    if budget is None:
        return wanted
    return lambda now: wanted[: max(0, budget - suggested(now.trials))]


def suggested(trials: Sequence[Brief]) -> int:
    """Count the surrogate's suggestions that have been trained or are in training."""
    return sum(
        trial.purpose is Purpose.SEARCH and (trial.status.is_finished or trial.status is Status.RUNNING)
        for trial in trials
    )


def _searched(trials: Sequence[Brief]) -> list[Brief]:
    """Those of the trials that the search learns from, of functions that have a class."""
    return [trial for trial in trials if trial.purpose.is_searched and trial.class_id is not None]
