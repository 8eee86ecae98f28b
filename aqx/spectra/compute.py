"""`compute_spectra`, `compute_runs`: descriptors of stored classes for a task, in batches that a later run resumes."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np

from aqx.activation import Activation, activation
from aqx.candidates import class_ids
from aqx.enumeration.meanings import check_meanings
from aqx.errors import AqxError, InputError, one_line
from aqx.fisher.reference import reference
from aqx.numerics.settings import own_settings
from aqx.operators import own_operators
from aqx.spectra.acceptance import accept, refuse_if_all_baselines_break
from aqx.spectra.descriptor import Described, Descriptor
from aqx.spectra.devices import announce, leads
from aqx.spectra.engine import Engine
from aqx.spectra.fisher_spectra import FISHER
from aqx.spectra.naming import Namer
from aqx.spectra.short_runs import SHORT_RUNS
from aqx.spectra.subject import Subject, in_other_kind, loss_of, prepare, prepare_without_layers, traces
from aqx.spectra.workload import LEASE_SECONDS, Workload, enter
from aqx.stopping import is_stop
from aqx.store import Database, any_valid
from aqx.tasks import Task, build_model
from aqx.tasks.loading import as_task
from aqx.tree import parse

# A batch is what is lost when a process dies, and what one process has more to do than another at the end.
_SECONDS = 3.0
_LARGEST = 1024
_STEPS = 16  # or so many steps of all devices, where these take many candidates at once
Report = TypeVar("Report", bound="SpectraReport")
# Process 0 first announces this and the operators, as to announce nothing is the end.
_HEADER = "operators:"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpectraReport:
    """What a call of `compute_spectra` did.

    Attributes:
        computed: classes that got a spectrum now.
        invalid: classes stored as invalid now, by reason.
        undescribed: classes left without a spectrum, as computing it raised an exception, by that exception.
        shapes: shapes of functions met, each one program.
        coverage: which layers the spectra cover, for people.
    """

    computed: int = 0
    invalid: dict[str, int] = field(default_factory=dict)
    shapes: int = 0
    coverage: str = ""
    undescribed: dict[str, int] = field(default_factory=dict)

    _noun: ClassVar[str] = "spectra"
    _lacking: ClassVar[str] = "a spectrum"

    def __str__(self) -> str:
        lines = [f"{self.computed:,} {self._noun} computed over {self.shapes} shapes of functions"]
        lines += [f"{count:,} classes invalid: {reason}" for reason, count in self.invalid.items()]
        lines += [f"{n:,} classes left without {self._lacking}: {reason}" for reason, n in self.undescribed.items()]
        return "\n".join([*lines, *filter(None, [self.coverage])])


@dataclass(frozen=True)
class RunsReport(SpectraReport):
    """What a call of `compute_runs` did; its `coverage` is empty, as short runs train all weights."""

    _noun: ClassVar[str] = "short runs"
    _lacking: ClassVar[str] = "short runs"


@own_settings()
def compute_spectra(
    db: Database | str | os.PathLike[str],
    task: Task | str,
    *,
    limit: int | None = None,
    batch: int | None = None,
    names: Sequence[str] | None = None,
    first: Sequence[str] | Callable[[], Sequence[str]] = (),
    fisher: str = "empirical",
    sharing: str = "expand",
    lease_seconds: float = LEASE_SECONDS,
    progress: Callable[[int, int, str], None] | None = None,
    subject: Subject | None = None,
) -> SpectraReport:
    """Compute and store the Fisher features of the classes that have none yet for this task.

    All candidates share the task's initial parameters (its seed) and its batch; candidates of one shape share one
    compiled program. Any number of calls, in as many processes, share the classes of one database: each claims a batch,
    commits it when it is done, and takes over what a dead process has claimed when that lease lapses. In a run of
    several JAX processes all make this call, and process 0 alone opens the database.

    Args:
        db: the database's path (or a `Database`), with enumerated functions.
        task: whose model, batch and loss.
        limit: at most so many classes.
        batch: K, candidates per claim and transaction; by default as many as take a few seconds. All devices and cores
            take part, as far as the memory allows.
        names: only the classes of these functions.
        first: ids of the classes to compute before the others, in their order, or what makes them, called by process
            0 alone; the task's baselines follow, and then the others, simplest first.
        fisher: as in `aqx.fisher.eigenvalues`.
        sharing: as in `aqx.fisher.eigenvalues`.
        lease_seconds: how long a claim outlives its process.
        progress: called as progress(done, total, note).
        subject: the task made ready by `accepted` with the same options, where it is at hand.

    Returns:
        What was computed.

    Raises:
        TaskError: the task does not keep its contract, every baseline breaks its model, or not even one candidate fits
            into memory.
        StoreError: the task has spectra of another form, or the database cannot be written.
    """
    return _compute(
        FISHER,
        SpectraReport,
        db,
        lambda: subject or accepted(as_task(task), fisher, sharing),
        names=names,
        first=first,
        limit=limit,
        batch=batch,
        lease_seconds=lease_seconds,
        progress=progress,
    )


@own_settings()
def compute_runs(
    db: Database | str | os.PathLike[str],
    task: Task | str,
    *,
    limit: int | None = None,
    batch: int | None = None,
    names: Sequence[str] | None = None,
    first: Sequence[str] | Callable[[], Sequence[str]] = (),
    lease_seconds: float = LEASE_SECONDS,
    progress: Callable[[int, int, str], None] | None = None,
    subject: Subject | None = None,
) -> RunsReport:
    """Compute and store the short runs of the classes that have none yet for this task.

    A short run is some steps of Adam from the task's initial weights on minibatches of its batch, at each of some
    rates; what is stored is how the loss falls (`aqx.spectra.short_runs`). Model, batch and loss of the task are all
    that it takes. All else is as in `compute_spectra`.

    Args:
        db: as in `compute_spectra`.
        task: whose model, batch and loss.
        limit: as in `compute_spectra`.
        batch: as in `compute_spectra`.
        names: as in `compute_spectra`.
        first: as in `compute_spectra`.
        lease_seconds: as in `compute_spectra`.
        progress: as in `compute_spectra`.
        subject: the task made ready by `accepted` or `accepted_without_layers`, where it is at hand.

    Returns:
        What was computed.

    Raises:
        TaskError: as in `compute_spectra`.
        StoreError: as in `compute_spectra`.
    """
    return _compute(
        SHORT_RUNS,
        RunsReport,
        db,
        lambda: subject or accepted_without_layers(as_task(task)),
        names=names,
        first=first,
        limit=limit,
        batch=batch,
        lease_seconds=lease_seconds,
        progress=progress,
    )


def _compute(
    descriptor: Descriptor[Any],
    report: type[Report],
    db: Database | str | os.PathLike[str],
    ready: Callable[[], Subject],
    *,
    names: Sequence[str] | None,
    first: Sequence[str] | Callable[[], Sequence[str]],
    limit: int | None,
    batch: int | None,
    lease_seconds: float,
    progress: Callable[[int, int, str], None] | None,
) -> Report:
    """Compute a descriptor of the classes that lack it; see `compute_spectra`."""
    if batch is not None and batch < 1:
        raise InputError(f"batch={batch} must be at least 1")
    if not isinstance(db, Database) and jax.process_count() == 1:
        db = Database(db)  # one that is not there shows before anything is compiled
    subject = ready()
    # Called with the subject alone by who replaces it.
    with _Engines(subject, descriptor) as engines:
        if not leads():
            return _follow(engines, report)
        try:
            database = db if isinstance(db, Database) else Database(db)
            check_meanings(database)
            form = descriptor.form(subject)
            baselines = class_ids(database, [parse(name) for name in subject.task.baselines])
            # Where it does not matter baselines come first, as these tell whether any function works.
            order = [*(first() if callable(first) else first), *baselines]
            with Workload(database, subject, descriptor.kind, form, names, limit, order, lease_seconds) as workload:
                return _lead(engines, workload, baselines, batch, progress or _silent, report)
        finally:
            announce([])


class _Engines(contextlib.ExitStack):
    """The engine of a task, and that of the same task with functions of the other number of inputs once some come."""

    def __init__(self, subject: Subject, descriptor: Descriptor[Any]):
        super().__init__()
        self.main: Engine = self._entered(subject, descriptor)
        self._descriptor = descriptor
        self._of: dict[int, Engine | str] = {subject.inputs: self.main}

    def _entered(self, subject: Subject, descriptor: Descriptor[Any]) -> Engine:
        # Called with the subject alone by who replaces it.
        return self.enter_context(Engine(subject) if descriptor is FISHER else Engine(subject, descriptor=descriptor))

    def of(self, inputs: int) -> Engine | str:
        """The engine for functions of so many inputs, or why the model takes none."""
        if inputs not in self._of:
            other = in_other_kind(self.main.subject)
            self._of[inputs] = other if isinstance(other, str) else self._entered(other, self._descriptor)
        return self._of[inputs]

    @property
    def shapes(self) -> int:
        """Shapes of functions met so far."""
        return sum(engine.shapes for engine in self._of.values() if isinstance(engine, Engine))

    def started(self, acts: Sequence[Activation]) -> list[_Part]:
        """Start a batch, the functions of one input apart from those of two."""
        parts = []
        for inputs in dict.fromkeys(act.inputs for act in acts):
            rows = [row for row, act in enumerate(acts) if act.inputs == inputs]
            some, engine = [acts[row] for row in rows], self.of(inputs)
            parts.append(_Part(rows, some, engine, None if isinstance(engine, str) else _started(engine, some)))
        return parts


@dataclass(frozen=True)
class _Part:
    """Those of a batch that one engine computes, or that the model does not take, for a reason."""

    rows: list[int]
    acts: list[Activation]
    engine: Engine | str
    pending: Callable[[], Described] | None


def _lead(
    engines: _Engines,
    workload: Workload,
    baselines: Sequence[str],
    batch: int | None,
    progress: Callable[[int, int, str], None],
    report: type[Report],
) -> Report:
    engine = engines.main
    kind = engine.descriptor.kind
    namer = _namer(engine, announce([_HEADER, *workload.operators])[1:])
    invalid, undescribed = Counter[str](), Counter[str]()
    known_to_work = False
    progress(0, workload.total, kind.noun)

    def commit(ids: list[str], total: int, parts: list[_Part]) -> None:
        for part in parts:
            some = [ids[row] for row in part.rows]
            if isinstance(part.engine, str):
                undescribed[part.engine] += len(some)
                workload.give_up(some)
            else:
                assert part.pending is not None
                commit_part(some, part.engine, _finished(part.engine, part.acts, part.pending))
        progress(workload.stored, total, kind.noun)

    def commit_part(ids: list[str], engine: Engine, found: Described) -> None:
        nonlocal known_to_work
        reasons = found.reasons()
        known_to_work |= any(not reason and id_ in baselines for id_, reason in zip(ids, reasons, strict=True))
        if not known_to_work and any(reason and i not in found.failed for i, reason in enumerate(reasons)):
            if not any_valid(workload.db, workload.task_id, baselines, kind):
                refuse_if_all_baselines_break(engine.subject, engine.descriptor)
            known_to_work = True
        features = found.features_of(engine.subject)
        if found.failed:
            undescribed.update(found.failed.values())
            workload.give_up([ids[i] for i in found.failed])
            kept = [i for i in range(len(ids)) if i not in found.failed]
            ids, features, reasons = [ids[i] for i in kept], features[kept], [reasons[i] for i in kept]
        workload.store(ids, features, reasons)
        invalid.update(filter(None, reasons))

    size = batch or engine.at_once
    waiting: tuple[list[str], int, list[_Part]] | None = None
    while True:
        started = time.monotonic()
        # Only with nothing in flight here is there time to wait for other processes.
        classes = workload.take(size, wait=waiting is None)
        now = None
        if classes:
            acts = namer(announce([name for _, name in classes]))
            now = ([class_id for class_id, _ in classes], workload.total, engines.started(acts))
        # While the devices compute this batch, the last one is sorted and written.
        if waiting:
            commit(*waiting)
        elif not classes:
            computed = workload.stored - invalid.total()
            return report(computed, dict(invalid), engines.shapes, _coverage(engine), dict(undescribed))
        waiting = now
        if not batch:
            size = _next_size(size, time.monotonic() - started, engine.at_once)


def _coverage(engine: Engine) -> str:
    return str(engine.subject.probe.coverage) if engine.descriptor is FISHER else ""


def _follow(engines: _Engines, report: type[Report]) -> Report:
    """Compute what process 0 announces, until it announces nothing."""
    computed = 0
    parts: list[_Part] = []
    header = announce([])  # empty where process 0 has failed before
    namer = _namer(engines.main, header[1:])
    while header and (names := announce([])):
        started = engines.started(namer(names))
        for part in parts:
            if not isinstance(part.engine, str) and part.pending is not None:
                _finished(part.engine, part.acts, part.pending)
        parts = started
        computed += sum(len(part.acts) for part in parts if part.pending is not None)
    return report(computed, {}, engines.shapes, _coverage(engines.main))


def _namer(engine: Engine, operators: Sequence[str]) -> Namer:
    """A namer whose programs have no operator that the model cannot be traced with: it would break all of a shape."""
    own = {operator.name for operator in own_operators()}
    computed = engine.descriptor.traced(engine.subject)
    return Namer([name for name in operators if name not in own or traces(engine.subject, name, computed)])


def _started(engine: Engine, acts: Sequence[Activation]) -> Callable[[], Described]:
    """Start a batch; too little memory shows where its result is waited for."""
    try:
        return engine.start(acts)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        failure = error

    def fail() -> Described:
        raise failure

    return fail


def _finished(engine: Engine, acts: Sequence[Activation], pending: Callable[[], Described]) -> Described:
    """The result of a batch; where memory did not suffice, of the batch computed again with half as many at once."""
    while True:
        try:
            return pending()
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            engine.halve()
            _log.warning("aqx: out of memory; from now on %d candidates are computed at once", engine.at_once)
        pending = _started(engine, acts)


def _next_size(size: int, seconds: float, at_once: int) -> int:
    """Candidates of the next batch, so that one takes about `_SECONDS`: half to twice as many as before."""
    goal = size * _SECONDS / max(seconds, 1e-3)
    bounded = min(max(goal, size / 2), size * 2, max(_LARGEST, _STEPS * at_once))
    return max(at_once, int(bounded) // at_once * at_once)


def _silent(done: int, total: int, note: str) -> None:
    pass


def accepted(task: Task, fisher: str = "empirical", sharing: str = "expand") -> Subject:
    """Make a task ready, and check its batch, loss and initial weights.

    Raises:
        TaskError: they cannot be used; an `Unacceptable` one where a search would be misled by them.
    """
    subject = prepare(task, fisher, sharing)
    return replace(subject, digest=accept(subject))


def accepted_without_layers(task: Task) -> Subject:
    """Make a task ready for short runs alone, as `accepted` does for spectra.

    Raises:
        TaskError: as `accepted` does.
    """
    subject = prepare_without_layers(task)
    return replace(subject, digest=accept(subject))


def renewed(db: Database, number: Callable[[], int], subject: Subject, descriptor: Descriptor[Any]) -> Subject:
    """Set aside the descriptors that the database has of another batch, loss or initial weights.

    Args:
        db: the database.
        number: returns the task's number there, and stores the task where it is new.
        subject: the task made ready, and accepted.
        descriptor: of which kind.

    Returns:
        The subject.

    Raises:
        StoreError: the task has such descriptors of another form.
    """
    enter(db, number(), subject, descriptor.kind, descriptor.form(subject))
    return subject


def check(task: Task | str, names: Sequence[str] | None = None) -> float:
    """Compare the fast spectra with the plain reference on a task's own model.

    Args:
        task: the task.
        names: functions to try; default the task's baselines.

    Returns:
        The worst difference of an eigenvalue over all functions and layers, relative to the largest of its layer.

    Raises:
        TaskError: the task does not keep its contract.
        InputError: not one of the functions can be compared; of some that cannot, a warning says why.
    """
    task = as_task(task)
    subject = prepare(task)
    engines, found, refused = _Engines(subject, FISHER), list[float](), list[str]()
    for name in task.baselines if names is None else names:
        try:
            found.append(_difference(engines, name))
        except InputError as error:
            refused.append(str(error))
    if refused and not found:
        raise InputError(refused[0])
    for reason in refused:
        _log.warning("aqx: %s", reason)
    return max(found, default=0.0)


def _difference(engines: _Engines, name: str) -> float:
    """The worst difference of one function.

    Raises:
        InputError: it cannot be compared.
    """
    engine = engines.of(activation(name).inputs)
    if isinstance(engine, str):
        raise InputError(f"names: {name!r} cannot be compared: {engine}")
    subject, task = engine.subject, engine.subject.task
    spectra = engine.start([activation(name)])()
    if reason := spectra.reason(0):
        raise InputError(f"names: {name!r} cannot be compared: {reason}")
    model, variables = build_model(task, activation(name), subject.x)
    try:
        with jax.default_matmul_precision("highest"):  # as the engine's
            slow = reference(model, variables, subject.x, subject.y, loss=loss_of(task), apply=task.apply)
    except Exception as error:  # whatever the model raises, too
        if is_stop(error):
            raise
        told = str(error) if isinstance(error, AqxError) else one_line(error)
        raise InputError(f"names: {name!r} cannot be compared: {told}") from error
    worst = 0.0
    for key, (of_A, of_G) in spectra.pairs.items():
        if key not in slow:
            raise InputError(f"names: {name!r} cannot be compared: the plain reference leaves out {key}")
        fast = np.sort((of_A[0, :, :, None] * of_G[0, :, None, :]).reshape(-1))
        worst = max(worst, float(np.abs(fast - slow[key]).max() / max(slow[key].max(), np.finfo(np.float32).tiny)))
    return worst
