"""Claims: who trains what, each taken, renewed, lost or given back in one transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

from aqx.errors import InputError, StoreError
from aqx.metrics import clean_reason, clean_text
from aqx.store.connection import Database
from aqx.store.counts import FeatureCounts, count_features
from aqx.store.driver import duckdb
from aqx.store.lease import is_gone
from aqx.store.moment import Moment
from aqx.store.trial_rows import (
    Brief,
    Purpose,
    Status,
    TrialRow,
    by_training,
    change_one,
    check_task_is_there,
    checked_seed,
    insert,
    new_trial,
    next_id,
    of_same,
    select_brief,
    select_one,
    select_same,
    since_retry,
    training_of,
)


class Wanted(NamedTuple):
    """A function that somebody would train.

    Attributes:
        class_id: the function's class; None if it was never enumerated: then the name decides.
        name: the function; None for the simplest one of its class in the database.
        purpose: one of `Purpose`.
        seed: of the training; None where the claim makes it from the trial's number.
    """

    class_id: str | None
    name: str | None
    purpose: str
    seed: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """What a choice of the next trainings goes by, read at one moment.

    Attributes:
        trials: the task's, in the order of their ids.
        features: how much is known of candidates: what was read of them before is current while this is the same.
    """

    trials: list[Brief]
    features: FeatureCounts

    def with_claimed(self, claimed: Sequence[TrialRow]) -> Snapshot:
        """Return what it is once these trials run."""
        trials = {trial.trial_id: trial for trial in self.trials}
        trials |= {row.trial_id: Brief(*(getattr(row, name) for name in Brief._fields)) for row in claimed}
        return replace(self, trials=[trials[trial_id] for trial_id in sorted(trials)])


Choice = Sequence[Wanted] | Callable[[Snapshot], Sequence[Wanted]]
Settled = Callable[[Sequence[Brief]], bool]


def is_taken(same: Sequence[Brief]) -> bool:
    """Whether trials of one training leave nothing to claim: one is running within its lease, or ended.

    Where a trial was queued by `retry`, only what came after the trial that it repeats counts.
    """
    running = any(trial.status is Status.RUNNING for trial in same)
    return running or any(trial.status.is_finished for trial in since_retry(same))


def take_snapshot(db: Database, task_id: int) -> Snapshot:
    """Read what a choice of the next trainings goes by.

    Claims of processes of this machine that were killed lapse then, as they do when a choice is made inside a claim.
    """
    with db.read() as con:
        now, gone = Moment(con), _gone(con, task_id)
        snapshot = read_snapshot(con, task_id, now)
    if now.is_news or gone:
        with contextlib.suppress(StoreError), db.transaction() as con:  # who may not write claims nothing either
            now = Moment(con)
            _lapse(con, _gone(con, task_id), now)
            snapshot = read_snapshot(con, task_id, now)
            now.write_down()
    return snapshot


def read_snapshot(con: duckdb.DuckDBPyConnection, task_id: int, now: Moment) -> Snapshot:
    """As `take_snapshot`, inside the caller's transaction."""
    trials = select_brief(con, "task_id = $task", now, task=task_id)
    return Snapshot(trials, count_features(con, task_id))


def claim(
    db: Database,
    task_id: int,
    *,
    class_id: str | None,
    name: str,
    seed: int | Callable[[int], int],
    lease_seconds: float | int,
    purpose: str = "search",
    worker: str | None = None,
    settled: Settled = is_taken,
) -> TrialRow | None:
    """Take a function for training, or return None where it is taken already; see `claim_first`."""
    wanted = [Wanted(class_id, name, purpose)]
    claimed, _ = claim_first(
        db, task_id, wanted, seed=seed, lease_seconds=lease_seconds, worker=worker, settled=settled
    )
    return claimed[0] if claimed else None


def claim_first(
    db: Database,
    task_id: int,
    wanted: Choice,
    *,
    seed: int | Callable[[int], int],
    lease_seconds: float | int,
    most: int = 1,
    worker: str | None = None,
    settled: Settled = is_taken,
    study: int | None = None,
    process: str | None = None,
    registered: bool = False,
) -> tuple[list[TrialRow], Snapshot | None]:
    """Take the first of some functions that are not taken for training, all or none of them stored.

    Trials to confirm or compare count apart from the others, and each seed by itself. A queued trial is taken over with
    its id and seed.

    Args:
        db: the database.
        task_id: from `register_task`.
        wanted: the functions, the most wanted first; or what chooses them from the snapshot, inside the transaction,
            while other processes wait.
        seed: of the training, or a function that makes it from the trial's id.
        lease_seconds: how long a claim lasts without a heartbeat.
        most: how many to take.
        worker: who claims, for people to read.
        settled: whether the trials that stand for one training leave nothing to claim: the one rule.
        study: the number of the study whose claims these are.
        process: from `this_process`, if the claims are worth nothing without this process; see `take_snapshot`.
        registered: refuse a task that somebody has removed.

    Returns:
        The claimed trials, fewer where fewer can be taken; and the snapshot from before them, unless the choice was
        made before and something of it could be taken.

    Raises:
        InputError: an unknown purpose, a seed outside 64 bits, or a name that is not valid text.
    """
    with db.transaction() as con:
        now = Moment(con)
        if registered:
            check_task_is_there(con, task_id)
        if callable(wanted) and (gone := _gone(con, task_id)):
            _lapse(con, gone, now)
        snapshot = read_snapshot(con, task_id, now) if callable(wanted) else None
        chosen = wanted(snapshot) if callable(wanted) and snapshot else wanted
        assert not callable(chosen)
        claimed: list[TrialRow] = []
        for new, waiting in _untaken(con, task_id, chosen, snapshot, seed, settled, now):
            lease, by = now.now + timedelta(seconds=lease_seconds), worker and clean_text(worker)
            new = replace(new, worker=by, expires_at=lease, study_id=study, process=process)
            if waiting is None:
                insert(con, new)
            claimed.append(new if waiting is None else _taken_over(con, waiting, new))
            if len(claimed) == most:
                break
        read = snapshot or (None if claimed else read_snapshot(con, task_id, now))
        if claimed or now.is_news:
            now.write_down()
        return claimed, read


def _untaken(
    con: duckdb.DuckDBPyConnection,
    task_id: int,
    wanted: Sequence[Wanted],
    snapshot: Snapshot | None,
    seed: int | Callable[[int], int],
    settled: Settled,
    now: Moment,
) -> Iterator[tuple[TrialRow, int | None]]:
    """Those of the functions that can be claimed, as new trials; each with the queued one that it takes over."""
    trials = snapshot.trials if snapshot else None
    groups: dict[tuple[str | None, ...], list[Brief]] | None = None
    if len(wanted) > 1:
        trials = trials or select_brief(con, "task_id = $task", now, task=task_id)
        groups = {training_of(group[0]): group for group in by_training(trials)}
    trial_id = next_id(con) if wanted else 0
    for class_id, name, purpose, own_seed in wanted:
        if name is None:
            ((name,),) = con.execute("SELECT name FROM class_info WHERE class_id = ?", [class_id]).fetchall()
        chosen = own_seed if own_seed is not None else seed if isinstance(seed, int) else seed(trial_id)
        new = new_trial(trial_id, task_id, class_id, name, chosen, purpose, now)
        if groups is not None:
            same = groups.get(training_of(new), [])
        else:
            same = select_same(con, new, now) if trials is None else of_same(trials, new)
        if settled(same):
            continue
        queued = [trial.trial_id for trial in same if trial.status is Status.QUEUED]
        trial_id += not queued
        yield new, queued[-1] if queued else None


def _taken_over(con: duckdb.DuckDBPyConnection, trial_id: int, by: TrialRow) -> TrialRow:
    claimed = change_one(
        con,
        """
        UPDATE trials
        SET status = 'running', purpose = $purpose, worker = $worker, study_id = $study,
            started_at = $started_at, heartbeat_at = $started_at, expires_at = $expires_at, clock = $clock,
            process = $process
        WHERE trial_id = $trial
        """,
        purpose=by.purpose,
        worker=by.worker,
        study=by.study_id,
        started_at=by.started_at,
        expires_at=by.expires_at,
        clock=by.clock,
        process=by.process,
        trial=trial_id,
    )
    assert claimed is not None
    return claimed


def heartbeat(db: Database, trial_id: int, lease_seconds: float | int) -> bool:
    """Extend a claim's lease from now on.

    Returns:
        Whether the claim still stands: False once the trial is finished or given back, or a later trial has taken the
        same function after this one went stale. A result is accepted all the same, if the trial has none.
    """
    with db.transaction() as con:
        now = Moment(con)
        trial = select_one(con, trial_id, now)
        later = [other for other in select_same(con, trial, now) if other.trial_id > trial_id]
        overtaken = any(other.status is not Status.STALE for other in later)
        if trial.status is not Status.RUNNING and (trial.status is not Status.STALE or overtaken):
            return False
        con.execute(
            "UPDATE trials SET heartbeat_at = ?, expires_at = ?, clock = ? WHERE trial_id = ?",
            [now.now, now.now + timedelta(seconds=lease_seconds), now.clock, trial_id],
        )
        now.write_down()
        return True


def lose(db: Database, trial_id: int, reason: str) -> TrialRow:
    """Note that the process of a running trial is known to be gone: the trial is stale at once.

    A result that comes after all is accepted. A trial that is not running stays as it is.
    """
    with db.transaction() as con:
        now = Moment(con)
        if select_one(con, trial_id, now).status is Status.RUNNING:
            con.execute("UPDATE trials SET reason = ? WHERE trial_id = ?", [clean_reason(reason), trial_id])
            _lapse(con, [trial_id], now)
        return select_one(con, trial_id, now)


def _lapse(con: duckdb.DuckDBPyConnection, trial_ids: Sequence[int], now: Moment) -> None:
    con.execute(
        "UPDATE trials SET expires_at = ?, clock = ?, process = NULL WHERE list_contains(?, trial_id)",
        [now.now - timedelta(microseconds=1), now.clock, trial_ids],
    )
    now.write_down()  # for others, too, this time has passed


def _gone(con: duckdb.DuckDBPyConnection, task_id: int) -> list[int]:
    """Running trials whose process has ended without giving them back, as far as that can be told from here.

    That is so for processes of this machine, since it was started; for all others there is the lease.
    """
    running = "SELECT trial_id, process FROM trials WHERE task_id = ? AND status = 'running' AND process IS NOT NULL"
    held = con.execute(running, [task_id]).fetchall()
    gone = {process for process in {process for _, process in held} if is_gone(process)}
    return [trial_id for trial_id, process in held if process in gone]


def release(db: Database, *trial_ids: int) -> bool:
    """Give claims back: the trials are queued, and the next claims of their functions take them over.

    The rows and their ids stay, so that a result which comes after all finds its place.

    Returns:
        Whether there was a claim to give back; finished and queued trials stay as they are.

    Raises:
        InputError: there is no such trial; then no claim is given back.
    """
    with db.transaction() as con:
        held = [select_one(con, trial_id, None) for trial_id in trial_ids]
        given_back = [trial.trial_id for trial in held if trial.status is Status.RUNNING]  # in time, or stale
        con.execute(
            "UPDATE trials SET status = 'queued', worker = NULL, process = NULL, expires_at = NULL "
            "WHERE list_contains(?, trial_id)",
            [given_back],
        )
        return bool(given_back)


def retry(
    db: Database, task_id: int, trial_ids: Iterable[int], seed: Callable[[int], int] | None = None
) -> list[TrialRow]:
    """Queue functions to be trained once more; the trials that they were trained in stay as they are.

    Args:
        db: the database.
        task_id: whose trials they are.
        trial_ids: trials that ended or went stale; where several stand for the same training, one is queued.
        seed: makes the new training's seed from the new trial's id; without it, and for a confirmation or a comparison,
            the old stays.

    Returns:
        The new trials, queued.

    Raises:
        InputError: there is no such trial of this task, or it is queued or running; then none is queued.
    """
    queued: dict[int, TrialRow] = {}
    with db.transaction() as con:
        now = Moment(con)
        for repeated in sorted(set(trial_ids)):
            old = select_one(con, repeated, now)
            if old.task_id != task_id:
                raise InputError(f"trial_id {repeated} belongs to another task; name that task")
            same = select_same(con, old, now)
            if waiting := [trial for trial in same if trial.status in (Status.QUEUED, Status.RUNNING)]:
                if any(trial.trial_id in queued for trial in waiting):
                    continue
                state = f"as trial {waiting[-1].trial_id}" if waiting[-1].trial_id != repeated else "itself"
                raise InputError(
                    f"trial {repeated} ({old.name[:60]}) is {waiting[-1].status} {state}; let it end first"
                )
            trial_id = next_id(con)
            purpose = Purpose.SEARCH if old.purpose is Purpose.ADDED else old.purpose
            again = new_trial(trial_id, task_id, old.class_id, old.name, old.seed, purpose, now)
            newest = max(trial.trial_id for trial in same)
            again = replace(again, status=Status.QUEUED, retry_of=newest, heartbeat_at=None, expires_at=None)
            if seed is not None and old.purpose.is_searched:
                again = replace(again, seed=checked_seed(seed(trial_id)))
            insert(con, again)
            queued[trial_id] = again
    return list(queued.values())
