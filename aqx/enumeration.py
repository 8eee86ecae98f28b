"""Enumeration: a space's functions, their classes of equal functions and their outputs, into a database."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float32, Int

from aqx.errors import InputError
from aqx.evaluation import Family, evaluate, fingerprints, finite_gradient_at_0, operator_behaviours
from aqx.space import Space
from aqx.store import functions as store
from aqx.store.connection import Database

PIECE = 1 << 17  # functions stored in one transaction
SAMPLINGS = ("stratified", "normal")


@dataclass(frozen=True)
class EnumerationReport:
    """What an enumeration did: functions and classes in the space's families and how many of them are new."""

    functions: int
    added_functions: int
    added_classes: int
    seconds: float


def enumerate_space(
    db: Database,
    space: Space,
    *,
    points: int | None = None,
    sampling: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> EnumerationReport:
    """Store all functions of a space, grouped into classes of equal functions, with the classes' outputs.

    Works piece by piece, each stored in one transaction together with how far the family has come: interrupt it at any
    moment and the same call goes on from there; what is stored already costs nothing and is not stored again.

    Args:
        db: the database.
        space: what to enumerate.
        points: how many points of N(0, 1) outputs are stored at; default what the database has, else 256.
        sampling: "stratified" (quantiles) or "normal" (random); default what the database has, else "stratified".
        progress: called as progress(done, total, note).

    Raises:
        InputError: points or sampling cannot be used.
        StoreError: the database has other points, or knows an operator of the same name that computes something else.
    """
    started = time.perf_counter()
    x = _outputs_points(db, points, sampling)
    families = [Family(schema, space.operators) for schema in space.schemas]
    store.check_operators(db, operator_behaviours(sorted({name for f in families for name in f.operators_used})))
    total = sum(family.size for family in families)
    known = store.known_classes(db)
    finished = added_functions = added_classes = 0
    for family in families:
        key = str(family.schema), ",".join(family.operators_used)
        start = store.enumerated(db, *key)
        finished += start
        for first in range(start, family.size, PIECE):
            stop = min(first + PIECE, family.size)
            functions, classes = _store_piece(db, family, key, np.arange(first, stop), x, known)
            added_functions += functions
            added_classes += classes
            finished += stop - first
            if progress:
                progress(finished, total, f"{len(known):,} classes")
    return EnumerationReport(total, added_functions, added_classes, time.perf_counter() - started)


def _store_piece(
    db: Database,
    family: Family,
    key: tuple[str, str],
    indices: Int[np.ndarray, " K"],
    x: Float32[np.ndarray, " n"],
    known: dict[bytes, tuple[int, str]],
) -> tuple[int, int]:
    prints = fingerprints(family, indices)
    names = family.names(indices)
    keys = store.class_keys(prints.ids)
    # Names ascend with indices, so the first function of a class is its simplest in this piece.
    first = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
    size = family.schema.size
    simpler = {k: row for k, row in first.items() if k not in known or (size, names[row]) < known[k]}
    rows = np.array(sorted(simpler.values()), np.int64)
    values = evaluate(family, indices[rows], np.concatenate([x, np.array([0, -20, 20], np.float32)]))
    finite = np.isfinite(values)
    on_points, at_0, at_20 = finite[:, :-3].all(axis=1), finite[:, -3], finite[:, -2:].all(axis=1)
    gradient_at_0 = finite_gradient_at_0(family, indices[rows])
    flags = np.stack([on_points, at_0, at_20, gradient_at_0, prints.constant[rows], prints.affine[rows]], axis=1)
    representatives = store.Representatives(rows, flags, values[on_points, :-3])
    added = store.add_piece(db, key, int(indices[-1]) + 1, names, prints.ids, size, representatives)
    known.update((k, (size, names[row])) for k, row in simpler.items())
    return added


def _outputs_points(db: Database, points: int | None, sampling: str | None) -> Float32[np.ndarray, " n"]:
    stored = store.get_points(db)
    n = points if points is not None else len(stored[1]) if stored else 256
    sampling = sampling or (stored[0] if stored else "stratified")
    if not 1 <= n <= 100_000:
        raise InputError(f"points={n} is out of range; give 1 to 100,000, for instance 256")
    if sampling not in SAMPLINGS:
        raise InputError(f"sampling={sampling!r} is unknown; give one of {', '.join(SAMPLINGS)}")
    if stored and (sampling, n) == (stored[0], len(stored[1])):
        return stored[1]
    x = sample_points(n, sampling)
    store.set_points(db, sampling, x)
    return x


def sample_points(n: int, sampling: str) -> Float32[np.ndarray, " n"]:
    """Return n points of N(0, 1), truncated to ±5: its mid-quantiles ("stratified") or random ones ("normal")."""
    if sampling == "stratified":
        quantiles = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    else:
        quantiles = np.random.Generator(np.random.Philox(0)).standard_normal(n)
    return np.clip(np.asarray(quantiles, np.float32), -5, 5)
