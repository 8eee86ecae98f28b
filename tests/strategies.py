"""Random trees and schemas for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from aqx.operators import KINDS, operator_names, operator_table
from aqx.tree import Tree

LEAF = Tree("x")


def numbers() -> st.SearchStrategy[float]:
    """What a constant may be: all that float32 holds, and more often what people write."""
    return st.sampled_from([0.5, -1.0, 2.0, 0.25, 1.702, 0.0]) | st.floats(
        allow_nan=False, allow_infinity=False, width=32
    )


def trees(
    operators="extended", max_leaves: int = 8, constants: bool = False, gated: bool = False
) -> st.SearchStrategy[Tree]:
    """Functions over a set of operators, `x` alone among them; with numbers, or y, for leaves too, if asked."""
    leaves = st.just(LEAF) | numbers().map(lambda number: Tree(repr(number))) if constants else st.just(LEAF)
    found = _trees(
        {name: operator_table().by_name[name].kind for name in operator_names(operators)},
        max_leaves,
        leaves | st.just(Tree("y")) if gated else leaves,
    )
    return found.filter(lambda tree: tree.name != "y") if gated else found


def schemas(operators="extended", max_leaves: int = 6) -> st.SearchStrategy[Tree]:
    """Schemas: kinds and operators mixed."""
    kinds = {name: operator_table().by_name[name].kind for name in operator_names(operators)}
    return _trees(kinds | {kind: kind for kind in KINDS} if kinds else {}, max_leaves)


def _trees(kinds: dict, max_leaves: int, leaves: st.SearchStrategy[Tree] | None = None) -> st.SearchStrategy[Tree]:
    by_kind = {kind: sorted(name for name, its in kinds.items() if its == kind) for kind in KINDS}
    sizes = {"unary": (1, 1), "binary": (2, 2), "n-ary": (1, 4)}

    def grown(args: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        return st.one_of(
            [
                st.builds(Tree, st.sampled_from(names), st.lists(args, min_size=low, max_size=high).map(tuple))
                for (low, high), names in ((sizes[kind], names) for kind, names in by_kind.items() if names)
            ]
        )

    return st.recursive(leaves if leaves is not None else st.just(LEAF), grown, max_leaves=max_leaves)
