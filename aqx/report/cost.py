"""Results against costs: which functions are the best for what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from aqx.search import Ledger
from aqx.simplify import simplest


def result_and_cost(results: Ledger) -> dict[str, Any] | None:
    """Return what the page shows of costs: a point for each function with a result, and which of them are the front.

    None where no costs are stored. Of several devices it is the one that was measured last.

    Args:
        results: of the search.
    """
    ranking = results.with_costs(results.ranking)
    devices = list(dict.fromkeys(device for one in ranking for device in one.costs))
    known = [one for one in ranking if devices and devices[0] in one.costs]
    if not known:
        return None
    costs = np.array([one.costs[devices[0]] for one in known])
    values = np.array([one.objective for one in known])
    front = on_front(costs, results.sign * values)
    points = [
        {
            "name": simplest(one.name),
            "cost": float(cost),
            "result": one.objective,
            "baseline": one.class_id in results.baselines,
            "front": bool(is_on_it),
        }
        for one, cost, is_on_it in zip(known, costs, front, strict=True)
    ]
    note = (
        f"Results of the search against what value and gradient cost on {devices[0]}, relative to ReLU's: "
        "a sum over the operators. The line joins those than which none is both cheaper and better."
    )
    return {"points": sorted(points, key=lambda point: point["cost"]), "note": note}


def on_front(costs: Float[np.ndarray, " F"], gains: Float[np.ndarray, " F"]) -> Bool[np.ndarray, " F"]:
    """Return which functions are on the Pareto front: no other is as cheap and as good, and better in one of the two.

    Args:
        costs: of each function [F].
        gains: of each, the higher the better [F].

    Example:
        >>> import numpy as np
        >>> from aqx.report.cost import on_front
        >>> on_front(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.5, 0.7, 0.6, 0.7])).tolist()
        [True, True, False, False]
    """
    front = np.zeros(len(costs), bool)
    best = -np.inf
    for cost in np.unique(costs):
        here = np.flatnonzero(costs == cost)
        most = gains[here].max()
        if most > best:
            front[here[gains[here] == most]] = True
            best = most
    return front
