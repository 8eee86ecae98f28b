"""A function as a formula of one line, for a terminal."""

from __future__ import annotations

from aqx.export.forms import ATOM, POWER, PRODUCT, SUM, Table, Text, Writer
from aqx.operators import operator_table
from aqx.tree import Tree, parse

# `{all}` stands for the arguments of an n-ary operator.
FORMULA: Table = {
    "zero": "0",
    "one": "1",
    "identity": "{0}",
    "negative": (SUM, "−{0:1}"),
    "abs": "|{0}|",
    "reciprocal": (PRODUCT, "1/{0:2}"),
    "square": (POWER, "{0:3}²"),
    "exp": "exp({0})",
    "erf": "erf({0})",
    "erfc": "erfc({0})",
    "sinh": "sinh({0})",
    "cosh": "cosh({0})",
    "tanh": "tanh({0})",
    "expm1": (SUM, "exp({0}) − 1"),
    "sigmoid": "σ({0})",
    "log_sigmoid": "log(σ({0}))",
    "arcsinh": "arcsinh({0})",
    "arctan": "arctan({0})",
    "bessel_i0e": (PRODUCT, "exp(−|{0}|)·I₀({0})"),
    "bessel_i1e": (PRODUCT, "exp(−|{0}|)·I₁({0})"),
    "relu": "max(0, {0})",
    "elu": "elu({0})",
    "selu": "selu({0})",
    "swish": (PRODUCT, "{0:1}·σ({0})"),
    "softplus": "log(1 + exp({0}))",
    "softsign": (PRODUCT, "{0:1}/(1 + |{0}|)"),
    "hard_sigmoid": "clip(0.2·{0:1} + 0.5, 0, 1)",
    "elish": (PRODUCT, "elu({0})·σ({0})"),
    "leakyrelu": "max(0.01·{0:1}, {0})",
    "mish": (PRODUCT, "{0:1}·tanh(log(1 + exp({0})))"),
    "gelu": (PRODUCT, "{0:1}·Φ({0})"),
    "sin": "sin({0})",
    "cos": "cos({0})",
    "sqrt_abs": (POWER, "√|{0}|"),
    "log1p_abs": "log(1 + |{0}|)",
    "cube": (POWER, "{0:3}³"),
    "gaussian": "exp(−{0:3}²)",
    "squareplus": (PRODUCT, "({0:0} + √({0:3}² + 4))/2"),
    "isru": (PRODUCT, "{0:1}/√(1 + {0:3}²)"),
    "relu6": "min(max(0, {0}), 6)",
    "relu_squared": (POWER, "max(0, {0})²"),
    "hard_swish": (PRODUCT, "{0:1}·clip({0} + 3, 0, 6)/6"),
    "hard_tanh": "clip({0}, −1, 1)",
    "add": (SUM, "{0} + {1:1}"),
    "sub": (SUM, "{0} − {1:1}"),
    "mul": (PRODUCT, "{0:1}·{1:1}"),
    "div": (PRODUCT, "{0:1}/{1:2}"),
    "pow": (POWER, "{0:3}^{1:3}"),
    "max": "max({0}, {1})",
    "min": "min({0}, {1})",
    "sum_n": (SUM, "{0} + {1:1}"),
    "prod_n": (PRODUCT, "{0:1}·{1:1}"),
    "max_n": "max({all})",
    "min_n": "min({all})",
}


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
    return FormulaWriter(FORMULA).write(parse(function)).text


class FormulaWriter(Writer):
    """Writes formulas, in which a long argument is not repeated."""

    longest = 12  # argument that is written twice

    def operation(self, tree: Tree, args: list[Text]) -> Text:
        """Return the text of an operator with its arguments."""
        form = self.table.get(tree.name)
        template = form[1] if isinstance(form, tuple) else form
        repeats = template is not None and template.count("{0") > 1 and len(args[0].text) > self.longest
        if template is None or repeats:
            return self.text(self.call(tree.name, args), ATOM)
        if "{all}" in template and len(args) > 1:
            return self.text(template.replace("{all}", ", ".join(arg.text for arg in args)))
        if operator_table().by_name[tree.name].kind == "n-ary" and len(args) == 1:
            return args[0]
        return super().operation(tree, args)

    def call(self, name: str, args: list[Text]) -> str:
        """Return an operator's name with its arguments in parentheses."""
        return f"{name}({', '.join(arg.text for arg in args)})"
