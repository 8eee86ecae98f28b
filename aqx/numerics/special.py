"""Error and Bessel functions, and what is made of them."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from aqx.numerics.derivative import with_derivative

# Chebyshev coefficients on [-1, 1], by interpolation at 96 Chebyshev nodes with 40 digits.
# exp(y²) erfc(y) (1 + y) in t = (y − 3.5) / (y + 2.5), y ≥ 1/2.
_ERFCX = (
    0.7226872759469823, -0.1813259965483842, 0.02253944802395424, 0.0013704301082967689, -0.001346107606763729,
    0.00028666268917451674, -1.887220352365311e-05, -4.115612894271668e-06, 8.308960483440545e-07,
    5.3915085463803684e-08, -2.5951905411842662e-08, -9.573770444253089e-10, 8.420030718437121e-10,
    3.750132222832995e-11, -2.9218433749828863e-11, -2.363840089246047e-12, 1.0278076872906964e-12,
    1.5373985055786001e-13, -3.2658385467842956e-14, -9.196727264757166e-15, 6.566084080620835e-16,
    4.871814507569493e-16,
)  # fmt: skip
# exp(−x) (I₀(x) − I₁(x)) (1 + 2x)^(3/2) in t = (x − 4) / (x + 4), x ≥ 0.
_BESSEL_GAP = (
    0.8797507011744796, -0.3844191952148403, 0.009117790254150175, 0.13360128057870924, -0.11034964479905975,
    0.04086499466764612, 0.0010180379175627632, -0.00833621059900207, 0.0029416218960101573, 0.00043485674271906844,
    -0.00046216510583224336, -5.581140363960903e-05, 9.137358024435802e-05, 7.423672423504194e-06,
    -1.5494277073850853e-05, -3.338865151322843e-06, 2.9397918452518108e-06, 1.059487272519086e-06,
    -3.983132948637472e-07, -3.334119721263272e-07, 1.681675507719282e-08, 7.884861658159123e-08,
    1.986495297427976e-08, -1.3400444841347816e-08, -9.122484903916164e-09, 6.612382725846774e-11,
    2.399198289982886e-09, 8.996810676012606e-10, -2.605075029042996e-10, -3.5567992412792616e-10,
    -8.417470410717866e-11, 5.93149061212754e-11, 5.186144146681565e-11, 8.221462285012763e-12,
    -1.0751772653647793e-11, -7.942129738125181e-12, -1.0038851062243942e-12, 1.819615410332895e-12,
    1.308464996106313e-12, 1.8252888843797593e-13, -2.9683223250172453e-13, -2.3089669859287366e-13,
    -4.4746331339886315e-14, 4.579621315739813e-14, 4.259699260548892e-14, 1.1997090071820485e-14,
    -6.1725261323561745e-15, -7.9216267813787e-15, -3.1621687854477812e-15, 5.288031290221704e-16,
    1.4154792766314348e-15, 7.877276498737806e-16, 6.345015587430207e-17, -2.251104378863118e-16,
    -1.8100438912117215e-16, -5.135580983004882e-17,
)  # fmt: skip


def chebyshev(coefficients: tuple[float, ...], t: jax.Array, terms32: int) -> jax.Array:
    """Sum a Chebyshev series by Clenshaw's recurrence; float32 needs only the first terms."""
    terms = coefficients if t.dtype == jnp.float64 else coefficients[:terms32]
    b1 = b2 = jnp.zeros_like(t)
    for c in terms[:0:-1]:
        b1, b2 = 2 * t * b1 - b2 + c, b1
    return t * b1 - b2 + terms[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _exp_minus_square(x: jax.Array, scale: float) -> jax.Array:
    """Return exp(−scale · x²) for a power of two, with x = high + low and high² exact, so that x² is not rounded."""
    a = jnp.minimum(jnp.abs(x), 64)
    info = jnp.finfo(x.dtype)
    high = jax.lax.reduce_precision(a, info.nexp, (info.nmant + 1) // 2 - 1)
    y, low = jnp.exp(-scale * (high * high)), -scale * ((a - high) * (a + high))
    # exp(low) − 1 by its series: XLA would join a product of two exp, and where y > 0, |low| < 0.05
    return y + y * (low * (1 + low * (1 / 2 + low * (1 / 6 + low / 24))))


@_exp_minus_square.defjvp
def _(scale: float, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    y = _exp_minus_square(x, scale)
    return y, (-2 * scale) * x * y * t


def exp_minus_square(x: jax.Array, scale: float) -> jax.Array:
    """Return exp(−scale · x²) for a scale that is a power of two, right to rounding."""
    return _exp_minus_square(x, scale)


def _erf_derivative(x: jax.Array) -> jax.Array:
    root = _exp_minus_square(x, 0.5)
    return (2 / math.sqrt(math.pi) * root) * root


@with_derivative(_erf_derivative)
def erf(x: jax.Array) -> jax.Array:
    """Return 2/√π ∫₀ˣ exp(−t²) dt."""
    return jax.scipy.special.erf(x)


def scaled_erfc(y: jax.Array) -> jax.Array:
    """Return exp(y²) erfc(y) for y ≥ 1/2."""
    return chebyshev(_ERFCX, (y - 3.5) / (y + 2.5), 11) / (1 + y)


@with_derivative(lambda x: -_erf_derivative(x))
def erfc(x: jax.Array) -> jax.Array:
    """Return 1 − erf(x)."""
    root = _exp_minus_square(x, 0.5)
    tail = root * (root * scaled_erfc(jnp.clip(x, 0.5, 64)))
    return jnp.where(x < 0.5, 1 - jax.scipy.special.erf(x), tail)


def _normal_tail(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return root = exp(−x²/4) and q with Φ(x) = root² q for x ≤ −0.75."""
    return _exp_minus_square(x, 0.25), 0.5 * scaled_erfc(jnp.clip(-x, 0.75, 64) / math.sqrt(2))


def _gelu_derivative(x: jax.Array) -> jax.Array:
    root, q = _normal_tail(x)
    x = jnp.clip(x, -64, 64)
    density = x / math.sqrt(2 * math.pi)
    body = (0.5 + 0.5 * erf(x / math.sqrt(2))) + (density * root) * root
    return jnp.where(x < -0.75, (root * (q + density)) * root, body)


@with_derivative(_gelu_derivative)
def gelu(x: jax.Array) -> jax.Array:
    """Return x Φ(x), Φ the normal distribution function."""
    root, q = _normal_tail(x)
    body = x * (0.5 + 0.5 * jax.scipy.special.erf(x / math.sqrt(2)))
    return jnp.where(x < -0.75, (jnp.maximum(x, -64) * root) * (root * q), body)


def _gaussian_derivative(x: jax.Array) -> jax.Array:
    root = _exp_minus_square(x, 0.5)
    return (x * root) * (-2 * root)


@with_derivative(_gaussian_derivative)
def gaussian(x: jax.Array) -> jax.Array:
    """Return exp(−x²)."""
    return jnp.square(_exp_minus_square(x, 0.5))


def _bessel_gap_derivative(x: jax.Array) -> jax.Array:
    return _i1e_over_x(x) - 2 * _bessel_gap(x)


@with_derivative(_bessel_gap_derivative)
def _bessel_gap(x: jax.Array) -> jax.Array:
    """Return exp(−x) (I₀(x) − I₁(x)) for x ≥ 0, which is about (8πx³)^(−1/2): subtracting would lose all of it."""
    s = 1 / (1 + 2 * x)
    return chebyshev(_BESSEL_GAP, (x - 4) / (x + 4), 25) * (s * jnp.sqrt(s))


def _i1e_over_x(x: jax.Array) -> jax.Array:
    """Return exp(−x) I₁(x) / x for x ≥ 0."""
    y = jnp.maximum(x, float(jnp.finfo(x.dtype).eps) / 4)
    # JAX's i1e is off by 10 units in the last place near 8, and i1e′ would make 40 of them
    return jnp.where(y > 2, bessel_i0e(y) - _bessel_gap(y), bessel_i1e(y)) / y


@with_derivative(lambda x: -jnp.sign(x) * _bessel_gap(jnp.abs(x)))
def bessel_i0e(x: jax.Array) -> jax.Array:
    """Return exp(−|x|) I₀(x)."""
    return jax.scipy.special.i0e(x)


@with_derivative(lambda x: _bessel_gap(jnp.abs(x)) - _i1e_over_x(jnp.abs(x)))
def bessel_i1e(x: jax.Array) -> jax.Array:
    """Return exp(−|x|) I₁(x)."""
    return jax.scipy.special.i1e(x)
