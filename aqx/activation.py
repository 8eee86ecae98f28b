"""`Activation`: a tree as a JAX pytree that a model calls.

An activation's leaves are opcodes, its structure is the shape of its tree. Closed over, it traces straight to its
operators. Passed through `jax.jit` as an argument, one compiled program serves every function of that shape.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx import kernel
from aqx.errors import InputError, UnsupportedError
from aqx.kernel.switch import apply_operator
from aqx.numerics.moments import moments
from aqx.numerics.settings import on_host
from aqx.operators import Operator, OperatorTable, operator_table
from aqx.tree import Tree, parse, parse_schema


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, repr=False)
class Activation:
    """An activation function that is a pytree: `act(x)`; made by `aqx.activation`, stacked by `aqx.stack`.

    Equal and hashed by value when concrete, by identity when traced or stacked. Pickles carry operator names, so that
    they outlive a changed table.

    Attributes:
        schema: the shape of the tree, kinds in place of operators.
        table: the operators in force when it was made; part of the pytree's structure, compared by identity.
        opcodes: per operator in preorder, its index among the table's operators of its kind; `np.int32` scalars, arrays
            when stacked, tracers in a traced function.
        constants: (mean, 1 / standard deviation) when normalized, else empty.

    Example:
        >>> import aqx
        >>> act = aqx.activation("max(relu(x),sin(x))")
        >>> act.name, round(float(act(1.0)), 3)
        ('max(relu(x),sin(x))', 1.0)
    """

    schema: Tree
    table: OperatorTable
    opcodes: tuple[Any, ...]
    constants: tuple[Any, ...] = ()

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Tree, OperatorTable, bool]]:
        """Return the leaves and the static part, as JAX asks."""
        return (*self.opcodes, *self.constants), (self.schema, self.table, bool(self.constants))

    @classmethod
    def tree_unflatten(cls, static: tuple[Tree, OperatorTable, bool], leaves: Sequence[Any]) -> Activation:
        """Rebuild an activation from whatever JAX puts in place of its leaves."""
        schema, table, _ = static
        size = schema.size
        return cls(schema, table, tuple(leaves[:size]), tuple(leaves[size:]))

    @cached_property
    def is_concrete(self) -> bool:
        """Whether this is one known function: no leaf is traced or stacked."""
        leaves = (*self.opcodes, *self.constants)
        return all(not isinstance(leaf, Tracer) and np.ndim(leaf) == 0 for leaf in leaves)

    @cached_property
    def tree(self) -> Tree:
        """The tree of this function; raises UnsupportedError when traced or stacked."""
        return _with_names(self.schema, (operator.name for operator in self._operators))

    @property
    def name(self) -> str:
        """The name of this function; raises UnsupportedError when traced or stacked."""
        return str(self.tree)

    @property
    def shape(self) -> str:
        """The schema that the function belongs to, e.g. `binary(unary(x),unary(x))`."""
        return str(self.schema)

    def __call__(self, x: ArrayLike) -> Float[Array, "..."]:
        """Apply the function elementwise.

        Args:
            x: any array or number; 16-bit floats are computed in float32, integers become the default float.

        Returns:
            Values of x's shape and, where x is floating, of its dtype.

        Raises:
            InputError: x is complex, or this is a stack of activations (vmap or map over it instead).
        """
        _serve_flax()
        # Outside of a traced function numbers go to the device one by one, which `jax_transfer_guard` would refuse.
        with contextlib.nullcontext() if isinstance(x, Tracer) else jax.transfer_guard_host_to_device("allow"):
            return self._applied(x)

    def _applied(self, x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise InputError(f"x has dtype {x.dtype}; an activation takes real numbers")
        out = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
        if not self.is_concrete:
            if any(np.ndim(leaf) for leaf in (*self.opcodes, *self.constants)):
                raise InputError("this Activation is a stack; call jax.vmap(lambda act: act(x))(stack), or jax.lax.map")
            y = kernel.apply(self.schema, self.table, self.opcodes, self.constants, x.astype(out))
            if y is not None:
                return y
        x = jnp.asarray(x, jnp.promote_types(out, jnp.float32))
        if self.is_concrete:
            y = _evaluate(self.schema, (partial(apply_operator, operator) for operator in self._operators), x)
        else:
            (y,) = kernel.derivatives(0, self.schema, self.table, self.opcodes, x)
        if self.constants:
            mean, scale = (jnp.asarray(constant, x.dtype) for constant in self.constants)
            y = (y - mean) * scale
        return y.astype(out)

    @cached_property
    def _operators(self) -> tuple[Operator, ...]:
        if not self.is_concrete:
            raise UnsupportedError("this Activation is traced or stacked: its name and tree are not known here")
        kinds = (node.name for node in self.schema.nodes)
        return tuple(self.table.by_kind[kind][int(opcode)] for kind, opcode in zip(kinds, self.opcodes, strict=True))  # type: ignore[index]

    @cached_property
    def _value(self) -> tuple[Any, ...]:
        # The operators and not the table: registering another operator changes nothing about this function.
        return self.schema, self._operators, tuple(map(float, self.constants))

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Activation):
            return self is other
        return self.is_concrete and other.is_concrete and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value) if self.is_concrete else id(self)

    def __repr__(self) -> str:
        what = repr(self.name) if self.is_concrete else f"<{self.shape}>"
        return f"Activation({what}{', normalize=True' if self.constants else ''})"

    def __copy__(self) -> Activation:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Activation:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if any(isinstance(leaf, Tracer) for leaf in (*self.opcodes, *self.constants)):
            raise UnsupportedError("a traced Activation cannot be pickled; pickle it outside of the traced function")
        names = {kind: np.array([operator.name for operator in ops]) for kind, ops in self.table.by_kind.items()}
        kinds = (node.name for node in self.schema.nodes)
        nodes = [names[kind][np.asarray(code)].tolist() for kind, code in zip(kinds, self.opcodes, strict=True)]  # type: ignore[index]
        return _restore, (str(self.schema), nodes, jax.tree.map(_host, self.constants))


def activation(name: str | Tree | Activation, *, normalize: bool = False) -> Activation:
    """Make an activation function from its name.

    With `normalize`, (f(x) − mean) / deviation, which has mean 0 and variance 1 for x ~ N(0, 1).

    Args:
        name: a function such as `max(relu(x),cosh(elu(x)))`, or its `Tree`; an Activation is returned as it is, or
            normalized.
        normalize: whether to make the output's mean 0 and variance 1 for x ~ N(0, 1).

    Returns:
        The activation; call it on any array, inside or outside of JAX transformations.

    Raises:
        ParseError: the name does not parse.
        InputError: `normalize` where the moments do not exist, or the function is constant.

    Example:
        >>> import aqx
        >>> act = aqx.activation("add(relu(x),swish(x))")
        >>> float(act(0.0))
        0.0
        >>> act.shape
        'binary(unary(x),unary(x))'
    """
    _serve_flax()
    if isinstance(name, Activation):
        if not normalize or name.constants:
            return name
        name = name.tree
    tree, table = parse(name), operator_table()
    opcodes = tuple(np.int32(table.opcodes[node.name]) for node in tree.nodes)
    act = Activation(parse_schema(tree.shape), table, opcodes)
    if not normalize:
        return act
    mean, deviation = moments(partial(_float64_values, act), str(tree))
    return Activation(act.schema, table, opcodes, (mean, 1 / deviation))


def stack(activations: Sequence[Activation]) -> Activation:
    """Stack K activations of one shape into one whose leaves have a leading axis K, to map or vmap over.

    Args:
        activations: concrete activations of one shape, all normalized or none.

    Returns:
        The stack; `jax.lax.map(lambda act: act(x), stack)` has a leading axis K.

    Raises:
        InputError: there are none, or they differ in shape, operator table or normalization.

    Example:
        >>> import aqx, jax
        >>> acts = aqx.stack([aqx.activation("relu(x)"), aqx.activation("abs(x)")])
        >>> jax.lax.map(lambda act: act(-1.0), acts).tolist()
        [0.0, 1.0]
    """
    if not activations:
        raise InputError("activations is empty; give at least one")
    structures = [jax.tree.structure(act) for act in activations]
    for act, structure in zip(activations, structures, strict=True):
        if structure != structures[0]:
            first = activations[0]
            what = (
                "shape, or normalization,"
                if str(act.schema) != str(first.schema)
                else "normalization or operator table"
            )
            raise InputError(f"activations must agree to be stacked, but {act!r} has another {what} than {first!r}")
    return jax.tree.map(lambda *leaves: np.stack(leaves), *activations)


def _evaluate(schema: Tree, functions: Iterator[Callable[..., Array]], x: Array) -> Array:
    """Value of a tree whose operator nodes, in preorder, are these functions."""
    if not schema.args:
        return x
    function = next(functions)
    return function(*[_evaluate(arg, functions, x) for arg in schema.args])


def _with_names(schema: Tree, names: Iterator[str]) -> Tree:
    """The schema with its operator nodes named in preorder."""
    if not schema.args:
        return schema
    name = next(names)
    return Tree(name, tuple(_with_names(arg, names) for arg in schema.args))


def _float64_values(act: Activation, points: np.ndarray) -> np.ndarray:
    """Values in float64 on the CPU, whatever the precision and devices in use; also while a function is traced."""
    with on_host(float64=True), jax.ensure_compile_time_eval():
        return np.asarray(act(points))


def _serve_flax() -> None:
    """Tell `flax.serialization`, where somebody has imported it, how an Activation becomes a part of a checkpoint."""
    if serialization := sys.modules.get("flax.serialization"):
        with contextlib.suppress(ValueError, AttributeError):  # known already, or just being imported
            serialization.register_serialization_state(Activation, _state_of, _of_state)


def _state_of(act: Activation) -> str | Activation:
    # Text and no dict: modules of Flax Linen ask for the state of their attributes, and take a dict apart.
    if any(isinstance(leaf, Tracer) for leaf in (*act.opcodes, *act.constants)):
        return act
    return json.dumps(act.__reduce__()[1], default=np.ndarray.tolist)


def _of_state(target: Activation, state: str | Activation) -> Activation:
    del target
    if isinstance(state, Activation):
        return state
    schema, nodes, constants = json.loads(state)
    return _restore(schema, nodes, tuple(_host(np.array(constant)) for constant in constants))


def _host(leaf: Any) -> Any:
    """A float, or a NumPy array of a stack's floats."""
    return float(leaf) if np.ndim(leaf) == 0 else np.asarray(leaf)


def _restore(schema: str, nodes: list[Any], constants: tuple[Any, ...]) -> Activation:
    """Unpickle: look the operators' names up in the table in force now."""
    table, shape = operator_table(), parse_schema(schema)

    def opcode(kind: str, name: str) -> int:
        operator = table.by_name.get(name)
        if operator is None or operator.kind != kind:
            raise InputError(f"the pickled Activation uses {name!r}, a {kind} operator; aqx.register it first")
        return table.opcodes[name]

    opcodes = []
    for node, names in zip(shape.nodes, nodes, strict=True):
        codes = np.vectorize(partial(opcode, node.name), otypes=[np.int32])(names)
        opcodes.append(codes if np.ndim(codes) else np.int32(codes))
    return Activation(shape, table, tuple(opcodes), constants)
