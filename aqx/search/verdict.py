"""The verdict: do the winners of a noisy search really win? Paired differences with corrected intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from aqx.objective import Objective
from aqx.search.ledger import Ledger, Record
from aqx.store.trial_rows import Purpose, Status

LEVEL = 0.95
SCREENED = 3  # times as many winners are retrained as are reported, where validation can choose and test report
Verdict = Literal["better", "no evidence", "worse", "failed", "reference", "incomplete"]


@dataclass(frozen=True)
class Confirmed:
    """A function retrained on fresh seeds.

    Attributes:
        name: the function.
        mean: of the metric over the seeds; nan if all trainings failed.
        low: lower end of its 95 % interval (Student's t).
        high: upper end.
        difference: mean difference to the reference over the seeds that both finished.
        difference_low: lower end of the difference's interval; all intervals hold together with 95 % confidence.
        difference_high: upper end.
        verdict: "better" or "worse" than the reference where that interval excludes 0, else "no evidence"; "failed"
            where a training gave no result; "incomplete" where the trainings of the confirmation have not all ended.
        seeds: trainings that gave a result.
        failed: trainings that ended without one.
        searched: the objective that the search saw: the best of many noisy results, so optimistic; None for a baseline
            that the search did not train.
    """

    name: str
    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    verdict: Verdict
    seeds: int
    failed: int
    searched: float | None


@dataclass(frozen=True)
class Confirmation:
    """The verdict on a search: the winners, then the baselines, each compared with the first baseline.

    Attributes:
        metric: what is compared.
        reference: the baseline that the others are compared with.
        rows: one per function, the best first.
        ended: how many trainings have ended.
        wanted: how many it takes for a verdict.
    """

    metric: str
    reference: str
    rows: list[Confirmed]
    ended: int
    wanted: int

    @property
    def is_complete(self) -> bool:
        """Whether all trainings have ended, so that there is a verdict."""
        return self.ended == self.wanted


def judge(
    results: Mapping[tuple[str | None, int], Record],
    winners: Mapping[str | None, str],
    baselines: Mapping[str | None, str],
    seeds: Sequence[int],
    metric: str,
    goal: Objective,
    top: int,
    searched: dict[str, float],
) -> Confirmation:
    """Compare retrained winners and baselines with the first baseline.

    Where trainings have not ended there is no verdict on any function: what would be left out may have been the best.

    Args:
        results: ended trials by class and seed.
        winners: names of the search's best functions by class.
        baselines: names of the baselines by class.
        seeds: all had.
        metric: what is reported.
        goal: the objective, whose fresh values choose among the winners.
        top: how many of the winners are reported.
        searched: what the search saw, by name.
    """
    names = {**winners, **baselines}
    columns = (goal.metric, metric)
    values = {wanted: {name: np.full(len(seeds), np.nan) for name in names.values()} for wanted in columns}
    for class_id, name in names.items():
        for position, seed in enumerate(seeds):
            record = results.get((class_id, seed))
            if record is not None and record.status is Status.DONE:
                for wanted, table in values.items():
                    table[name][position] = float(record.metrics.get(wanted, np.nan))
    # The search's own numbers are the best of many; fresh ones choose better, and the test metric stays unseen.
    fresh = sorted(
        winners.values(), key=lambda name: -np.nan_to_num(goal.sign * values[goal.metric][name].mean(), nan=-np.inf)
    )
    wanted = len(names) * len(seeds)
    ended = sum((class_id, seed) in results for class_id in names for seed in seeds)
    kept = {name: values[metric][name] for name in [*(fresh[:top] if ended == wanted else fresh), *baselines.values()]}
    reference = next(iter(baselines.values()))
    rows = compare(kept, reference, goal.sign, searched)
    if ended < wanted:
        of = {name: sum((class_id, seed) in results for seed in seeds) for class_id, name in names.items()}
        rows = [_without_verdict(row, of[row.name]) for row in rows]
    return Confirmation(metric, reference, rows, ended, wanted)


def _without_verdict(row: Confirmed, ended: int) -> Confirmed:
    nan = float("nan")
    return replace(
        row,
        difference=nan,
        difference_low=nan,
        difference_high=nan,
        verdict="reference" if row.verdict == "reference" else "incomplete",
        failed=ended - row.seeds,
    )


def compare(values: dict[str, np.ndarray], reference: str, sign: int, searched: dict[str, float]) -> list[Confirmed]:
    """Compare functions with a reference over the same seeds.

    The seeds are blocks: value = function's effect + seed's effect + error, the error's variance s² pooled over all
    functions that finished (K functions, S seeds, (K − 1)(S − 1) degrees of freedom). The interval of a difference is
    its mean ± t(1 − 0.05/2m)·s·√(2/S), with Bonferroni's correction for m comparisons: all hold together with 95 %
    confidence. For two functions this is Student's paired test; more of them know s better.

    Args:
        values: metric of each function per seed [S], nan where the training failed.
        reference: the name of the function that the others are compared with.
        sign: 1 where higher is better, else -1.
        searched: what the search saw, by name.

    Returns:
        one row per function, the best mean first, those without a result last.
    """
    half = _half_width(np.array([row for row in values.values() if np.isfinite(row).all()]), len(values) - 1)
    rows = []
    for name, results in values.items():
        finite = np.isfinite(results)
        paired = finite & np.isfinite(values[reference])
        difference = float(np.mean((results - values[reference])[paired])) if paired.any() else np.nan
        # A function that failed now and then has no mean to compare, only some lucky runs.
        ends = (difference - half, difference + half) if paired.all() else (np.nan, np.nan)
        rows.append(
            Confirmed(
                name,
                *_interval(results[finite]),
                difference,
                *ends,
                _verdict(name == reference, bool(finite.all()), sign, ends),
                int(finite.sum()),
                int((~finite).sum()),
                searched.get(name),
            )
        )
    return sorted(rows, key=lambda row: (np.isnan(row.mean), -sign * row.mean))


def _half_width(values: np.ndarray, comparisons: int) -> float:
    """Half the width of a difference's interval, from the complete rows [K, S]."""
    from scipy import stats  # slow to import, and needed here alone

    freedom = (values.shape[0] - 1) * (values.shape[-1] - 1)
    if freedom < 1:
        return float("nan")
    errors = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    variance = np.sum(errors**2) / freedom
    level = 1 - (1 - LEVEL) / (2 * max(comparisons, 1))
    return float(stats.t.ppf(level, freedom) * np.sqrt(2 * variance / values.shape[1]))


def _verdict(is_reference: bool, finished: bool, sign: int, ends: tuple[float, float]) -> Verdict:
    if is_reference:
        return "reference"
    if not finished:
        return "failed"
    low, high = sorted((sign * ends[0], sign * ends[1]))
    return "better" if low > 0 else "worse" if high < 0 else "no evidence"


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and the ends of Student's 95 % interval; nan where there are too few values."""
    from scipy import stats

    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    half = stats.t.ppf(1 - (1 - LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def reported_metric(records: Iterable[Record], objective: str) -> str:
    """Return the test metric that belongs to a validation objective, where every training of the search has one."""
    test = objective.replace("val", "test", 1)
    trained = (Purpose.SEARCH, Purpose.BASELINE)
    done = [record for record in records if record.status is Status.DONE and record.purpose in trained]
    return test if done and all(isinstance(record.metrics.get(test), int | float) for record in done) else objective


def stored_verdict(ledger: Ledger) -> Confirmation | None:
    """Return the verdict on what `confirm` has retrained, by the seeds that every function has had so far.

    None where these are fewer than two, or no baseline is among the functions.
    """
    # Also those that run, or were lost: without them the functions that are left might look like the whole choice.
    names = {trial.class_id: trial.name for trial in ledger.trials if trial.purpose is Purpose.CONFIRM}
    confirmed = [trial for trial in ledger.trials if trial.purpose is Purpose.CONFIRM and trial.status.is_finished]
    baselines = {class_id: name for class_id, name in ledger.baselines.items() if class_id in names}
    results = {(trial.class_id, trial.seed): trial for trial in confirmed}
    seeds = [
        seed
        for seed in dict.fromkeys(trial.seed for trial in confirmed)
        if all((class_id, seed) in results for class_id in names)
    ]
    if not baselines or len(seeds) < 2:
        return None
    winners = {class_id: name for class_id, name in names.items() if class_id not in baselines}
    metric = reported_metric(ledger.trials, ledger.objective)
    return judge(
        results,
        winners,
        baselines,
        seeds,
        metric,
        ledger.goal,
        top=len(winners) if metric == ledger.objective else -(-len(winners) // SCREENED),
        searched={ranking.name: ranking.objective for ranking in ledger.ranking},
    )
