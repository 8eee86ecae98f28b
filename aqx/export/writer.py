"""Write a tree by the forms of its operators, with no more parentheses than needed."""

from __future__ import annotations

from dataclasses import dataclass

from aqx.errors import UnsupportedError
from aqx.export.forms import ATOM, FORMS, SUM, Language
from aqx.operators import operator_table
from aqx.tree import Tree, is_number


@dataclass(frozen=True)
class Text:
    """A piece of an expression and how tightly it holds together: `{0:2}` adds parentheses to what is below 2."""

    text: str
    level: int = ATOM

    def __format__(self, needed: str) -> str:
        return self.in_parentheses() if self.level < int(needed or 0) else self.text

    def in_parentheses(self) -> str:
        """Return the text as an atom."""
        return f"({self.text})"


class Writer:
    """Writes trees in a language; an n-ary operator folds its form of two arguments from left to right."""

    text: type[Text] = Text

    def __init__(self, language: Language):
        self.language: Language = language
        self._written: dict[Tree, Text] = {}

    def write(self, tree: Tree) -> Text:
        """Return the text of a tree; of equal trees the same.

        Raises:
            UnsupportedError: an operator has no row of forms, as a user's own has none.
        """
        if not tree.args:
            return self.number(tree.name) if is_number(tree.name) else self.text(tree.name)
        if tree not in self._written:
            self._written[tree] = self.whole(tree, self.operation(tree, [self.write(arg) for arg in tree.args]))
        return self._written[tree]

    def number(self, text: str) -> Text:
        """Return the text of a constant."""
        return self.text(text, SUM if text[0] in "-−" else ATOM)

    def operation(self, tree: Tree, args: list[Text]) -> Text:
        """Return the text of an operator with its arguments."""
        if tree.name not in FORMS:
            raise UnsupportedError(
                f"operator {tree.name!r} is one that you registered: aqx has no source of it to export"
            )
        if len(args) == 1 and operator_table().by_name[tree.name].kind == "n-ary":
            return args[0]
        text = self.fill(tree.name, *args[:2])
        for arg in args[2:]:
            text = self.fill(tree.name, self.part(text), arg)
        return text

    def fill(self, name: str, *args: Text) -> Text:
        """Return an operator's form with its arguments put in."""
        level, template = FORMS[name].written_in(self.language)
        return args[0] if template == "{0}" else self.text(template.format(*args), level)

    def whole(self, tree: Tree, text: Text) -> Text:
        """See the text of each tree once, and return what to write in its place."""
        return text

    def part(self, text: Text) -> Text:
        """See each text in the midst of a fold, and return what to write in its place."""
        return text
