"""A JAX primitive with its rules: values, and derivatives, of a function whose opcodes are traced.

Its derivative is the same primitive of one order more, which computes value and slope in one pass: what it takes to
evaluate a tree is more than the bytes it moves, so the backward pass keeps the slope and multiplies. (Measured on an
H100, All-CNN-C's step: 1.08 times the closed over form; keeping x and evaluating slopes again, 1.12 times. Training
2,048 small networks together: 1,460 a second against 1,020.) Where the primitive is lowered for CUDA it is the kernel,
else a switch per node.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike
from jaxtyping import Array

from aqx.kernel.form import form_in_use, has_kernel
from aqx.kernel.switch import derivatives
from aqx.operators import OperatorTable
from aqx.tree import Tree


@dataclass(frozen=True)
class Program:
    """What of a function is known when it is traced.

    Attributes:
        schema: its shape.
        table: the operators.
        normalized: whether its constants are an operand.
        interpret: whether Pallas' interpreter runs the kernel.
        axis: of x, the one along which K functions lie; None for one function.
        shared: whether K functions get one x; the values then have a leading axis K.
    """

    schema: Tree
    table: OperatorTable
    normalized: bool
    interpret: bool
    axis: int | None = None
    shared: bool = False

    @property
    def many(self) -> bool:
        """Whether the scalars of K functions are given."""
        return self.shared or self.axis is not None

    def scalar(self, scalars: Array, ndim: int) -> Array:
        """One number, or the numbers [K], as they broadcast with values of so many axes."""
        return scalars.reshape(scalars.shape + (1,) * (ndim - 1 - (self.axis or 0))) if self.many else scalars


def apply(
    schema: Tree, table: OperatorTable, opcodes: Sequence[ArrayLike], constants: Sequence[ArrayLike], x: Array
) -> Array | None:
    """Return the values of a function with traced opcodes as one operation, or None where it takes a switch per node.

    Args:
        schema: the shape of the function.
        table: the operators in force.
        opcodes: one per node, in preorder.
        constants: (mean, 1 / standard deviation) of a normalized function, else nothing.
        x: any shape and floating dtype; 16-bit floats are computed in float32.
    """
    form = form_in_use()
    if form == "switch" or x.dtype not in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        return None
    if not has_kernel(schema, table):
        return None
    program = Program(schema, table, bool(constants), form == "interpreted")
    scalars = [jnp.stack([jnp.asarray(opcode, jnp.int32) for opcode in opcodes], axis=-1)]
    if constants:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scalars.append(jnp.stack([jnp.asarray(constant, wide) for constant in constants], axis=-1))
    return values_p.bind(*_alike(*scalars, x), program=program, order=0)[0]


def _alike(*operands: Array) -> list[Array]:
    """The operands, varying over the same axes of a mesh: inside jax.shard_map, JAX's own operators see to that."""
    axes = [getattr(jax.typeof(each), "vma", frozenset()) for each in operands]
    every = frozenset[Any]().union(*axes)
    return [
        jax.lax.pcast(each, tuple(every - own), to="varying") if own != every else each
        for each, own in zip(operands, axes, strict=True)
    ]


values_p: Primitive = Primitive("aqx_values")  # *scalars, x -> values and derivatives up to an order
values_p.multiple_results = True


# What they are


def _values_type(*operands: Any, program: Program, order: int) -> list[Any]:
    *scalars, x = operands
    shape = (*scalars[0].shape[: program.shared], *x.shape)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    dtypes = [x.dtype] if order == 0 else [wide] * (order + 1)
    if not program.shared:
        return [x.update(dtype=dtype, weak_type=False) for dtype in dtypes]
    return [ShapedArray(shape, dtype) for dtype in dtypes]


values_p.def_abstract_eval(_values_type)


@functools.cache
def _compiled(primitive: Primitive, params: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(functools.partial(primitive.bind, **dict(params)))


values_p.def_impl(lambda *operands, **params: _compiled(values_p, tuple(params.items()))(*operands))


# Derivatives


def _values_jvp(primals: Any, tangents: Any, *, program: Program, order: int) -> Any:
    *scalars, x = primals
    *of_scalars, tangent = tangents
    if type(tangent) is ad.Zero:
        values = values_p.bind(*primals, program=program, order=order)
        out = [None] * len(values)
    else:
        *values, last = values_p.bind(*primals, program=program, order=order + 1)
        slopes = [*values[1:], last]
        values = [value.astype(x.dtype) for value in values] if order == 0 else values
        out = [
            (slope * tangent.astype(slope.dtype)).astype(value.dtype)
            for value, slope in zip(values, slopes, strict=True)
        ]
    if program.normalized and type(of_scalars[1]) is not ad.Zero:
        out = [
            _plus(each, _by_constants(program, scalars[1], of_scalars[1], value, x.ndim, derivative > 0))
            for derivative, (each, value) in enumerate(zip(out, values, strict=True))
        ]
    return values, [ad.Zero(jax.typeof(v)) if each is None else each for each, v in zip(out, values, strict=True)]


def _by_constants(program: Program, constants: Array, tangents: Array, value: Array, ndim: int, slope: bool) -> Array:
    """The tangent of (f − mean) · scale, or of a derivative of it, along the constants."""
    (_, scale), (of_mean, of_scale) = (
        [program.scalar(each[..., i], ndim) for i in range(2)] for each in (constants, tangents)
    )
    wide = value.astype(constants.dtype)
    along = wide / scale * of_scale
    return (along if slope else along - scale * of_mean).astype(value.dtype)


def _plus(a: Array | None, b: Array) -> Array:
    return b if a is None else a + b


ad.primitive_jvps[values_p] = _values_jvp


# vmap: elements of one function stay elements, wherever their axis is; functions become an axis of the kernel's grid


def _batched_scalars(program: Program, scalars: Sequence[Array], dims: Sequence[int | None]) -> list[Array]:
    """Scalars with the new axis first, or as they are if none has it."""
    sizes = {each.shape[dim] for each, dim in zip(scalars, dims, strict=True) if dim is not None}
    if not sizes:
        return list(scalars)
    (size,) = sizes
    return [
        jnp.broadcast_to(each, (size, *each.shape)) if dim is None else jnp.moveaxis(each, dim, 0)
        for each, dim in zip(scalars, dims, strict=True)
    ]


def _values_batched(operands: Any, dims: Any, *, program: Program, order: int) -> tuple[list[Array], list[int]]:
    *scalars, x = operands
    *of_scalars, _ = dims
    dim: Any = dims[-1]
    scalars = _batched_scalars(program, scalars, of_scalars)
    bind = functools.partial(values_p.bind, order=order)
    if all(each is None for each in of_scalars):
        # More elements: of one function, or for an axis of functions that may have moved.
        axis = None if program.axis is None else program.axis + (program.axis >= dim)
        out = bind(*scalars, x, program=_with(program, axis=axis))
        return out, [dim + program.shared] * len(out)
    size = scalars[0].shape[0]
    if not program.many:
        shared = dim is None
        out = bind(*scalars, x, program=_with(program, axis=dim, shared=shared))
        return out, [0 if shared else dim] * len(out)
    # An axis of functions more: both become one.
    merged = [each.reshape(-1, each.shape[-1]) for each in scalars]
    if program.shared and dim is None:
        out = bind(*merged, x, program=program)
        return [each.reshape(size, -1, *each.shape[1:]) for each in out], [0] * len(out)
    inner: Any = 0 if program.shared else program.axis
    x = jnp.broadcast_to(x, (size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)
    count = len(merged[0]) // size
    if program.shared:
        x = jnp.broadcast_to(x[:, None], (size, count, *x.shape[1:]))
    x = jnp.moveaxis(x, 0, inner)
    shape = x.shape
    x = x.reshape(*shape[:inner], size * count, *shape[inner + 2 :])
    out = bind(*merged, x, program=_with(program, axis=inner, shared=False))
    return [each.reshape(shape) for each in out], [inner] * len(out)


def _with(program: Program, **changes: Any) -> Program:
    return Program(**{**program.__dict__, **changes})


batching.primitive_batchers[values_p] = _values_batched


# Lowering


def _by_switch(*operands: Array, program: Program, order: int) -> list[Array]:
    *scalars, x = operands
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def one(scalars: Sequence[Array], x: Array) -> tuple[Array, ...]:
        opcodes = tuple(scalars[0][i] for i in range(program.schema.size))
        values = derivatives(order, program.schema, program.table, opcodes, x)
        if program.normalized:
            mean, scale = scalars[1]
            values = ((values[0] - mean) * scale, *(value * scale for value in values[1:]))
        return values

    if program.many:
        axis = 0 if program.shared else program.axis
        one = jax.vmap(one, (0, None if program.shared else axis), axis)
    values = one(scalars, x.astype(wide))
    return [values[0].astype(x.dtype)] if order == 0 else list(values)


def _by_kernel(*operands: Array, program: Program, order: int) -> list[Array]:
    from aqx.kernel.triton import call

    opcodes, *constants, x = operands
    return call(
        program.schema,
        program.table,
        opcodes,
        constants[0] if constants else None,
        x,
        order=order,
        axis=program.axis,
        shared=program.shared,
        interpret=program.interpret,
    )


def _lower(ctx: Any, *operands: Any, program: Program, order: int, on_cuda: bool = False) -> Any:
    use_kernel = program.interpret or (on_cuda and not _is_partitioned(ctx))
    form = functools.partial(_by_kernel if use_kernel else _by_switch, program=program, order=order)
    with warnings.catch_warnings():
        # Pallas warns that it will drop Triton; then `form_in_use` says "switch".
        warnings.simplefilter("ignore", DeprecationWarning)
        return mlir.lower_fun(form, multiple_results=True)(ctx, *operands)


def _is_partitioned(ctx: Any) -> bool:
    """Whether XLA itself splits this program over several devices: a kernel it would compute whole on each of them."""
    context = ctx.module_context.axis_context
    if isinstance(context, mlir.ShardingContext):
        return context.num_devices > 1
    return isinstance(context, mlir.SPMDAxisContext) and frozenset(context.mesh.axis_names) != context.manual_axes


# Not inline: sites of one shape share a function, and what it takes to compile one.
mlir.register_lowering(values_p, _lower, inline=False)
mlir.register_lowering(values_p, functools.partial(_lower, on_cuda=True), platform="cuda", inline=False)
