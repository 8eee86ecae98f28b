"""`Candidates`: the classes a study may train, with the surrogate's coordinates, as rows of matrices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt64

from aqx.evaluation.class_ids import find_rows, halves, texts
from aqx.store.connection import Database
from aqx.store.embeddings import StoredEmbedding, find_embedding, is_due, load_embedding, save_embedding
from aqx.store.features import FeatureCounts, FeatureRows, load_features
from aqx.store.spectra import invalid_spectra
from aqx.surrogate import Features, Preset, Projection


@dataclass(frozen=True, eq=False)
class Candidates:
    """All candidates of a task: C classes in the order of their ids.

    Attributes:
        counts: of the features in the database when they were read.
        stored: the embedding that they are in.
        ids: halves of the class ids [C, 2].
        coordinates: the surrogate's [C, K]; rows of nan where it has none until the embedding is fitted anew.
        has_spectrum: whose Fisher spectrum is known [C].
        usable: False where the spectrum is invalid: the model breaks with this function [C].
    """

    counts: FeatureCounts
    stored: StoredEmbedding
    ids: UInt64[np.ndarray, "C 2"]
    coordinates: Float32[np.ndarray, "C K"]
    has_spectrum: Bool[np.ndarray, " C"]
    usable: Bool[np.ndarray, " C"]
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


def is_current(db: Database, task_id: int, preset: Preset, seed: int, before: Candidates) -> bool:
    """Whether nothing has changed since `load` returned these candidates."""
    counts, number, _ = find_embedding(db, *_key(task_id, preset, seed))
    return (counts, number) == (before.counts, before.stored.embedding_id)


def load(
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
    key = _key(task_id, preset, seed)
    while True:
        counts, number, fitted_to = find_embedding(db, *key)
        if before is not None and (counts, number) == (before.counts, before.stored.embedding_id):
            return before
        if number is None or fitted_to is None or is_due(fitted_to, counts):
            features = load_features(db, task_id)
            if not keep or not len(features.ids):
                return _candidates(db, task_id, _fit(features, preset, seed), features.counts)
            save_embedding(db, *key, _fit(features, preset, seed))
            continue  # what is stored now may be another process's
        stored = before.stored if before and before.stored.embedding_id == number else load_embedding(db, number)
        if stored is None:
            continue
        if fitted_to[:2] != counts[:2]:
            features = load_features(db, task_id, lacking=number)
            return _candidates(db, task_id, _joined(stored, features, preset), features.counts, stored)
        return _candidates(db, task_id, stored, counts)


def _key(task_id: int, preset: Preset, seed: int) -> tuple[int, str, int]:
    return task_id, f"{preset.name}/{preset.form}", 0 if isinstance(preset.embed, Projection) else seed % 2**63


def _fit(rows: FeatureRows, preset: Preset, seed: int) -> StoredEmbedding:
    features = Features(rows.names.tolist(), rows.outputs, rows.spectra, rows.points)
    if isinstance(preset.embed, Projection):
        loadings = preset.embed.fit(features)
        coordinates = preset.embed.project(features, loadings)
    else:
        loadings, coordinates = {}, preset.embed(features, seed, None)
    return StoredEmbedding(rows.counts, rows.ids, coordinates, features.has_spectrum, loadings)


def _joined(stored: StoredEmbedding, rows: FeatureRows, preset: Preset) -> StoredEmbedding:
    """The embedding with candidates that it lacks, or whose spectrum it lacks."""
    features = Features(rows.names.tolist(), rows.outputs, rows.spectra, rows.points)
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
        rows.counts,
        ids[order],
        np.concatenate([coordinates, found[new]])[order],
        np.concatenate([has_spectrum, features.has_spectrum[new]])[order],
    )


def _candidates(
    db: Database, task_id: int, embedding: StoredEmbedding, counts: FeatureCounts, stored: StoredEmbedding | None = None
) -> Candidates:
    usable = np.ones(len(embedding.ids), bool)
    if counts.invalid:
        broken = find_rows(embedding.ids, halves(invalid_spectra(db, task_id)))
        usable[broken[broken >= 0]] = False
    return Candidates(counts, stored or embedding, embedding.ids, embedding.coordinates, embedding.has_spectrum, usable)
