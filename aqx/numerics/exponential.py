"""Functions of eˣ: each by one exp of −|x|, −|x|/2 or the like, which cannot overflow."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from aqx.numerics.derivative import with_derivative

_FAR = 1e4  # beyond ±_FAR every exp here is 0 or inf; clipping there turns inf · 0 into the limit
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _magnitude(x: jax.Array) -> jax.Array:
    # |x| with the slope −1 at 0, where the forms below take the branch of x ≤ 0: so second derivatives hold at 0 too.
    return jnp.where(x > 0, x, -x)


@with_derivative(jnp.exp)
def expm1(x: jax.Array) -> jax.Array:
    """Return eˣ − 1."""
    return jnp.expm1(x)


@with_derivative(lambda x: jnp.where(x > 0, 1, jnp.exp(jnp.minimum(x, 0))))
def elu(x: jax.Array) -> jax.Array:
    """Return x if x > 0, else eˣ − 1."""
    return jnp.where(x > 0, x, jnp.expm1(x))


def _selu_derivative(x: jax.Array) -> jax.Array:
    half = jnp.exp(jnp.minimum(x, 0) / 2)  # squared last, so that the product is not 0 before it must be
    return jnp.where(x > 0, _SELU_SCALE, (_SELU_SCALE * _SELU_ALPHA * half) * half)


@with_derivative(_selu_derivative)
def selu(x: jax.Array) -> jax.Array:
    """Return 1.0507 x if x > 0, else 1.0507 · 1.6733 (eˣ − 1)."""
    return _SELU_SCALE * jnp.where(x > 0, x, _SELU_ALPHA * jnp.expm1(x))


def _sinh_derivative(x: jax.Array) -> jax.Array:
    return cosh(x)


@with_derivative(_sinh_derivative)
def sinh(x: jax.Array) -> jax.Array:
    """Return (eˣ − e⁻ˣ) / 2."""
    # 2 sinh(x/2) cosh(x/2): no overflow before the result's own. The cap keeps e · r from becoming inf · 0.
    cap = 1.9 * math.log(jnp.finfo(x.dtype).max)
    e = jnp.expm1(jnp.minimum(jnp.abs(x), cap) / 2)
    r = 1 / (e + 1)
    return jnp.where(jnp.abs(x) < 1e-9, x, jnp.sign(x) * ((0.5 * (e + e * r)) * ((e + 1) + r)))


@with_derivative(sinh)
def cosh(x: jax.Array) -> jax.Array:
    """Return (eˣ + e⁻ˣ) / 2."""
    half = jnp.exp(jnp.abs(x) / 2)
    return (0.5 * half) * half + (0.5 / half) / half


def _tanh_derivative(x: jax.Array) -> jax.Array:
    e = jnp.exp(-_magnitude(x))
    return (4 * e) * e / jnp.square(1 + e * e)


@with_derivative(_tanh_derivative)
def tanh(x: jax.Array) -> jax.Array:
    """Return sinh x / cosh x."""
    return jnp.tanh(x)


def _sigmoid_derivative(x: jax.Array) -> jax.Array:
    e = jnp.exp(-_magnitude(x))
    return e / jnp.square(1 + e)


@with_derivative(_sigmoid_derivative)
def sigmoid(x: jax.Array) -> jax.Array:
    """Return σ(x) = 1 / (1 + e⁻ˣ)."""
    e = jnp.exp(-_magnitude(x))
    return jnp.where(x > 0, 1, e) / (1 + e)


@with_derivative(sigmoid)
def softplus(x: jax.Array) -> jax.Array:
    """Return log(1 + eˣ)."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def log_sigmoid(x: ArrayLike) -> jax.Array:
    """Return log σ(x)."""
    return -softplus(-jnp.asarray(x))


def _swish_derivative(x: jax.Array) -> jax.Array:
    # σ(x)(1 + x σ(−x)); with h = exp(−|x|/2) and s = 1/(1 + h²), σ(|x|) = s and σ(−|x|) = h² s.
    h = jnp.exp(-_magnitude(x) / 2)
    s = 1 / (1 + h * h)
    x = jnp.clip(x, -_FAR, _FAR)
    return jnp.where(x > 0, s * (1 + x * (h * h) * s), (h * s * (1 + x * s)) * h)


@with_derivative(_swish_derivative)
def swish(x: jax.Array) -> jax.Array:
    """Return x σ(x)."""
    h = jnp.exp(-_magnitude(x) / 2)
    return jnp.where(x > 0, x, (jnp.maximum(x, -_FAR) * h) * h) / (1 + h * h)


def _elish_derivative(x: jax.Array) -> jax.Array:
    # For x ≤ 0: σ(x) (eˣ + (eˣ − 1) σ(−x)) = e (e² + 2e − 1) / (1 + e)², e = eˣ.
    e = jnp.exp(jnp.minimum(x, 0))
    return jnp.where(x > 0, _swish_derivative(x), e * ((e + 2) * e - 1) / jnp.square(1 + e))


@with_derivative(_elish_derivative)
def elish(x: jax.Array) -> jax.Array:
    """Return (x if x > 0 else eˣ − 1) σ(x)."""
    e = jnp.exp(-_magnitude(x))
    return jnp.where(x > 0, x, jnp.expm1(x) * e) / (1 + e)


def _mish_derivative(x: jax.Array) -> jax.Array:
    # w + x w′ with w = tanh(softplus x), w′ = 4 e (1 + e) / (e² + 2e + 2)², e = eˣ; for x > 0 in powers of e⁻ˣ.
    h = jnp.exp(-_magnitude(x) / 2)
    e = h * h
    x = jnp.clip(x, -_FAR, _FAR)
    positive, negative = 1 + 2 * e * (1 + e), 2 + e * (2 + e)
    right = ((1 + 2 * e) + x * (4 * e * e * (1 + e)) / positive) / positive
    left = (h * ((2 + e) + x * (4 * (1 + e)) / negative) / negative) * h
    return jnp.where(x > 0, right, left)


@with_derivative(_mish_derivative)
def mish(x: jax.Array) -> jax.Array:
    """Return x tanh(log(1 + eˣ))."""
    # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2), e = eˣ: one exp instead of exp, log1p and tanh.
    h = jnp.exp(-_magnitude(x) / 2)
    e = h * h
    right, left = 1 + 2 * e, ((jnp.maximum(x, -_FAR) * h) * (e + 2)) * h
    return jnp.where(x > 0, x * (right / (right + 2 * e * e)), left / (e * (e + 2) + 2))
