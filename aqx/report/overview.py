"""`Overview`: everything that a report shows of a search, and how that went; how it looks is decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from aqx.report.curves import FunctionCurve, curves_of_best
from aqx.report.survey import Survey, places_of, survey
from aqx.search import Confirmation, Ledger, Record
from aqx.search.verdict import stored_verdict
from aqx.store.trial_rows import Purpose, Status

Progress = Callable[[int, int, str], None]


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


@dataclass(frozen=True, eq=False)
class Overview:
    """A search, ready to be drawn.

    Attributes:
        results: the trials.
        course: the best result over the evaluations.
        random: what random search is expected to have found after 1, 2, … evaluations; empty where nobody can tell.
        survey: all candidates.
        places: of the candidates on the map [C, 2].
        curves: the best functions and the usual ones beside them.
        confirmation: the verdict, where functions were retrained.
    """

    results: Ledger
    course: BestSoFar
    random: Float[np.ndarray, " E"]
    survey: Survey
    places: Float32[np.ndarray, "C 2"]
    curves: list[FunctionCurve]
    confirmation: Confirmation | None


def look_over(results: Ledger, progress: Progress | None = None) -> Overview:
    """Gather what a report shows.

    Args:
        results: of the search.
        progress: called as progress(done, total, note).
    """
    course, found, confirmation = best_so_far(results), survey(results), stored_verdict(results)
    return Overview(
        results,
        course,
        random_search(found, len(course.trials), results.sign),
        found,
        places_of(found, progress),
        curves_of_best(results, confirmation),
        confirmation,
    )


def random_search(found: Survey, evaluations: int, sign: int) -> Float[np.ndarray, " E"]:
    """Estimate what random draws of candidates would give: the surrogate's predictions of all, spread by its errors."""
    predicted, calibration = found.predicted[np.isfinite(found.predicted)], found.calibration
    if calibration is None or not len(predicted) or not evaluations:
        return np.empty(0)
    errors = calibration.observed - calibration.predicted
    sample = predicted[:: -(-len(predicted) // 4000)]
    return expected_best((sample[:, None] + errors).ravel(), evaluations, sign)


def best_so_far(results: Ledger) -> BestSoFar:
    """Follow the best result over the evaluations of a search."""
    ended = [trial for trial in results.searched if trial.status.is_finished and trial.purpose is not Purpose.BASELINE]
    ended.sort(key=lambda trial: (trial.finished_at or trial.started_at, trial.trial_id))
    values = np.array(
        [np.nan if t.status is not Status.DONE or t.objective is None else t.objective for t in ended], float
    )
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
        >>> from aqx.report.overview import expected_best
        >>> expected_best(np.array([0.0, 1.0]), 3, 1)
        array([0.5  , 0.75 , 0.875])
    """
    ordered = np.sort(sign * np.asarray(values, float))
    below = np.arange(len(ordered) + 1) / len(ordered)
    return sign * np.array([np.diff(below**n) @ ordered for n in range(1, draws + 1)])
