"""What the PyTorch source of a function has otherwise than the Keras one: each takes the place of for_keras.py's."""

import torch


def _scaled_erfc(y: torch.Tensor) -> torch.Tensor:
    """Return exp(y²) erfc(y) for y ≥ 1/2; torch.special.erfcx lacks float16 and bfloat16."""
    return _chebyshev(_erfcx_series(), 1 - 6 / (y + 2.5)) / (1 + y)


def _exp_minus_square(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Return exp(-scale x²), with x = high + low and high² exact, so that x² is not rounded."""
    a = torch.abs(x)
    a = torch.where(a > 64, 64.0, a)
    high = torch.round(a.detach() * 256) / 256
    y = torch.exp(-scale * high * high)
    return y + y * torch.expm1(-scale * (a - high) * (a + high))


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


def _power(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return x^y; the partial by y is 0 at x ≤ 0, the partial by x is 0 at y = 0."""
    right = torch.pow(torch.where(x > 0, x, 1.0), torch.where(x > 0, y, 1.0))
    left = torch.pow(torch.where((x > 0) | (y == 0), 1.0, x), torch.where(x > 0, 1.0, y).detach())
    return torch.where(x > 0, right, left)
