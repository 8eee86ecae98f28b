"""`Activation`: a tree as a JAX pytree that a model calls.

An activation's leaves are opcodes and numbers, its structure is the shape of its tree. Closed over, it traces straight
to its operators. Passed through `jax.jit` as an argument, one compiled program serves every function of that shape.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx import kernel
from aqx.constants import text_of
from aqx.errors import InputError, UnsupportedError, WrongInputsError
from aqx.kernel.switch import apply_operator
from aqx.learnable import constants_in, names_of
from aqx.numerics.moments import moments
from aqx.numerics.moments_in_plane import moments_in_plane
from aqx.numerics.settings import on_host
from aqx.operators import Operator, OperatorTable, operator_table
from aqx.tree import INPUTS, WILDCARD, Tree, parse, parse_schema


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, repr=False)
class Activation:
    """An activation function that is a pytree: `act(x)`, or `act(x, y)`, the function of a gated unit.

    It is made by `aqx.activation`, and stacked by `aqx.stack`.

    Equal and hashed by value when concrete, by identity when traced or stacked. Pickles carry operator names, so that
    they outlive a changed table.

    Attributes:
        schema: the shape of the tree, kinds in place of operators.
        table: the operators in force when it was made; part of the pytree's structure, compared by identity.
        opcodes: per operator in preorder, its index among the table's operators of its kind; `np.int32` scalars, arrays
            when stacked, tracers in a traced function.
        constants: (mean, 1 / standard deviation) when normalized, else empty.
        numbers: the constants in the tree, from left to right; Python floats, arrays when stacked.

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
    numbers: tuple[Any, ...] = ()

    @property
    def _leaves(self) -> tuple[Any, ...]:
        return *self.opcodes, *self.numbers, *self.constants

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Tree, OperatorTable, bool]]:
        """Return the leaves and the static part, as JAX asks."""
        return self._leaves, (self.schema, self.table, bool(self.constants))

    @classmethod
    def tree_unflatten(cls, static: tuple[Tree, OperatorTable, bool], leaves: Sequence[Any]) -> Activation:
        """Rebuild an activation from whatever JAX puts in place of its leaves."""
        schema, table, normalized = static
        size, end = schema.size, len(leaves) - 2 * normalized
        return cls(schema, table, tuple(leaves[:size]), tuple(leaves[end:]), tuple(leaves[size:end]))

    @cached_property
    def is_concrete(self) -> bool:
        """Whether this is one known function: no leaf is traced or stacked."""
        return _are_known(self._leaves)

    @cached_property
    def tree(self) -> Tree:
        """The tree of this function; raises UnsupportedError when traced or stacked."""
        if not self.is_concrete:
            raise UnsupportedError("this Activation is traced or stacked: its name and tree are not known here")
        return _with_names(
            self.schema, (operator.name for operator in self._operators), iter(map(text_of, self.numbers))
        )

    @property
    def name(self) -> str:
        """The name of this function; raises UnsupportedError when traced or stacked."""
        return str(self.tree)

    @property
    def inputs(self) -> int:
        """How many arrays it takes, 1 or 2: known where it is traced or stacked, too."""
        return self.schema.inputs

    @property
    def shape(self) -> str:
        """The schema that the function belongs to, e.g. `binary(unary(x),unary(x))`."""
        return str(self.schema)

    def __call__(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "..."]:
        """Apply the function elementwise.

        Args:
            x: any array or number; 16-bit floats are computed in float32, integers become the default float.
            y: the second input of a function that has two; x and y broadcast and promote as in `x * y`.

        Returns:
            Values of x's shape and, where x is floating, of its dtype; of two inputs, as of `x * y`.

        Raises:
            InputError: an input is complex, missing, or one too many; x and y do not broadcast; or this is a stack of
                activations (vmap or map over it instead).

        Example:
            >>> import aqx
            >>> swiglu = aqx.activation("mul(swish(x),y)")
            >>> swiglu.inputs, float(swiglu(0.0, 3.0))
            (2, 0.0)
        """
        _serve_flax()
        # Outside of a traced function numbers go to the device one by one, which `jax_transfer_guard` would refuse.
        with contextlib.nullcontext() if isinstance(x, Tracer) else jax.transfer_guard_host_to_device("allow"):
            return self._applied(x, y, self.numbers)

    def _applied(self, x: ArrayLike, y: ArrayLike | None, numbers: Sequence[ArrayLike]) -> Array:
        given = self._together(x, y)
        if any(
            np.ndim(leaf)
            for leaf in (*self.opcodes, *self.constants, *(self.numbers if numbers is self.numbers else ()))
        ):
            raise InputError("this Activation is a stack; call jax.vmap(lambda act: act(x))(stack), or jax.lax.map")
        return self._of(given, numbers)

    def _together(self, x: ArrayLike, y: ArrayLike | None) -> list[Array]:
        """The inputs as arrays of one shape and one floating dtype."""
        if (y is None) == (self.inputs == 2):
            if y is None:
                raise WrongInputsError(f"{self!r} takes two inputs, but got x alone; call it as act(x, y)")
            raise WrongInputsError(f"{self!r} takes one input, but got x and y; call it as act(x)")
        given = [jnp.asarray(each) for each in ((x,) if y is None else (x, y))]
        for name, each in zip(INPUTS, given, strict=False):
            if jnp.issubdtype(each.dtype, jnp.complexfloating):
                raise InputError(f"{name} has dtype {each.dtype}; an activation takes real numbers")
        dtype = jnp.result_type(*given)
        out = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
        if len(given) == 2:
            try:
                given = jnp.broadcast_arrays(*given)
            except ValueError:
                shapes = " and y ".join(str(list(each.shape)) for each in given)
                raise InputError(f"x {shapes} do not broadcast; {self!r} takes two inputs as `x * y` does") from None
        return [each.astype(out) for each in given]

    def _of(self, given: Sequence[Array], numbers: Sequence[ArrayLike]) -> Array:
        """The values at floating inputs of one shape, for constants that broadcast with them."""
        x = given[0]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        broad = [jnp.broadcast_to(jnp.asarray(each, wide), x.shape) if np.ndim(each) else each for each in numbers]
        if not _are_known(self.opcodes):
            y = kernel.apply(self.schema, self.table, self.opcodes, self.constants, (*given, *broad))
            if y is not None:
                return y
        inputs = [jnp.broadcast_to(jnp.asarray(each, wide), x.shape) for each in (*given, *broad)]
        if _are_known(self.opcodes):
            y = _evaluate(self.schema, self._operators, inputs)
        else:
            (y,) = kernel.derivatives(kernel.VALUE, self.schema, self.table, self.opcodes, inputs)
        if self.constants:
            mean, scale = (jnp.asarray(constant, wide) for constant in self.constants)
            y = (y - mean) * scale
        return y.astype(x.dtype)

    def applied(self, x: ArrayLike, constants: Sequence[ArrayLike], y: ArrayLike | None = None) -> Float[Array, "..."]:
        """Apply the function with other constants, through which gradients flow: how `aqx.linen.Act` learns them.

        Args:
            x: as of a call.
            constants: one for each of `numbers`: a number, or an array that broadcasts with x, as one for each channel.
            y: as of a call.

        Returns:
            Values as of a call.

        Raises:
            InputError: there are not as many as the function has, or as of a call.

        Example:
            >>> import aqx, jax
            >>> act = aqx.activation("mul(0.5,square(x))")
            >>> float(jax.grad(lambda c: act.applied(3.0, [c]))(0.5))
            9.0
        """
        if len(constants) != len(self.numbers):
            raise InputError(f"constants has {len(constants)} for the {len(self.numbers)} of {self!r}")
        return self._applied(x, y, constants)

    def with_constants(self, constants: Sequence[ArrayLike]) -> Activation:
        """Return the function with other constants in the place of its own.

        Args:
            constants: one for each of `numbers`; numbers, or arrays [K] for a stack of K functions.

        Raises:
            InputError: there are not as many as the function has, or one is not finite.

        Example:
            >>> import aqx
            >>> aqx.activation("max(x,mul(0.5,x))").with_constants([0.25]).name
            'max(x,mul(0.25,x))'
        """
        if len(constants) != len(self.numbers):
            raise InputError(f"constants has {len(constants)} for the {len(self.numbers)} of {self!r}")
        numbers = tuple(map(_as_number, constants))
        shape = np.shape(numbers[0]) if numbers else ()
        rest = (self.opcodes, self.constants)
        if shape and all(np.ndim(leaf) == 0 for leaves in rest for leaf in leaves):
            rest = tuple(tuple(np.full(shape, leaf) for leaf in leaves) for leaves in rest)
        return replace(self, opcodes=rest[0], constants=rest[1], numbers=numbers)

    def frozen(self, params: Any) -> Any:
        """Return the plain function with what was learnt written in: to search on, to export, or to train no further.

        Args:
            params: the parameters of an `aqx.linen.Act` or `aqx.nnx.Act` of this function, `{"c0": …, …}`, or those of
                a model with some, whatever else they hold.

        Returns:
            The Activation; for a model's parameters {path: Activation}, one per layer. Where constants were learnt per
            channel, it is a stack of the channels' functions. A function without constants is returned as it is.

        Raises:
            InputError: params holds no such constants, or one is not finite.

        Example:
            >>> import aqx
            >>> act = aqx.activation(aqx.parametrised("swish(x)"))
            >>> act.frozen({"Dense_0": {}, "Act_0": {"c0": 1.5, "c1": 0.9}})["Act_0"].name
            'mul(1.5,swish(mul(0.9,x)))'
        """
        count = len(self.numbers)
        found = constants_in(params, count) if count else {"": []}
        if not found:
            names = ", ".join(names_of(count))
            raise InputError(f"params holds no {names} of {self!r}; give those of an Act, or of a model with some")
        written = {path: self.with_constants(constants) for path, constants in found.items()}
        return written[""] if list(written) == [""] else written

    @cached_property
    def _operators(self) -> tuple[Operator, ...]:
        kinds = (node.name for node in self.schema.nodes)
        return tuple(self.table.by_kind[kind][int(opcode)] for kind, opcode in zip(kinds, self.opcodes, strict=True))  # type: ignore[index]

    @cached_property
    def _value(self) -> tuple[Any, ...]:
        # The operators and not the table: registering another operator changes nothing about this function.
        return self.schema, self._operators, tuple(map(float, self.constants)), tuple(map(text_of, self.numbers))

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Activation):
            return self is other
        return self.is_concrete and other.is_concrete and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value) if self.is_concrete else id(self)

    def __repr__(self) -> str:
        what = repr(self.name) if self.is_concrete else f"<{self.shape}>"
        return f"Activation({what}{', normalize=True' if self.constants else ''})"

    def _repr_html_(self) -> str | None:
        """Name, formula and curve, in a notebook; a stack, or what is traced, has none."""
        if not self.is_concrete:
            return None
        # Formulas stand above this room, which only passes on that one is wanted.
        return importlib.import_module("aqx.report.picture").picture(self.name, self)

    def __copy__(self) -> Activation:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Activation:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if any(isinstance(leaf, Tracer) for leaf in self._leaves):
            raise UnsupportedError("a traced Activation cannot be pickled; pickle it outside of the traced function")
        names = {kind: np.array([operator.name for operator in ops]) for kind, ops in self.table.by_kind.items()}
        kinds = (node.name for node in self.schema.nodes)
        nodes = [names[kind][np.asarray(code)].tolist() for kind, code in zip(kinds, self.opcodes, strict=True)]  # type: ignore[index]
        numbers = (jax.tree.map(_host, self.numbers),) if self.numbers else ()
        return _restore, (str(self.schema), nodes, jax.tree.map(_host, self.constants), *numbers)


def activation(name: str | Tree | Activation, *, normalize: bool = False) -> Activation:
    """Make an activation function from its name.

    With `normalize`, (f(x) − mean) / deviation, which has mean 0 and variance 1 for x ~ N(0, 1); for two inputs, where
    x and y are both, and independent.

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
    act = Activation(parse_schema(tree.shape), table, opcodes, (), tree.constants)
    if not normalize:
        return act
    if act.inputs == 1:
        mean, deviation = moments(partial(_float64_values, act), str(tree))
    else:  # a hundred times as many points, so that it pays to compile the function
        mean, deviation = moments_in_plane(partial(_float64_values, jax.jit(lambda x, y: act(x, y))), str(tree))
    return replace(act, constants=(mean, 1 / deviation))


def learnable(act: str | Tree | Activation, per: str) -> Activation:
    """Return the function of a module that learns its constants, after looking at the module's arguments.

    Raises:
        InputError: `per` is neither "layer" nor "channel".
        ParseError: the name does not parse.
    """
    if per not in ("layer", "channel"):
        raise InputError(f"per={per!r} is unknown; give 'layer' or 'channel'")
    return activation(act)


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


def _are_known(leaves: Sequence[Any]) -> bool:
    """Whether no leaf is traced or stacked."""
    return all(not isinstance(leaf, Tracer) and np.ndim(leaf) == 0 for leaf in leaves)


def _evaluate(schema: Tree, operators: Sequence[Operator], inputs: Sequence[Array]) -> Array:
    """Value of a tree whose operators, in preorder, are known, at arrays for its variables."""
    given = dict(zip(kernel.variables_of(schema), inputs, strict=True))
    return kernel.walk(schema, lambda i, _, *args: apply_operator(operators[i], *args), given.__getitem__)


def _with_names(schema: Tree, names: Iterator[str], numbers: Iterator[str]) -> Tree:
    """The schema with its operator nodes named in preorder, and numbers for its constants."""
    if not schema.args:
        return Tree(next(numbers)) if schema.name == WILDCARD else schema
    name = next(names)
    return Tree(name, tuple(_with_names(arg, names, numbers) for arg in schema.args))


def _float64_values(act: Callable[..., Array], *points: np.ndarray) -> np.ndarray:
    """Values in float64 on the CPU, whatever the precision and devices in use; also while a function is traced."""
    with on_host(float64=True), jax.ensure_compile_time_eval():
        return np.asarray(act(*points))


def _serve_flax() -> None:
    """Tell `flax.serialization`, where somebody has imported it, how an Activation becomes a part of a checkpoint."""
    if serialization := sys.modules.get("flax.serialization"):
        with contextlib.suppress(ValueError, AttributeError):  # known already, or just being imported
            serialization.register_serialization_state(Activation, _state_of, _of_state)


def _state_of(act: Activation) -> str | Activation:
    # Text and no dict: modules of Flax Linen ask for the state of their attributes, and take a dict apart.
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(act)):
        return act
    return json.dumps(act.__reduce__()[1], default=np.ndarray.tolist)


def _of_state(target: Activation, state: str | Activation) -> Activation:
    del target
    if isinstance(state, Activation):
        return state
    schema, nodes, *others = json.loads(state)
    return _restore(schema, nodes, *(tuple(_host(np.array(each)) for each in some) for some in others))


def _as_number(constant: ArrayLike) -> Any:
    """A constant as a leaf: as its text says it where it is known, so that name and value are one."""
    if isinstance(constant, Tracer):
        return constant
    if np.ndim(constant) == 0:
        return float(text_of(float(constant)))  # type: ignore[arg-type]
    return np.vectorize(lambda each: float(text_of(each)), otypes=[np.float64])(constant)


def _host(leaf: Any) -> Any:
    """A float, or a NumPy array of a stack's floats."""
    return float(leaf) if np.ndim(leaf) == 0 else np.asarray(leaf)


def _restore(schema: str, nodes: list[Any], constants: tuple[Any, ...], numbers: tuple[Any, ...] = ()) -> Activation:
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
    return Activation(shape, table, tuple(opcodes), constants, numbers)
