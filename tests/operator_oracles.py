"""Every operator a second time, from its definition alone: in many digits by mpmath, in float64 by NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import mpmath as mp
import numpy as np
import scipy.special as sp

mp.mp.dps = 60

SELU_SCALE, SELU_ALPHA = mp.mpf("1.0507009873554804934193349852946"), mp.mpf("1.6732632423543772848170429916717")


def _sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def _sech2(x):
    return 4 / (mp.exp(x) + mp.exp(-x)) ** 2


def _softplus(x):
    return max(x, 0) + mp.log1p(mp.exp(-abs(x)))


def _normal(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2 if x > -1e3 else mp.mpf(0)


def _erfc(x):
    return mp.erfc(x) if x < 1e3 else mp.mpf(0)


def _density(x):
    return mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


def _i0e(x):
    return mp.besseli(0, x) * mp.exp(-abs(x))


def _i1e(x):
    return mp.besseli(1, x) * mp.exp(-abs(x))


def _swish_slope(x):
    return _sigmoid(x) * (1 + x * _sigmoid(-x))


def _squareplus(x):
    h = mp.sqrt(x * x + 4)
    return (x + h) / 2 if x > 0 else 2 / (h - x)


def _between(low, x, high):
    return mp.mpf(low < x < high)


# value and derivative; at a kink the derivative of the flatter side, 0 for the even functions
UNARY: dict[str, tuple[Callable, Callable]] = {
    "zero": (lambda x: mp.mpf(0), lambda x: mp.mpf(0)),
    "one": (lambda x: mp.mpf(1), lambda x: mp.mpf(0)),
    "identity": (lambda x: x, lambda x: mp.mpf(1)),
    "negative": (lambda x: -x, lambda x: mp.mpf(-1)),
    "abs": (abs, mp.sign),
    "reciprocal": (lambda x: 1 / x if x else mp.inf, lambda x: -1 / x**2 if x else -mp.inf),
    "square": (lambda x: x * x, lambda x: 2 * x),
    "exp": (mp.exp, mp.exp),
    "erf": (mp.erf, lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-x * x)),
    "erfc": (_erfc, lambda x: -2 / mp.sqrt(mp.pi) * mp.exp(-x * x)),
    "sinh": (mp.sinh, mp.cosh),
    "cosh": (mp.cosh, mp.sinh),
    "tanh": (mp.tanh, _sech2),
    "expm1": (mp.expm1, mp.exp),
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x)),
    "log_sigmoid": (lambda x: -_softplus(-x), lambda x: _sigmoid(-x)),
    "arcsinh": (mp.asinh, lambda x: 1 / mp.sqrt(1 + x * x)),
    "arctan": (mp.atan, lambda x: 1 / (1 + x * x)),
    "bessel_i0e": (_i0e, lambda x: _i1e(x) - mp.sign(x) * _i0e(x)),
    "bessel_i1e": (_i1e, lambda x: _i0e(x) - _i1e(x) * (mp.sign(x) + 1 / x) if x else mp.mpf("0.5")),
    "relu": (lambda x: max(x, 0), lambda x: mp.mpf(x > 0)),
    "elu": (lambda x: x if x > 0 else mp.expm1(x), lambda x: mp.mpf(1) if x > 0 else mp.exp(x)),
    "selu": (
        lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * mp.expm1(x)),
        lambda x: SELU_SCALE * (1 if x > 0 else SELU_ALPHA * mp.exp(x)),
    ),
    "swish": (lambda x: x * _sigmoid(x), _swish_slope),
    "softplus": (_softplus, _sigmoid),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2),
    "hard_sigmoid": (lambda x: min(max(x / 5 + 0.5, 0), 1), lambda x: _between(-2.5, x, 2.5) / 5),
    "elish": (
        lambda x: _sigmoid(x) * (x if x > 0 else mp.expm1(x)),
        lambda x: _swish_slope(x) if x > 0 else _sigmoid(x) * (mp.exp(x) + mp.expm1(x) * _sigmoid(-x)),
    ),
    "leakyrelu": (lambda x: x if x > 0 else x / 100, lambda x: mp.mpf(1) if x > 0 else mp.mpf("0.01")),
    "mish": (
        lambda x: x * mp.tanh(_softplus(x)),
        lambda x: mp.tanh(_softplus(x)) + x * _sech2(_softplus(x)) * _sigmoid(x),
    ),
    "gelu": (lambda x: x * _normal(x), lambda x: _normal(x) + x * _density(x)),
    "sin": (mp.sin, mp.cos),
    "cos": (mp.cos, lambda x: -mp.sin(x)),
    "sqrt_abs": (lambda x: mp.sqrt(abs(x)), lambda x: mp.sign(x) / (2 * mp.sqrt(abs(x))) if x else mp.mpf(0)),
    "log1p_abs": (lambda x: mp.log1p(abs(x)), lambda x: mp.sign(x) / (1 + abs(x))),
    "cube": (lambda x: x**3, lambda x: 3 * x * x),
    "gaussian": (lambda x: mp.exp(-x * x), lambda x: -2 * x * mp.exp(-x * x)),
    "squareplus": (_squareplus, lambda x: _squareplus(x) / mp.sqrt(x * x + 4)),
    "isru": (lambda x: x / mp.sqrt(1 + x * x), lambda x: 1 / mp.sqrt(1 + x * x) ** 3),
    "relu6": (lambda x: min(max(x, 0), 6), lambda x: _between(0, x, 6)),
    "relu_squared": (lambda x: max(x, 0) ** 2, lambda x: 2 * max(x, 0)),
    "hard_swish": (
        lambda x: x * min(max(x + 3, 0), 6) / 6,
        lambda x: (2 * x + 3) / 6 if -3 < x < 3 else mp.mpf(x >= 3),
    ),
    "hard_tanh": (lambda x: min(max(x, -1), 1), lambda x: _between(-1, x, 1)),
}


def _np_elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


# float64 arrays; what an operator's name means, with no care for digits
NUMPY: dict[str, Callable] = {
    "zero": np.zeros_like,
    "one": np.ones_like,
    "identity": lambda x: x,
    "negative": np.negative,
    "abs": np.abs,
    "reciprocal": lambda x: 1 / x,
    "square": np.square,
    "exp": np.exp,
    "erf": sp.erf,
    "erfc": sp.erfc,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "expm1": np.expm1,
    "sigmoid": sp.expit,
    "log_sigmoid": sp.log_expit,
    "arcsinh": np.arcsinh,
    "arctan": np.arctan,
    "bessel_i0e": sp.i0e,
    "bessel_i1e": sp.i1e,
    "relu": lambda x: np.maximum(x, 0),
    "elu": _np_elu,
    "selu": lambda x: float(SELU_SCALE) * np.where(x > 0, x, float(SELU_ALPHA) * _np_elu(x)),
    "swish": lambda x: x * sp.expit(x),
    "softplus": lambda x: -sp.log_expit(-x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "elish": lambda x: _np_elu(x) * sp.expit(x),
    "leakyrelu": lambda x: np.where(x > 0, x, 0.01 * x),
    "mish": lambda x: x * np.tanh(-sp.log_expit(-x)),
    "gelu": lambda x: x * sp.ndtr(x),
    "sin": np.sin,
    "cos": np.cos,
    "sqrt_abs": lambda x: np.sqrt(np.abs(x)),
    "log1p_abs": lambda x: np.log1p(np.abs(x)),
    "cube": lambda x: x**3,
    "gaussian": lambda x: np.exp(-(x**2)),
    "squareplus": lambda x: (x + np.sqrt(x**2 + 4)) / 2,
    "isru": lambda x: x / np.sqrt(1 + x**2),
    "relu6": lambda x: np.clip(x, 0, 6),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "max": np.maximum,
    "min": np.minimum,
    "sum_n": lambda *xs: reduce(np.add, xs),
    "prod_n": lambda *xs: reduce(np.multiply, xs),
    "max_n": lambda *xs: reduce(np.maximum, xs),
    "min_n": lambda *xs: reduce(np.minimum, xs),
}


def binary(name: str, x, y) -> tuple | None:
    """Value, partial by x and partial by y in many digits; None where the function is not defined."""
    x, y = mp.mpf(x), mp.mpf(y)
    half = mp.mpf("0.5") if x == y else None
    if name == "add":
        return x + y, mp.mpf(1), mp.mpf(1)
    if name == "sub":
        return x - y, mp.mpf(1), mp.mpf(-1)
    if name == "mul":
        return x * y, y, x
    if name == "div":
        return (x / y, 1 / y, -x / y**2) if y else None
    if name == "max":
        return max(x, y), half or mp.mpf(x > y), half or mp.mpf(y > x)
    if name == "min":
        return min(x, y), half or mp.mpf(x < y), half or mp.mpf(y < x)
    assert name == "pow"
    if y == 0:
        return mp.mpf(1), mp.mpf(0), mp.log(x) if x > 0 else mp.mpf(0)
    if x == 0:
        return (mp.mpf(0), mp.mpf(y == 1) if y >= 1 else mp.inf, mp.mpf(0)) if y > 0 else None
    if (x < 0 and y != mp.floor(y)) or abs(y * mp.log(abs(x))) > 200:
        return None
    value = mp.re(mp.power(x, y))
    return value, y * value / x, value * mp.log(x) if x > 0 else mp.mpf(0)
