"""erf, I₀ and I₁ made of exp, square root, select and arithmetic, where a compiler has no such functions.

A GPU kernel has no primitive for them, nor for reducing a precision. These forms keep the laws of their precision.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from aqx.numerics.special import chebyshev, exp_minus_square, scaled_erfc

# Taylor coefficients of erf(x)/x in x², |x| < 1/2: float32 needs the first seven.
_ERF = (
    1.1283791670955126, -0.37612638903183754, 0.11283791670955126, -0.026866170645131252, 0.005223977625442188,
    -0.0008548327023450853, 0.00012055332981789664, -1.492565035840625e-05, 1.6462114365889248e-06,
    -1.6365844691234924e-07, 1.4807192815879218e-08, -1.2290555301717928e-09, 9.422759064650411e-11,
)  # fmt: skip
# Chebyshev coefficients in t = (x − 4) / (x + 4), x ≥ 0, by interpolation at 96 Chebyshev nodes with 40 digits:
# of exp(−x) I₀(x) (1 + 2x)^(1/2), and of exp(−x) I₁(x)/x (1 + 2x)^(3/2).
_I0E = (
    0.7115952962083321, -0.2149821998603529, 0.08569275458867341, -0.014945402113834636, -0.009928000787265795,
    0.010666620292359465, -0.00508993526013991, 0.001300291027708837, -0.00011196376582324194, 2.4199921241105302e-05,
    -5.660318529376429e-05, 2.9489003688963674e-05, -4.95389934066921e-06, 9.167915677600834e-07,
    -1.6297182669404723e-06, 7.968867609616315e-07, -9.848146869836316e-08, 5.6019508090450774e-08,
    -6.986614172155434e-08, 1.8638269165280488e-08, -1.2472467336209243e-09, 4.832915045694432e-09,
    -2.5011890358252037e-09, 3.085144585189713e-11, -2.7150108523590324e-10, 2.9037184274175226e-10,
    -7.460171030154764e-12, 7.699027621684048e-12, -3.256834517520233e-11, 1.6513511039736172e-12,
    1.2457706273539793e-12, 3.7617928122766466e-12, -2.614508260907889e-13, -3.7403557625910375e-13,
    -4.682394067425361e-13, 3.179675536918911e-14, 7.283273330037618e-14, 6.474640522691709e-14,
    -2.1437523468205933e-15, -1.2622417058332325e-14, -1.0013976687021365e-14, -3.9175642820601245e-16,
    2.046883393118094e-15, 1.696062329751827e-15, 2.405116014238608e-16, -3.0378579316570386e-16,
    -3.0192970789859634e-16, -8.025663595818325e-17, 3.694996685876128e-17, 5.3714848771073505e-17,
    2.210666667560621e-17, -1.923105217764189e-18, -8.974318718490764e-18,
)  # fmt: skip
_I1E_OVER_X = (
    1.035558655628565, 0.2188625225337968, -0.20135200267877348, 0.09982220123184446, -0.025066994070289974,
    -0.0030606936104234355, 0.005141385469597143, -0.0015615141309012885, -0.000112350625646051,
    0.00015408818457537173, 2.0517563810464797e-05, -3.0038139704633366e-05, -2.578454882869787e-07,
    3.687702421257233e-06, 7.446614682506375e-07, -7.434801287568683e-07, -1.652490552658601e-07,
    8.365720866025352e-08, 6.104010745499894e-08, -8.808478589652947e-09, -1.266751771196255e-08,
    -2.443740343290412e-09, 2.489472229710121e-09, 1.1506030307838045e-09, -1.1821505853632365e-10,
    -3.4612484379809066e-10, -8.492772710776488e-11, 4.5885630237426595e-11, 4.2584350540131246e-11,
    5.005315484284754e-12, -8.30899668846058e-12, -5.312254878906087e-12, -1.5163496700019892e-13,
    1.3209426266928477e-12, 7.163177737758007e-13, -1.3853977597420181e-14, -2.0533566884884491e-13,
    -1.074628826458858e-13, 1.663241634497729e-15, 3.2010069750782357e-14, 1.78834629743778e-14, 7.094693195616428e-16,
    -4.954010468724742e-15, -3.209893474301292e-15, -4.2642212063944434e-16, 7.313533655734622e-16,
    5.967692162890099e-16, 1.4947915412656585e-16, -9.345727193531693e-17, -1.0985940733419009e-16,
    -4.2831926956500785e-17, 7.031868913981206e-18, 1.8964357763095486e-17, 1.0778102167152838e-17,
)  # fmt: skip


def round_mantissa(x: jax.Array, bits: int) -> jax.Array:
    """Return x rounded to so many bits of mantissa, a tie away from zero.

    Args:
        x: float32 or float64.
        bits: fewer than x's own 23 or 52.
    """
    integer = jnp.int32 if x.dtype == jnp.float32 else jnp.int64
    dropped = jnp.finfo(x.dtype).nmant - bits
    raised = jax.lax.bitcast_convert_type(x, integer) + (1 << (dropped - 1))  # carries into the exponent, as it must
    return jax.lax.bitcast_convert_type(raised & (-1 << dropped), x.dtype)


def erf(x: jax.Array) -> jax.Array:
    """Return 2/√π ∫₀ˣ exp(−t²) dt, for float32 or float64."""
    square = jnp.square(jnp.clip(x, -0.5, 0.5))
    body = jnp.zeros_like(x)
    for c in _ERF[::-1] if x.dtype == jnp.float64 else _ERF[6::-1]:
        body = body * square + c
    a = jnp.abs(x)
    tail = 1 - _tail(a)
    return jnp.where(a < 0.5, x * body, jnp.where(x < 0, -tail, tail))


def erfc(x: jax.Array) -> jax.Array:
    """Return 1 − erf(x), for float32 or float64."""
    return jnp.where(x < 0.5, 1 - erf(x), _tail(x))


def _tail(x: jax.Array) -> jax.Array:
    """1 − erf(x) for x ≥ 1/2."""
    root = exp_minus_square(x, 0.5)
    return root * (root * scaled_erfc(jnp.clip(x, 0.5, 64)))


def bessel_i0e(x: jax.Array) -> jax.Array:
    """Return exp(−|x|) I₀(x), for float32 or float64."""
    a = jnp.abs(x)
    return chebyshev(_I0E, _folded(a), 20) * _root(a)


def bessel_i1e(x: jax.Array) -> jax.Array:
    """Return exp(−|x|) I₁(x), for float32 or float64."""
    a = jnp.abs(x)
    share = jnp.where(a < jnp.inf, 0.5 * x / (0.5 + a), jnp.sign(x))  # x / (1 + 2x), finite where x is not
    return chebyshev(_I1E_OVER_X, _folded(a), 21) * (share * _root(a))


def _root(a: jax.Array) -> jax.Array:
    """(1 + 2a)^(−1/2): 1 + 2a overflows, and its reciprocal is subnormal, where this is a normal number."""
    return math.sqrt(0.5) / jnp.sqrt(0.5 + a)


def _folded(a: jax.Array) -> jax.Array:
    """(a − 4) / (a + 4), also where a is infinite."""
    a = jnp.minimum(a, 1e30)
    return (a - 4) / (a + 4)
