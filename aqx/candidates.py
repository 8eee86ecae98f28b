"""What a surrogate chooses among: classes of equal functions as rows of matrices, from a database or from names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt64

from aqx.evaluation import batches_of, evaluate, fingerprints
from aqx.evaluation.class_ids import find_rows, halves, texts
from aqx.plane import points_for
from aqx.store.connection import Database
from aqx.store.features import (
    FeatureCounts,
    FeatureRows,
    StoredEmbedding,
    find_embedding,
    is_due,
    load_embedding,
    load_features,
    save_embedding,
)
from aqx.store.functions import find_classes, holds_two_inputs
from aqx.store.kinds import RUNS
from aqx.store.spectra import invalid_spectra, load_spectra
from aqx.surrogate import Features, Preset, Projection
from aqx.tree import Tree


@dataclass(frozen=True, eq=False)
class Candidates:
    """All candidates of a task: C classes in the order of their ids.

    Attributes:
        counts: of the features in the database when they were read.
        stored: the embedding that they are in.
        ids: halves of the class ids [C, 2].
        coordinates: the surrogate's [C, K]; rows of nan where it has none until the embedding is fitted anew.
        has_spectrum: whose Fisher spectrum is known [C].
        usable: False where the spectrum or a short run is invalid: the model breaks with this function [C].
        has_runs: whose short runs are known, and are used by the surrogate [C].
        two_inputs: whether functions of two inputs have been enumerated.
    """

    counts: FeatureCounts
    stored: StoredEmbedding
    ids: UInt64[np.ndarray, "C 2"]
    coordinates: Float32[np.ndarray, "C K"]
    has_spectrum: Bool[np.ndarray, " C"]
    usable: Bool[np.ndarray, " C"]
    has_runs: Bool[np.ndarray, " C"]
    two_inputs: bool = False
    _rows: dict[str, int] = field(default_factory=dict, repr=False)  # of the classes that were looked up

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, class_ids: Iterable[str]) -> Int[np.ndarray, " R"]:
        """Return the rows of classes; -1 for one that is no candidate."""
        wanted = list(class_ids)
        new = [class_id for class_id in wanted if class_id not in self._rows]
        self._rows.update(zip(new, find_rows(self.ids, halves(new)).tolist(), strict=True))
        return np.array([self._rows[class_id] for class_id in wanted], np.int64)

    def class_ids(self, rows: Int[np.ndarray, " R"]) -> list[str]:
        """Return the ids of candidates as text."""
        return texts(self.ids[rows])


def of_database(
    db: Database, task_id: int, preset: Preset, seed: int, before: Candidates | None = None, keep: bool = True
) -> Candidates:
    """Return the candidates of a task on the stored embedding, which is fitted where there is none or it is due.

    Candidates that came later join it where the preset's embedding is a projection, so that every process has the same
    coordinates, whichever of them has fitted.

    Args:
        db: the database.
        task_id: the task.
        preset: the surrogate.
        seed: of the embedding, where it has one.
        before: what an earlier call returned; it is returned again where nothing has changed.
        keep: store an embedding that had to be fitted.
    """
    if keep:
        with db.one_at_a_time() as at_once:  # to read what another process has fitted takes a tenth of fitting it, too
            if at_once:
                return _read_or_fitted(db, task_id, preset, seed, before, keep)
    return _read_or_fitted(db, task_id, preset, seed, before, keep)  # many can read at a time


def _read_or_fitted(
    db: Database, task_id: int, preset: Preset, seed: int, before: Candidates | None, keep: bool
) -> Candidates:
    while True:
        with db.read():  # all of one moment, in one turn at the lock
            two_inputs = holds_two_inputs(db)
            key = _key(task_id, preset, seed, two_inputs)
            counts, number, fitted_to = find_embedding(db, *key)
            if before is not None and (counts, number) == (before.counts, before.stored.embedding_id):
                return before
            used = _used(counts, preset)
            due = number is None or fitted_to is None or is_due(fitted_to, used)
            grown = due or fitted_to is None or (*fitted_to[:2], fitted_to.runs) != (*used[:2], used.runs)
            features = load_features(db, task_id, lacking=None if due else number) if grown else None
            stored = None if due or number is None else _stored(db, number, before)
            broken = _broken(db, task_id) if counts.invalid else []
        if due:
            assert features is not None
            fitted = _fit(features, preset, seed)
            if not keep or not len(features.ids):
                return _candidates(fitted, fitted, counts, broken, preset, two_inputs)
            save_embedding(db, *key, fitted)  # what is stored then may be another process's
        elif stored is not None:
            joined = stored if features is None else _joined(stored, features, preset)
            return _candidates(joined, stored, counts, broken, preset, two_inputs)


def _used(counts: FeatureCounts, preset: Preset) -> FeatureCounts:
    """The features that the surrogate goes by."""
    return counts if preset.without_runs is not None else counts._replace(runs=0)


def _broken(db: Database, task_id: int) -> list[str]:
    """The classes with which the model breaks."""
    return list(invalid_spectra(db, task_id) | invalid_spectra(db, task_id, RUNS))


def _stored(db: Database, number: int, before: Candidates | None) -> StoredEmbedding | None:
    return before.stored if before and before.stored.embedding_id == number else load_embedding(db, number)


def _key(task_id: int, preset: Preset, seed: int, two_inputs: bool) -> tuple[int, str, int]:
    # With the first functions of two inputs all are embedded anew: one without them has no place for these.
    name = f"{preset.name}/{preset.form}{'/two inputs' if two_inputs else ''}"
    return task_id, name, 0 if isinstance(preset.embed, Projection) else seed % 2**63


def _fit(rows: FeatureRows, preset: Preset, seed: int) -> StoredEmbedding:
    features = _features(rows)
    if isinstance(preset.embed, Projection):
        loadings = preset.embed.fit(features)
        coordinates = preset.embed.project(features, loadings)
    else:
        loadings, coordinates = {}, preset.embed(features, seed, None)
    return StoredEmbedding(_used(rows.counts, preset), rows.ids, coordinates, features.has_spectrum, loadings)


def _joined(stored: StoredEmbedding, rows: FeatureRows, preset: Preset) -> StoredEmbedding:
    """The embedding with candidates that it lacks, or whose spectrum it lacks."""
    features = _features(rows)
    at = find_rows(stored.ids, rows.ids)
    known, new = at >= 0, at < 0
    if isinstance(preset.embed, Projection):
        found = preset.embed.project(features, stored.loadings)
    else:
        found = np.full((len(features), stored.coordinates.shape[1]), np.nan, np.float32)
        found[known] = stored.coordinates[at[known]]
    coordinates, has_spectrum = stored.coordinates.copy(), stored.has_spectrum.copy()
    coordinates[at[known]], has_spectrum[at[known]] = found[known], features.has_spectrum[known]
    ids = np.concatenate([stored.ids, rows.ids[new]])
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    return StoredEmbedding(
        _used(rows.counts, preset),
        ids[order],
        np.concatenate([coordinates, found[new]])[order],
        np.concatenate([has_spectrum, features.has_spectrum[new]])[order],
    )


def _candidates(
    embedding: StoredEmbedding,
    stored: StoredEmbedding,
    counts: FeatureCounts,
    broken: list[str],
    preset: Preset,
    two_inputs: bool,
) -> Candidates:
    usable, coordinates = _all_but(broken, embedding.ids), embedding.coordinates
    has_runs = np.isfinite(coordinates[:, -1]) if preset.knows_runs(coordinates) else np.zeros(len(usable), bool)
    return Candidates(counts, stored, embedding.ids, coordinates, embedding.has_spectrum, usable, has_runs, two_inputs)


def _all_but(broken: Iterable[str], ids: UInt64[np.ndarray, "C 2"]) -> Bool[np.ndarray, " C"]:
    """Which of some classes, in the order of their ids, do not break the task's model."""
    usable, rows = np.ones(len(ids), bool), find_rows(ids, halves(broken))
    usable[rows[rows >= 0]] = False
    return usable


def _features(rows: FeatureRows, at: slice | Int[np.ndarray, " C"] = slice(None)) -> Features:
    return Features(rows.names[at].tolist(), rows.outputs[at], rows.spectra[at], rows.points, rows.runs[at])


@dataclass(frozen=True, eq=False)
class Described:
    """C classes with all that a surrogate may know of them.

    Attributes:
        ids: halves of the class ids [C, 2].
        features: of the classes, each under one of its names.
        usable: False where the spectrum or a short run is invalid: the model breaks with this function [C].
    """

    ids: UInt64[np.ndarray, "C 2"]
    features: Features
    usable: Bool[np.ndarray, " C"]

    def __len__(self) -> int:
        return len(self.ids)


def of_classes(db: Database, task_id: int, class_ids: Iterable[str]) -> Described:
    """Return those of some classes that are worth training, in the order of their ids, as the database knows them.

    Args:
        db: the database.
        task_id: whose spectra.
        class_ids: ids as text.
    """
    rows = load_features(db, task_id)
    at = find_rows(rows.ids, halves(sorted(class_ids)))
    at = at[at >= 0]
    return Described(rows.ids[at], _features(rows, at), _all_but(_broken(db, task_id), rows.ids[at]))


@dataclass(frozen=True, eq=False)
class KnownSpectra:
    """What is known of a task's Fisher spectra without a database at hand; by default nothing.

    Attributes:
        ids: halves of the ids of the S classes that have a spectrum, ascending [S, 2].
        features: of each of them [S, D].
        broken: halves of the ids of the B classes with which the model breaks, ascending [B, 2].
    """

    ids: UInt64[np.ndarray, "S 2"] = field(default_factory=lambda: halves(()))
    features: Float32[np.ndarray, "S D"] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    broken: UInt64[np.ndarray, "B 2"] = field(default_factory=lambda: halves(()))

    @classmethod
    def of_task(cls, db: Database, task_id: int) -> KnownSpectra:
        """Read what a database knows of a task's spectra."""
        ids, features = load_spectra(db, task_id)
        return cls(halves(ids), features, halves(invalid_spectra(db, task_id)))

    def of(self, ids: UInt64[np.ndarray, "C 2"]) -> Float32[np.ndarray, "C D"]:
        """Return the features of some classes, rows of nan where there are none; D = 0 where all lack them."""
        at = find_rows(self.ids, ids)
        known = at >= 0
        matrix = np.full((len(ids), self.features.shape[1] if known.any() else 0), np.nan, np.float32)
        if known.any():
            matrix[known] = self.features[at[known]]
        return matrix


def of_names(
    trees: Sequence[Tree], points: Float[np.ndarray, " n"], spectra: KnownSpectra
) -> tuple[Described, Int[np.ndarray, " N"]]:
    """Find the classes among functions that no database need hold, and describe them.

    Args:
        trees: the functions [N].
        points: where to take their outputs [n].
        spectra: those that are known.

    Returns:
        The classes that can be trained, each under its first name, in the order of these; and the row of each function
        [N], -1 for one that is constant, is not finite at some point, or breaks the model.

    Example:
        >>> import aqx, numpy as np
        >>> from aqx.candidates import KnownSpectra, of_names
        >>> names = ("max(x,zero(x))", "tanh(x)", "relu(x)", "one(x)")
        >>> found, rows = of_names([aqx.parse(name) for name in names], np.linspace(-2, 2, 9), KnownSpectra())
        >>> found.features.names, rows.tolist()
        (('max(x,zero(x))', 'tanh(x)'), [0, 1, 0, -1])
    """
    ids = np.empty((len(trees), 2), np.uint64)
    outputs, usable = np.empty((len(trees), len(points)), np.float32), np.empty(len(trees), bool)
    for at, batch in batches_of(trees):
        prints = fingerprints(batch)
        ids[at] = prints.ids
        outputs[at] = evaluate(batch, points_for(batch.inputs, points))
        usable[at] = ~prints.constant
    usable &= np.isfinite(outputs).all(axis=1) & (find_rows(spectra.broken, ids) < 0)
    class_of, rows = texts(ids), np.full(len(trees), -1)
    row_of: dict[str, int] = {}
    first: list[int] = []
    for at in np.flatnonzero(usable).tolist():
        rows[at] = row_of.setdefault(class_of[at], len(row_of))
        if rows[at] == len(first):
            first.append(at)
    features = Features([str(trees[at]) for at in first], outputs[first], spectra.of(ids[first]), points)
    return Described(ids[first], features, np.ones(len(first), bool)), rows


def class_ids(db: Database, trees: Sequence[Tree]) -> list[str]:
    """Return the class of each function: looked up where the database holds the function, computed where not."""
    known = {name: found[0] for name, found in find_classes(db, list({str(tree) for tree in trees})).items()}
    missing = [tree for name, tree in {str(tree): tree for tree in trees}.items() if name not in known]
    for rows, batch in batches_of(missing):
        names = [str(missing[row]) for row in rows]
        known.update(zip(names, texts(fingerprints(batch).ids), strict=True))
    return [known[str(tree)] for tree in trees]
