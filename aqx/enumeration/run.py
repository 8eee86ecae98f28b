"""The run: each piece evaluated while the one before is stored."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt64

from aqx.enumeration.known import KnownClasses
from aqx.enumeration.plan import Piece, plan
from aqx.enumeration.points import points_of
from aqx.errors import InputError
from aqx.evaluation import METHOD, Family, evaluate, fingerprints, finite_at, operator_behaviours
from aqx.evaluation.class_ids import class_keys
from aqx.operators import operator_table
from aqx.plane import points_for
from aqx.space import Space
from aqx.store import functions as store
from aqx.store.connection import Database
from aqx.tree import Tree

PIECE = 1 << 17  # functions stored in one transaction, at most
PIECE_VALUES = 1 << 27  # and outputs, at most: 512 MiB
_SOME = "some of "  # before the operators of a family of which single functions are stored


@dataclass(frozen=True)
class EnumerationReport:
    """What an enumeration did: functions in the space, or drawn from it, and how many were new."""

    functions: int
    added_functions: int
    added_classes: int
    seconds: float


def enumerate_space(
    db: Database,
    space: Space,
    *,
    sample: int | None = None,
    seed: int = 0,
    points: int | None = None,
    sampling: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> EnumerationReport:
    """Store all functions of a space, grouped into classes of equal functions, with the classes' outputs.

    Works piece by piece, each stored in one transaction together with how far its families have come: interrupt it at
    any moment and the same call goes on from there; what is stored already costs nothing and is not stored again.
    Several processes may enumerate into one database at once.

    Args:
        db: the database.
        space: what to enumerate.
        sample: store only so many functions, drawn as `space.sample(sample, seed)` draws them.
        seed: of the sample.
        points: how many points of N(0, 1) outputs are stored at; default what the database has, else 256.
        sampling: "stratified" (quantiles) or "normal" (random); default what the database has, else "stratified".
        progress: called as progress(done, total, note).

    Returns:
        How many functions the space or the sample has, and how many functions and classes are new.

    Raises:
        InputError: points, sampling or sample cannot be used, or the space has 2⁶³ functions or more.
        StoreError: the database has other points, or knows an operator of the same name that computes something else.

    Example:
        >>> import aqx, tempfile
        >>> from aqx.enumeration import enumerate_space
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     db = aqx.store.Database(folder + "/found.duckdb", create=True)
        ...     report = enumerate_space(db, aqx.Space(["unary(x)", "binary(x,unary(x))"]))
        >>> report.functions, report.added_classes
        (216, 176)
    """
    started = time.perf_counter()
    x = points_of(db, points, sampling)
    families, trees = _functions_of(space, sample, seed)
    used = {name for schema in space.schemas for name in _family(schema, space).operators_used}
    store.check_operators(db, METHOD, operator_behaviours(sorted(used)))
    stored = store.enumerated(db)
    run = _Run(db, x, _Disjoint(stored))
    total = sum(family.size for family in families) + len(trees)
    done = {family: stored.get(family.key, 0) for family in families}
    finished, functions, classes = sum(done.values()), 0, 0
    for count, added in run.pieces(families, trees, done):
        functions, classes, finished = functions + added.functions, classes + added.classes, finished + count
        if progress:
            progress(finished, total, f"{len(run.known):,} classes")
    return EnumerationReport(space.size if sample is None else total, functions, classes, time.perf_counter() - started)


def _functions_of(space: Space, sample: int | None, seed: int) -> tuple[list[Family], list[Tree]]:
    if sample is not None:
        if sample < 1:
            raise InputError(f"sample={sample} is not a number of functions; give at least 1, or leave it out")
        return [], space.sample(sample, seed)
    if space.size >= 2**63:
        raise InputError(f"space has {space.size:,} functions, more than can be enumerated; give sample=N to draw some")
    schemas = dict.fromkeys(space.schemas)
    return (
        [_family(schema, space) for schema in schemas if not schema.is_function],
        [schema for schema in schemas if schema.is_function],
    )


def _family(schema: Tree, space: Space) -> Family:
    return Family(schema, space.operators, space.constants)


class _Run:
    """One enumeration: this thread evaluates a piece while another stores the one before."""

    def __init__(self, db: Database, x: Float32[np.ndarray, " n"], disjoint: _Disjoint):
        self._db, self._x, self._disjoint = db, x, disjoint
        # New memory costs as much as what is computed in it, so these are used by turns.
        self._outputs, self._spare = np.empty((2, 0, len(x)), np.float32)

    @cached_property
    def known(self) -> KnownClasses:
        """The classes stored already; read when there is something to enumerate."""
        return KnownClasses(self._db)

    def pieces(
        self, families: Sequence[Family], trees: Iterable[Tree], done: dict[Family, int]
    ) -> Iterator[tuple[int, store.Added]]:
        """Evaluate and store piece after piece; yield the number of functions and what was added."""
        most = max(min(PIECE, PIECE_VALUES // len(self._x)), 1)
        stored: deque[tuple[Piece, Future[store.Added]]] = deque()
        with ThreadPoolExecutor(1, "aqx-store") as writer:
            for piece in plan(families, trees, done, most):
                arguments = self._evaluated(piece)
                if stored:
                    yield self._finished(*stored.popleft(), done)
                stored.append((piece, writer.submit(store.add_functions, self._db, *arguments)))
            while stored:
                yield self._finished(*stored.popleft(), done)

    def _finished(self, piece: Piece, future: Future[store.Added], done: dict[Family, int]) -> tuple[int, store.Added]:
        added = future.result()
        # Another process may have stored more of a family than this one.
        done.update((family, added.done[family.key]) for family in piece.spans if family.key in added.done)
        return len(piece), added

    def _evaluated(self, piece: Piece) -> tuple[Any, ...]:
        """What `store.add_functions` takes."""
        prints = [fingerprints(batch) for batch, _ in piece.parts]
        ids = np.concatenate([part.ids for part in prints])
        names = [name for _, part in piece.parts for name in part]
        rows = _simplest(ids, [part for _, part in piece.parts])
        rows = rows[self.known.worth_storing(ids[rows], piece.size, [names[row] for row in rows])]
        self.known.add(ids[rows], piece.size, [names[row] for row in rows], settled=piece.in_order)
        flags = {flag: np.concatenate([getattr(p, flag) for p in prints])[rows] for flag in ("constant", "affine")}
        simplest = self._representatives(piece, rows, flags)
        spans = {_key(family, span): span for family, span in piece.spans.items()}
        return names, ids, piece.size, simplest, spans, self._disjoint.from_all(piece.spans)

    def _representatives(
        self, piece: Piece, rows: Int[np.ndarray, " R"], flags: dict[str, Bool[np.ndarray, " R"]]
    ) -> store.Representatives:
        """Evaluate some functions of a piece; the flags are those that their fingerprints have told."""
        self._outputs, self._spare = self._spare, self._outputs
        if len(self._outputs) < len(rows):
            self._outputs = np.empty((len(rows), len(self._x)), np.float32)
        outputs = self._outputs[: len(rows)]
        ends = np.searchsorted(rows, np.cumsum([0, *(len(batch) for batch, _ in piece.parts)]))
        found, first = [], 0
        for (batch, _), (start, stop) in zip(piece.parts, pairwise(ends), strict=True):
            some = batch.take(rows[start:stop] - first)
            # Of two inputs at as many points of the plane, so that the columns of both are as long.
            evaluate(some, points_for(some.inputs, self._x), outputs[start:stop])
            found.append(finite_at(some))
            first += len(batch)
        with_outputs = _move_finite_up(outputs)
        flags |= {
            "finite": np.isin(np.arange(len(rows)), with_outputs),
            "finite_at_0": np.concatenate([part.zero for part in found]),
            "finite_at_20": np.concatenate([part.twenty for part in found]),
            "finite_gradient_at_0": np.concatenate([part.gradient_at_0 for part in found]),
        }
        return store.Representatives(rows, flags, with_outputs, outputs[: len(with_outputs)])


def _move_finite_up(values: Float32[np.ndarray, "R n"]) -> Int[np.ndarray, " F"]:
    """Move the finite rows of a matrix to its beginning, as few as must, and return which they are."""
    # A row's extremes are nan where one of its values is.
    finite = np.isfinite(values.max(axis=1)) & np.isfinite(values.min(axis=1))
    rows = np.arange(len(values))
    holes, movable = np.flatnonzero(~finite[: finite.sum()]), np.flatnonzero(finite[finite.sum() :]) + finite.sum()
    values[holes] = values[movable]
    rows[holes] = movable
    return rows[: finite.sum()]


def _simplest(ids: UInt64[np.ndarray, "K 2"], parts: Sequence[Sequence[str]]) -> Int[np.ndarray, " R"]:
    """Return which functions have the first name in the alphabet of their class, given the ascending names of parts."""
    _, of_class = np.unique(class_keys(ids), return_inverse=True)
    names = list(chain(*parts))
    best = np.full(len(ids), -1)
    start = 0
    for part in parts:
        classes, first = np.unique(of_class[start : start + len(part)], return_index=True)
        rows, others = first + start, best[classes]
        better = others < 0
        for at in np.flatnonzero(~better):
            better[at] = names[rows[at]] < names[others[at]]
        best[classes[better]] = rows[better]
        start += len(part)
    return np.sort(best[best >= 0])


def _key(family: Family, span: tuple[int, int]) -> tuple[str, str]:
    """What the store calls a family; of which only some functions are stored, in no order, where the span is (0, 0)."""
    schema, operators = family.key
    return (schema, operators) if span[1] else (schema, _SOME + operators)


class _Disjoint:
    """Which families of a database have no function in common with those of a piece."""

    def __init__(self, stored: Iterable[tuple[str, str]]):
        self._families: dict[tuple[str, str], Family] = {}
        self._found: dict[tuple[Family, Family], bool] = {}
        for schema, operators in stored:
            family = Family.of_key(schema, operators.removeprefix(_SOME))
            # One that needs an operator which is not registered here stays unknown, and is looked into.
            if operator_table().by_name.keys() >= {*family.operators}:
                self._families[schema, operators] = family

    def from_all(self, spans: Mapping[Family, tuple[int, int]]) -> set[tuple[str, str]]:
        """Return the families that have nothing in common with those of a piece, except as its own spans say."""
        own = {_key(family, span): family for family, span in spans.items()}
        self._families |= own
        return {
            key
            for key, family in self._families.items()
            if not any(self._overlap(family, other) for name, other in own.items() if name != key or _SOME in key[1])
        }

    def _overlap(self, one: Family, other: Family) -> bool:
        if (one, other) not in self._found:
            self._found[one, other] = one.overlaps(other)
        return self._found[one, other]
