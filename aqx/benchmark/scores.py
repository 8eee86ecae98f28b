"""What replayed searches show of a policy, with 95 % intervals over the searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from aqx import surrogate
from aqx.benchmark.landscape import Landscape
from aqx.benchmark.replay import Curves, Progress, as_policy, replay

CHECKPOINTS = (20, 50, 100)
_LEVEL = 0.95
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean or median over searches and its 95 % interval; inf is what most searches, or some, never reach."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ReplayScore:
    """One policy over all its searches.

    Attributes:
        policy: its name.
        searches: how many.
        evaluations: of each.
        classes: in the table.
        rank: median rank of what a search returns at the end; 1 is the best class of the table.
        regret: mean regret after so many evaluations, in the objective's unit.
        median_regret: the same in the median, which one search that ends badly does not move.
        to_top_1_percent: median evaluations until the incumbent is among the best 1 % of the classes.
        to_top_01_percent: the same for 0.1 %.
        seconds_per_suggestion: on this machine.
    """

    policy: str
    searches: int
    evaluations: int
    classes: int
    rank: Estimate
    regret: dict[int, Estimate]
    median_regret: dict[int, Estimate]
    to_top_1_percent: Estimate
    to_top_01_percent: Estimate
    seconds_per_suggestion: float


def replay_policies(
    landscape: Landscape,
    policies: Sequence[Any] | None = None,
    *,
    seeds: int | Sequence[int] = 20,
    evaluations: int = 100,
    start: int = 8,
    spectra: int | None = None,
    runs: int | None = None,
    batch: int = 1,
    baselines: bool = False,
    posterior: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Curves]:
    """Replay searches of several policies from the same starts; see `replay`.

    Args:
        landscape: from `landscape_of`.
        policies: as in `replay`; default all presets.
        seeds: as in `replay`.
        evaluations: as in `replay`.
        start: as in `replay`.
        spectra: as in `replay`.
        runs: as in `replay`.
        batch: as in `replay`.
        baselines: begin every search with the task's baselines, as `Study.search` does.
        posterior: as in `replay`.
        workers: as in `replay`.
        progress: called as progress(done, total, note).

    Returns:
        The curves of each policy, in their order.
    """
    presets = [as_policy(policy) for policy in (surrogate.PRESETS if policies is None else policies)]
    curves = []
    for number, preset in enumerate(presets):

        def passed_on(done: int, total: int, note: str, number: int = number) -> None:
            if progress:
                progress(number * total + done, len(presets) * total, note)

        curves.append(
            replay(
                landscape.features,
                landscape.values,
                preset,
                seeds=seeds,
                evaluations=evaluations,
                start=start,
                direction=landscape.direction,
                present=landscape.present,
                usable=landscape.usable,
                embedding=landscape.embeddings.get(preset.name),
                spectra=spectra,
                runs=runs,
                batch=batch,
                baselines=landscape.baselines if baselines else (),
                posterior=posterior,
                workers=workers,
                progress=passed_on,
            )
        )
    return curves


def score(curves: Curves) -> ReplayScore:
    """Return the final rank, regret and evaluations needed of one policy over its searches, with intervals."""
    searches, evaluations = curves.rank.shape
    checkpoints = sorted({evaluations, *(k for k in CHECKPOINTS if k < evaluations)})
    return ReplayScore(
        curves.policy,
        searches,
        evaluations,
        curves.classes,
        _estimate(median_interval(curves.rank[:, -1:].astype(np.float64))),
        {k: _estimate(mean_interval(curves.regret[:, k - 1 : k])) for k in checkpoints},
        {k: _estimate(median_interval(curves.regret[:, k - 1 : k])) for k in checkpoints},
        _estimate(median_interval(curves.evaluations_to(0.01)[:, None])),
        _estimate(median_interval(curves.evaluations_to(0.001)[:, None])),
        curves.seconds,
    )


def mean_interval(values: Float64[np.ndarray, "N E"]) -> Float64[np.ndarray, "3 E"]:
    """Return each column's mean over N searches, and the ends of its 95 % interval by the bootstrap (percentiles)."""
    searches = len(values)
    draws = np.random.default_rng(0).multinomial(searches, np.full(searches, 1 / searches), _RESAMPLES)
    means = draws @ (values / searches)
    return np.stack([values.mean(axis=0), *np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)])


def median_interval(values: Float64[np.ndarray, "N E"]) -> Float64[np.ndarray, "3 E"]:
    """Return each column's median over N searches, and the order statistics around it in 95 % of all cases or more.

    Fewer than six searches have no such interval; their extremes stand for it. The values may be inf.

    Example:
        >>> import numpy as np
        >>> from aqx.benchmark.scores import median_interval
        >>> median_interval(np.arange(1.0, 21.0)[:, None]).ravel()
        array([10.5,  6. , 15. ])
    """
    from scipy.stats import binom

    ordered = np.sort(values, axis=0)
    searches = len(ordered)
    # The k-th smallest lies above the median with the probability that fewer than k values lie below it.
    outer = max(int(binom.ppf((1 - _LEVEL) / 2, searches, 0.5)), 1) - 1
    middle = (ordered[(searches - 1) // 2], ordered[searches // 2])
    return np.stack([(middle[0] + middle[1]) / 2, ordered[outer], ordered[searches - 1 - outer]])


def _estimate(column: Float64[np.ndarray, "3 1"]) -> Estimate:
    return Estimate(*column[:, 0].tolist())
