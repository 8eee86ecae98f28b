"""Programs rewritten so that Pallas lowers them to Triton, and they mean there what they mean elsewhere.

Triton's lowering has no erf, no Bessel functions and no reduce_precision; its max and min drop a nan; and of a switch
with n branches it makes a chain of n − 1 tests. A program is traced, and evaluated anew with other forms for these.
What else it may be made of is listed here, so that whether an operator has a kernel is known without compiling one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from aqx.numerics import elementary

# Elementwise primitives that the lowering has for float32 and float64, with JAX's meaning for nan and infinity.
_PORTABLE = frozenset(
    "abs add add_any and asinh acosh atanh atan atan2 asin acos bitcast_convert_type broadcast_in_dim cbrt ceil "
    "convert_element_type copy cos cosh div eq exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic "
    "lt mul ne neg not or pow rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt "
    "square sub tan tanh xor".split()
)
_DTYPES = frozenset(map(np.dtype, ("bool", "int32", "uint32", "int64", "uint64", "float32", "float64")))


def _maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where((a > b) | (a != a), a, b)


def _minimum(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where((a < b) | (a != a), a, b)


_FORMS: dict[str, Callable[..., jax.Array]] = {
    "max": _maximum,
    "min": _minimum,
    "clamp": lambda low, x, high: _minimum(_maximum(x, low), high),
    "erf": lambda x, **_: elementary.erf(x),
    "erfc": lambda x, **_: elementary.erfc(x),
    "bessel_i0e": lambda x, **_: elementary.bessel_i0e(x),
    "bessel_i1e": lambda x, **_: elementary.bessel_i1e(x),
    # Of JAX 0.12.
    "polynomial": lambda x, *terms, **_: functools.reduce(lambda sum_, term: sum_ * x + term, reversed(terms)),
    "one_minus_square": lambda x: (1 + x) * (1 - x),
    "reduce_precision": lambda x, exponent_bits, mantissa_bits: elementary.round_mantissa(x, mantissa_bits),
}


@functools.cache
def _form(name: str, params: tuple[tuple[str, Any], ...], *types: tuple[tuple[int, ...], np.dtype]) -> ClosedJaxpr:
    """The program that stands for a primitive of these shapes and dtypes."""
    return jax.make_jaxpr(functools.partial(_FORMS[name], **dict(params)))(*(jax.ShapeDtypeStruct(*it) for it in types))


def _inner(eqn: Any) -> ClosedJaxpr | None:
    """The program that an equation calls once, if it does nothing else."""
    if eqn.primitive.name in ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"):
        return next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params)
    return None


def unportable(program: ClosedJaxpr) -> str | None:
    """Return the first thing in a program that has no form for the kernel, or None if all of it has."""
    if any(np.ndim(const) for const in program.consts):
        return "an array constant"
    for eqn in program.jaxpr.eqns:
        name = eqn.primitive.name
        inner = [*eqn.params["branches"]] if name == "cond" else [found] if (found := _inner(eqn)) else []
        if not inner and name not in _PORTABLE and name not in _FORMS:
            return name
        if name == "reduce_precision" and eqn.params["exponent_bits"] != jnp.finfo(eqn.invars[0].aval.dtype).nexp:
            return "reduce_precision of an exponent"
        for var in (*eqn.invars, *eqn.outvars):
            if var.aval.dtype not in _DTYPES:
                return f"{name} of {var.aval.dtype}"
        for each in inner:
            if reason := unportable(each):
                return reason
    return None


def evaluate(program: ClosedJaxpr, *args: Any) -> list[Any]:
    """Evaluate a program by what the kernel has.

    Args:
        program: one of which `unportable` finds nothing.
        args: its arguments.
    """
    values: dict[Any, Any] = dict(zip(program.jaxpr.invars, args, strict=True))
    values |= zip(program.jaxpr.constvars, (np.asarray(const)[()] for const in program.consts), strict=True)

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in program.jaxpr.eqns:
        inputs, name = [value(atom) for atom in eqn.invars], eqn.primitive.name
        if name == "cond":
            out = choose(inputs[0], eqn.params["branches"], inputs[1:])
        elif inner := _inner(eqn):
            out = evaluate(inner, *inputs)
        elif name in _FORMS:
            types = ((atom.aval.shape, atom.aval.dtype) for atom in eqn.invars)
            out = evaluate(_form(name, tuple(eqn.params.items()), *types), *inputs)
        else:
            out = eqn.primitive.bind(*inputs, **eqn.params)
            out = out if eqn.primitive.multiple_results else [out]
        values |= zip(eqn.outvars, out, strict=True)
    return [value(atom) for atom in program.jaxpr.outvars]


def choose(index: Any, branches: Sequence[ClosedJaxpr], args: Sequence[Any]) -> list[Any]:
    """Evaluate one of several programs by log₂ n tests; the index must be in range."""
    if len(branches) == 1:
        return evaluate(branches[0], *args)
    middle = math.ceil(len(branches) / 2)
    return lax.cond(
        index < middle,
        lambda: choose(index, branches[:middle], args),
        lambda: choose(index - middle, branches[middle:], args),
    )
