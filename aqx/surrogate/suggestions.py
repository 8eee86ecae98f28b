"""`embed` once, `suggest` after every result: which candidates to train next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from aqx.errors import Exhausted, InputError
from aqx.surrogate.embeddings import Progress
from aqx.surrogate.features import Features
from aqx.surrogate.presets import DEFAULT, Preset, as_preset


@dataclass(frozen=True, eq=False)
class Suggestions:
    """Candidates to train next, the first being the most wanted.

    Attributes:
        index: rows of the embedding [n].
        mean: predicted result, in the unit of the results given [n]; nan where the choice was random.
        spread: its standard deviation, in the same unit [n].
    """

    index: Int[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    spread: Float[np.ndarray, " n"]


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
) -> Suggestions:
    """Choose the next candidates: those with the highest mean + exploration · spread, ties broken at random.

    Where there are too few results to learn from, candidates are drawn at random, but far from what has been seen (with
    a probability that grows with the squared distance, Arthur & Vassilvitskii 2007).

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
    chosen_preset = as_preset(preset)
    rows = len(embedding)
    observed, pending = _rows("observed", observed, rows), _rows("pending", pending, rows)
    values = np.asarray(values, np.float64).ravel()
    if len(values) != len(observed):
        raise InputError(f"values has {len(values)} entries for {len(observed)} observed rows; give one for each")
    if candidates is not None and candidates.shape != (rows,):
        raise InputError(f"candidates has the shape {candidates.shape}; give one bool for each of {rows} rows")
    if n < 1:
        raise InputError(f"n={n} is too small; ask for 1 or more suggestions")
    known = _Known.of(embedding, chosen_preset)
    free = known.outputs.copy()
    free[observed] = free[pending] = False
    if candidates is not None:
        free &= candidates
    if not free.any():
        raise Exhausted("no candidate is left to suggest")
    rng = np.random.default_rng(seed)
    results = _Results.of(observed, values, known, ranks=chosen_preset.ranks)
    picks = []
    for _ in range(min(n, int(free.sum()))):
        picks.append(_choose(chosen_preset, embedding, known, results, pending, free, rng))
        free[picks[-1][0]] = False
        pending = np.append(pending, picks[-1][0])
    index, mean, spread = zip(*picks, strict=True)
    return Suggestions(np.array(index), np.array(mean, float), np.array(spread, float))


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
    chosen = as_preset(preset)
    observed = _rows("observed", observed, len(embedding))
    known = _Known.of(embedding, chosen)
    results = _Results.of(observed, np.asarray(values, np.float64).ravel(), known, ranks=chosen.ranks)
    if not results.suffice(chosen):
        return np.empty(0, np.int64)
    rows = np.flatnonzero(known.outputs)
    mean, spread = _predict(chosen, embedding, known, results.rows, results.targets, rows, seed)
    return rows[np.argsort(-(mean + chosen.exploration * spread), kind="stable")]


def predict(
    embedding: Float32[np.ndarray, "C K"],
    observed: Sequence[Any] | np.ndarray,
    values: Sequence[Any] | np.ndarray,
    rows: Sequence[Any] | np.ndarray,
    *,
    preset: Any = DEFAULT,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Predict the results of candidates, in the unit of the results given.

    Args:
        embedding: as in `suggest`.
        observed: as in `suggest`.
        values: as in `suggest`.
        rows: of the candidates to predict.
        preset: as in `embed`.
        seed: of the model.

    Returns:
        Means and standard deviations [R]; nan where too few results exist to predict from, or the outputs'
        coordinates of a row are not finite.

    Example:
        >>> import numpy as np
        >>> from aqx.surrogate import predict
        >>> line = np.arange(100, dtype=np.float32)[:, None]
        >>> seen = np.arange(0, 100, 10)
        >>> mean, _ = predict(line, seen, seen**2, [42], preset="paper")
        >>> mean.round()
        array([1667.])
    """
    chosen = as_preset(preset)
    observed, wanted = _rows("observed", observed, len(embedding)), _rows("rows", rows, len(embedding))
    known = _Known.of(embedding, chosen)
    results = _Results.of(observed, np.asarray(values, np.float64).ravel(), known, ranks=chosen.ranks)
    mean, spread = np.full(len(wanted), np.nan), np.full(len(wanted), np.nan)
    if results.suffice(chosen):
        asked = known.outputs[wanted]
        predicted = _predict(chosen, embedding, known, results.rows, results.targets, wanted[asked], seed)
        mean[asked], spread[asked] = results.in_units(*predicted)
    return mean, spread


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
    chosen = as_preset(preset)
    if chosen.outputs_alone is None:
        return np.empty(0, np.int64)
    order = rank(embedding, observed, values, preset=chosen, seed=seed)
    if not len(order):
        return order
    seen = _rows("observed", observed, len(embedding))
    among = min(among, len(order))
    best = np.concatenate([np.unique(seen), order[~np.isin(order, seen)][:among]])
    lacking = best[~described[best]]
    return lacking if 5 * len(lacking) >= among else lacking[:0]


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of candidates: the coordinates that outputs give [C], and all of them [C]."""

    outputs: np.ndarray
    all: np.ndarray

    @classmethod
    def of(cls, embedding: np.ndarray, preset: Preset) -> _Known:
        finite = np.isfinite(embedding)
        return cls(*(np.asarray(finite[:, :columns].all(axis=1)) for columns in (preset.outputs_alone, None)))


@dataclass(frozen=True, eq=False)
class _Results:
    """Distinct observed rows [N], their values (failed as the worst) and the targets that a model learns."""

    rows: np.ndarray
    values: np.ndarray
    targets: np.ndarray

    @classmethod
    def of(cls, observed: np.ndarray, values: np.ndarray, known: _Known, ranks: bool) -> _Results:
        rows, means = mean_by_row(observed, values)
        means = np.where(np.isnan(means), -np.inf, means)
        usable = known.outputs[rows]
        rows, means = rows[usable], means[usable]
        targets = normal_scores(means)
        worst = means[np.isfinite(means)].min(initial=np.inf)
        filled = np.where(np.isfinite(means), means, worst if np.isfinite(worst) else np.nan)
        return cls(rows, filled, targets if ranks else filled)

    def suffice(self, preset: Preset) -> bool:
        """Whether there is enough to predict from."""
        return preset.model is not None and len(self.rows) >= preset.start and bool(np.ptp(self.targets) > 0)

    def in_units(self, mean: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn predictions of targets into ones of values, by the monotone line through the results."""
        order = np.lexsort((self.values, self.targets))
        bounds = np.stack([mean - spread, mean, mean + spread])
        low, middle, high = np.interp(bounds, self.targets[order], self.values[order])
        return middle, (high - low) / 2


def mean_by_row(
    observed: Int[np.ndarray, " N"], values: Float[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Return the distinct rows, ascending, and the mean of each one's finite values, nan where it has none.

    Example:
        >>> import numpy as np
        >>> mean_by_row(np.array([7, 2, 7, 7]), np.array([1.0, np.nan, 3.0, np.inf]))
        (array([2, 7]), array([nan,  2.]))
    """
    finite = np.isfinite(values)
    values = np.clip(values, -1e150, 1e150)  # sums and squares of float64 stay finite
    rows, at = np.unique(observed, return_inverse=True)
    counts = np.bincount(at, finite, len(rows))
    sums = np.bincount(at, np.where(finite, values, 0), len(rows))
    return rows, np.divide(sums, counts, out=np.full(len(rows), np.nan), where=counts > 0)


def normal_scores(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Replace values by the normal quantiles of their ranks, Φ⁻¹((rank − ½) / N); equal values share a rank.

    Example:
        >>> import numpy as np
        >>> normal_scores(np.array([5.0, -np.inf, 1e33])).round(2)
        array([ 0.  , -0.97,  0.97])
    """
    from scipy.special import ndtri

    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return ndtri(middle[at] / max(len(values), 1))


def _choose(
    preset: Preset,
    embedding: np.ndarray,
    known: _Known,
    results: _Results,
    pending: np.ndarray,
    free: np.ndarray,
    rng: np.random.Generator,
) -> tuple[int, float, float]:
    """Choose one free row: (row, mean, spread)."""
    left = np.flatnonzero(free)
    seed = int(rng.integers(2**31))
    pending = pending[known.outputs[pending]]
    if not results.suffice(preset):
        seen = np.concatenate([results.rows, pending])
        return int(rng.choice(left, p=_far_from(seen, left, embedding[:, : preset.outputs_alone]))), np.nan, np.nan
    rows, targets = results.rows, results.targets
    if preset.exploration and len(pending):
        believed, _ = _predict(preset, embedding, known, rows, targets, pending, seed)
        rows, targets = np.append(rows, pending), np.append(targets, believed)
    mean, spread = _predict(preset, embedding, known, rows, targets, left, seed)
    wanted = mean + preset.exploration * spread
    best = int(rng.choice(np.flatnonzero(wanted == wanted.max())))
    (middle,), (deviation,) = results.in_units(mean[[best]], spread[[best]])
    return int(left[best]), float(middle), float(deviation)


def _predict(
    preset: Preset,
    embedding: np.ndarray,
    known: _Known,
    rows: np.ndarray,
    targets: np.ndarray,
    query: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict rows, each from what is known of it, by the results of rows of which the same is known."""
    assert preset.model is not None
    whole = known.all[rows]
    if whole.sum() < preset.start or np.ptp(targets[whole]) == 0:
        described = np.zeros(len(query), bool)  # too few to learn from
    else:
        described = known.all[query]
    mean, spread = np.empty(len(query)), np.empty(len(query))
    for asked, learnt, columns in ((described, whole, None), (~described, slice(None), preset.outputs_alone)):
        if asked.any():
            x = embedding[rows[learnt], :columns]
            mean[asked], spread[asked] = preset.model(x, targets[learnt], embedding[query[asked], :columns], seed)
    return mean, spread


def _far_from(seen: np.ndarray, left: np.ndarray, coordinates: np.ndarray) -> np.ndarray | None:
    """Probabilities of rows that grow with the squared distance to the nearest row seen; None for equal ones."""
    if not len(seen) or not coordinates.shape[1]:
        return None
    spread = coordinates[left].std(axis=0)
    scaled = coordinates / np.where(spread > 0, spread, 1)
    nearest = np.full(len(left), np.inf)
    for row in seen:
        nearest = np.minimum(nearest, np.square(scaled[left] - scaled[row]).sum(axis=1, dtype=np.float64))
    return nearest / nearest.sum() if nearest.sum() > 0 else None


def _rows(name: str, value: Sequence[Any] | np.ndarray, count: int) -> np.ndarray:
    rows = np.asarray(value)
    rows = rows.astype(np.int64) if rows.size == 0 else rows
    inside = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer) and ((rows >= 0) & (rows < count)).all()
    if not inside:
        raise InputError(f"{name} must be row numbers from 0 to {count - 1}, but got {value!r}")
    return rows
