"""The order of an enumeration: pieces of functions from the simplest name to the least simple one.

In this order the first function of a class that is met is the one that represents it, so that what is stored never has
to be changed. Simpler means fewer operators, then first in the alphabet.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aqx.constants import is_number
from aqx.evaluation import Batch, Family, batches_of
from aqx.tree import Tree, parse_schema


@dataclass(frozen=True)
class Piece:
    """Functions of one size that are evaluated and stored together.

    Attributes:
        size: the number of operators in each function.
        parts: batches, and the names of their functions, which ascend in each part.
        spans: for each family that has functions here, which of its indices, as (first, beyond the last); (0, 0) where
            they are single functions in no order.
    """

    size: int
    parts: tuple[tuple[Batch, list[str]], ...]
    spans: dict[Family, tuple[int, int]]

    def __len__(self) -> int:
        return sum(len(names) for _, names in self.parts)

    @property
    def in_order(self) -> bool:
        """Whether no simpler function comes in a later piece."""
        return any(stop for _, stop in self.spans.values())


def plan(families: Sequence[Family], trees: Iterable[Tree], done: Mapping[Family, int], most: int) -> Iterator[Piece]:
    """Yield the functions of families and single trees, piece by piece.

    Args:
        families: all different.
        trees: single functions, all different.
        done: how many functions of each family are stored, looked up anew for each piece.
        most: functions in a piece, at most.
    """
    of_size = {size: list(some) for size, some in itertools.groupby(sorted(trees, key=_simplicity), lambda t: t.size)}
    for size in sorted({*of_size, *(family.schema.size for family in families)}):
        yield from _tree_pieces(size, of_size.get(size, []), most)
        yield from _family_pieces(size, [family for family in families if family.schema.size == size], done, most)


def _simplicity(tree: Tree) -> tuple[int, str]:
    return tree.size, str(tree)


def _tree_pieces(size: int, trees: Sequence[Tree], most: int) -> Iterator[Piece]:
    for start in range(0, len(trees), most):
        part = trees[start : start + most]
        of_shape = [([part[row] for row in rows], batch) for rows, batch in batches_of(part)]
        families = (
            Family(
                parse_schema(some[0].shape),
                tuple(sorted(batch.operators_used)),
                tuple(sorted({leaf for tree in some for leaf in tree.leaves if is_number(leaf)})),
            )
            for some, batch in of_shape
        )
        parts = tuple((batch, list(map(str, some))) for some, batch in of_shape)
        yield Piece(size, parts, dict.fromkeys(families, (0, 0)))


def _family_pieces(size: int, families: Sequence[Family], done: Mapping[Family, int], most: int) -> Iterator[Piece]:
    reached = dict.fromkeys(families, 0)
    while True:
        reached = {family: max(start, done.get(family, 0)) for family, start in reached.items()}
        starts = {family: start for family, start in reached.items() if start < family.size}
        if not starts:
            return
        stops = _next_stops(starts, most)
        spans = {family: (start, stops[family]) for family, start in starts.items() if start < stops[family]}
        indices = {family: np.arange(*span) for family, span in spans.items()}
        parts = tuple((family.batch(some), family.names(some)) for family, some in indices.items())
        yield Piece(size, parts, spans)
        reached |= stops


def _next_stops(starts: dict[Family, int], most: int) -> dict[Family, int]:
    """Where to stop in each family so that the functions up to there are those before some name, and not too many."""
    step = most
    while True:
        borders = [family.name(start + step) for family, start in starts.items() if start + step < family.size]
        if not borders:
            stops = {family: family.size for family in starts}
        else:
            border = min(borders)
            stops = {
                family: family.first_at_least(border, start, min(start + step, family.size))
                for family, start in starts.items()
            }
        total = sum(stops[family] - start for family, start in starts.items())
        if total <= most or step == 1:
            return stops
        step = max(step * most // total, 1) if borders else max(step // 2, 1)
