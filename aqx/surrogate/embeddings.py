"""Features of all candidates → few coordinates each: principal components, and the paper's union of two UMAP graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from aqx.surrogate.features import Features

Progress = Callable[[int, int, str], None]
_CHUNK = 8192
# Candidates whose principal components are found, at most; ids are hashes, so that every k-th is a random sample.
FITTED = 65536
# Of the losses of short runs, by which they are ranked.
_QUANTILES = 256
# Euclidean distances of P float32 numbers stay finite below this: P · (2·limit)² < 3.4e38 for P < 10⁷.
_RAW_LIMIT = 1e15
# Below so many distinct rows UMAP's spectral start has no eigenvectors to find and its picture no meaning.
_UMAP_ROWS = 16


def squash(outputs: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Compress magnitudes: sign(y)·log(1 + |y|), so that 1e30 is far from 1 but not all there is."""
    return np.copysign(np.log1p(np.abs(outputs)), outputs)


def fit_components(
    rows: Float[np.ndarray, "C P"], count: int, transform: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> Float32[np.ndarray, "D columns"]:
    """Find the mean and the first `count` principal components of `transform(rows)`.

    Components without variance are 0; each component's sign is that which makes its largest loading positive.

    Args:
        rows: one row per candidate [C, P].
        count: number of components K.
        transform: applied to each chunk of rows.

    Returns:
        For `project_on`: the mean, then the loadings of each component [D, 1 + K].
    """
    if not rows.size:
        return np.zeros((rows.shape[1], 1 + count), np.float32)
    rows = rows[:: -(-len(rows) // FITTED)]
    rows = np.concatenate([transform(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)])
    components = np.zeros((rows.shape[1], 1 + count), np.float32)
    components[:, 0] = rows.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), _CHUNK):
        centred = rows[start : start + _CHUNK] - components[:, 0]
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance)
    keep = np.argsort(values)[::-1][:count]
    keep = keep[values[keep] > 1e-10 * max(values[-1], 1e-30)]
    loadings = vectors[:, keep]
    components[:, 1 : 1 + len(keep)] = loadings * np.sign(
        loadings[np.abs(loadings).argmax(axis=0), np.arange(len(keep))]
    )
    return components


def project_on(
    components: Float32[np.ndarray, "D columns"],
    rows: Float[np.ndarray, "C P"],
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Float32[np.ndarray, "C K"]:
    """Project `transform(rows)` on components from `fit_components`.

    Returns:
        Coordinates [C, K], not scaled: over the rows fitted to, a column's variance is its eigenvalue.
    """
    mean, loadings = components[:, 0], components[:, 1:].astype(np.float64)
    projected = np.zeros((len(rows), loadings.shape[1]), np.float32)
    for start in range(0, len(rows) if len(components) else 0, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        # Summed in float64: in float32 a row's coordinates would depend on how many rows come with it.
        projected[chunk] = (transform(rows[chunk]) - mean) @ loadings
    return projected


def principal_components(
    rows: Float[np.ndarray, "C P"], count: int, transform: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> Float32[np.ndarray, "C K"]:
    """Project `transform(rows)` on its own first `count` principal components; see `fit_components`."""
    return project_on(fit_components(rows, count, transform), rows, transform)


def fit_scores(losses: Float[np.ndarray, "C R"]) -> Float32[np.ndarray, "Q R"]:
    """Find what `scores_on` needs: the quantiles of each column; none of no rows."""
    count = min(len(losses), _QUANTILES)
    if not count:
        return np.empty((0, losses.shape[1]), np.float32)
    return np.quantile(losses, (np.arange(count) + 0.5) / count, axis=0, method="hazen").astype(np.float32)


def scores_on(quantiles: Float32[np.ndarray, "Q R"], losses: Float[np.ndarray, "C R"]) -> Float32[np.ndarray, "C R"]:
    """Replace losses by the normal scores of their place among the quantiles of `fit_scores`; low losses score high.

    They may differ by thirty orders of magnitude, of which only the order tells something.
    """
    from scipy.special import ndtri

    scores = np.empty(losses.shape, np.float32)
    places = (np.arange(len(quantiles)) + 0.5) / len(quantiles)
    for column, (values, known) in enumerate(zip(losses.T, quantiles.T, strict=True)):
        # Equal quantiles share their place.
        distinct, at, counts = np.unique(known, return_inverse=True, return_counts=True)
        shared = np.bincount(at, places) / counts
        scores[:, column] = -ndtri(np.interp(values, distinct, shared))
    return scores


def umap_union(features: Features, seed: int, progress: Progress | None = None) -> Float32[np.ndarray, "C 2"]:
    """Embed in two dimensions the union of two fuzzy graphs: of outputs (euclidean) and of spectra (manhattan).

    Only the graphs of the two mappers are computed, not their own embeddings: the union does not use them, and making
    them would prune the graphs in place (UMAP's layout zeroes weak edges of the very arrays that it is given).

    - A candidate without a spectrum is in the outputs' graph alone. Without any spectra that graph is the result.
    - Equal candidates are embedded once: UMAP divides by distances, and its start needs a connected graph.
    - Raw outputs, as published, but clipped at ±1e15: beyond, their float32 distances are infinite.
    - Fewer than 16 distinct candidates get two principal components instead.

    Source: Bingham & Miikkulainen (NeurIPS 2023), section 4, with umap-learn's `mapper_a + mapper_b`.
    """
    raw = features.in_plane() if features.gated.any() else features.outputs
    outputs = np.clip(raw, -_RAW_LIMIT, _RAW_LIMIT)
    spectra = np.where(features.has_spectrum[:, None], features.spectra, np.float32(np.nan))
    _, first, inverse = np.unique(
        np.hstack([outputs, np.nan_to_num(spectra, nan=-1e30)]), axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(first)  # distinct rows in the order in which they came
    first, inverse = first[order], np.argsort(order)[inverse.ravel()]
    if len(first) < _UMAP_ROWS:
        both = np.hstack([squash(raw), np.nan_to_num(spectra)])
        return principal_components(both.astype(np.float32), 2)
    return _umap_distinct(outputs[first], spectra[first], features.has_spectrum[first], seed, progress)[inverse]


def _umap_distinct(
    outputs: np.ndarray, spectra: np.ndarray, present: np.ndarray, seed: int, progress: Progress | None
) -> np.ndarray:
    import scipy.sparse

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        from umap import UMAP

    def mapper(rows: np.ndarray, **options: Any) -> Any:
        # n_jobs=1: with a seed UMAP runs on one thread anyway, and warns when it was not told so.
        settings = {"random_state": seed % 2**32, "n_jobs": 1, "transform_mode": "graph", **options}
        return UMAP(**settings).fit(rows)

    def report(done: int, note: str) -> None:
        if progress is not None:
            progress(done, 3, note)

    report(0, "UMAP of outputs")
    if present.sum() < _UMAP_ROWS:
        return mapper(outputs, transform_mode="embedding").embedding_.astype(np.float32)
    by_outputs = mapper(outputs)
    report(1, "UMAP of spectra")
    by_spectra = mapper(spectra[present], metric="manhattan", n_neighbors=3)
    index = np.flatnonzero(present)
    graph = by_spectra.graph_.tocoo()
    by_spectra.graph_ = scipy.sparse.coo_matrix(
        (graph.data, (index[graph.row], index[graph.col])), shape=(len(outputs),) * 2, dtype=np.float32
    ).tocsr()
    report(2, "UMAP of their union")
    with warnings.catch_warnings():
        # Both leave a usable embedding from a random start, which is what the published method does then.
        warnings.filterwarnings("ignore", "Combined graph is not connected", UserWarning)
        warnings.filterwarnings("ignore", "Spectral initialisation failed", UserWarning)
        union = (by_outputs + by_spectra).embedding_.astype(np.float32)
    report(3, "UMAP of their union")
    return union
