"""A map of all candidates for people to look at: similar functions lie near each other."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Float32

from aqx.surrogate.embeddings import Progress, principal_components

# UMAP places so many candidates at most, the others join them: it would take minutes for 400,000.
_LANDMARKS = 4000
_NEIGHBOURS = 8
_CHUNK = 32768
# Below so many distinct candidates UMAP has no neighbourhoods to keep.
_UMAP_ROWS = 16


def draw_map(
    coordinates: Float[np.ndarray, "C K"], seed: int = 0, progress: Progress | None = None
) -> Float32[np.ndarray, "C 2"]:
    """Place every candidate in the plane, so that neighbours among the coordinates stay neighbours.

    UMAP places some thousand landmarks, every k-th candidate; each other one goes to the mean of the places of its 8
    nearest landmarks, weighted by exp(−(d / d₈)²·4). The same candidates are placed alike however many have results.

    Args:
        coordinates: finite ones, such as the surrogate's that need no spectrum [C, K].
        seed: of UMAP.
        progress: called as progress(done, total, note).

    Returns:
        Places [C, 2].

    Example:
        >>> import numpy as np
        >>> from aqx.surrogate import draw_map
        >>> draw_map(np.random.default_rng(0).normal(size=(5, 3))).shape
        (5, 2)

    Source: McInnes, Healy & Melville (2018), UMAP.
    """
    rows = np.ascontiguousarray(coordinates, np.float32)
    step = max(1, -(-len(rows) // _LANDMARKS))
    landmarks, at = np.unique(rows[::step], axis=0, return_inverse=True)
    if len(landmarks) < _UMAP_ROWS:
        return principal_components(rows, 2)
    from sklearn.neighbors import NearestNeighbors

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        from umap import UMAP
    if progress:
        progress(0, len(rows), "UMAP")
    count = min(15, len(landmarks) - 1)
    # UMAP compiles for ten seconds before it looks for neighbours itself.
    distances, index = NearestNeighbors(n_neighbors=count).fit(landmarks).kneighbors(landmarks)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Spectral initialisation failed", UserWarning)
        warnings.filterwarnings("ignore", "precomputed_knn", UserWarning)  # no later rows are transformed
        mapper = UMAP(n_neighbors=count, precomputed_knn=(index, distances), random_state=seed % 2**32, n_jobs=1)
        placed = np.asarray(mapper.fit(landmarks).embedding_, np.float32)
    places = _join(rows, landmarks, placed, progress) if step > 1 else np.empty((len(rows), 2), np.float32)
    places[::step] = placed[at.ravel()]
    return places


def _join(rows: np.ndarray, landmarks: np.ndarray, placed: np.ndarray, progress: Progress | None) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors  # slow to import

    nearest = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute").fit(landmarks)
    places = np.empty((len(rows), 2), np.float32)
    for start in range(0, len(rows), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        distances, index = nearest.kneighbors(rows[chunk])
        weights = np.exp(-4 * np.square(distances / np.maximum(distances[:, -1:], 1e-12)))
        weights /= weights.sum(axis=1, keepdims=True)
        places[chunk] = np.einsum("nk,nkd->nd", weights, placed[index])
        if progress:
            progress(min(start + _CHUNK, len(rows)), len(rows), "map")
    return places
