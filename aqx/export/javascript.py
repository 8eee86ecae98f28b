"""Every operator in JavaScript, so that a page can draw curves by itself; values alone, in float64."""

from __future__ import annotations

from aqx.export.coefficients import BESSEL_I0E, BESSEL_I1E, ERF, ERFCX

# A sum Σ cₖ Tₖ(t) by Clenshaw's recurrence. exp(−x²) keeps its digits as x = high + low with high² exact.
_HELPERS = f"""\
const chebyshev = (c, t) => {{
  let b1 = 0, b2 = 0;
  for (let k = c.length - 1; k > 0; k--) [b1, b2] = [2 * t * b1 - b2 + c[k], b1];
  return t * b1 - b2 + c[0];
}};
const ERF = {list(ERF)};
const ERFCX = {list(ERFCX)};
const I0E = {list(BESSEL_I0E)};
const I1E = {list(BESSEL_I1E)};
const clip = (x, low, high) => Math.min(Math.max(x, low), high);
const finite = x => clip(x, -Number.MAX_VALUE, Number.MAX_VALUE);
const far = x => Math.max(x, -1e4);
const gaussian = x => {{
  const a = Math.min(Math.abs(x), 64), high = Math.round(a * 256) / 256;
  return Math.exp(-high * high) * Math.exp(-(a - high) * (a + high));
}};
const erfcTail = x => gaussian(x) * chebyshev(ERFCX, (x - 3.5) / (x + 2.5)) / (1 + x);
const erf = x => Math.abs(x) < 1 ? x * chebyshev(ERF, 2 * x * x - 1) : x > 0 ? 1 - erfc(x) : erfc(-x) - 1;
const erfc = x => x < 0.5 ? 1 - erf(x) : erfcTail(Math.min(x, 64));
const bessel = x => Math.min(Math.abs(x), 1e300);
const expm1 = Math.expm1;
const sigmoid = x => x > 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
const softplus = x => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const elu = x => x > 0 ? x : expm1(x);
"""

JAVASCRIPT: dict[str, str] = {
    "zero": "x => 0",
    "one": "x => 1",
    "identity": "x => x",
    "negative": "x => -x",
    "abs": "Math.abs",
    "reciprocal": "x => 1 / x",
    "square": "x => x * x",
    "exp": "Math.exp",
    "erf": "erf",
    "erfc": "erfc",
    "sinh": "Math.sinh",
    "cosh": "Math.cosh",
    "tanh": "Math.tanh",
    "expm1": "expm1",
    "sigmoid": "sigmoid",
    "log_sigmoid": "x => -softplus(-x)",
    "arcsinh": "Math.asinh",
    "arctan": "Math.atan",
    "bessel_i0e": "x => (x = bessel(x), chebyshev(I0E, (x - 4) / (x + 4)) / Math.sqrt(1 + 2 * x))",
    "bessel_i1e": "x => { const a = bessel(x), s = 1 / (1 + 2 * a);"
    " return chebyshev(I1E, (a - 4) / (a + 4)) * (Math.sign(x) * a * s) * Math.sqrt(s); }",
    "relu": "x => Math.max(x, 0)",
    "elu": "elu",
    "selu": "x => 1.0507009873554805 * (x > 0 ? x : 1.6732632423543772 * expm1(x))",
    "swish": "x => far(x) * sigmoid(x)",
    "softplus": "softplus",
    "softsign": "x => (x = finite(x)) / (1 + Math.abs(x))",
    "hard_sigmoid": "x => clip(0.2 * (x + 2.5), 0, 1)",
    "elish": "x => elu(x) * sigmoid(x)",
    "leakyrelu": "x => x > 0 ? x : 0.01 * x",
    "mish": "x => far(x) * Math.tanh(softplus(x))",
    "gelu": "x => Math.max(x, -64) * (0.5 * erfc(-x * Math.SQRT1_2))",
    "sin": "Math.sin",
    "cos": "Math.cos",
    "sqrt_abs": "x => Math.sqrt(Math.abs(x))",
    "log1p_abs": "x => Math.log1p(Math.abs(x))",
    "cube": "x => x * x * x",
    "gaussian": "gaussian",
    "squareplus": "x => x > 0 ? x / 2 + Math.hypot(x, 2) / 2 : 2 / (Math.hypot(x, 2) - x)",
    "isru": "x => (x = finite(x)) / Math.hypot(x, 1)",
    "relu6": "x => clip(x, 0, 6)",
    "relu_squared": "x => Math.max(x, 0) ** 2",
    "hard_swish": "x => Math.max(x, -3) * (clip(x + 3, 0, 6) / 6)",
    "hard_tanh": "x => clip(x, -1, 1)",
    "add": "(x, y) => x + y",
    "sub": "(x, y) => x - y",
    "mul": "(x, y) => x * y",
    "div": "(x, y) => x / y",
    # unlike Math.pow, IEEE's power of 1 is 1 whatever the exponent, and (−1)^±∞ is 1
    "pow": "(x, y) => x === 1 || x === -1 && Math.abs(y) === Infinity ? 1 : x ** y",
    "max": "(x, y) => Math.max(x, y)",
    "min": "(x, y) => Math.min(x, y)",
    "sum_n": "(...xs) => xs.reduce((x, y) => x + y)",
    "prod_n": "(...xs) => xs.reduce((x, y) => x * y)",
    "max_n": "(...xs) => Math.max(...xs)",
    "min_n": "(...xs) => Math.min(...xs)",
}


def javascript_operators() -> str:
    """Return a JavaScript expression: an object with every built-in operator as a function of numbers.

    The values are aqx's own in float64, to about 1e-12 of each; no gradients.

    Example:
        >>> from aqx.export import javascript_operators
        >>> page = f"<script>const operators = {javascript_operators()}; operators.max(operators.relu(2), 1)</script>"
    """
    helpers = "\n".join(f"  {line}" for line in _HELPERS.splitlines())
    operators = "\n".join(f"    {name}: {function}," for name, function in JAVASCRIPT.items())
    return f"(() => {{\n{helpers}\n  return {{\n{operators}\n  }};\n}})()"
