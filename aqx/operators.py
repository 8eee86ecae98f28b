"""The table of operators: name, kind, JAX function, and the sets they belong to.

Everything that knows operators (parser, spaces, evaluation, tests, docs) derives from this table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import jax
import jax.numpy as jnp

from aqx.errors import InputError

Kind = Literal["unary", "binary", "n-ary"]
KINDS: tuple[Kind, ...] = ("unary", "binary", "n-ary")


@dataclass(frozen=True)
class Operator:
    """One operator: its name, its kind, and its elementwise JAX function of 1, 2 or any number of arrays."""

    name: str
    kind: Kind
    fn: Callable[..., jax.Array]


@dataclass(frozen=True, eq=False)
class OperatorTable:
    """An immutable snapshot of all operators in force; an opcode is an index into its kind's tuple.

    Compared by identity: `register` makes a new table, so a program compiled for an old one is never reused for it.
    """

    operators: tuple[Operator, ...]
    by_name: dict[str, Operator] = field(init=False, repr=False)
    by_kind: dict[Kind, tuple[Operator, ...]] = field(init=False, repr=False)
    opcodes: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self):
        by_kind = {kind: tuple(op for op in self.operators if op.kind == kind) for kind in KINDS}
        object.__setattr__(self, "by_kind", by_kind)
        object.__setattr__(self, "by_name", {op.name: op for op in self.operators})
        object.__setattr__(self, "opcodes", {op.name: i for ops in by_kind.values() for i, op in enumerate(ops)})


_UNARY: dict[str, Callable[[jax.Array], jax.Array]] = {
    "zero": jnp.zeros_like,
    "one": jnp.ones_like,
    "identity": lambda x: x,
    "negative": jnp.negative,
    "abs": jnp.abs,
    "reciprocal": lambda x: 1 / x,
    "square": jnp.square,
    "exp": jnp.exp,
    "erf": jax.scipy.special.erf,
    "erfc": jax.scipy.special.erfc,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "tanh": jnp.tanh,
    "expm1": jnp.expm1,
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "arcsinh": jnp.arcsinh,
    "arctan": jnp.arctan,
    "bessel_i0e": jax.scipy.special.i0e,
    "bessel_i1e": jax.scipy.special.i1e,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "swish": jax.nn.swish,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "hard_sigmoid": lambda x: jnp.clip(0.2 * x + 0.5, 0, 1),
    "elish": lambda x: jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0))) * jax.nn.sigmoid(x),
    "leakyrelu": lambda x: jnp.where(x > 0, x, 0.01 * x),
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "sin": jnp.sin,
    "cos": jnp.cos,
    "sqrt_abs": lambda x: jnp.sqrt(jnp.abs(x)),
    "log1p_abs": lambda x: jnp.log1p(jnp.abs(x)),
    "cube": lambda x: x * x * x,
    "relu6": jax.nn.relu6,
    "squareplus": jax.nn.squareplus,
    "gaussian": lambda x: jnp.exp(-jnp.square(x)),
    "hard_swish": jax.nn.hard_swish,
}
_BINARY: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "pow": jnp.power,
    "max": jnp.maximum,
    "min": jnp.minimum,
}
_NARY: dict[str, Callable[..., jax.Array]] = {
    "sum_n": lambda *xs: reduce(jnp.add, xs),
    "prod_n": lambda *xs: reduce(jnp.multiply, xs),
    "max_n": lambda *xs: reduce(jnp.maximum, xs),
    "min_n": lambda *xs: reduce(jnp.minimum, xs),
}

_PAPER = tuple(list(_UNARY)[:27]) + tuple(_BINARY) + tuple(_NARY)
_AQUASURF = _PAPER + ("elish", "leakyrelu", "mish", "gelu")
SETS: dict[str, tuple[str, ...]] = {
    "paper": _PAPER,
    "aquasurf": _AQUASURF,
    "extended": tuple(_UNARY) + tuple(_BINARY) + tuple(_NARY),
}

_BUILT_IN = OperatorTable(
    tuple(
        Operator(name, kind, fn)
        for kind, fns in (("unary", _UNARY), ("binary", _BINARY), ("n-ary", _NARY))
        for name, fn in fns.items()
    )
)
_in_force = _BUILT_IN


def operator_table() -> OperatorTable:
    """Return the snapshot of operators now in force: the built-in ones and what `register` added."""
    return _in_force


def operator_names(operators: str | Iterable[str]) -> tuple[str, ...]:
    """Return the operator names that a set's name ("paper", "aquasurf", "extended") or a list of names stands for.

    Raises:
        InputError: the set or one of the names is unknown.
    """
    if isinstance(operators, str):
        if operators not in SETS:
            raise InputError(f"operators={operators!r} is not a set; give one of {', '.join(SETS)}, or a list of names")
        return SETS[operators]
    names = tuple(dict.fromkeys(operators))
    for name in names:
        if name not in _in_force.by_name:
            raise InputError(f"operators: {name!r} is not an operator; aqx.register(name, fn, kind) adds your own")
    return names


def register(name: str, fn: Callable[..., jax.Array], kind: str) -> None:
    """Add an operator of your own; it then works in names, spaces, evaluation and search (not in exports).

    Args:
        name: a Python identifier that no built-in operator has; registering your own name again replaces it.
        fn: elementwise JAX function of one (unary), two (binary) or any number ≥ 1 (n-ary) of arrays.
        kind: "unary", "binary" or "n-ary".

    Raises:
        InputError: the name, the function or the kind cannot be used.

    Example:
        >>> import aqx, jax.numpy as jnp
        >>> aqx.register("sin_squared", lambda x: jnp.sin(x) ** 2, "unary")
        >>> float(aqx.activation("sin_squared(x)")(0.0))
        0.0
    """
    global _in_force
    kind = kind.replace("_", "-")
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is not a kind of operator; give one of {', '.join(KINDS)}")
    reserved = {"x", "unary", "binary", "n_ary", *_BUILT_IN.by_name}
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", str(name)) or name in reserved:
        raise InputError(f"name={name!r} cannot be registered; give an identifier that is not built in")
    if not callable(fn):
        raise InputError(f"fn={fn!r} is not callable; give an elementwise JAX function")
    old = _in_force.by_name.get(name)
    if old is not None and old.kind == kind and old.fn is fn:
        return
    kept = tuple(op for op in _in_force.operators if op.name != name)
    _in_force = OperatorTable((*kept, Operator(name, kind, fn)))
