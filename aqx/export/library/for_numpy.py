"""What the NumPy source of a function is made of: values alone, in the dtype of x."""

import numpy as np

from aqx.export.coefficients import BESSEL_I0E, BESSEL_I1E, ERF, ERFCX

# Chebyshev coefficients of erf(x) / x in 2 x² - 1
_ERF = [*ERF]
# ... of exp(y²) erfc(y) (1 + y) in (y - 3.5) / (y + 2.5)
_ERFCX = [*ERFCX]
# ... of exp(-x) I₀(x) √(1 + 2 x) in (x - 4) / (x + 4)
_BESSEL_I0E = [*BESSEL_I0E]
# ... of exp(-x) I₁(x) / x √(1 + 2 x)³ in (x - 4) / (x + 4)
_BESSEL_I1E = [*BESSEL_I1E]


def _to_finite(x):
    largest = np.finfo(x.dtype).max
    return np.clip(x, -largest, largest)


def _chebyshev(coefficients, t):
    """Sum a Chebyshev series by Clenshaw's recurrence."""
    b1 = b2 = np.zeros_like(t)
    for c in coefficients[:0:-1]:
        b1, b2 = 2 * t * b1 - b2 + c, b1
    return t * b1 - b2 + coefficients[0]


def _exp_minus_square(x, scale=1.0):
    """Return exp(-scale x²), with x = high + low and high² exact, so that x² is not rounded."""
    a = np.minimum(np.abs(x), 64)
    high = np.round(a * 256) / 256
    return np.exp(-scale * high * high) * np.exp(-scale * (a - high) * (a + high))


def _scaled_erfc(y):
    """Return exp(y²) erfc(y) for y ≥ 1/2."""
    return _chebyshev(_ERFCX, (y - 3.5) / (y + 2.5)) / (1 + y)


def _erf(x):
    """Return 2/√π ∫₀ˣ exp(-t²) dt."""
    small, large = np.clip(x, -1, 1), np.clip(np.abs(x), 1, 64)
    series = small * _chebyshev(_ERF, 2 * small * small - 1)
    return np.where(np.abs(x) < 1, series, np.sign(x) * (1 - _exp_minus_square(large) * _scaled_erfc(large)))


def _erfc(x):
    """Return 1 - erf(x)."""
    large = np.clip(x, 0.5, 64)
    return np.where(x < 0.5, 1 - _erf(x), _exp_minus_square(large) * _scaled_erfc(large))


def _bessel_i0e(x):
    """Return exp(-|x|) I₀(x)."""
    a = np.abs(_to_finite(x))
    return _chebyshev(_BESSEL_I0E, (a - 4) / (a + 4)) / np.sqrt(1 + 2 * a)


def _bessel_i1e(x):
    """Return exp(-|x|) I₁(x)."""
    x = _to_finite(x)
    a = np.abs(x)
    s = 1 / (1 + 2 * a)
    return _chebyshev(_BESSEL_I1E, (a - 4) / (a + 4)) * (x * s) * np.sqrt(s)


def _sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    e = np.exp(-np.abs(x))
    return np.where(x > 0, 1, e) / (1 + e)


def _softplus(x):
    """Return log(1 + exp(x))."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _elu(x, alpha=1.0):
    """Return x if x > 0, else alpha (exp(x) - 1)."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _selu(x):
    """Return 1.0507 (x if x > 0 else 1.6733 (exp(x) - 1))."""
    return 1.0507009873554805 * _elu(x, 1.6732632423543772)


def _swish(x):
    """Return x σ(x)."""
    return np.maximum(x, -1e4) * _sigmoid(x)


def _elish(x):
    """Return (x if x > 0 else exp(x) - 1) σ(x)."""
    return _elu(x) * _sigmoid(x)


def _mish(x):
    """Return x tanh(log(1 + exp(x)))."""
    # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2), e = exp(x); for x > 0 in powers of exp(-x)
    e = np.exp(-np.abs(x))
    part, rest = np.where(x > 0, 1 + 2 * e, e * (e + 2)), np.where(x > 0, 2 * e * e, 2)
    return np.maximum(x, -1e4) * (part / (part + rest))


def _gelu(x):
    """Return x Φ(x), Φ the normal distribution function."""
    tail = np.clip(x, -64, -0.75)
    below = tail * (_exp_minus_square(tail, 0.5) * (0.5 * _scaled_erfc(-0.7071067811865476 * tail)))
    return np.where(x < -0.75, below, np.maximum(x, -0.75) * (0.5 + 0.5 * _erf(0.7071067811865476 * x)))


def _softsign(x):
    """Return x / (1 + |x|)."""
    x = _to_finite(x)
    return x / (1 + np.abs(x))


def _hard_swish(x):
    """Return x clip(x + 3, 0, 6) / 6."""
    x = np.maximum(x, -3)
    return x * (np.minimum(x + 3, 6) / 6)


def _leakyrelu(x):
    """Return x if x > 0, else 0.01 x."""
    return np.where(x > 0, x, 0.01 * x)


def _cube(x):
    return x * x * x


def _squareplus(x):
    """Return (x + √(x² + 4)) / 2."""
    a = np.abs(x)
    mean = a / 2 + np.hypot(a, 2) / 2
    return np.where(x > 0, mean, 1 / mean)


def _isru(x):
    """Return x / √(1 + x²)."""
    x = _to_finite(x)
    return x / np.hypot(x, 1)
