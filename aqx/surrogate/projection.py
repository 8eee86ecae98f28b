"""Embeddings that a later candidate can join without moving the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from aqx.surrogate.features import Features

Loadings = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Projection:
    """An embedding in which a candidate's place depends on its own features and on some arrays fitted to all of them.

    It does not depend on a seed. It is called like every embedding: `projection(features, seed, progress)`.

    Attributes:
        fit: features of all candidates → the arrays.
        project: features of any candidates and the arrays → their coordinates [C, K].
    """

    fit: Callable[[Features], Loadings]
    project: Callable[[Features, Loadings], np.ndarray]

    def __call__(self, features: Features, seed: int, progress: Any = None) -> Float32[np.ndarray, "C K"]:
        """Fit and project the same candidates."""
        return self.project(features, self.fit(features))
