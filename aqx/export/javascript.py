"""Every operator in JavaScript, so that a page can draw curves by itself; values alone, in float64."""

from __future__ import annotations

from aqx.export.coefficients import BESSEL_I0E, BESSEL_I1E, ERF, ERFCX
from aqx.export.forms import FORMS

# What the forms are made of: a sum Σ cₖ Tₖ(t) by Clenshaw's recurrence; exp(−x²) keeps its digits as
# x = high + low with high² exact.
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


def javascript_operators() -> str:
    """Return a JavaScript expression: an object with every operator that has a form as a function of numbers.

    The values are aqx's own in float64, to about 1e-12 of each; no gradients.

    Example:
        >>> from aqx.export import javascript_operators
        >>> page = f"<script>const operators = {javascript_operators()}; operators.max(operators.relu(2), 1)</script>"
    """
    helpers = "\n".join(f"  {line}" for line in _HELPERS.splitlines())
    operators = "\n".join(f"    {name}: {forms.javascript}," for name, forms in FORMS.items())
    return f"(() => {{\n{helpers}\n  return {{\n{operators}\n  }};\n}})()"
