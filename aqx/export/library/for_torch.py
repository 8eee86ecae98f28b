"""What the PyTorch source of a function is made of: forms that autograd differentiates without loss, at any x.

The branch of `torch.where` that is not taken must not overflow: its gradient would be 0 · inf = nan. So each branch has
its own argument. Where PyTorch's derivative of a function cancels (1 - tanh² is 0 above 9), the function is written in
exponentials of -|x|. At a kink the derivative is that of the flatter side.
"""

import torch  # pyright: ignore[reportMissingImports]

from aqx.export.coefficients import BESSEL_I0E, BESSEL_I1E, ERFCX


def _bessel_i0e_series() -> list[float]:
    return [*BESSEL_I0E]


def _bessel_i1e_series() -> list[float]:
    return [*BESSEL_I1E]


def _erfcx_series() -> list[float]:
    return [*ERFCX]


def _scaled_erfc(y: torch.Tensor) -> torch.Tensor:
    """Return exp(y²) erfc(y) for y ≥ 1/2; torch.special.erfcx lacks float16 and bfloat16."""
    return _chebyshev(_erfcx_series(), 1 - 6 / (y + 2.5)) / (1 + y)


def _magnitude(x: torch.Tensor) -> torch.Tensor:
    """Return |x|, with derivative -1 at 0, so that both branches of an even or odd function meet there."""
    return torch.where(x > 0, x, -x)


def _clip(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return clip(x, low, high), with derivative 0 at both ends."""
    return torch.where(x <= low, low, torch.where(x >= high, high, x))


def _chebyshev(coefficients: list[float], t: torch.Tensor) -> torch.Tensor:
    """Sum a Chebyshev series by Clenshaw's recurrence."""
    b1 = torch.zeros_like(t)
    b2 = torch.zeros_like(t)
    for k in range(len(coefficients) - 1, 0, -1):
        b1, b2 = 2 * t * b1 - b2 + coefficients[k], b1
    return t * b1 - b2 + coefficients[0]


def _exp_minus_square(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Return exp(-scale x²), with x = high + low and high² exact, so that x² is not rounded."""
    a = torch.abs(x)
    a = torch.where(a > 64, 64.0, a)
    high = torch.round(a.detach() * 256) / 256
    y = torch.exp(-scale * high * high)
    return y + y * torch.expm1(-scale * (a - high) * (a + high))


def _expm1(x: torch.Tensor) -> torch.Tensor:
    """Return exp(x) - 1; its usual derivative, (exp(x) - 1) + 1, is 0 below -17."""
    far = torch.exp(torch.where(x < -1, x, -1.0)) - 1
    return torch.where(x < -1, far, torch.expm1(torch.where(x < -1, -1.0, x)))


def _tanh(x: torch.Tensor) -> torch.Tensor:
    """Return tanh(x); its usual derivative, 1 - tanh², is 0 above 9."""
    d = -2 * _magnitude(x)
    y = -_expm1(d) / (1 + torch.exp(d))
    return torch.where(x > 0, y, -y)


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Return 1 / (1 + exp(-x)); its usual derivative, σ (1 - σ), is 0 above 17."""
    e = torch.exp(-_magnitude(x))
    return torch.where(x > 0, 1.0, e) / (1 + e)


def _softplus(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 + exp(x))."""
    return torch.where(x > 0, x, 0.0) + torch.log1p(torch.exp(-_magnitude(x)))


def _bessel_i0e(x: torch.Tensor) -> torch.Tensor:
    """Return exp(-|x|) I₀(x)."""
    # the derivative of torch.special.i0e cancels where x is large
    a = torch.abs(x)
    return _chebyshev(_bessel_i0e_series(), 1 - 8 / (a + 4)) / torch.sqrt(1 + 2 * a)


def _bessel_i1e(x: torch.Tensor) -> torch.Tensor:
    """Return exp(-|x|) I₁(x)."""
    # the derivative of torch.special.i1e cancels where x is large
    a = torch.abs(x)
    series = _chebyshev(_bessel_i1e_series(), 1 - 8 / (a + 4))
    return series * (0.5 * _softsign(2 * x)) / torch.sqrt(1 + 2 * a)


def _elu(x: torch.Tensor) -> torch.Tensor:
    """Return x if x > 0, else exp(x) - 1."""
    return torch.where(x > 0, x, _expm1(torch.where(x > 0, 0.0, x)))


def _selu(x: torch.Tensor) -> torch.Tensor:
    """Return 1.0507 (x if x > 0 else 1.6733 (exp(x) - 1))."""
    return 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * _expm1(torch.where(x > 0, 0.0, x)))


def _swish(x: torch.Tensor) -> torch.Tensor:
    """Return x σ(x)."""
    return torch.where(x < -1e4, -1e4, x) * _sigmoid(x)


def _elish(x: torch.Tensor) -> torch.Tensor:
    """Return (x if x > 0 else exp(x) - 1) σ(x)."""
    return _elu(x) * _sigmoid(x)


def _mish(x: torch.Tensor) -> torch.Tensor:
    """Return x tanh(log(1 + exp(x)))."""
    # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2), e = exp(x); for x > 0 in powers of exp(-x)
    e = torch.exp(-_magnitude(x))
    part = torch.where(x > 0, 1 + 2 * e, e * (e + 2))
    rest = torch.where(x > 0, 2 * e * e, 2.0)
    return torch.where(x < -1e4, -1e4, x) * (part / (part + rest))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    """Return x Φ(x), Φ the normal distribution function; 1 + erf would cancel where x is negative."""
    tail = torch.where(x < -64, -64.0, torch.where(x < -0.75, x, -0.75))
    far = tail * (_exp_minus_square(tail, 0.5) * (0.5 * _scaled_erfc(-0.7071067811865476 * tail)))
    body = torch.where(x < -0.75, -0.75, x)
    return torch.where(x < -0.75, far, body * (0.5 + 0.5 * torch.erf(0.7071067811865476 * body)))


def _softsign(x: torch.Tensor) -> torch.Tensor:
    """Return x / (1 + |x|), from 1 on as 1 - 1 / (1 + |x|), whose derivative does not cancel."""
    a = _magnitude(x)
    near = torch.where(a < 1, a, 0.0)
    far = torch.where(a < 1, 1.0, a)
    y = torch.where(a < 1, near / (1 + near), 1 - 1 / (1 + far))
    return torch.where(x > 0, y, -y)


def _leakyrelu(x: torch.Tensor) -> torch.Tensor:
    """Return x if x > 0, else 0.01 x."""
    return torch.where(x > 0, x, 0.01 * x)


def _sqrt_abs(x: torch.Tensor) -> torch.Tensor:
    """Return √|x|, with derivative 0 at 0."""
    return torch.where(x == 0, 0.0, torch.sqrt(torch.where(x == 0, 1.0, torch.abs(x))))


def _cube(x: torch.Tensor) -> torch.Tensor:
    return x * x * x


def _squareplus(x: torch.Tensor) -> torch.Tensor:
    """Return (x + √(x² + 4)) / 2."""
    # for x ≤ 0 the reciprocal of the value at -x; from 2 on |x| is drawn out of the root, where x² might overflow
    a = _magnitude(x)
    near = torch.where(a < 2, a, 0.0)
    far = torch.where(a < 2, 2.0, a)
    r = 2 / far
    y = torch.where(a < 2, 0.5 * (near + torch.sqrt(near * near + 4)), far * (0.5 + 0.5 * torch.sqrt(1 + r * r)))
    return torch.where(x > 0, y, 1 / y)


def _isru(x: torch.Tensor) -> torch.Tensor:
    """Return x / √(1 + x²), from 1 on as 1 / √(1 + 1/x²), whose derivative does not cancel."""
    a = _magnitude(x)
    near = torch.where(a < 1, a, 0.0)
    r = 1 / torch.where(a < 1, 1.0, a)
    y = torch.where(a < 1, near / torch.sqrt(1 + near * near), 1 / torch.sqrt(1 + r * r))
    return torch.where(x > 0, y, -y)


def _hard_swish(x: torch.Tensor) -> torch.Tensor:
    """Return x clip(x + 3, 0, 6) / 6."""
    return torch.where(x > -3, x, -3.0) * (_clip(x + 3, 0.0, 6.0) / 6)


def _power(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return x^y; the partial by y is 0 at x ≤ 0, the partial by x is 0 at y = 0."""
    right = torch.pow(torch.where(x > 0, x, 1.0), torch.where(x > 0, y, 1.0))
    left = torch.pow(torch.where((x > 0) | (y == 0), 1.0, x), torch.where(x > 0, 1.0, y).detach())
    return torch.where(x > 0, right, left)
