"""The table of operators: name, kind, JAX function, and the sets they belong to.

Everything that knows operators (parser, spaces, evaluation, tests, docs) derives from this table. Names and meanings of
the paper's operators are those of Bingham & Miikkulainen (NeurIPS 2023), table of the search space. Functions stand in
it as text and are imported with the first value, as who reads names and counts functions needs no JAX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from aqx.errors import InputError

if TYPE_CHECKING:
    import jax

Kind = Literal["unary", "binary", "n-ary"]
KINDS: tuple[Kind, ...] = ("unary", "binary", "n-ary")


@dataclass(frozen=True)
class Operator:
    """One operator: its name, its kind, and its elementwise JAX function of 1, 2 or any number of arrays.

    It pickles by name: where it is loaded, a user's own operator must have been registered under that name.

    Attributes:
        name: as it stands in the names of functions.
        kind: how many arguments it takes.
        source: the function, or where it is: `numerics.erf`, `jnp.exp` or `nn.relu`.
    """

    name: str
    kind: Kind
    source: Callable[..., jax.Array] | str

    @cached_property
    def fn(self) -> Callable[..., jax.Array]:
        """The elementwise JAX function."""
        if not isinstance(self.source, str):
            return self.source
        import jax

        from aqx import numerics

        home, _, name = self.source.partition(".")
        return getattr({"jnp": jax.numpy, "nn": jax.nn, "numerics": numerics}[home], name)

    def __reduce__(self) -> tuple[Callable[[str], Operator], tuple[str]]:
        return _operator, (self.name,)


@dataclass(frozen=True, eq=False)
class OperatorTable:
    """An immutable snapshot of all operators in force; an opcode is an index into its kind's tuple.

    Compared by identity: `register` makes a new table, so a program compiled for an old one is never reused for it.
    """

    operators: tuple[Operator, ...]
    by_name: dict[str, Operator] = field(init=False, repr=False)
    by_kind: dict[Kind, tuple[Operator, ...]] = field(init=False, repr=False)
    opcodes: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_kind = {kind: tuple(op for op in self.operators if op.kind == kind) for kind in KINDS}
        object.__setattr__(self, "by_kind", by_kind)
        object.__setattr__(self, "by_name", {op.name: op for op in self.operators})
        object.__setattr__(self, "opcodes", {op.name: i for ops in by_kind.values() for i, op in enumerate(ops)})

    def __reduce__(self) -> tuple[Callable[..., OperatorTable], tuple[tuple[Operator, ...]]]:
        return _table, (self.operators,)


# Each value is right to 16 units in the last place, each derivative finite and right wherever it is representable;
# subnormal arguments and results may be 0, as XLA makes them on a CPU. At a kink the derivative is that of the flatter
# side (0 for relu, 0.01 for leakyrelu), and 0 for abs, sqrt_abs and log1p_abs, which are even.
_UNARY: dict[str, dict[str, str]] = {
    "paper": {
        "zero": "jnp.zeros_like",
        "one": "jnp.ones_like",
        "identity": "numerics.identity",
        "negative": "jnp.negative",
        "abs": "numerics.absolute",
        "reciprocal": "numerics.reciprocal",
        "square": "jnp.square",
        "exp": "jnp.exp",
        "erf": "numerics.erf",
        "erfc": "numerics.erfc",
        "sinh": "numerics.sinh",
        "cosh": "numerics.cosh",
        "tanh": "numerics.tanh",
        "expm1": "numerics.expm1",
        "sigmoid": "numerics.sigmoid",
        "log_sigmoid": "numerics.log_sigmoid",  # log σ(x)
        "arcsinh": "numerics.arcsinh",
        "arctan": "numerics.arctan",
        "bessel_i0e": "numerics.bessel_i0e",  # exp(−|x|) I₀(x)
        "bessel_i1e": "numerics.bessel_i1e",  # exp(−|x|) I₁(x)
        "relu": "nn.relu",
        "elu": "numerics.elu",  # x if x > 0 else eˣ − 1
        "selu": "numerics.selu",  # 1.0507 (x if x > 0 else 1.6733 (eˣ − 1))
        "swish": "numerics.swish",  # x σ(x)
        "softplus": "numerics.softplus",  # log(1 + eˣ)
        "softsign": "numerics.softsign",  # x / (1 + |x|)
        "hard_sigmoid": "numerics.hard_sigmoid",  # clip(0.2 x + 0.5, 0, 1)
    },
    "aquasurf": {
        "elish": "numerics.elish",  # (x if x > 0 else eˣ − 1) σ(x)
        "leakyrelu": "numerics.leaky_relu",  # x if x > 0 else 0.01 x
        "mish": "numerics.mish",  # x tanh(log(1 + eˣ))
        "gelu": "numerics.gelu",  # x Φ(x), Φ the normal distribution function
    },
    "extended": {
        "sin": "jnp.sin",
        "cos": "jnp.cos",
        "sqrt_abs": "numerics.sqrt_abs",  # √|x|, its derivative at 0 taken as 0
        "log1p_abs": "numerics.log1p_abs",  # log(1 + |x|)
        "cube": "numerics.cube",
        "gaussian": "numerics.gaussian",  # exp(−x²)
        "squareplus": "numerics.squareplus",  # (x + √(x² + 4)) / 2
        "isru": "numerics.isru",  # x / √(1 + x²)
        "relu6": "numerics.relu6",  # clip(x, 0, 6)
        "relu_squared": "numerics.relu_squared",
        "hard_swish": "numerics.hard_swish",  # x clip(x + 3, 0, 6) / 6
        "hard_tanh": "numerics.hard_tanh",  # clip(x, −1, 1)
    },
}
# At a tie, max and min give each argument half of the derivative.
_BINARY: dict[str, str] = {
    "add": "jnp.add",
    "sub": "jnp.subtract",
    "mul": "jnp.multiply",
    "div": "numerics.divide",
    "pow": "numerics.power",
    "max": "jnp.maximum",
    "min": "jnp.minimum",
}
_NARY: dict[str, str] = {  # from left to right
    "sum_n": "numerics.sum_n",
    "prod_n": "numerics.prod_n",
    "max_n": "numerics.max_n",
    "min_n": "numerics.min_n",
}
# Their arguments may be given in any order.
COMMUTATIVE = frozenset(("add", "mul", "max", "min", *_NARY))

_PAPER = (*_UNARY["paper"], *_BINARY, *_NARY)
_AQUASURF = (*_PAPER, *_UNARY["aquasurf"])
SETS: dict[str, tuple[str, ...]] = {
    "paper": _PAPER,
    "aquasurf": _AQUASURF,
    "extended": (*_AQUASURF, *_UNARY["extended"]),
}

_BUILT_IN = OperatorTable(
    (
        *(Operator(name, "unary", source) for sources in _UNARY.values() for name, source in sources.items()),
        *(Operator(name, "binary", source) for name, source in _BINARY.items()),
        *(Operator(name, "n-ary", source) for name, source in _NARY.items()),
    )
)
_in_force = _BUILT_IN


def operator_table() -> OperatorTable:
    """Return the snapshot of operators now in force: the built-in ones and what `register` added."""
    return _in_force


def own_operators() -> tuple[Operator, ...]:
    """Return the operators in force that `register` added."""
    return tuple(operator for operator in _in_force.operators if operator.name not in _BUILT_IN.by_name)


def operator_names(operators: str | Iterable[str]) -> tuple[str, ...]:
    """Return the operator names that a set's name ("paper", "aquasurf", "extended") or a list of names stands for.

    Raises:
        InputError: the set or one of the names is unknown.

    Example:
        >>> from aqx.operators import operator_names
        >>> operator_names(["relu", "max", "relu"])
        ('relu', 'max')
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

    The function is traced here, on shapes alone. Worker processes must register it too: best where the task is.

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
    if kind == "n_ary":
        kind = "n-ary"
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is not a kind of operator; give one of {', '.join(KINDS)}")
    reserved = {"x", "y", "c", "unary", "binary", "n_ary", *_BUILT_IN.by_name}
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) or name in reserved:
        raise InputError(f"name={name!r} cannot be registered; give an identifier that is not built in")
    if not callable(fn):
        raise InputError(f"fn={fn!r} is not callable; give an elementwise JAX function")
    old = _in_force.by_name.get(name)
    if old is not None and old.kind == kind and old.source is fn:
        return
    _check_elementwise(fn, kind)
    kept = tuple(op for op in _in_force.operators if op.name != name)
    _in_force = OperatorTable((*kept, Operator(name, kind, fn)))


def _check_elementwise(fn: Callable[..., jax.Array], kind: Kind) -> None:
    import jax

    x = jax.ShapeDtypeStruct((2, 3), "float32")
    for arity in {"unary": (1,), "binary": (2,), "n-ary": (1, 3)}[kind]:
        try:
            y = jax.eval_shape(fn, *[x] * arity)
        except Exception as error:  # whatever a user's function raises
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"fn={fn!r} fails on {arity} JAX array(s): {type(error).__name__}: {reason}") from error
        if (getattr(y, "shape", None), getattr(y, "dtype", None)) != (x.shape, x.dtype):
            raise InputError(f"fn={fn!r} is not elementwise: from {arity} float32[2,3] it makes {y}")


def _operator(name: str) -> Operator:
    if name not in _in_force.by_name:
        raise InputError(f"operator {name!r} is not registered here; call aqx.register before loading what uses it")
    return _in_force.by_name[name]


def _table(operators: tuple[Operator, ...]) -> OperatorTable:
    return _in_force if operators == _in_force.operators else OperatorTable(operators)
