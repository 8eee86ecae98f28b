"""Whether learning paid: functions with constants learnt, frozen as they were learnt, and kept, on the same seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from aqx.constants import WRITTEN, text_of, to_float32
from aqx.errors import InputError
from aqx.learnable import parametrised
from aqx.search.confirmation import Choice, confirmation_seeds
from aqx.search.ledger import Ledger, Record, done_in_search, rank_functions, rank_in_turn
from aqx.search.queue import Queue
from aqx.search.retraining import Means, Progress, Retraining, Training, fresh_seeds, training_of_job
from aqx.search.verdict import (
    Judged,
    Verdict,
    difference_of,
    half_width,
    has_metric,
    interval_of,
    test_metric_of,
    value_of,
    verdict_of,
)
from aqx.store.claims import Wanted
from aqx.store.trial_rows import Purpose, Status
from aqx.tree import parse

# Trainings that tell the constants of the frozen function; their seeds are nobody else's, so that no result that is
# compared has seen what it is judged by.
HARVEST = 3
_HARVEST_SEEDS = 0xF20
_DIGITS = 4  # of a frozen constant: layers and seeds differ by more
_LEARNT = re.compile(r"learnt/(?:.*/)?c([0-9]+)(?:/[0-9]+)*")

Way = Literal["learnt", "frozen", "plain"]


@dataclass(frozen=True)
class Compared(Judged):
    """A function trained in one of three ways on fresh seeds, compared with the plain way.

    Its `name` is what was trained: where the function has no constants, the learnt one is a·f(b·x).

    Attributes:
        function: as it was found.
        way: "learnt" with constants that are learnt; "frozen" with those learnt on other seeds; "plain" as it is.
    """

    function: str
    way: Way


@dataclass(frozen=True)
class LearningComparison:
    """Whether learning paid; iterate over `rows`.

    Attributes:
        metric: what is compared.
        rows: three per function, or two where no training returned what it learnt.
        ended: how many trainings have ended.
        wanted: how many it takes for a verdict.
        not_frozen: functions of which no training returned what it learnt; see `aqx.linen.learnt`.
    """

    metric: str
    rows: list[Compared]
    ended: int
    wanted: int
    not_frozen: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether all trainings have ended, so that there is a verdict."""
        return self.ended == self.wanted

    @property
    def paid(self) -> tuple[str, ...]:
        """The functions that are better with their constants learnt than as they are."""
        return tuple(row.function for row in self.rows if (row.way, row.verdict) == ("learnt", "better"))


class Side(NamedTuple):
    """One of the two tasks: that which learns constants, and that which keeps them."""

    ledger: Ledger
    queue: Queue
    other_versions: frozenset[int]


@dataclass(frozen=True, eq=False)
class LearningPlan:
    """The trainings of one comparison; `str(plan)` says how many.

    Attributes:
        learning: the task that learns constants.
        keeping: the same task without.
        functions: what is compared, and by which name its constants are learnt.
        seeds: which all three ways have.
        harvest: seeds of the trainings that tell the constants of the frozen function.
    """

    learning: Side
    keeping: Side
    functions: Mapping[str, str]
    seeds: Sequence[int]
    harvest: Sequence[int]

    @cached_property
    def learnt(self) -> Retraining:
        """The trainings that learn."""
        seeds = [*self.harvest, *self.seeds]
        return Retraining(*self.learning[:2], self._jobs(self.functions.values(), seeds), self.learning.other_versions)

    def kept(self, results: Mapping[Training, Record] | None = None) -> Retraining:
        """The trainings that keep constants: the plain functions, and the frozen ones as far as they are known."""
        names = [*self.functions, *self.frozen(results).values()]
        return Retraining(*self.keeping[:2], self._jobs(names, self.seeds), self.keeping.other_versions)

    def _jobs(self, names: Collection[str], seeds: Sequence[int]) -> list[Wanted]:
        return [self._job(name, seed) for seed in seeds for name in names]

    def _job(self, name: str, seed: int) -> Wanted:
        return Wanted(self.learning.ledger.class_id(name), name, Purpose.COMPARE, seed)

    def frozen(self, results: Mapping[Training, Record] | None = None) -> dict[str, str]:
        """Return the functions with the constants written in that were learnt, a mean over the layers and three seeds.

        They are known once the trainings that tell them have ended.
        """
        results = self.learnt.results() if results is None else results
        found: dict[str, str] = {}
        for function, name in self.functions.items():
            told = [results.get(training_of_job(self._job(name, seed))) for seed in self.harvest]
            if None not in told and (frozen := _frozen(name, [record for record in told if record])):
                found[function] = frozen
        return found

    def run(self, means: Means, progress: Progress | None) -> None:
        """Train what is left of all; see `Retraining.run`."""
        first, each = len(self.learnt.jobs), len(self.functions) * len(self.seeds)

        def show(done: int, _: int, note: str) -> None:
            if progress:
                progress(done, first + 2 * each, note)

        self.learnt.run(means, show)
        self.kept().run(means, lambda done, total, note: show(first + done, total, note))

    def verdict(self) -> LearningComparison:
        """Judge by what has ended so far."""
        learnt = self.learnt.results()
        kept = self.kept(learnt)
        frozen, results = self.frozen(learnt), kept.results()
        harvested = all(training_of_job(job) in learnt for job in self._jobs(self.functions.values(), self.harvest))
        missing = [function for function in self.functions if function not in frozen]
        unknown = 0 if harvested else len(missing) * len(self.seeds)
        of: dict[tuple[str, Way], tuple[str, list[Record | None]]] = {}
        for function, name in self.functions.items():
            ways: dict[Way, tuple[str | None, Mapping[Training, Record]]] = {
                "learnt": (name, learnt),
                "frozen": (frozen.get(function), results),
                "plain": (function, results),
            }
            for way, (trained, told) in ways.items():
                if trained is not None:
                    records = [told.get(training_of_job(self._job(trained, seed))) for seed in self.seeds]
                    of[function, way] = trained, records
        ended, wanted = len(learnt) + len(results), len(self.learnt.trainings) + len(kept.trainings) + unknown
        metric, rows = _judge(of, self.learning.ledger, ended == wanted)
        return LearningComparison(metric, rows, ended, wanted, tuple(missing) if harvested else ())

    def __str__(self) -> str:
        wanted = len(self.learnt.trainings) + 2 * len(self.functions) * len(self.seeds)
        learnt, kept = self.learning.ledger.task.name, self.keeping.ledger.task.name
        return (
            f"{len(self.functions)} functions, learnt in task {learnt}, frozen and plain in task {kept}, on "
            f"{len(self.seeds)} fresh seeds: {wanted:,} trials, {len(self.harvest)} of each to learn what is frozen"
        )


def plan_comparison(learning: Side, keeping: Side, choice: Choice, version: str | None) -> LearningPlan:
    """Choose what is compared; see `Study.compare_learning`.

    Args:
        learning: the task that learns constants.
        keeping: the same task without.
        choice: which functions, of the search on the first task or by name, and on how many seeds.
        version: of the first task's code; results of another one do not count.

    Raises:
        InputError: there is nothing to compare.
    """
    names = choice.functions
    if not names:
        of_version = learning.ledger.counts_as(version)
        records = [record for record in learning.ledger.records() if of_version(record)]
        believed = learning.queue.believed(learning.other_versions)
        goal = learning.ledger.goal
        ranked = rank_in_turn(rank_functions(done_in_search(records), goal), believed, goal)
        names = [ranking.name for ranking in ranked[: choice.top]]
    if not names:
        raise InputError("nothing has been trained yet; search first, or name functions to compare")
    return LearningPlan(
        learning,
        keeping,
        {name: name if parse(name).constants else str(parametrised(name)) for name in names},
        confirmation_seeds(learning.queue.settings.seed, choice.seeds),
        fresh_seeds(learning.queue.settings.seed, HARVEST, _HARVEST_SEEDS),
    )


def _frozen(name: str, records: Sequence[Record]) -> str | None:
    """A function with the means of its constants over layers, channels and trainings, where any were returned."""
    learnt: dict[int, list[float]] = {}
    for record in records:
        for metric, value in record.metrics.items():
            if (found := _LEARNT.fullmatch(metric)) and isinstance(value, int | float) and math.isfinite(value):
                learnt.setdefault(int(found[1]), []).append(float(value))
    if set(learnt) != set(range(len(parse(name).constants))):
        return None
    means = (math.fsum(learnt[i]) / len(learnt[i]) for i in sorted(learnt))
    return WRITTEN.sub(lambda _: text_of(to_float32(float(f"{next(means):.{_DIGITS}g}"))), name)


def _judge(
    of: Mapping[tuple[str, Way], tuple[str, Sequence[Record | None]]], ledger: Ledger, complete: bool
) -> tuple[str, list[Compared]]:
    """The metric, and a row for each function and way; differences are to the plain function of the same name."""
    done = [r for _, records in of.values() for r in records if r is not None and r.status is Status.DONE]
    test = test_metric_of(ledger.objective)
    metric = test if done and all(has_metric(r, test) for r in done) else ledger.objective
    values = {key: np.array([value_of(record, metric) for record in records]) for key, (_, records) in of.items()}
    whole = np.array([row for row in values.values() if np.isfinite(row).all()])
    half = half_width(whole, sum(way != "plain" for _, way in of))
    rows = []
    for (function, way), (name, records) in of.items():
        own, plain = values[function, way], values[function, "plain"]
        ended = sum(record is not None for record in records)
        compared = _difference(own, plain, half, ledger.sign, way == "plain", complete)
        failed = ended - int(np.isfinite(own).sum())
        rows.append(
            Compared(name, *interval_of(own[np.isfinite(own)]), *compared, ended - failed, failed, function, way)
        )
    return metric, rows


def _difference(
    own: Float[np.ndarray, " S"],
    plain: Float[np.ndarray, " S"],
    half: float,
    sign: int,
    is_plain: bool,
    complete: bool,
) -> tuple[float, float, float, Verdict]:
    """The difference to the plain way, its interval and the verdict."""
    if is_plain or not complete:
        return math.nan, math.nan, math.nan, "reference" if is_plain else "incomplete"
    difference, low, high = difference_of(own, plain, half)
    finished = bool(np.isfinite(own).all() and np.isfinite(plain).all())
    return difference, low, high, verdict_of(False, finished, sign, (low, high))
