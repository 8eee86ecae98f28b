"""The verdict: do the winners of a noisy search really win? Paired differences with corrected intervals."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from aqx.costs import costs_by_name
from aqx.errors import Exhausted
from aqx.objective import Objective
from aqx.search.ledger import Ledger, Record, done_in_search, rank_functions
from aqx.store.trial_rows import Purpose, Status

LEVEL = 0.95
SCREENED = 3  # times as many winners are retrained as are reported, where validation can choose and test report
Verdict = Literal["better", "no evidence", "worse", "failed", "reference", "incomplete", "lacking"]
_NAN = float("nan")


@dataclass(frozen=True)
class Judged:
    """A function trained on fresh seeds, and what it is by the one that it is compared with.

    Attributes:
        name: the function.
        mean: of the metric over the seeds; nan if all trainings failed.
        low: lower end of its 95 % interval (Student's t).
        high: upper end.
        difference: mean difference to the reference over the seeds that both finished.
        difference_low: lower end of the difference's interval; all intervals hold together with 95 % confidence.
        difference_high: upper end.
        verdict: "better" or "worse" than the reference where that interval excludes 0, else "no evidence"; "failed"
            where a training gave no result; "lacking" where one has no such metric; "incomplete" where the trainings of
            the confirmation have not all ended.
        seeds: trainings that gave a result.
        failed: trainings that ended without one.
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


@dataclass(frozen=True)
class Confirmed(Judged):
    """A function retrained on fresh seeds, compared with the reference.

    Attributes:
        searched: the objective that the search saw: the best of many noisy results, so optimistic; None for a baseline
            that the search did not train.
        is_baseline: whether it is one of the functions to compare with, and nothing that was found.
        to_best: mean difference to the best baseline.
        to_best_low: lower end of its interval, which allows for that the best of several baselines is the luckiest.
        to_best_high: upper end.
        to_best_verdict: as `verdict`, of that difference; "reference" for the best baseline itself.
        costs: what its value and gradient cost relative to relu's, by the device that this was measured on.
    """

    searched: float | None
    is_baseline: bool = False
    to_best: float = _NAN
    to_best_low: float = _NAN
    to_best_high: float = _NAN
    to_best_verdict: Verdict = "incomplete"
    costs: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Confirmation:
    """The verdict on a search: winners and baselines, compared with a reference and with the best of the baselines.

    Attributes:
        metric: what is compared.
        reference: the function that the others are compared with.
        rows: one per function, the best first.
        ended: how many trainings have ended.
        wanted: how many it takes for a verdict.
        best_baseline: the baseline with the best mean; None without a verdict.
        lacking: functions some of whose results lack the metric.
    """

    metric: str
    reference: str
    rows: list[Confirmed]
    ended: int
    wanted: int
    best_baseline: str | None = None
    lacking: tuple[str, ...] = ()

    # Set by `with_trials`; no field, as it is no part of the verdict.
    _claim = None

    def _repr_html_(self) -> str:
        # What draws it knows this class; this class only passes on that it is wanted.
        return importlib.import_module("aqx.search.shown").confirmation_html(self)

    def __iter__(self) -> Iterator[Any]:
        """Claim the trials that are left to train, one after the other; none where aqx has trained them itself.

        A loop over them answers each with `study.tell(trial, …)`; another call of `study.confirm` gives the verdict.
        """
        while self._claim is not None:
            try:
                trial = self._claim()
            except Exhausted:
                return
            yield trial

    @property
    def is_complete(self) -> bool:
        """Whether all trainings have ended, so that there is a verdict."""
        return self.ended == self.wanted


def with_trials(confirmation: Confirmation, claim: Callable[[], Any]) -> Confirmation:
    """Have a confirmation hand out what is left to train."""
    object.__setattr__(confirmation, "_claim", claim)
    return confirmation


def with_costs(confirmation: Confirmation, ledger: Ledger) -> Confirmation:
    """Add what the functions cost, as far as that was measured."""
    known = costs_by_name(ledger.db, [row.name for row in confirmation.rows])
    return replace(confirmation, rows=[replace(row, costs=known[row.name]) for row in confirmation.rows])


def judge(
    results: Mapping[tuple[str | None, int], Record],
    winners: Mapping[str | None, str],
    baselines: Mapping[str | None, str],
    seeds: Sequence[int],
    metric: str,
    goal: Objective,
    top: int,
    searched: dict[str, float],
    chosen: Collection[str | None] = (),
    reference: str | None = None,
    lacking: Sequence[str] = (),
) -> Confirmation:
    """Compare retrained winners and baselines with a reference, by default the first baseline.

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
        chosen: classes of winners that are reported whatever comes of them.
        reference: the name of the function to compare with.
        lacking: functions whose results in the search lack the metric.
    """
    names = {**winners, **baselines}
    done = [record for record in results.values() if record.status is Status.DONE and record.class_id in names]
    if done and not any(has_metric(record, metric) for record in done):
        metric, lacking = goal.metric, ()  # what the search had, these trainings never return
    columns = (goal.metric, metric)
    trained = {name: [results.get((class_id, seed)) for seed in seeds] for class_id, name in names.items()}
    values = {
        column: {name: np.array([value_of(record, column) for record in records]) for name, records in trained.items()}
        for column in columns
    }
    # The search's own numbers are the best of many; fresh ones choose better, and the test metric stays unseen.
    fresh = sorted(
        (name for class_id, name in winners.items() if class_id not in chosen),
        key=lambda name: -np.nan_to_num(goal.sign * values[goal.metric][name].mean(), nan=-np.inf),
    )
    wanted = len(names) * len(seeds)
    ended = sum((class_id, seed) in results for class_id in names for seed in seeds)
    asked = [name for class_id, name in winners.items() if class_id in chosen]
    shown = [*asked, *(fresh[:top] if ended == wanted else fresh), *baselines.values()]
    kept = {name: values[metric][name] for name in shown}
    if reference not in kept:
        reference = next(iter(baselines.values()))
    lacks = {names[record.class_id] for record in done if not has_metric(record, metric)}
    rows = compare(kept, reference, goal.sign, searched, tuple(baselines.values()))
    rows = [_lacking(row) if row.name in lacks else row for row in rows]
    if ended < wanted:
        of = {name: sum((class_id, seed) in results for seed in seeds) for class_id, name in names.items()}
        rows = [_without_verdict(row, of[row.name]) for row in rows]
    best = next((row.name for row in rows if row.to_best_verdict == "reference"), None)
    named = tuple(dict.fromkeys([*lacking, *(row.name for row in rows if row.name in lacks)]))
    return Confirmation(metric, reference, rows, ended, wanted, best, named)


def value_of(record: Record | None, metric: str) -> float:
    """The metric of a training; nan where it has not ended with a result, or without that metric."""
    if record is None or record.status is not Status.DONE:
        return _NAN
    return float(record.metrics.get(metric, _NAN))


def has_metric(record: Record, metric: str) -> bool:
    """Whether a training returned the metric."""
    return isinstance(record.metrics.get(metric), int | float)


def _lacking(row: Confirmed) -> Confirmed:
    """A row of a function some of whose results lack the metric: none of its trainings failed by that."""

    def named(verdict: Verdict) -> Verdict:
        return "lacking" if verdict == "failed" else verdict

    return replace(row, verdict=named(row.verdict), to_best_verdict=named(row.to_best_verdict))


def _without_verdict(row: Confirmed, ended: int) -> Confirmed:
    return replace(
        row,
        difference=_NAN,
        difference_low=_NAN,
        difference_high=_NAN,
        verdict="reference" if row.verdict == "reference" else "incomplete",
        failed=ended - row.seeds,
        to_best=_NAN,
        to_best_low=_NAN,
        to_best_high=_NAN,
        to_best_verdict="incomplete",
    )


def compare(
    values: dict[str, np.ndarray], reference: str, sign: int, searched: dict[str, float], baselines: Sequence[str] = ()
) -> list[Confirmed]:
    """Compare functions with a reference over the same seeds, and with the best of the baselines.

    The seeds are blocks: value = function's effect + seed's effect + error, the error's variance s² pooled over all
    functions that finished (K functions, S seeds, (K − 1)(S − 1) degrees of freedom). The interval of a difference is
    its mean ± t(1 − 0.05/2m)·s·√(2/S), with Bonferroni's correction for m comparisons: all hold together with 95 %
    confidence. For two functions this is Student's paired test; more of them know s better.

    Which baseline is the best is seen from the same values. Where the m differences to the truly best one b*, which
    nobody knows, are all within h of the truth, so is ȳ_b* at least ȳ_b − h for the b that looks best, and at most ȳ_b;
    a difference d to b is hence within [d − h, d + 2h] of the difference to b* (for a metric to be maximized): no
    function is called better than the best baseline on account of a baseline that was unlucky.

    Args:
        values: metric of each function per seed [S], nan where the training failed.
        reference: the name of the function that the others are compared with.
        sign: 1 where higher is better, else -1.
        searched: what the search saw, by name.
        baselines: the names of those among the functions that the best is looked for among.

    Returns:
        one row per function, the best mean first, those without a result last.
    """
    half = half_width(np.array([row for row in values.values() if np.isfinite(row).all()]), len(values) - 1)
    best = _best_of(values, baselines, sign)
    rows = []
    for name, results in values.items():
        finite = np.isfinite(results)
        difference, low, high = difference_of(results, values[reference], half)
        rows.append(
            Confirmed(
                name,
                *interval_of(results[finite]),
                difference,
                low,
                high,
                verdict_of(name == reference, bool(finite.all()), sign, (low, high)),
                int(finite.sum()),
                int((~finite).sum()),
                searched.get(name),
                name in baselines,
                *_to_best(results, None if best is None else values[best], name == best, sign, half),
            )
        )
    return sorted(rows, key=lambda row: (np.isnan(row.mean), -sign * row.mean))


def _best_of(values: Mapping[str, np.ndarray], names: Sequence[str], sign: int) -> str | None:
    """The baseline with the best mean, of those that never failed."""
    whole = [name for name in names if name in values and np.isfinite(values[name]).all()]
    return max(whole, key=lambda name: sign * float(values[name].mean()), default=None)


def _to_best(
    results: np.ndarray, best: np.ndarray | None, is_best: bool, sign: int, half: float
) -> tuple[float, float, float, Verdict]:
    """The difference to the best baseline, the ends of its interval and the verdict; see `compare`."""
    if best is None:
        return _NAN, _NAN, _NAN, "failed"
    finite = np.isfinite(results)
    difference = float(np.mean((results - best)[finite])) if finite.any() else _NAN
    if not finite.all():
        return difference, _NAN, _NAN, "failed"
    low, high = (half, 2 * half) if sign > 0 else (2 * half, half)
    ends = (difference - low, difference + high)
    return difference, *((0.0, 0.0) if is_best else ends), verdict_of(is_best, True, sign, ends)


def half_width(values: np.ndarray, comparisons: int) -> float:
    """Half the width of a difference's interval, from the complete rows [K, S]."""
    from scipy import stats  # slow to import, and needed here alone

    freedom = (values.shape[0] - 1) * (values.shape[-1] - 1)
    if values.ndim < 2 or freedom < 1:  # none of them has ended
        return float("nan")
    errors = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    variance = np.sum(errors**2) / freedom
    level = 1 - (1 - LEVEL) / (2 * max(comparisons, 1))
    return float(stats.t.ppf(level, freedom) * np.sqrt(2 * variance / values.shape[1]))


def difference_of(results: np.ndarray, others: np.ndarray, half: float) -> tuple[float, float, float]:
    """The mean difference over the seeds that both finished, and the ends of its interval; see `compare`."""
    paired = np.isfinite(results) & np.isfinite(others)
    difference = float(np.mean((results - others)[paired])) if paired.any() else _NAN
    # A function that failed now and then has no mean to compare, only some lucky runs.
    ends = (difference - half, difference + half) if paired.all() else (_NAN, _NAN)
    return difference, *ends


def verdict_of(is_reference: bool, finished: bool, sign: int, ends: tuple[float, float]) -> Verdict:
    """Return the word for a difference, by the ends of its interval."""
    if is_reference:
        return "reference"
    if not finished:
        return "failed"
    low, high = sorted((sign * ends[0], sign * ends[1]))
    return "better" if low > 0 else "worse" if high < 0 else "no evidence"


def interval_of(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and the ends of Student's 95 % interval; nan where there are too few values."""
    from scipy import stats

    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    half = stats.t.ppf(1 - (1 - LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def test_metric_of(objective: str) -> str:
    """The test metric that belongs to a validation objective."""
    return objective.replace("val", "test", 1)


def reported_metric(records: Iterable[Record], objective: str) -> str:
    """Return the test metric that belongs to a validation objective, where a training of the search has one."""
    test = test_metric_of(objective)
    return test if any(has_metric(record, test) for record in _trained(records)) else objective


def without_metric(records: Iterable[Record], metric: str) -> tuple[str, ...]:
    """Return the names of the functions that the search has trained without this metric."""
    return tuple(dict.fromkeys(record.name for record in _trained(records) if not has_metric(record, metric)))


def _trained(records: Iterable[Record]) -> list[Record]:
    trained = (Purpose.SEARCH, Purpose.BASELINE)
    return [record for record in records if record.status is Status.DONE and record.purpose in trained]


def stored_verdict(ledger: Ledger) -> Confirmation | None:
    """Return the verdict on what `confirm` has retrained, by the seeds that every function has had so far.

    None where these are fewer than two, or no baseline is among the functions. What was trained by another version of
    the task's code than the newest confirmation stays out.
    """
    newest = max((trial for trial in ledger.trials if trial.purpose is Purpose.CONFIRM), key=_number, default=None)
    if newest is None:
        return None
    of_version = ledger.counts_as(newest.version)
    trials = [trial for trial in ledger.trials if of_version(trial)]
    # Also those that run, or were lost: without them the functions that are left might look like the whole choice.
    names = {trial.class_id: trial.name for trial in trials if trial.purpose is Purpose.CONFIRM}
    confirmed = [trial for trial in trials if trial.purpose is Purpose.CONFIRM and trial.status.is_finished]
    known = {class_id: name for class_id, name in ledger.baselines.items() if class_id in names}
    notes = ledger.notes()
    asked = [ledger.class_id(name) for name in notes.get("confirmed_baselines") or ()]
    baselines = known | {class_id: names[class_id] for class_id in asked if class_id in names}
    results = {(trial.class_id, trial.seed): trial for trial in confirmed}
    seeds = [
        seed
        for seed in dict.fromkeys(trial.seed for trial in confirmed)
        if all((class_id, seed) in results for class_id in names)
    ]
    if not baselines or len(seeds) < 2:
        return None
    winners = {class_id: name for class_id, name in names.items() if class_id not in baselines}
    chosen = {ledger.class_id(name) for name in notes.get("confirmed_functions") or ()}.intersection(winners)
    screened = len(winners) - len(chosen)
    metric = reported_metric(trials, ledger.objective)
    verdict = judge(
        results,
        winners,
        baselines,
        seeds,
        metric,
        ledger.goal,
        top=screened if metric == ledger.objective else -(-screened // SCREENED),
        searched={found.name: found.objective for found in rank_functions(done_in_search(trials), ledger.goal)},
        chosen=chosen,
        reference=notes.get("reference"),
        lacking=() if metric == ledger.objective else without_metric(trials, metric),
    )
    return with_costs(verdict, ledger)


def _number(trial: Record) -> int:
    return trial.trial_id
