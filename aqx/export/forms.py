"""How each operator is written everywhere: one row per operator, with a cell for every target.

A new operator is two places: the table of operators (aqx/operators.py) and its row here. What a row calls by a name
with an underscore is a helper function: of the framework's library (aqx/export/library), for JAX of aqx's own numerics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SUM, PRODUCT, POWER, ATOM = range(4)  # how tightly a text holds together
Form = str | tuple[int, str]  # a form without a number is an atom
Language = Literal["numpy", "jax", "torch", "keras", "formula", "latex"]
LIBRARIES = {"numpy": "np", "jax": "jnp", "torch": "torch", "keras": "ops"}  # the framework's module in its source


@dataclass(frozen=True, kw_only=True)
class Forms:
    r"""The forms of one operator: templates, in which `{0}` and `{1}` stand for its arguments.

    A number after a colon says how tightly the argument must hold together there, and a form with a number holds
    together as tightly as that; `aqx.export.writer` adds the parentheses. An n-ary operator has the form of the
    operator of two arguments that it folds from left to right; in formulas, `{all}` may stand for all its arguments.

    Attributes:
        code: in Python, `{lib}` standing for the framework's module: np, jnp, torch or ops.
        formula: in Unicode.
        latex: in what matplotlib's mathtext can draw too: no environments, no `\text`.
        javascript: a function of numbers, made of what aqx/export/javascript.py defines; its braces are its own.
        numpy: where it differs from `code`; the source has values alone.
        jax: where it differs from `code`; Flax has the same.
        torch: where it differs from `code`.
        keras: where it differs from `code`.
    """

    code: Form
    formula: Form
    latex: Form
    javascript: str
    numpy: Form | None = None
    jax: Form | None = None
    torch: Form | None = None
    keras: Form | None = None

    def written_in(self, language: Language) -> tuple[int, str]:
        """Return the form for a language: how tightly it holds together, and its template."""
        own: Form | None = getattr(self, language)
        form = self.code if own is None else own
        level, template = form if isinstance(form, tuple) else (ATOM, form)
        return level, template.replace("{lib}", LIBRARIES.get(language, ""))


def _of(name: str, argument: str = "{0}") -> str:
    return rf"{name}\left({argument}\right)"


def _named(name: str) -> str:
    return rf"\mathrm{{{{{name}}}}}"


_SIGMA, _ONE_PLUS_EXP = _of(r"\sigma"), r"1 + e^{{{0}}}"

FORMS: dict[str, Forms] = {
    "zero": Forms(code="{lib}.zeros_like({0})", formula="0", latex="0", javascript="x => 0"),
    "one": Forms(code="{lib}.ones_like({0})", formula="1", latex="1", javascript="x => 1"),
    "identity": Forms(code="{0}", formula="{0}", latex="{0}", javascript="x => x"),
    "negative": Forms(code=(SUM, "-{0:1}"), formula=(SUM, "−{0:1}"), latex=(SUM, "-{0:1}"), javascript="x => -x"),
    "abs": Forms(
        code="{lib}.abs({0})",
        jax="_absolute({0})",
        keras="_abs({0})",
        formula="|{0}|",
        latex=r"\left|{0}\right|",
        javascript="Math.abs",
    ),
    "reciprocal": Forms(
        code=(PRODUCT, "1 / {0:2}"),
        jax="_reciprocal({0})",
        formula=(PRODUCT, "1/{0:2}"),
        latex=(PRODUCT, r"\frac{{1}}{{{0}}}"),
        javascript="x => 1 / x",
    ),
    "square": Forms(
        code="{lib}.square({0})", formula=(POWER, "{0:3}²"), latex=(POWER, "{0:3}^{{2}}"), javascript="x => x * x"
    ),
    "exp": Forms(code="{lib}.exp({0})", formula="exp({0})", latex=(POWER, "e^{{{0}}}"), javascript="Math.exp"),
    "erf": Forms(
        code="_erf({0})",
        torch="torch.erf({0})",
        keras="ops.erf({0})",
        formula="erf({0})",
        latex=_of(_named("erf")),
        javascript="erf",
    ),
    "erfc": Forms(
        code="_erfc({0})", torch="torch.erfc({0})", formula="erfc({0})", latex=_of(_named("erfc")), javascript="erfc"
    ),
    "sinh": Forms(
        code="{lib}.sinh({0})",
        jax="_sinh({0})",
        keras="_sinh({0})",
        formula="sinh({0})",
        latex=_of(r"\sinh"),
        javascript="Math.sinh",
    ),
    "cosh": Forms(
        code="{lib}.cosh({0})",
        jax="_cosh({0})",
        keras="_cosh({0})",
        formula="cosh({0})",
        latex=_of(r"\cosh"),
        javascript="Math.cosh",
    ),
    "tanh": Forms(
        code="_tanh({0})", numpy="np.tanh({0})", formula="tanh({0})", latex=_of(r"\tanh"), javascript="Math.tanh"
    ),
    "expm1": Forms(
        code="_expm1({0})",
        numpy="np.expm1({0})",
        formula=(SUM, "exp({0}) − 1"),
        latex=(SUM, "e^{{{0}}} - 1"),
        javascript="expm1",
    ),
    "sigmoid": Forms(code="_sigmoid({0})", formula="σ({0})", latex=_SIGMA, javascript="sigmoid"),
    "log_sigmoid": Forms(
        code=(SUM, "-_softplus(-{0:1})"),
        jax="_log_sigmoid({0})",
        formula="log(σ({0}))",
        latex=_of(r"\log", _SIGMA),
        javascript="x => -softplus(-x)",
    ),
    "arcsinh": Forms(
        code="{lib}.arcsinh({0})",
        jax="_arcsinh({0})",
        torch="torch.asinh({0})",
        formula="arcsinh({0})",
        latex=_of(_named("arsinh")),
        javascript="Math.asinh",
    ),
    "arctan": Forms(
        code="{lib}.arctan({0})",
        jax="_arctan({0})",
        torch="torch.atan({0})",
        formula="arctan({0})",
        latex=_of(r"\arctan"),
        javascript="Math.atan",
    ),
    "bessel_i0e": Forms(
        code="_bessel_i0e({0})",
        formula=(PRODUCT, "exp(−|{0}|)·I₀({0})"),
        latex=(PRODUCT, r"e^{{-\left|{0}\right|}} I_{{0}}" + _of("")),
        javascript="x => (x = bessel(x), chebyshev(I0E, (x - 4) / (x + 4)) / Math.sqrt(1 + 2 * x))",
    ),
    "bessel_i1e": Forms(
        code="_bessel_i1e({0})",
        formula=(PRODUCT, "exp(−|{0}|)·I₁({0})"),
        latex=(PRODUCT, r"e^{{-\left|{0}\right|}} I_{{1}}" + _of("")),
        javascript="x => { const a = bessel(x), s = 1 / (1 + 2 * a);"
        " return chebyshev(I1E, (a - 4) / (a + 4)) * (Math.sign(x) * a * s) * Math.sqrt(s); }",
    ),
    "relu": Forms(
        code="{lib}.relu({0})",
        numpy="np.maximum({0}, 0)",
        jax="jax.nn.relu({0})",
        formula="max(0, {0})",
        latex=_of(r"\max", "0, {0}"),
        javascript="x => Math.max(x, 0)",
    ),
    "elu": Forms(code="_elu({0})", formula="elu({0})", latex=_of(_named("elu")), javascript="elu"),
    "selu": Forms(
        code="_selu({0})",
        formula="selu({0})",
        latex=_of(_named("selu")),
        javascript="x => 1.0507009873554805 * (x > 0 ? x : 1.6732632423543772 * expm1(x))",
    ),
    "swish": Forms(
        code="_swish({0})",
        formula=(PRODUCT, "{0:1}·σ({0})"),
        latex=(PRODUCT, r"{0:1} \, " + _SIGMA),
        javascript="x => far(x) * sigmoid(x)",
    ),
    "softplus": Forms(
        code="_softplus({0})", formula="log(1 + exp({0}))", latex=_of(r"\log", _ONE_PLUS_EXP), javascript="softplus"
    ),
    "softsign": Forms(
        code="_softsign({0})",
        formula=(PRODUCT, "{0:1}/(1 + |{0}|)"),
        latex=(PRODUCT, r"\frac{{{0}}}{{1 + \left|{0}\right|}}"),
        javascript="x => (x = finite(x)) / (1 + Math.abs(x))",
    ),
    "hard_sigmoid": Forms(
        code="_clip(0.2 * ({0} + 2.5), 0.0, 1.0)",
        numpy="np.clip(0.2 * ({0} + 2.5), 0, 1)",
        jax="_hard_sigmoid({0})",
        formula="clip(0.2·{0:1} + 0.5, 0, 1)",
        latex=_of(_named("clip"), r"0.2 \, {0:1} + 0.5, 0, 1"),
        javascript="x => clip(0.2 * (x + 2.5), 0, 1)",
    ),
    "elish": Forms(
        code="_elish({0})",
        formula=(PRODUCT, "elu({0})·σ({0})"),
        latex=(PRODUCT, _of(_named("elu")) + r" \, " + _SIGMA),
        javascript="x => elu(x) * sigmoid(x)",
    ),
    "leakyrelu": Forms(
        code="_leakyrelu({0})",
        jax="_leaky_relu({0})",
        formula="max(0.01·{0:1}, {0})",
        latex=_of(r"\max", r"0.01 \, {0:1}, {0}"),
        javascript="x => x > 0 ? x : 0.01 * x",
    ),
    "mish": Forms(
        code="_mish({0})",
        formula=(PRODUCT, "{0:1}·tanh(log(1 + exp({0})))"),
        latex=(PRODUCT, r"{0:1} \, " + _of(r"\tanh", _of(r"\log", _ONE_PLUS_EXP))),
        javascript="x => far(x) * Math.tanh(softplus(x))",
    ),
    "gelu": Forms(
        code="_gelu({0})",
        formula=(PRODUCT, "{0:1}·Φ({0})"),
        latex=(PRODUCT, r"{0:1} \, " + _of(r"\Phi")),
        javascript="x => Math.max(x, -64) * (0.5 * erfc(-x * Math.SQRT1_2))",
    ),
    "sin": Forms(code="{lib}.sin({0})", formula="sin({0})", latex=_of(r"\sin"), javascript="Math.sin"),
    "cos": Forms(code="{lib}.cos({0})", formula="cos({0})", latex=_of(r"\cos"), javascript="Math.cos"),
    "sqrt_abs": Forms(
        code="_sqrt_abs({0})",
        numpy="np.sqrt(np.abs({0}))",
        formula=(POWER, "√|{0}|"),
        latex=r"\sqrt{{\left|{0}\right|}}",
        javascript="x => Math.sqrt(Math.abs(x))",
    ),
    "log1p_abs": Forms(
        code="{lib}.log1p({lib}.abs({0}))",
        jax="_log1p_abs({0})",
        keras="ops.log1p(_abs({0}))",
        formula="log(1 + |{0}|)",
        latex=_of(r"\log", r"1 + \left|{0}\right|"),
        javascript="x => Math.log1p(Math.abs(x))",
    ),
    "cube": Forms(
        code="_cube({0})", formula=(POWER, "{0:3}³"), latex=(POWER, "{0:3}^{{3}}"), javascript="x => x * x * x"
    ),
    "gaussian": Forms(
        code="_exp_minus_square({0}, 1.0)",
        numpy="_exp_minus_square({0})",
        jax="_gaussian({0})",
        formula="exp(−{0:3}²)",
        latex=(POWER, "e^{{-{0:3}^{{2}}}}"),
        javascript="gaussian",
    ),
    "squareplus": Forms(
        code="_squareplus({0})",
        formula=(PRODUCT, "({0:0} + √({0:3}² + 4))/2"),
        latex=(PRODUCT, r"\frac{{{0} + \sqrt{{{0:3}^{{2}} + 4}}}}{{2}}"),
        javascript="x => x > 0 ? x / 2 + Math.hypot(x, 2) / 2 : 2 / (Math.hypot(x, 2) - x)",
    ),
    "isru": Forms(
        code="_isru({0})",
        formula=(PRODUCT, "{0:1}/√(1 + {0:3}²)"),
        latex=(PRODUCT, r"\frac{{{0}}}{{\sqrt{{1 + {0:3}^{{2}}}}}}"),
        javascript="x => (x = finite(x)) / Math.hypot(x, 1)",
    ),
    "relu6": Forms(
        code="_clip({0}, 0.0, 6.0)",
        numpy="np.clip({0}, 0, 6)",
        jax="_relu6({0})",
        formula="min(max(0, {0}), 6)",
        latex=_of(r"\min", _of(r"\max", "0, {0}") + ", 6"),
        javascript="x => clip(x, 0, 6)",
    ),
    "relu_squared": Forms(
        code="{lib}.square({lib}.relu({0}))",
        numpy="np.square(np.maximum({0}, 0))",
        jax="jnp.square(jax.nn.relu({0}))",
        formula=(POWER, "max(0, {0})²"),
        latex=(POWER, _of(r"\max", "0, {0}") + "^{{2}}"),
        javascript="x => Math.max(x, 0) ** 2",
    ),
    "hard_swish": Forms(
        code="_hard_swish({0})",
        formula=(PRODUCT, "{0:1}·clip({0} + 3, 0, 6)/6"),
        latex=(PRODUCT, r"\frac{{{0:1} \, " + _of(_named("clip"), "{0} + 3, 0, 6") + "}}{{6}}"),
        javascript="x => Math.max(x, -3) * (clip(x + 3, 0, 6) / 6)",
    ),
    "hard_tanh": Forms(
        code="_clip({0}, -1.0, 1.0)",
        numpy="np.clip({0}, -1, 1)",
        jax="_hard_tanh({0})",
        formula="clip({0}, −1, 1)",
        latex=_of(_named("clip"), "{0}, -1, 1"),
        javascript="x => clip(x, -1, 1)",
    ),
    "add": Forms(
        code=(SUM, "{0} + {1:1}"),
        formula=(SUM, "{0} + {1:1}"),
        latex=(SUM, "{0} + {1:1}"),
        javascript="(x, y) => x + y",
    ),
    "sub": Forms(
        code=(SUM, "{0} - {1:1}"),
        formula=(SUM, "{0} − {1:1}"),
        latex=(SUM, "{0} - {1:1}"),
        javascript="(x, y) => x - y",
    ),
    "mul": Forms(
        code=(PRODUCT, "{0:1} * {1:2}"),
        formula=(PRODUCT, "{0:1}·{1:1}"),
        latex=(PRODUCT, r"{0:1} \, {1:1}"),
        javascript="(x, y) => x * y",
    ),
    "div": Forms(
        code=(PRODUCT, "{0:1} / {1:2}"),
        jax="_divide({0}, {1})",
        formula=(PRODUCT, "{0:1}/{1:2}"),
        latex=(PRODUCT, r"\frac{{{0}}}{{{1}}}"),
        javascript="(x, y) => x / y",
    ),
    # unlike Math.pow, IEEE's power of 1 is 1 whatever the exponent, and (−1)^±∞ is 1
    "pow": Forms(
        code="_power({0}, {1})",
        numpy="np.power({0}, {1})",
        formula=(POWER, "{0:3}^{1:3}"),
        latex=(POWER, "{0:3}^{{{1}}}"),
        javascript="(x, y) => x === 1 || x === -1 && Math.abs(y) === Infinity ? 1 : x ** y",
    ),
    "max": Forms(
        code="{lib}.maximum({0}, {1})",
        keras="_maximum({0}, {1})",
        formula="max({0}, {1})",
        latex=_of(r"\max", "{0}, {1}"),
        javascript="(x, y) => Math.max(x, y)",
    ),
    "min": Forms(
        code="{lib}.minimum({0}, {1})",
        keras="_minimum({0}, {1})",
        formula="min({0}, {1})",
        latex=_of(r"\min", "{0}, {1}"),
        javascript="(x, y) => Math.min(x, y)",
    ),
    "sum_n": Forms(
        code=(SUM, "{0} + {1:1}"),
        formula=(SUM, "{0} + {1:1}"),
        latex=(SUM, "{0} + {1:1}"),
        javascript="(...xs) => xs.reduce((x, y) => x + y)",
    ),
    "prod_n": Forms(
        code=(PRODUCT, "{0:1} * {1:2}"),
        formula=(PRODUCT, "{0:1}·{1:1}"),
        latex=(PRODUCT, r"{0:1} \, {1:1}"),
        javascript="(...xs) => xs.reduce((x, y) => x * y)",
    ),
    "max_n": Forms(
        code="{lib}.maximum({0}, {1})",
        keras="_maximum({0}, {1})",
        formula="max({all})",
        latex=r"\max\left({all}\right)",
        javascript="(...xs) => Math.max(...xs)",
    ),
    "min_n": Forms(
        code="{lib}.minimum({0}, {1})",
        keras="_minimum({0}, {1})",
        formula="min({all})",
        latex=r"\min\left({all}\right)",
        javascript="(...xs) => Math.min(...xs)",
    ),
}
