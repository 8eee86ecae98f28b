"""What the Keras source of a function is made of: forms that every backend differentiates without loss, at any x.

The branch of `ops.where` that is not taken must not overflow: its gradient would be 0 · inf = nan. So each branch has
its own argument. Where the usual derivative of a function cancels (1 - tanh² is 0 above 9), it is written in
exponentials of -|x|. At a kink the derivative is that of the flatter side.

The PyTorch source is made of the same, with `torch` for `ops`; what is otherwise there is in for_torch.py. TorchScript
reads the types, the Keras source goes without.
"""

from keras import KerasTensor as Tensor
from keras import ops

from aqx.export.coefficients import BESSEL_I0E, BESSEL_I1E, ERFCX


def _bessel_i0e_series() -> list[float]:
    return [*BESSEL_I0E]


def _bessel_i1e_series() -> list[float]:
    return [*BESSEL_I1E]


def _erfcx_series() -> list[float]:
    return [*ERFCX]


def _scaled_erfc(y: Tensor) -> Tensor:
    """Return exp(y²) erfc(y) for y ≥ 1/2."""
    return _chebyshev(_erfcx_series(), 1 - 6 / (y + 2.5)) / (1 + y)


def _erfc(x: Tensor) -> Tensor:
    """Return 1 - erf(x)."""
    tail = ops.where(x < 0.5, 0.5, ops.where(x > 64, 64.0, x))
    far = _exp_minus_square(tail, 1.0) * _scaled_erfc(tail)
    return ops.where(x < 0.5, 1 - ops.erf(ops.where(x < 0.5, x, 0.5)), far)


def _sinh(x: Tensor) -> Tensor:
    """Return (exp(x) - exp(-x)) / 2, without overflow before the result's own."""
    half = _magnitude(x) / 2
    grown, left = ops.expm1(half), -_expm1(-half)
    y = 0.5 * (grown + left) * (2 + grown - left)
    return ops.where(x > 0, y, -y)


def _cosh(x: Tensor) -> Tensor:
    """Return (exp(x) + exp(-x)) / 2, as 1 + 2 sinh²(x/2)."""
    s = _sinh(x / 2)
    return 1 + (2 * s) * s


def _abs(x: Tensor) -> Tensor:
    """Return |x|, with derivative 0 at 0 whatever the backend's is."""
    return ops.where(x == 0, 0.0, ops.abs(x))


def _maximum(x: Tensor, y: Tensor) -> Tensor:
    """Return max(x, y), which at a tie gives each argument half of the derivative."""
    return ops.where(x == y, 0.5 * x + 0.5 * y, ops.maximum(x, y))


def _minimum(x: Tensor, y: Tensor) -> Tensor:
    """Return min(x, y), which at a tie gives each argument half of the derivative."""
    return ops.where(x == y, 0.5 * x + 0.5 * y, ops.minimum(x, y))


def _magnitude(x: Tensor) -> Tensor:
    """Return |x|, with derivative -1 at 0, so that both branches of an even or odd function meet there."""
    return ops.where(x > 0, x, -x)


def _clip(x: Tensor, low: float, high: float) -> Tensor:
    """Return clip(x, low, high), with derivative 0 at both ends."""
    return ops.where(x <= low, low, ops.where(x >= high, high, x))


def _chebyshev(coefficients: list[float], t: Tensor) -> Tensor:
    """Sum a Chebyshev series by Clenshaw's recurrence."""
    b1 = ops.zeros_like(t)
    b2 = ops.zeros_like(t)
    for k in range(len(coefficients) - 1, 0, -1):
        b1, b2 = 2 * t * b1 - b2 + coefficients[k], b1
    return t * b1 - b2 + coefficients[0]


def _exp_minus_square(x: Tensor, scale: float) -> Tensor:
    """Return exp(-scale x²), with x = high + low and high² exact, so that x² is not rounded."""
    a = _abs(x)
    a = ops.where(a > 64, 64.0, a)
    high = ops.round(ops.stop_gradient(a) * 256) / 256
    y = ops.exp(-scale * high * high)
    return y + y * ops.expm1(-scale * (a - high) * (a + high))


def _expm1(x: Tensor) -> Tensor:
    """Return exp(x) - 1; its usual derivative, (exp(x) - 1) + 1, is 0 below -17."""
    far = ops.exp(ops.where(x < -1, x, -1.0)) - 1
    return ops.where(x < -1, far, ops.expm1(ops.where(x < -1, -1.0, x)))


def _tanh(x: Tensor) -> Tensor:
    """Return tanh(x); its usual derivative, 1 - tanh², is 0 above 9."""
    d = -2 * _magnitude(x)
    y = -_expm1(d) / (1 + ops.exp(d))
    return ops.where(x > 0, y, -y)


def _sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)); its usual derivative, σ (1 - σ), is 0 above 17."""
    e = ops.exp(-_magnitude(x))
    return ops.where(x > 0, 1.0, e) / (1 + e)


def _softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x))."""
    return ops.where(x > 0, x, 0.0) + ops.log1p(ops.exp(-_magnitude(x)))


def _bessel_i0e(x: Tensor) -> Tensor:
    """Return exp(-|x|) I₀(x)."""
    a = _abs(x)
    return _chebyshev(_bessel_i0e_series(), 1 - 8 / (a + 4)) / ops.sqrt(1 + 2 * a)


def _bessel_i1e(x: Tensor) -> Tensor:
    """Return exp(-|x|) I₁(x)."""
    a = _abs(x)
    series = _chebyshev(_bessel_i1e_series(), 1 - 8 / (a + 4))
    return series * (0.5 * _softsign(2 * x)) / ops.sqrt(1 + 2 * a)


def _elu(x: Tensor) -> Tensor:
    """Return x if x > 0, else exp(x) - 1."""
    return ops.where(x > 0, x, _expm1(ops.where(x > 0, 0.0, x)))


def _selu(x: Tensor) -> Tensor:
    """Return 1.0507 (x if x > 0 else 1.6733 (exp(x) - 1))."""
    return 1.0507009873554805 * ops.where(x > 0, x, 1.6732632423543772 * _expm1(ops.where(x > 0, 0.0, x)))


def _swish(x: Tensor) -> Tensor:
    """Return x σ(x)."""
    return ops.where(x < -1e4, -1e4, x) * _sigmoid(x)


def _elish(x: Tensor) -> Tensor:
    """Return (x if x > 0 else exp(x) - 1) σ(x)."""
    return _elu(x) * _sigmoid(x)


def _mish(x: Tensor) -> Tensor:
    """Return x tanh(log(1 + exp(x)))."""
    # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2), e = exp(x); for x > 0 in powers of exp(-x)
    e = ops.exp(-_magnitude(x))
    part = ops.where(x > 0, 1 + 2 * e, e * (e + 2))
    rest = ops.where(x > 0, 2 * e * e, 2.0)
    return ops.where(x < -1e4, -1e4, x) * (part / (part + rest))


def _gelu(x: Tensor) -> Tensor:
    """Return x Φ(x), Φ the normal distribution function; 1 + erf would cancel where x is negative."""
    tail = ops.where(x < -64, -64.0, ops.where(x < -0.75, x, -0.75))
    far = tail * (_exp_minus_square(tail, 0.5) * (0.5 * _scaled_erfc(-0.7071067811865476 * tail)))
    body = ops.where(x < -0.75, -0.75, x)
    return ops.where(x < -0.75, far, body * (0.5 + 0.5 * ops.erf(0.7071067811865476 * body)))


def _softsign(x: Tensor) -> Tensor:
    """Return x / (1 + |x|), from 1 on as 1 - 1 / (1 + |x|), whose derivative does not cancel."""
    a = _magnitude(x)
    near = ops.where(a < 1, a, 0.0)
    far = ops.where(a < 1, 1.0, a)
    y = ops.where(a < 1, near / (1 + near), 1 - 1 / (1 + far))
    return ops.where(x > 0, y, -y)


def _leakyrelu(x: Tensor) -> Tensor:
    """Return x if x > 0, else 0.01 x."""
    return ops.where(x > 0, x, 0.01 * x)


def _sqrt_abs(x: Tensor) -> Tensor:
    """Return √|x|, with derivative 0 at 0."""
    return ops.where(x == 0, 0.0, ops.sqrt(ops.where(x == 0, 1.0, ops.abs(x))))


def _cube(x: Tensor) -> Tensor:
    return x * x * x


def _squareplus(x: Tensor) -> Tensor:
    """Return (x + √(x² + 4)) / 2."""
    # for x ≤ 0 the reciprocal of the value at -x; from 2 on |x| is drawn out of the root, where x² might overflow
    a = _magnitude(x)
    near = ops.where(a < 2, a, 0.0)
    far = ops.where(a < 2, 2.0, a)
    r = 2 / far
    y = ops.where(a < 2, 0.5 * (near + ops.sqrt(near * near + 4)), far * (0.5 + 0.5 * ops.sqrt(1 + r * r)))
    return ops.where(x > 0, y, 1 / y)


def _isru(x: Tensor) -> Tensor:
    """Return x / √(1 + x²), from 1 on as 1 / √(1 + 1/x²), whose derivative does not cancel."""
    a = _magnitude(x)
    near = ops.where(a < 1, a, 0.0)
    r = 1 / ops.where(a < 1, 1.0, a)
    y = ops.where(a < 1, near / ops.sqrt(1 + near * near), 1 / ops.sqrt(1 + r * r))
    return ops.where(x > 0, y, -y)


def _hard_swish(x: Tensor) -> Tensor:
    """Return x clip(x + 3, 0, 6) / 6."""
    return ops.where(x > -3, x, -3.0) * (_clip(x + 3, 0.0, 6.0) / 6)


def _power(x: Tensor, y: Tensor) -> Tensor:
    """Return x^y; the partial by y is 0 at x ≤ 0, the partial by x is 0 at y = 0."""
    right = ops.power(ops.where(x > 0, x, 1.0), ops.where(x > 0, y, 1.0))
    left = ops.power(ops.where((x > 0) | (y == 0), 1.0, x), ops.stop_gradient(ops.where(x > 0, 1.0, y)))
    return ops.where(x > 0, right, left)
