"""Powers, roots, functions with kinks, and the functions of two or more arguments."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from aqx.numerics.derivative import with_derivative


def identity(x: ArrayLike) -> jax.Array:
    """Return x."""
    return jnp.asarray(x)


@with_derivative(jnp.sign)
def absolute(x: jax.Array) -> jax.Array:
    """Return |x|, with derivative 0 at 0."""
    return jnp.abs(x)


def _reciprocal_derivative(x: jax.Array) -> jax.Array:
    return -jnp.square(reciprocal(x))


@with_derivative(_reciprocal_derivative)
def reciprocal(x: jax.Array) -> jax.Array:
    """Return 1 / x."""
    return 1 / x


@with_derivative(lambda x: 3 * x * x)
def cube(x: jax.Array) -> jax.Array:
    """Return x³."""
    return x * x * x


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _hypotenuse(x: jax.Array, c: float) -> jax.Array:
    """Return √(c² + x²) for c ≥ 1, without the overflow of x²."""
    longer, shorter = jnp.maximum(jnp.abs(x), c), jnp.minimum(jnp.abs(x), c)
    return longer * jnp.sqrt(1 + jnp.square(shorter / longer))


@_hypotenuse.defjvp
def _(c: float, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    y = _hypotenuse(x, c)
    return y, x / y * t


@with_derivative(lambda x: 1 / _hypotenuse(x, 1.0))
def arcsinh(x: jax.Array) -> jax.Array:
    """Return log(x + √(1 + x²))."""
    return jnp.arcsinh(x)


@with_derivative(lambda x: 1 / (1 + jnp.square(x)))
def arctan(x: jax.Array) -> jax.Array:
    """Return the inverse of the tangent."""
    return jnp.arctan(x)


def _to_finite(x: jax.Array) -> jax.Array:
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -largest, largest)


def _isru_derivative(x: jax.Array) -> jax.Array:
    r = 1 / _hypotenuse(x, 1.0)
    return r * r * r


@with_derivative(_isru_derivative)
def isru(x: jax.Array) -> jax.Array:
    """Return x / √(1 + x²), the inverse square root unit."""
    x = _to_finite(x)
    return x / _hypotenuse(x, 1.0)


def _squareplus_derivative(x: jax.Array) -> jax.Array:
    return squareplus(x) / _hypotenuse(x, 2.0)


@with_derivative(_squareplus_derivative)
def squareplus(x: jax.Array) -> jax.Array:
    """Return (x + √(x² + 4)) / 2."""
    # (|x| + √(x² + 4)) / 2 with the longer leg drawn out; for x < 0 its reciprocal
    a = jnp.abs(x)
    longer = jnp.maximum(a, 2)
    mean = longer * (0.5 * (jnp.minimum(a / 2, 1) + jnp.sqrt(1 + jnp.square(jnp.minimum(a, 2) / longer))))
    return jnp.where(x > 0, mean, 1 / mean)


@with_derivative(lambda x: jnp.square(1 / (1 + jnp.abs(x))))
def softsign(x: jax.Array) -> jax.Array:
    """Return x / (1 + |x|)."""
    x = _to_finite(x)
    return x / (1 + jnp.abs(x))


@with_derivative(lambda x: 0.5 * jnp.sign(x) / jnp.sqrt(jnp.where(x == 0, 1, jnp.abs(x))))
def sqrt_abs(x: jax.Array) -> jax.Array:
    """Return √|x|, with derivative 0 at 0."""
    return jnp.sqrt(jnp.abs(x))


@with_derivative(lambda x: jnp.sign(x) / (1 + jnp.abs(x)))
def log1p_abs(x: jax.Array) -> jax.Array:
    """Return log(1 + |x|)."""
    return jnp.log1p(jnp.abs(x))


@with_derivative(lambda x: jnp.where(x > 0, 1.0, 0.01))
def leaky_relu(x: jax.Array) -> jax.Array:
    """Return x if x > 0, else 0.01 x."""
    return jnp.where(x > 0, x, 0.01 * x)


@with_derivative(lambda x: jnp.where((x > 0) & (x < 6), 1, 0))
def relu6(x: jax.Array) -> jax.Array:
    """Return clip(x, 0, 6)."""
    return jnp.clip(x, 0, 6)


def relu_squared(x: ArrayLike) -> jax.Array:
    """Return max(x, 0)²."""
    return jnp.square(jax.nn.relu(x))


@with_derivative(lambda x: jnp.where(jnp.abs(x) < 1, 1, 0))
def hard_tanh(x: jax.Array) -> jax.Array:
    """Return clip(x, −1, 1)."""
    return jnp.clip(x, -1, 1)


@with_derivative(lambda x: jnp.where(jnp.abs(x) < 2.5, 0.2, 0))
def hard_sigmoid(x: jax.Array) -> jax.Array:
    """Return clip(0.2 x + 0.5, 0, 1)."""
    # x + 2.5 is exact near the kink, where 0.2 x + 0.5 would cancel
    return jnp.clip(0.2 * (x + 2.5), 0, 1)


@with_derivative(lambda x: jnp.where(x < 3, jnp.where(x > -3, (x + 1.5) / 3, 0), 1))
def hard_swish(x: jax.Array) -> jax.Array:
    """Return x clip(x + 3, 0, 6) / 6."""
    x = jnp.maximum(x, -3)
    return x * (jnp.minimum(x + 3, 6) / 6)


def divide(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Return x / y; the partial by y is −(x/y)/y, which overflows later than −x/y²."""
    return _divide(jnp.asarray(x), jnp.asarray(y))


@jax.custom_jvp
def _divide(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.divide(x, y)


@_divide.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, y), (tx, ty) = primals, tangents
    q = _divide(x, y)
    return q, (tx - q * ty) / y


def power(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Return x^y; the partial by y is 0 at x ≤ 0, the partial by x is 0 at y = 0."""
    return _power(jnp.asarray(x), jnp.asarray(y))


@jax.custom_jvp
def _power(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.power(x, y)


@functools.partial(_power.defjvp, symbolic_zeros=True)  # the partial by x may be inf: it must not meet a tangent of 0
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, y), (tx, ty) = primals, tangents
    p = _power(x, y)
    by_x = jnp.zeros_like(p) if type(tx) is SymbolicZero else _power_by_base(x, y, p) * tx
    by_y = jnp.zeros_like(p) if type(ty) is SymbolicZero else jnp.where(x > 0, p * _log(x), 0) * ty
    return p, by_x + by_y


def _power_by_base(x: jax.Array, y: jax.Array, p: jax.Array) -> jax.Array:
    # y p/x is right wherever p is a normal number; where it is not, or x = 0, it takes a second power
    normal = (jnp.abs(p) >= jnp.finfo(p.dtype).tiny) & jnp.isfinite(p) & (x != 0)
    slope = jnp.where(normal, p / jnp.where(normal, x, 1), _power(x, jnp.where(normal | (y == 0), 1, y - 1)))
    return y * slope


def _log(x: jax.Array) -> jax.Array:
    return jnp.log(jnp.where(x > 0, x, 1))


def sum_n(*xs: ArrayLike) -> jax.Array:
    """Return x₁ + x₂ + …, from left to right."""
    return functools.reduce(jnp.add, map(jnp.asarray, xs))


def prod_n(*xs: ArrayLike) -> jax.Array:
    """Return x₁ · x₂ · …, from left to right."""
    return functools.reduce(jnp.multiply, map(jnp.asarray, xs))


def max_n(*xs: ArrayLike) -> jax.Array:
    """Return max(x₁, x₂, …), from left to right."""
    return functools.reduce(jnp.maximum, map(jnp.asarray, xs))


def min_n(*xs: ArrayLike) -> jax.Array:
    """Return min(x₁, x₂, …), from left to right."""
    return functools.reduce(jnp.minimum, map(jnp.asarray, xs))
