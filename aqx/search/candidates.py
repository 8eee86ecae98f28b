"""`Candidates`: the classes a study may train, with their features, as rows of matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32

from aqx import surrogate
from aqx.store import embeddings, functions, spectra
from aqx.store.connection import Database


@dataclass(frozen=True, eq=False)
class Candidates:
    """All candidates of a task: C classes in the order of their ids.

    Attributes:
        version: changes whenever classes or spectra were added.
        class_ids: as text [C].
        names: the simplest name of each class [C].
        outputs: at the database's points [C, n].
        spectra: features of the Fisher spectrum [C, D]; rows of nan where there is none.
        usable: False where the spectrum is invalid: the model breaks with this function [C].
    """

    version: tuple[int, ...]
    class_ids: np.ndarray
    names: np.ndarray
    outputs: Float32[np.ndarray, "C n"]
    spectra: Float32[np.ndarray, "C D"]
    usable: Bool[np.ndarray, " C"]

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Class id → row."""
        return {class_id: row for row, class_id in enumerate(self.class_ids)}

    def embedding(self, db: Database, task_id: int, preset: str, seed: int) -> Float32[np.ndarray, "C K"]:
        """Return the surrogate's coordinates of all candidates: the stored ones, or fitted now and stored."""
        features = surrogate.Features(self.names.tolist(), self.outputs, self.spectra)
        fingerprint = surrogate.fingerprint(features, preset, seed)
        stored = embeddings.load_embedding(db, task_id, preset)
        if stored and stored[0] == fingerprint:
            return stored[2]
        matrix = surrogate.embed(features, preset, seed)
        if matrix.size:  # the random preset needs no coordinates
            embeddings.save_embedding(db, task_id, preset, fingerprint, self.class_ids.tolist(), matrix)
        return matrix


def load(db: Database, task_id: int) -> Candidates:
    """Read the candidates of a task."""
    version = functions.features_version(db, task_id)
    classes = functions.load_candidates(db)
    ids, features = spectra.load_spectra(db, task_id)
    invalid = spectra.invalid_spectra(db, task_id)
    matrix = np.full((len(classes.names), features.shape[1]), np.nan, np.float32)
    # Both lists of ids ascend.
    rows = np.searchsorted(classes.class_ids.astype(str), ids.astype(str)) if len(ids) else np.empty(0, int)
    found = rows < len(classes.names)
    found[found] = classes.class_ids[rows[found]] == ids[found]
    matrix[rows[found]] = features[found]
    usable = np.array([class_id not in invalid for class_id in classes.class_ids], bool)
    return Candidates(version, classes.class_ids, classes.names, classes.outputs, matrix, usable)
