"""A function as a formula: in Unicode for a terminal, in LaTeX for a paper."""

from __future__ import annotations

from aqx.export.forms import FORMS, PRODUCT, SUM
from aqx.export.writer import Text, Writer
from aqx.tree import Tree, parse


def formula(function: str | Tree) -> str:
    """Write a function as a formula of one line.

    Where an operator's definition would repeat a long argument, its name is written: `swish(x)` is `x·σ(x)`, but
    `swish(…)` of something long stays so. Operators of your own are written by name too.

    Args:
        function: a name, such as `max(relu(x),cosh(elu(x)))`, or a `Tree`.

    Returns:
        The formula, in Unicode.

    Raises:
        ParseError: the name does not parse.

    Example:
        >>> from aqx.export import formula
        >>> print(formula("max(relu(x),cosh(elu(x)))"))
        max(max(0, x), cosh(elu(x)))
    """
    return _FormulaWriter("formula").write(parse(function)).text


def latex(function: str | Tree) -> str:
    r"""Write a function as a LaTeX formula, without dollar signs.

    Φ is the normal distribution function, σ the sigmoid, clip(x, a, b) = min(max(x, a), b).

    Args:
        function: a name, such as `max(relu(x),cosh(elu(x)))`, or a `Tree`.

    Returns:
        The formula's LaTeX source.

    Raises:
        ParseError: the name does not parse.

    Example:
        >>> from aqx.export import latex
        >>> print(latex("div(square(x),exp(x))"))
        \frac{x^{2}}{e^{x}}
    """
    return _LatexWriter("latex").write(parse(function)).text


class _FormulaWriter(Writer):
    """Writes formulas: a long argument is not repeated, and an operator without forms stands by its name."""

    longest = 12  # argument that is written twice

    def number(self, text: str) -> Text:
        return super().number(text.removesuffix(".0").replace("-", "−"))

    def operation(self, tree: Tree, args: list[Text]) -> Text:
        if tree.name not in FORMS:
            return self.text(self.call(tree.name, args))
        _, template = FORMS[tree.name].written_in(self.language)
        if template.count("{0") > 1 and len(args[0].text) > self.longest:
            return self.text(self.call(tree.name, args))
        if "{all}" in template and len(args) > 1:
            return self.text(template.replace("{all}", ", ".join(arg.text for arg in args)))
        return super().operation(tree, args)

    def call(self, name: str, args: list[Text]) -> str:
        return f"{name}({', '.join(arg.text for arg in args)})"


class _LatexText(Text):
    def in_parentheses(self) -> str:
        return rf"\left({self.text}\right)"


class _LatexWriter(_FormulaWriter):
    text = _LatexText
    longest = 24

    def number(self, text: str) -> Text:
        digits, _, exponent = text.removesuffix(".0").partition("e")
        if not exponent:
            return Writer.number(self, digits)
        return self.text(rf"{digits} \cdot 10^{{{int(exponent)}}}", SUM if digits.startswith("-") else PRODUCT)

    def fill(self, name: str, *args: Text) -> Text:
        # Two numbers with nothing between them would be one.
        filled = super().fill(name, *args)
        if len(args) > 1 and args[1].text[0].isdigit():
            return self.text(filled.text.replace(rf" \, {args[1].text}", rf" \cdot {args[1].text}"), filled.level)
        return filled

    def call(self, name: str, args: list[Text]) -> str:
        upright = name.replace("_", r"\_")
        return rf"\mathrm{{{upright}}}\left({', '.join(arg.text for arg in args)}\right)"
