"""Elementwise functions that keep their relative precision, and their derivative's, where JAX's own lose it.

Written out, most activation functions lose digits somewhere: eˣ − 1, differentiated as (eˣ − 1) + 1, is 0 below −17,
tanh′ = 1 − tanh² is 0 above 9, exp(−x²) inherits the rounding of x² a hundredfold, and the branch that `jnp.where`
drops still puts its nan into the gradient. Here every function comes with its derivative, in a form free of
cancellation and overflow. Derivatives are made of the same functions, so that higher derivatives and forward mode work
too. At a kink the derivative is that of the flatter side.
"""

from aqx.numerics.algebraic import (
    absolute,
    arcsinh,
    arctan,
    cube,
    divide,
    hard_sigmoid,
    hard_swish,
    hard_tanh,
    isru,
    leaky_relu,
    log1p_abs,
    power,
    reciprocal,
    relu6,
    softsign,
    sqrt_abs,
    squareplus,
)
from aqx.numerics.exponential import (
    cosh,
    elish,
    elu,
    expm1,
    log_sigmoid,
    mish,
    selu,
    sigmoid,
    sinh,
    softplus,
    swish,
    tanh,
)
from aqx.numerics.special import bessel_i0e, bessel_i1e, erf, erfc, gaussian, gelu

__all__ = [
    "absolute",
    "arcsinh",
    "arctan",
    "bessel_i0e",
    "bessel_i1e",
    "cosh",
    "cube",
    "divide",
    "elish",
    "elu",
    "erf",
    "erfc",
    "expm1",
    "gaussian",
    "gelu",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "isru",
    "leaky_relu",
    "log1p_abs",
    "log_sigmoid",
    "mish",
    "power",
    "reciprocal",
    "relu6",
    "selu",
    "sigmoid",
    "sinh",
    "softplus",
    "softsign",
    "sqrt_abs",
    "squareplus",
    "swish",
    "tanh",
]
