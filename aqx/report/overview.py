"""`Overview`: everything that a report shows of a search; how it looks is decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from aqx.report.curves import FunctionCurve, curves_of_best
from aqx.report.progress import BestSoFar, best_so_far, expected_best
from aqx.report.survey import Landscape, survey
from aqx.search import Confirmation, Results
from aqx.surrogate import draw_map

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Overview:
    """A search, ready to be drawn.

    Attributes:
        results: the trials.
        course: the best result over the evaluations.
        random: what random search is expected to have found after 1, 2, … evaluations; empty where nobody can tell.
        landscape: all candidates.
        places: of the candidates on the map [C, 2].
        curves: the best functions and the usual ones beside them.
        confirmation: the verdict, where functions were retrained.
    """

    results: Results
    course: BestSoFar
    random: Float[np.ndarray, " E"]
    landscape: Landscape
    places: Float32[np.ndarray, "C 2"]
    curves: list[FunctionCurve]
    confirmation: Confirmation | None


def look_over(results: Results, progress: Progress | None = None) -> Overview:
    """Gather what a report shows.

    Args:
        results: of the search.
        progress: called as progress(done, total, note).
    """
    course, landscape, confirmation = best_so_far(results), survey(results), results.confirmation()
    return Overview(
        results,
        course,
        random_search(landscape, len(course.trials), results.sign),
        landscape,
        draw_map(landscape.coordinates, progress=progress),
        curves_of_best(results, confirmation),
        confirmation,
    )


def random_search(landscape: Landscape, evaluations: int, sign: int) -> Float[np.ndarray, " E"]:
    """Estimate what random draws of candidates would give: the surrogate's predictions of all, spread by its errors."""
    predicted, calibration = landscape.predicted[np.isfinite(landscape.predicted)], landscape.calibration
    if calibration is None or not len(predicted) or not evaluations:
        return np.empty(0)
    errors = calibration.observed - calibration.predicted
    sample = predicted[:: -(-len(predicted) // 4000)]
    return expected_best((sample[:, None] + errors).ravel(), evaluations, sign)
