"""`embed` once, `suggest` after every result: which candidates to train next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from aqx.surrogate.embeddings import Progress
from aqx.surrogate.features import Features
from aqx.surrogate.fitted import Suggestions, fit, fit_with
from aqx.surrogate.presets import DEFAULT, as_preset


def embed(
    features: Features, preset: Any = DEFAULT, seed: int = 0, progress: Progress | None = None
) -> Float32[np.ndarray, "C K"]:
    """Give every candidate the few coordinates on which the preset's model works.

    Args:
        features: of all candidates.
        preset: a preset's name, or a scikit-learn regressor (which works on the embedding of "ensemble").
        seed: of UMAP; principal components do not depend on it.
        progress: called as progress(done, total, note).

    Returns:
        Coordinates [C, K].

    Example:
        >>> import numpy as np
        >>> from aqx.surrogate import Features, embed
        >>> outputs = np.random.default_rng(0).normal(size=(20, 32))
        >>> embed(Features([f"f{i}" for i in range(20)], outputs)).shape[0]
        20
    """
    return as_preset(preset).embed(features, seed, progress)


def suggest(
    embedding: Float32[np.ndarray, "C K"],
    observed: Sequence[Any] | np.ndarray,
    values: Sequence[Any] | np.ndarray,
    pending: Sequence[Any] | np.ndarray = (),
    *,
    preset: Any = DEFAULT,
    seed: int = 0,
    candidates: Bool[np.ndarray, " M"] | None = None,
    n: int = 1,
    given: int = 0,
) -> Suggestions:
    """Choose the next candidates: those with the highest mean + exploration · spread, ties broken at random.

    Where there are too few results to learn from, candidates are drawn at random, but far from what has been seen (with
    a probability that grows with the squared distance, Arthur & Vassilvitskii 2007). Where the embedding knows short
    runs, the first choices are the best by random mixtures of these instead.

    Each candidate is predicted from what is known of it: from outputs and spectrum by the results of candidates that
    have both, or from outputs alone by all results.

    A candidate observed several times counts with the mean of its finite values. Failed ones count as the worst
    finite value (or as the lowest rank). Pending ones, and those chosen before in the same call, count as if their
    prediction had come true: then their neighbours are no longer uncertain, and workers spread out.

    Args:
        embedding: coordinates of all candidates [C, K]; a row with a nan, its spectrum's coordinates aside, is never
            chosen.
        observed: rows that have a result.
        values: their results, higher is better; nan (or ±inf) is a failed one.
        pending: rows in training elsewhere.
        preset: as in `embed`.
        seed: of everything random in this choice.
        candidates: which rows may be chosen [C]; all by default.
        n: how many to choose; fewer are returned where fewer are left.
        given: how many of the observed rows nobody chose, as baselines: an informed start follows them.

    Returns:
        The suggestions, never observed, pending or masked out.

    Raises:
        Exhausted: no candidate is left.
        InputError: lengths differ or a row is out of range.

    Example:
        >>> import numpy as np
        >>> from aqx.surrogate import suggest
        >>> line = np.arange(100, dtype=np.float32)[:, None]
        >>> seen = np.arange(0, 100, 10)
        >>> chosen = suggest(line, seen, -np.abs(seen - 47.0)).index
        >>> 30 < chosen[0] < 60
        np.True_
    """
    return fit(embedding, observed, values, pending, preset=preset, seed=seed, given=given).suggest(n, candidates)


def rank(
    embedding: Float32[np.ndarray, "C K"],
    observed: Sequence[Any] | np.ndarray,
    values: Sequence[Any] | np.ndarray,
    *,
    preset: Any = DEFAULT,
    seed: int = 0,
) -> Int[np.ndarray, " R"]:
    """Order candidates by mean + exploration · spread of their prediction, the most promising first.

    Unlike `suggest` it fits one model for all, so that it ranks any number of candidates in the time of one choice.

    Args:
        embedding: as in `suggest`.
        observed: as in `suggest`.
        values: as in `suggest`.
        preset: as in `embed`.
        seed: of the model.

    Returns:
        Rows whose coordinates are finite, observed ones included; none where too few results exist to predict from.

    Example:
        >>> import numpy as np
        >>> from aqx.surrogate import rank
        >>> line = np.arange(100, dtype=np.float32)[:, None]
        >>> seen = np.arange(0, 100, 10)
        >>> order = rank(line, seen, -np.abs(seen - 47.0), preset="paper")
        >>> bool(30 < order[0] < 60), len(order)
        (True, 100)
    """
    return fit_with(embedding, observed, values, (), preset, seed, model_seed=seed).rank()


def undescribed(
    embedding: Float32[np.ndarray, "C K"],
    observed: Sequence[Any] | np.ndarray,
    values: Sequence[Any] | np.ndarray,
    described: Bool[np.ndarray, " C"],
    among: int,
    preset: Any = DEFAULT,
    seed: int = 0,
) -> Int[np.ndarray, " R"]:
    """Find the promising candidates whose Fisher spectrum is worth computing before the next choice.

    Args:
        embedding: as in `suggest`.
        observed: as in `suggest`.
        values: as in `suggest`.
        described: whose spectrum is known, or is not wanted [C].
        among: how many of the best predictions, and of the results, should have one.
        preset: as in `embed`.
        seed: of the model.

    Returns:
        The rows without a spectrum among the observed and the `among` most promising ones; none while they are fewer
        than a fifth of those, as spectra are computed many at a time, or while there is nothing to predict from.
    """
    return fit_with(embedding, observed, values, (), preset, seed, model_seed=seed).undescribed(described, among)


def first_runs(candidates: int, most: int) -> Int[np.ndarray, " R"]:
    """Find the candidates that get short runs before the first choice, where at most so many are to have them.

    Args:
        candidates: how many there are, in an order that has nothing to do with what they are, as that of class ids.
        most: how many are to have short runs.

    Returns:
        All rows of a space that has no more; of a larger one every k-th, about `promising_runs(most)` of them.

    Example:
        >>> from aqx.surrogate import first_runs
        >>> first_runs(4, 9), first_runs(1000, 9)
        (array([0, 1, 2, 3]), array([  0, 334, 668]))
    """
    return np.arange(0, candidates, 1 if candidates <= most else -(-candidates // promising_runs(most)))


def promising_runs(most: int) -> int:
    """Return how many of the most promising candidates are to have short runs, of at most so many that get them.

    Example:
        >>> from aqx.surrogate import promising_runs
        >>> promising_runs(300)
        100
    """
    return max(1, most // 3)
