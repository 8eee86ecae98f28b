"""`compute_spectra`: Fisher features of the stored classes for a task, in bounded batches that a later run resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aqx.activation import Activation, activation
from aqx.errors import InputError
from aqx.fisher.features import QUANTILES, spectrum_features
from aqx.fisher.program import Program, Spectra, Subject, prepare
from aqx.fisher.reference import reference
from aqx.store import Database, add_spectra, classes_without_spectra, register_task, set_spectra_form
from aqx.tasks import Task, build_model
from aqx.tree import parse

BATCH = 64


@dataclass(frozen=True)
class SpectraReport:
    """What a call of `compute_spectra` did.

    Attributes:
        computed: classes that got a spectrum now.
        invalid: classes stored as invalid now, by reason.
        shapes: shapes of functions met, each one program.
        coverage: which layers the spectra cover, for people.
    """

    computed: int = 0
    invalid: dict[str, int] = field(default_factory=dict)
    shapes: int = 0
    coverage: str = ""

    def __str__(self) -> str:
        lines = [f"{self.computed:,} spectra computed over {self.shapes} shapes of functions"]
        lines += [f"{count:,} classes invalid: {reason}" for reason, count in self.invalid.items()]
        return "\n".join([*lines, self.coverage])


def compute_spectra(
    db: Database,
    task: Task,
    *,
    limit: int | None = None,
    batch: int | None = None,
    names: Sequence[str] | None = None,
    fisher: str = "empirical",
    sharing: str = "expand",
    progress: Callable[[int, int, str], None] | None = None,
) -> SpectraReport:
    """Compute and store the Fisher features of the classes that have none yet for this task.

    All candidates share the task's initial parameters (its seed) and its batch; candidates of one shape share one
    compiled program. A batch is committed when it is done, so that an interrupted call loses only what is in flight.

    Args:
        db: the database, with enumerated functions.
        task: whose model, batch and loss.
        limit: at most so many classes.
        batch: K, candidates per transaction; default 64.
        names: only the classes of these functions.
        fisher: as in `aqx.fisher.eigenvalues`.
        sharing: as in `aqx.fisher.eigenvalues`.
        progress: called as progress(done, total, note).

    Returns:
        What was computed.

    Raises:
        TaskError: the task does not keep its contract.
        StoreError: the task has spectra of another form, or the database cannot be written.
    """
    size = BATCH if batch is None else batch
    if size < 1:
        raise InputError(f"batch={batch} must be at least 1")
    subject = prepare(task, fisher, sharing)
    task_id = register_task(db, task.name, task.identity())
    set_spectra_form(db, task_id, _form(subject, fisher, sharing))
    wanted = None if names is None else [str(parse(name)) for name in names]
    missing = classes_without_spectra(db, task_id, limit=limit, names=wanted)
    total, done, computed, invalid = len(missing), 0, 0, {}
    groups: dict[str, list[tuple[str, Activation]]] = {}
    for class_id, name in missing:
        act = activation(name)
        groups.setdefault(act.shape, []).append((class_id, act))

    def commit(ids: Sequence[str], spectra: Spectra) -> None:
        nonlocal done, computed
        reasons = [spectra.reason(i) for i in range(len(ids))]
        features = _features(subject, spectra)
        add_spectra(db, task_id, ids, features, [reason or None for reason in reasons])
        for reason in filter(None, reasons):
            invalid[reason] = invalid.get(reason, 0) + 1
        computed += sum(reason is None for reason in reasons)
        done += len(ids)
        if progress:
            progress(done, total, "spectra")

    if progress:
        progress(0, total, "spectra")
    waiting: tuple[Sequence[str], Callable[[], Spectra]] | None = None
    for members in groups.values():
        program = Program(subject)
        for start in range(0, len(members), size):
            ids, acts = zip(*members[start : start + size], strict=True)
            started = (ids, program(acts))
            # While the device computes this batch, the last one is sorted and written.
            if waiting:
                commit(waiting[0], waiting[1]())
            waiting = started
    if waiting:
        commit(waiting[0], waiting[1]())
    return SpectraReport(computed, invalid, len(groups), str(subject.probe.coverage))


def _features(subject: Subject, spectra: Spectra) -> np.ndarray:
    bad = ~np.logical_and.reduce(list(spectra.finite.values()))

    def clean(part: np.ndarray) -> np.ndarray:
        return np.where(bad[:, None, None], 1.0, part)

    pairs = {key: (clean(of_A), clean(of_G)) for key, (of_A, of_G) in spectra.pairs.items()}
    features = spectrum_features(pairs, subject.probe.coverage.weights)
    features[bad] = np.nan
    return features


def _form(subject: Subject, fisher: str, sharing: str) -> dict[str, Any]:
    coverage = subject.probe.coverage
    return {
        "fisher": fisher,
        "sharing": sharing,
        "quantiles": QUANTILES,
        "examples": subject.probe.examples,
        "layers": dict(coverage.weights),
        "left_out": {part.path: part.weights for part in coverage.left_out},
        "share": round(coverage.share, 6),
    }


def check(task: Task, names: Sequence[str] | None = None) -> float:
    """Compare the fast spectra with the plain reference on a task's own model.

    Args:
        task: the task.
        names: functions to try; default the task's baselines.

    Returns:
        The worst difference of an eigenvalue over all functions and layers, relative to the largest of its layer.

    Raises:
        TaskError: the task does not keep its contract.
    """
    subject = prepare(task)
    worst = 0.0
    for name in task.baselines if names is None else names:
        model, variables = build_model(task, activation(name), subject.x)
        slow = reference(model, variables, subject.x, subject.y, loss=task.loss, apply=task.apply)
        spectra = Program(subject)([activation(name)])()
        if reason := spectra.reason(0):
            raise InputError(f"names: {name!r} cannot be compared: {reason}")
        for key, (of_A, of_G) in spectra.pairs.items():
            fast = np.sort((of_A[0, :, :, None] * of_G[0, :, None, :]).reshape(-1))
            worst = max(worst, float(np.abs(fast - slow[key]).max() / max(slow[key].max(), np.finfo(np.float32).tiny)))
    return worst
