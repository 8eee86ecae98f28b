"""Workload: which classes this process describes next, shared with other processes through claims in the database."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32

from aqx.spectra.acceptance import same_batch
from aqx.spectra.subject import Subject
from aqx.stopping import when_let_go
from aqx.store import (
    Database,
    SpectraClaim,
    add_spectra,
    claim_spectra,
    enter_subject,
    operators_of_classes,
    register_task,
    release_spectra_claims,
    renew_spectra_claims,
    set_spectra_form,
)
from aqx.store.kinds import Kind
from aqx.store.lease import kept_alive, worker_name
from aqx.store.subjects import Subject as Entered
from aqx.tasks import Task
from aqx.tree import parse

LEASE_SECONDS = 60.0
_POLL_SECONDS = 0.5
# Of the classes wanted first, so many are looked at in one transaction.
_WINDOW = 4096
_log = logging.getLogger(__name__)


class Workload:
    """Classes without a descriptor, claimed batch by batch; a context that keeps its claims alive and gives them back.

    Attributes:
        operators: those that occur in the names of the database.
        stored: how many classes this process has stored.

    Args:
        db: the database.
        subject: the task made ready, and accepted.
        kind: of the descriptor.
        form: of it, as `aqx.store.set_spectra_form` takes it.
        names: only the classes of these functions.
        limit: at most so many classes in all.
        first: ids of the classes to take before the others.
        lease_seconds: how long a claim outlives this process.
    """

    def __init__(
        self,
        db: Database,
        subject: Subject,
        kind: Kind,
        form: dict[str, Any],
        names: Sequence[str] | None,
        limit: int | None,
        first: Sequence[str],
        lease_seconds: float,
    ):
        self.db = db
        self._kind = kind
        task = subject.task
        self._names = None if names is None else [str(parse(name)) for name in names]  # before the task is stored
        self.task_id: int = register_task(db, task.name, task.identity())
        self._subject = enter(db, self.task_id, subject, kind, form)
        self._given_up: list[str] = []
        self._first = list(first)
        self._limit = limit
        self._taken = self._missing = 0
        self.stored: int = 0
        # Of all classes and not of those that are missing: a run that goes on finds the programs of the one before.
        self.operators: list[str] = operators_of_classes(db)
        self._lease = lease_seconds
        self._worker = f"{worker_name()}:{uuid.uuid4().hex[:8]}"
        self._alive = kept_alive(
            [self._worker], lambda worker: renew_spectra_claims(db, worker, lease_seconds, kind), lease_seconds / 3
        )
        self._held = when_let_go(lambda: release_spectra_claims(db, self._worker, kind=kind))

    def __enter__(self) -> Workload:
        self._claim(0, ())
        self._alive.__enter__()
        self._held.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.__exit__(None, None, None)
        self._alive.__exit__(kind, error, trace)
        release_spectra_claims(self.db, self._worker, kind=self._kind)

    @property
    def total(self) -> int:
        """How many classes this process computes if no other takes a share, those stored already included."""
        total = self.stored + self._missing
        return total if self._limit is None else min(total, self._limit)

    def take(self, size: int, wait: bool = True) -> list[tuple[str, str]]:
        """Claim up to `size` classes: (class id, name) of each.

        Where others have claimed all that is missing, wait until they have stored it, or died: none are returned only
        when nothing is left to do, or `wait` is false.
        """
        if self._limit is not None:
            size = min(size, self._limit - self._taken)
        while True:
            first = self._first[:_WINDOW]
            claim = self._claim(size, first)
            taken = {class_id for class_id, _ in claim.classes}.intersection(first)
            # Of a window that gave nothing, others have claimed all: it comes back with the rest.
            left = [i for i in first if i not in taken] if taken else []
            self._first = left + self._first[len(first) :]
            if claim.classes or not claim.missing or not size or not wait:
                break
            time.sleep(_POLL_SECONDS)
        self._taken += len(claim.classes)
        return claim.classes

    def store(
        self, class_ids: Sequence[str], features: Float32[np.ndarray, "K D"], reasons: Sequence[str | None]
    ) -> None:
        """Commit the descriptors of a batch, which ends its claims."""
        add_spectra(self.db, self.task_id, class_ids, features, reasons, self._subject, kind=self._kind)
        self.stored += len(class_ids)

    def give_up(self, class_ids: Sequence[str]) -> None:
        """Leave classes without a descriptor: this process does not take them again."""
        self._given_up += class_ids
        release_spectra_claims(self.db, self._worker, class_ids, self._kind)

    def _claim(self, size: int, first: Sequence[str]) -> SpectraClaim:
        claim = claim_spectra(
            self.db,
            self.task_id,
            self._worker,
            limit=size,
            lease_seconds=self._lease,
            names=self._names,
            first=first,
            without=self._given_up,
            kind=self._kind,
        )
        self._missing = claim.missing
        return claim


def enter(db: Database, task_id: int, subject: Subject, kind: Kind, form: dict[str, Any]) -> int | None:
    """Put the descriptors of this batch, loss and weights in force, and say where there were some of others.

    Returns:
        The number of the subject; None where the batch is another each time that it is drawn.

    Raises:
        StoreError: the task has such descriptors of another form.
    """
    assert subject.digest is not None
    drawn = [part for part in subject.digest if part.startswith("batch")]
    entered = enter_subject(db, task_id, form, subject.digest, unless=drawn, kind=kind)
    if not entered.subject_id:
        if not same_batch(subject):
            set_spectra_form(db, task_id, form, kind)
            name, noun = subject.task.name, kind.noun
            _log.warning("aqx: the batch of task %r is another each time, so its %s differ: seed it", name, noun)
            return None
        entered = enter_subject(db, task_id, form, subject.digest, kind=kind)
    if entered.set_aside or entered.taken_back or entered.runs_set_aside or entered.runs_taken_back:
        _log.warning("aqx: %s", _told(subject.task, entered))
    return entered.subject_id


def _told(task: Task, entered: Entered) -> str:
    parts = list(dict.fromkeys(part.partition(":")[0] for part in entered.changed))
    if "batch y" in parts and "loss" in parts:  # which is of these labels
        parts.remove("loss")
    told = [
        told
        for noun, aside, back in (
            ("spectra", entered.set_aside, entered.taken_back),
            ("short runs", entered.runs_set_aside, entered.runs_taken_back),
        )
        if (told := _moved(noun, aside, back))
    ]
    return (
        f"{' and '.join(parts)} of task {task.name!r} changed since its spectra were computed: "
        f"{'; '.join(told)}, the others are computed again"
    )


def _moved(noun: str, aside: int, back: int) -> str:
    taken = f", {back:,} of what there is now are taken back" if back else ""
    return f"{aside:,} {noun} are set aside{taken}" if aside or back else ""
