"""Results of candidates → what a model learns from them, and what it predicts of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from aqx.errors import InputError
from aqx.surrogate.presets import DEFAULT, Preset, as_preset


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
    observed, wanted = checked_rows("observed", observed, len(embedding)), checked_rows("rows", rows, len(embedding))
    known = Known.of(embedding, chosen)
    results = Results.of(observed, np.asarray(values, np.float64).ravel(), known, ranks=chosen.ranks)
    mean, spread = np.full(len(wanted), np.nan), np.full(len(wanted), np.nan)
    if results.suffice(chosen):
        asked = known.outputs[wanted]
        predicted = predict_rows(chosen, embedding, known, results.rows, results.targets, wanted[asked], seed)
        mean[asked], spread[asked] = results.in_units(*predicted)
    return mean, spread


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of candidates.

    Attributes:
        outputs: who has the coordinates that outputs give [C].
        all: who has all coordinates [C].
        parts: what is known of each beside its outputs: the sum of `SPECTRUM` and `SHORT_RUNS` [C].
    """

    outputs: np.ndarray
    all: np.ndarray
    parts: np.ndarray

    @classmethod
    def of(cls, embedding: np.ndarray, preset: Preset) -> Known:
        """Look which rows are finite."""
        outputs = _finite(embedding[:, : preset.outputs_alone])
        if not preset.knows_runs(embedding):
            whole = _finite(embedding)
            return cls(outputs, whole, SPECTRUM * whole)
        spectrum = outputs & _finite(embedding[:, : preset.without_runs])
        runs = outputs & _finite(embedding[:, preset.without_runs :])
        return cls(outputs, spectrum & runs, SPECTRUM * spectrum + SHORT_RUNS * runs)


# Short runs tell more than a spectrum: who lacks results to be predicted from both is predicted from those.
SPECTRUM, SHORT_RUNS = 1, 2
# So many of the worse half by short runs are believed to fail, until there are so many results. Measured: see the guide
# `early`. The better half is left to the results: in it the best by short runs are not the best of every task.
_POOR, ENOUGH = 5, 20


def poor_by_runs(
    embedding: Float32[np.ndarray, "C K"], known: Known, preset: Preset, observed: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " P"]:
    """A few of the worse half by the mean score of their short runs, spread over it, for a model that knows little.

    None where there are results enough, or where too few candidates have short runs.

    A start by short runs shows a model good candidates alone: uncertain of the bad ones, it would look at them next.
    """
    rows = np.flatnonzero(known.parts & SHORT_RUNS > 0)
    if not preset.informed or len(rows) < 4 * _POOR or len(np.unique(observed)) >= ENOUGH:
        return rows[:0]
    order = np.argsort(embedding[rows, preset.without_runs :].mean(axis=1), kind="stable")
    return rows[order[(np.linspace(0.05, 0.5, _POOR) * (len(rows) - 1)).astype(int)]]


@dataclass(frozen=True, eq=False)
class Results:
    """What a model learns: distinct rows [N], their values (failed as the worst) and its targets.

    The first `observed` of them are those that have results; the others are only believed to be poor.
    """

    rows: np.ndarray
    values: np.ndarray
    targets: np.ndarray
    observed: int

    @classmethod
    def of(
        cls, observed: np.ndarray, values: np.ndarray, known: Known, ranks: bool, poor: Sequence[int] | np.ndarray = ()
    ) -> Results:
        """Gather observed values by row, as a model learns them: by their ranks, or as they are.

        They are joined by the rows that are believed to be poor, as failed ones.
        """
        rows, means = mean_by_row(observed, values)
        means = np.where(np.isnan(means), -np.inf, means)
        usable = known.outputs[rows]
        rows, means = rows[usable], means[usable]
        count = len(rows)
        if len(poor):
            rows = np.append(rows, np.setdiff1d(poor, rows))
            means = np.append(means, np.full(len(rows) - count, -np.inf))
        targets = normal_scores(means)
        worst = means[np.isfinite(means)].min(initial=np.inf)
        filled = np.where(np.isfinite(means), means, worst if np.isfinite(worst) else np.nan)
        return cls(rows, filled, targets if ranks else filled, count)

    def suffice(self, preset: Preset) -> bool:
        """Whether there is enough to predict from."""
        enough = preset.model is not None and self.observed >= preset.start
        return enough and bool(np.ptp(self.targets[: self.observed]) > 0)

    def in_units(self, mean: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn predictions of targets into ones of values, by the monotone line through the results."""
        order = np.lexsort((self.values, self.targets))
        bounds = np.stack([mean - spread, mean, mean + spread])
        low, middle, high = np.interp(bounds, self.targets[order], self.values[order])
        return middle, (high - low) / 2


def _finite(rows: Float32[np.ndarray, "C K"]) -> Bool[np.ndarray, " C"]:
    """Which rows are finite throughout: a sum is, if none of its terms is nan or infinite and none of them large.

    Five times as fast as to ask each number.
    """
    with np.errstate(invalid="ignore"):
        return np.isfinite(rows @ np.full(rows.shape[1], 1e-20, rows.dtype))


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


def predicted_from(
    preset: Preset, known: Known, rows: Int[np.ndarray, " N"], targets: Float[np.ndarray, " N"]
) -> Int[np.ndarray, " C"]:
    """Say from which parts each row is predicted: what is known of it, as far as enough of the results have it too."""
    found = np.zeros_like(known.parts)
    for parts in (SPECTRUM, SHORT_RUNS, SPECTRUM + SHORT_RUNS):
        learnt = known.parts[rows] & parts == parts
        if learnt.sum() >= preset.start and np.ptp(targets[learnt]) > 0:
            found[known.parts & parts == parts] = parts
    return found


def predict_rows(
    preset: Preset,
    embedding: np.ndarray,
    known: Known,
    rows: np.ndarray,
    targets: np.ndarray,
    query: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict rows, each from what is known of it, by the results of rows of which the same is known."""
    assert preset.model is not None
    described = predicted_from(preset, known, rows, targets)[query]
    mean, spread = np.empty(len(query)), np.empty(len(query))
    for parts in range(4):
        asked = described == parts
        if asked.any():
            learnt = known.parts[rows] & parts == parts
            x, wanted = (_coordinates(preset, embedding, parts, which) for which in (rows[learnt], query[asked]))
            mean[asked], spread[asked] = preset.model(x, targets[learnt], wanted, seed)
    return mean, spread


def _coordinates(preset: Preset, embedding: np.ndarray, parts: int, rows: np.ndarray) -> np.ndarray:
    """The coordinates of some rows that these parts give."""
    if not parts:
        return embedding[rows, : preset.outputs_alone]
    if parts == SPECTRUM:
        return embedding[rows, : preset.without_runs]
    coordinates = embedding[rows]
    if parts == SHORT_RUNS:
        coordinates[:, preset.outputs_alone : preset.without_runs] = 0  # equal for all, it tells nothing
    return coordinates


def checked_rows(name: str, value: Sequence[Any] | np.ndarray, count: int) -> Int[np.ndarray, " R"]:
    """Return row numbers as integers.

    Raises:
        InputError: they are none, or out of range.
    """
    rows = np.asarray(value)
    rows = rows.astype(np.int64) if rows.size == 0 else rows
    inside = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer) and ((rows >= 0) & (rows < count)).all()
    if not inside:
        raise InputError(f"{name} must be row numbers from 0 to {count - 1}, but got {value!r}")
    return rows
