"""Local search as a policy of replayed searches: neighbours of the best so far, of which one operator is another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from aqx.surrogate import PRESETS, Preset
from aqx.tree import parse

# It needs no model: `climb` chooses.
LOCAL = Preset("local", PRESETS["random"].embed, None)


def neighbours(names: Sequence[str]) -> list[Int64[np.ndarray, " _"]]:
    """Find for each function those of the same shape that differ from it in one operator.

    Args:
        names: of the functions [C].

    Returns:
        The rows of each one's neighbours, ascending.

    Example:
        >>> from aqx.benchmark.local import neighbours
        >>> [rows.tolist() for rows in neighbours(["relu(tanh(x))", "abs(tanh(x))", "abs(sin(x))", "tanh(x)"])]
        [[1], [0, 2], [1], []]
    """
    groups: dict[tuple[str, int, tuple[str, ...]], list[int]] = {}
    keys_of: list[list[tuple[str, int, tuple[str, ...]]]] = []
    for row, name in enumerate(names):
        tree = parse(name)
        operators = tuple(node.name for node in tree.nodes)
        keys_of.append([(tree.shape, i, operators[:i] + operators[i + 1 :]) for i in range(len(operators))])
        for key in keys_of[-1]:
            groups.setdefault(key, []).append(row)
    return [
        np.array(sorted({other for key in keys for other in groups[key]} - {row}), np.int64)
        for row, keys in enumerate(keys_of)
    ]


def climb(
    near: Sequence[Int64[np.ndarray, " _"]],
    seen: Float[np.ndarray, " C"],
    first: Sequence[int],
    order: Int64[np.ndarray, " U"],
    evaluations: int,
    random: np.random.Generator,
) -> Int64[np.ndarray, " E"]:
    """Search locally: evaluate a neighbour of the best so far that is left, else one of the next best.

    Args:
        near: the neighbours of each class.
        seen: what each class gives, higher is better.
        first: rows evaluated first.
        order: rows that may be evaluated, in a random order, for when no neighbour is left.
        evaluations: how many.
        random: chooses among neighbours.

    Returns:
        The rows in the order in which they are evaluated.
    """
    rows, left = list(first), set(order.tolist()).difference(first)
    while len(rows) < evaluations:
        ranked = sorted(rows, key=lambda row: seen[row] if np.isfinite(seen[row]) else -np.inf, reverse=True)
        options = next((some for row in ranked if (some := [o for o in near[row].tolist() if o in left])), None)
        chosen = int(random.choice(options)) if options else next(row for row in order.tolist() if row in left)
        rows.append(chosen)
        left.remove(chosen)
    return np.array(rows, np.int64)
