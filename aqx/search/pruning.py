"""Rules that stop hopeless trainings early, from the intermediate values of this training and of the others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aqx.errors import InputError

Curve = Sequence[tuple[int, float]]  # (step, value), steps ascending; higher values are better
Rule = Callable[[Curve, Sequence[Curve]], bool]  # of this training and the others
STARTUP = 5  # trainings that must have come as far before the median says anything
REDUCTION = 3  # successive halving keeps one in so many at each rung


def median(own: Curve, others: Sequence[Curve]) -> bool:
    """Return whether the best value so far is below the median of what the others had at this step.

    The median stopping rule (Golovin et al. 2017, Google Vizier, section 3.2.2, with the best value as there and the
    values of others at this step as in Optuna's). Before 5 others have come as far, nothing is stopped.

    Example:
        >>> others = [[(1, value)] for value in (0.1, 0.2, 0.3, 0.4, 0.5)]
        >>> median([(1, 0.29)], others), median([(1, 0.31)], others)
        (True, False)
    """
    step = own[-1][0]
    at_step = [value for curve in others if (value := _value_at(curve, step)) is not None]
    if len(at_step) < STARTUP:
        return False
    return max((value for _, value in own if math.isfinite(value)), default=-math.inf) < statistics.median(at_step)


def halving(own: Curve, others: Sequence[Curve]) -> bool:
    """Return whether a training that reaches a rung is not among the best third of those that have reached it.

    Rungs lie at steps 1, 3, 9, 27 …: asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel
    Hyperparameter Tuning", algorithm 2) in the form that stops trainings and never pauses them. The first two to reach
    a rung go on.

    Example:
        >>> others = [[(1, 0.1)], [(1, 0.2)], [(1, 0.3)], [(1, 0.4)], [(1, 0.5)]]
        >>> halving([(1, 0.35)], others), halving([(1, 0.45)], others)
        (True, False)
    """
    before = own[-2][0] if len(own) > 1 else 0
    rung = _highest_rung(own[-1][0])
    if rung is None or before >= rung:
        return False
    value = own[-1][1]
    reached = [other for curve in others if (other := _first_from(curve, rung)) is not None]
    better = sum(other > value for other in reached)
    return len(reached) + 1 >= REDUCTION and better >= math.ceil((len(reached) + 1) / REDUCTION)


def never(own: Curve, others: Sequence[Curve]) -> bool:
    """Stop nothing."""
    return False


RULES: dict[str, Rule] = {"median": median, "halving": halving, "never": never}


def rule_of(name: str) -> Rule:
    """Return the rule of this name.

    Raises:
        InputError: there is none.
    """
    if name not in RULES:
        raise InputError(f"pruner={name!r} is unknown; give one of {', '.join(RULES)}")
    return RULES[name]


def curve_of(metrics: Mapping[str, Any], objective: str, sign: int) -> list[tuple[int, float]]:
    """Return a training's intermediate values, higher is better, from its metrics; what is no number is left out."""
    return curve(metrics.get(f"{objective}_by_step"), sign)


def curve(points: Any, sign: int) -> list[tuple[int, float]]:
    """Return intermediate values, higher is better, from lists of [step, value]; what is no number is left out."""
    found: dict[int, float] = {}
    for point in points if isinstance(points, list) else ():
        match point:
            case [int() as step, int() | float() as value]:
                found[step] = sign * float(value)
            case _:
                pass
    return sorted(found.items())


def _value_at(curve: Curve, step: int) -> float | None:
    """The last value up to a step; None where the training never came as far, and where the value is not a number."""
    if not curve or curve[-1][0] < step:
        return None
    value = [value for at, value in curve if at <= step]
    return value[-1] if value and not math.isnan(value[-1]) else None


def _first_from(curve: Curve, rung: int) -> float | None:
    """The value with which a training reached a rung; None where it has not, or with nan."""
    return next((value for at, value in curve if at >= rung and not math.isnan(value)), None)


def _highest_rung(step: int) -> int | None:
    rung = 1
    while rung * REDUCTION <= step:
        rung *= REDUCTION
    return rung if step >= 1 else None
