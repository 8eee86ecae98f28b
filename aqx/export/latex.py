r"""A function as a LaTeX formula, in what matplotlib's mathtext can draw too: no environments, no `\text`."""

from __future__ import annotations

from aqx.export.forms import POWER, PRODUCT, SUM, Table, Text
from aqx.export.formula import FormulaWriter
from aqx.tree import Tree, parse


def _of(name: str, argument: str = "{0}") -> str:
    return rf"{name}\left({argument}\right)"


def _named(name: str) -> str:
    return rf"\mathrm{{{{{name}}}}}"


_SIGMA, _ONE_PLUS_EXP = _of(r"\sigma"), r"1 + e^{{{0}}}"
LATEX: Table = {
    "zero": "0",
    "one": "1",
    "identity": "{0}",
    "negative": (SUM, "-{0:1}"),
    "abs": r"\left|{0}\right|",
    "reciprocal": (PRODUCT, r"\frac{{1}}{{{0}}}"),
    "square": (POWER, "{0:3}^{{2}}"),
    "exp": (POWER, "e^{{{0}}}"),
    "erf": _of(_named("erf")),
    "erfc": _of(_named("erfc")),
    "sinh": _of(r"\sinh"),
    "cosh": _of(r"\cosh"),
    "tanh": _of(r"\tanh"),
    "expm1": (SUM, "e^{{{0}}} - 1"),
    "sigmoid": _SIGMA,
    "log_sigmoid": _of(r"\log", _SIGMA),
    "arcsinh": _of(_named("arsinh")),
    "arctan": _of(r"\arctan"),
    "bessel_i0e": (PRODUCT, r"e^{{-\left|{0}\right|}} I_{{0}}" + _of("")),
    "bessel_i1e": (PRODUCT, r"e^{{-\left|{0}\right|}} I_{{1}}" + _of("")),
    "relu": _of(r"\max", "0, {0}"),
    "elu": _of(_named("elu")),
    "selu": _of(_named("selu")),
    "swish": (PRODUCT, r"{0:1} \, " + _SIGMA),
    "softplus": _of(r"\log", _ONE_PLUS_EXP),
    "softsign": (PRODUCT, r"\frac{{{0}}}{{1 + \left|{0}\right|}}"),
    "hard_sigmoid": _of(_named("clip"), r"0.2 \, {0:1} + 0.5, 0, 1"),
    "elish": (PRODUCT, _of(_named("elu")) + r" \, " + _SIGMA),
    "leakyrelu": _of(r"\max", r"0.01 \, {0:1}, {0}"),
    "mish": (PRODUCT, r"{0:1} \, " + _of(r"\tanh", _of(r"\log", _ONE_PLUS_EXP))),
    "gelu": (PRODUCT, r"{0:1} \, " + _of(r"\Phi")),
    "sin": _of(r"\sin"),
    "cos": _of(r"\cos"),
    "sqrt_abs": r"\sqrt{{\left|{0}\right|}}",
    "log1p_abs": _of(r"\log", r"1 + \left|{0}\right|"),
    "cube": (POWER, "{0:3}^{{3}}"),
    "gaussian": (POWER, "e^{{-{0:3}^{{2}}}}"),
    "squareplus": (PRODUCT, r"\frac{{{0} + \sqrt{{{0:3}^{{2}} + 4}}}}{{2}}"),
    "isru": (PRODUCT, r"\frac{{{0}}}{{\sqrt{{1 + {0:3}^{{2}}}}}}"),
    "relu6": _of(r"\min", _of(r"\max", "0, {0}") + ", 6"),
    "relu_squared": (POWER, _of(r"\max", "0, {0}") + "^{{2}}"),
    "hard_swish": (PRODUCT, r"\frac{{{0:1} \, " + _of(_named("clip"), "{0} + 3, 0, 6") + "}}{{6}}"),
    "hard_tanh": _of(_named("clip"), "{0}, -1, 1"),
    "add": (SUM, "{0} + {1:1}"),
    "sub": (SUM, "{0} - {1:1}"),
    "mul": (PRODUCT, r"{0:1} \, {1:1}"),
    "div": (PRODUCT, r"\frac{{{0}}}{{{1}}}"),
    "pow": (POWER, "{0:3}^{{{1}}}"),
    "max": _of(r"\max", "{0}, {1}"),
    "min": _of(r"\min", "{0}, {1}"),
    "sum_n": (SUM, "{0} + {1:1}"),
    "prod_n": (PRODUCT, r"{0:1} \, {1:1}"),
    "max_n": r"\max\left({all}\right)",
    "min_n": r"\min\left({all}\right)",
}


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
    return _LatexWriter(LATEX).write(parse(function)).text


class _LatexText(Text):
    def in_parentheses(self) -> str:
        return rf"\left({self.text}\right)"


class _LatexWriter(FormulaWriter):
    text = _LatexText
    longest = 24

    def call(self, name: str, args: list[Text]) -> str:
        upright = name.replace("_", r"\_")
        return rf"\mathrm{{{upright}}}\left({', '.join(arg.text for arg in args)}\right)"
