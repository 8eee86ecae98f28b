"""Trainings of other processes: whoever depends on one waits until it has ended, or its process is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from aqx.search.ledger import LEASE_SECONDS, Ledger, Record
from aqx.store.trial_rows import Status

_SHORTEST, _LONGEST = 0.5, 10.0  # seconds from one look to the next


def rounds(ledger: Ledger, concerned: Callable[[Record], bool], tell: Callable[[int], object]) -> Iterator[None]:
    """Yield for each round of work: again after a training of another process has ended, and left more to do.

    A round is followed by another where somebody was at work before it or is after it. A training that another process
    is at ends with a result, by being given back, or past its lease, if that process is dead. A claim without a
    heartbeat, by which some script trains elsewhere for up to a day, is not waited for.

    Args:
        ledger: of the task.
        concerned: whether a running trial is one to wait for.
        tell: called with the number of such trials, before a wait.
    """
    while True:
        before = _at_work(ledger, concerned)
        yield
        at_work = _at_work(ledger, concerned)
        if not before and not at_work:
            return
        if at_work:
            tell(len(at_work))
        pause = _SHORTEST
        while at_work and at_work <= _at_work(ledger, concerned):
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST)


def _at_work(ledger: Ledger, concerned: Callable[[Record], bool]) -> set[int]:
    running = ledger.records(status=Status.RUNNING)
    return {trial.trial_id for trial in running if _has_heartbeat(trial) and concerned(trial)}


def _has_heartbeat(trial: Record) -> bool:
    if trial.expires_at is None or trial.heartbeat_at is None:
        return False
    return trial.expires_at - trial.heartbeat_at <= timedelta(seconds=LEASE_SECONDS + 1)
