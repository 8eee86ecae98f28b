"""Is the surrogate any good? Predictions of results by the other results, against what was observed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from aqx import surrogate
from aqx.surrogate.suggestions import mean_by_row

FOLDS = 10
FEWEST = 12  # results, below which nothing is said of the surrogate


@dataclass(frozen=True, eq=False)
class Calibration:
    """R results and their predictions, each by a surrogate that did not see it.

    Attributes:
        rows: of the candidates [R].
        observed: mean result of each [R].
        predicted: by the results of nine tenths of the others [R].
        correlation: Spearman's, of the ranks of both; nan where one of them is constant.
    """

    rows: Int[np.ndarray, " R"]
    observed: Float[np.ndarray, " R"]
    predicted: Float[np.ndarray, " R"]
    correlation: float


def cross_validate(
    coordinates: Float[np.ndarray, "C K"],
    rows: Int[np.ndarray, " N"],
    values: Float[np.ndarray, " N"],
    sign: int,
    seed: int = 0,
) -> Calibration | None:
    """Predict each result by those of other folds; None where there are fewer than 12 results.

    Args:
        coordinates: of all candidates.
        rows: of the candidates with a result; one may come several times.
        values: their results; nan for failed ones, from which the surrogate learns too.
        sign: 1 where higher is better, else -1.
        seed: of the folds and of the surrogate.
    """
    candidates, means = mean_by_row(rows, values)
    has_result = np.isfinite(means)
    if has_result.sum() < FEWEST:
        return None
    fold = np.random.default_rng(seed).permutation(len(candidates)) % FOLDS
    predicted = np.full(len(candidates), np.nan)
    for k in range(FOLDS):
        known, asked = fold != k, (fold == k) & has_result
        if asked.any():
            mean, _ = surrogate.predict(
                coordinates, candidates[known], sign * means[known], candidates[asked], seed=seed
            )
            predicted[asked] = sign * mean
    told = np.isfinite(predicted) & has_result
    return Calibration(candidates[told], means[told], predicted[told], _spearman(means[told], predicted[told]))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.asarray(spearmanr(a, b))[0])
