"""How the search went: the best result so far, the baselines, and what random search would be expected to find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from aqx.search import Record, Results
from aqx.store.trial_rows import ENDED


@dataclass(frozen=True, eq=False)
class BestSoFar:
    """The search over its E evaluations; baselines are none of them.

    Attributes:
        trials: the evaluations, in the order in which they ended [E].
        values: their objectives; nan where there was no result [E].
        best: the best result so far; nan before the first [E].
        baselines: the mean result of each baseline that has one.
    """

    trials: list[Record]
    values: Float[np.ndarray, " E"]
    best: Float[np.ndarray, " E"]
    baselines: Mapping[str, float]


def best_so_far(results: Results) -> BestSoFar:
    """Follow the best result over the evaluations of a search."""
    ended = [trial for trial in results.searched if trial.status in ENDED and trial.purpose != "baseline"]
    ended.sort(key=lambda trial: (trial.finished_at or trial.started_at, trial.trial_id))
    values = np.array([np.nan if t.status != "done" or t.objective is None else t.objective for t in ended], float)
    signed = np.where(np.isfinite(values), results.sign * values, -np.inf)
    best = results.sign * np.maximum.accumulate(signed)
    best[np.isinf(best)] = np.nan
    means = {ranking.class_id: ranking.objective for ranking in results.ranking}
    baselines = {name: means[class_id] for class_id, name in results.baselines.items() if class_id in means}
    return BestSoFar(ended, values, best, baselines)


def expected_best(values: Float[np.ndarray, " S"], draws: int, sign: int) -> Float[np.ndarray, " E"]:
    """Return the expected best of 1, 2, … independent draws from a sample.

    Of n draws from S values, v₁ ≤ … ≤ v_S, the highest is v_i with the probability (i/S)ⁿ − ((i−1)/S)ⁿ.

    Args:
        values: the sample, finite [S].
        draws: the largest n.
        sign: 1 where the highest is the best, -1 where the lowest is.

    Example:
        >>> import numpy as np
        >>> from aqx.report.progress import expected_best
        >>> expected_best(np.array([0.0, 1.0]), 3, 1)
        array([0.5  , 0.75 , 0.875])
    """
    ordered = np.sort(sign * np.asarray(values, float))
    below = np.arange(len(ordered) + 1) / len(ordered)
    return sign * np.array([np.diff(below**n) @ ordered for n in range(1, draws + 1)])
