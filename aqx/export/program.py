"""Turn a tree into the statements of a function: long parts get names, and what occurs twice is computed once."""

from __future__ import annotations

from collections import Counter

from aqx.export.forms import Table, Text, Writer
from aqx.tree import Tree

# The longest argument that stays in its place, beside no other and beside one: lines fit, and nesting, which Python
# limits, is bounded.
_LONGEST = {1: 68, 2: 40}


def statements(tree: Tree, table: Table) -> list[str]:
    """Return the body of a function of x: assignments of local names, and the return of the tree's value."""
    writer = _Program(tree, table)
    result = writer.write(tree)
    return [*writer.assignments, f"return {result}"]


class _Program(Writer):
    def __init__(self, tree: Tree, table: Table):
        super().__init__(table)
        self.assignments: list[str] = []
        uses = Counter(arg for node in {tree, *tree.nodes} for arg in node.args)
        self.shared = {tree for tree, count in uses.items() if count > 1 and tree.args}

    def whole(self, tree: Tree, text: Text) -> Text:
        return self.named(text) if tree in self.shared and not text.text.isidentifier() else text

    def operation(self, tree: Tree, args: list[Text]) -> Text:
        return super().operation(tree, [self.short(arg, len(args)) for arg in args])

    def part(self, text: Text) -> Text:
        return self.short(text, 2)

    def short(self, text: Text, beside: int) -> Text:
        return self.named(text) if len(text.text) > _LONGEST[min(beside, 2)] else text

    def named(self, text: Text) -> Text:
        name = f"y{len(self.assignments) + 1}"
        self.assignments.append(f"{name} = {text}")
        return Text(name)
