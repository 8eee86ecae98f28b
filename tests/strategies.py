"""Random trees and schemas for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from aqx.operators import KINDS, operator_names, operator_table
from aqx.tree import Tree

LEAF = Tree("x")


def trees(operators="extended", max_leaves: int = 8) -> st.SearchStrategy[Tree]:
    """Functions over a set of operators, `x` alone among them."""
    return _trees({name: operator_table().by_name[name].kind for name in operator_names(operators)}, max_leaves)


def schemas(operators="extended", max_leaves: int = 6) -> st.SearchStrategy[Tree]:
    """Schemas: kinds and operators mixed."""
    kinds = {name: operator_table().by_name[name].kind for name in operator_names(operators)}
    return _trees(kinds | {kind: kind for kind in KINDS} if kinds else {}, max_leaves)


def _trees(kinds: dict, max_leaves: int) -> st.SearchStrategy[Tree]:
    by_kind = {kind: sorted(name for name, its in kinds.items() if its == kind) for kind in KINDS}
    sizes = {"unary": (1, 1), "binary": (2, 2), "n-ary": (1, 4)}

    def grown(args: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        return st.one_of(
            [
                st.builds(Tree, st.sampled_from(names), st.lists(args, min_size=low, max_size=high).map(tuple))
                for (low, high), names in ((sizes[kind], names) for kind, names in by_kind.items() if names)
            ]
        )

    return st.recursive(st.just(LEAF), grown, max_leaves=max_leaves)
