"""Confirmation: the search's winners and the baselines, trained again on the same fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor

import numpy as np

from aqx.errors import InputError
from aqx.search.ledger import LEASE_SECONDS, Ledger, Record, done_in_search, rank_functions
from aqx.search.others import until_others_are_done
from aqx.search.queue import Queue
from aqx.search.trial import train_all
from aqx.search.verdict import SCREENED, Confirmation, judge, reported_metric
from aqx.store.claims import Snapshot, Wanted
from aqx.store.trial_rows import Brief, Purpose, Status, by_training, since_retry


def confirm(
    ledger: Ledger,
    queue: Queue,
    top: int,
    seeds: int,
    executor: Executor | None,
    workers: int | None,
    together: int,
    time_limit: float | int | None,
    progress: Callable[[int, int, str], None] | None,
) -> Confirmation:
    """Retrain winners and baselines on the same fresh seeds and compare; see `Study.confirm`."""
    task, goal = queue.task, ledger.goal
    if top < 1:
        raise InputError(f"top={top} is too few; give 1 or more")
    if seeds < 2:
        raise InputError(f"seeds={seeds} is too few for an interval; give 2 or more")
    if not task.baselines:
        raise InputError(f"task {task.name!r} has no baselines to compare with; give Task(baselines=…)")
    records = ledger.records()
    searched = rank_functions(done_in_search(records), goal)
    if not searched:
        raise InputError("nothing has been trained yet; search first")
    metric = reported_metric(records, goal.metric)
    baselines: dict[str | None, str] = {ledger.class_id(name): name for name in task.baselines}
    winners = [ranking for ranking in searched if ranking.class_id not in baselines]
    winners = winners[: top if metric == goal.metric else SCREENED * top]
    names = {ranking.class_id: ranking.name for ranking in winners} | baselines
    fresh_seeds = confirmation_seeds(queue.settings.seed, seeds)
    jobs = [Wanted(id_, name, Purpose.CONFIRM, seed) for seed in fresh_seeds for id_, name in names.items()]

    places = {(job.class_id, job.seed) for job in jobs}
    told: set[int] = set()  # trials that are known to have been lost with their worker

    def settles(same: Sequence[Brief]) -> bool:
        # A process that was killed says nothing of the function that it was at: without a result there is no verdict.
        silent = {trial.trial_id for trial in same if trial.status is Status.STALE} - told
        return queue.retry.settles([trial for trial in since_retry(same) if trial.trial_id not in silent]) or any(
            trial.status is Status.RUNNING for trial in same
        )

    def claim(snapshot: Snapshot) -> list[Record]:
        known = _confirming(snapshot)
        if any(trial.status is Status.STALE for group in known.values() for trial in group):
            told.update(t.trial_id for t in ledger.records(Purpose.CONFIRM, Status.STALE) if t.reason is not None)
        left = [job for job in jobs if not settles(known.get((job.class_id, job.seed), []))]
        while left:
            if claimed := queue.claim_these(left[:together], LEASE_SECONDS, together, settles):
                return claimed
            left = left[together:]  # another process was quicker
        return []

    def show(snapshot: Snapshot, note: str) -> None:
        if progress:
            known = _confirming(snapshot)
            ended = (Status.DONE, Status.FAILED)
            done = sum(any(t.status in ended for t in known.get((job.class_id, job.seed), [])) for job in jobs)
            progress(done, len(jobs), note)

    def ended(records: list[Record], now: Snapshot) -> None:
        show(now, records[-1].name if records else "")

    def work(snapshot: Snapshot) -> bool:
        show(snapshot, "")
        last = _confirming(train_all(ledger, task, snapshot, claim, ended, executor, workers, time_limit))
        groups = [last.get((job.class_id, job.seed), []) for job in jobs]
        return any(not settles(group) or any(trial.status is Status.RUNNING for trial in group) for group in groups)

    def is_ours(trial: Record | Brief) -> bool:
        return trial.purpose is Purpose.CONFIRM and (trial.class_id, trial.seed) in places

    until_others_are_done(ledger, work, is_ours, show)
    return judge(
        _results(ledger, places),
        {ranking.class_id: ranking.name for ranking in winners},
        baselines,
        fresh_seeds,
        metric,
        goal,
        top,
        {ranking.name: ranking.objective for ranking in searched},
    )


def confirmation_seeds(study_seed: int, n: int) -> list[int]:
    """Return the seeds of the first n confirmations of every function; no trial of a search has them."""
    return [int(np.random.SeedSequence([study_seed, i, 0xC0F]).generate_state(1)[0] >> 1) for i in range(n)]


def _confirming(snapshot: Snapshot) -> dict[tuple[str | None, int | None], list[Brief]]:
    """The trials that confirm, by class and seed."""
    confirming = by_training(trial for trial in snapshot.trials if trial.purpose is Purpose.CONFIRM)
    return {(group[0].class_id, group[0].seed): group for group in confirming}


def _results(ledger: Ledger, places: Collection[tuple[str | None, int | None]]) -> dict[tuple[str | None, int], Record]:
    """What came of each training: a result, a failure, or no more than losses that are known as such."""
    found: dict[tuple[str | None, int], Record] = {}
    for record in ledger.records(Purpose.CONFIRM):
        place = record.class_id, record.seed
        lost = record.status is Status.STALE and record.reason is not None
        if place in places and (record.status.is_finished or (lost and place not in found)):
            found[place] = record
    return found
