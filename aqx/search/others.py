"""Trainings of other processes: whoever depends on one waits until it has ended, or its process is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from aqx.search.ledger import LEASE_SECONDS, Ledger, Record
from aqx.store.claims import Snapshot
from aqx.store.trial_rows import Brief, Status

_SHORTEST, _LONGEST = 0.5, 10.0  # seconds from one look to the next


def until_others_are_done(
    ledger: Ledger,
    work: Callable[[Snapshot], bool],
    concerned: Callable[[Record | Brief], bool],
    tell: Callable[[Snapshot, str], object],
    first: Snapshot | None = None,
) -> None:
    """Do what there is to do, again after trainings of other processes have ended, until nothing lacks or nobody works.

    A training that another process is at ends with a result, by being given back, or past its lease, if that process is
    dead (at once where that can be seen). A claim without a heartbeat, by which some script trains elsewhere for up to
    a day, is not waited for.

    Args:
        ledger: of the task.
        work: does what there is to do by a snapshot, and returns whether something lacks still.
        concerned: whether a running trial is one to wait for.
        tell: called with a snapshot and a note, before a wait.
        first: the trials, where they are at hand.
    """
    snapshot = first or ledger.snapshot()
    while True:
        before = _at_work(ledger, snapshot, concerned)
        if not work(snapshot):
            return
        snapshot = ledger.snapshot()
        at_work = _at_work(ledger, snapshot, concerned)
        if not before and not at_work:
            return
        pause = _SHORTEST
        while at_work:
            tell(snapshot, f"waiting for {len(at_work)} trainings of other processes")
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST)
            snapshot = ledger.snapshot()
            if not at_work <= _at_work(ledger, snapshot, concerned):
                break


def _at_work(ledger: Ledger, snapshot: Snapshot, concerned: Callable[[Record | Brief], bool]) -> set[int]:
    """Return what others are at by a snapshot; what has ended since counts, as the snapshot does not have its end."""
    running = {trial.trial_id for trial in snapshot.trials if trial.status is Status.RUNNING and concerned(trial)}
    if not running:
        return set()
    return running - {trial.trial_id for trial in ledger.records(status=Status.RUNNING) if not _has_heartbeat(trial)}


def _has_heartbeat(trial: Record) -> bool:
    if trial.expires_at is None or trial.heartbeat_at is None:
        return False
    return trial.expires_at - trial.heartbeat_at <= timedelta(seconds=LEASE_SECONDS + 1)
