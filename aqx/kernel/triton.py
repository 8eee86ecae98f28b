"""The kernel itself: Pallas, lowered to Triton."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array

from aqx.kernel.jets import VALUE, Jet, Partials, expected, of_leaf, of_node, walk
from aqx.kernel.portable import choose
from aqx.kernel.switch import apply_operator
from aqx.operators import Kind, OperatorTable
from aqx.pallas import like
from aqx.tree import Tree

# Elements of a program, and warps of 32 threads that share them: one element a thread. Measured on an H100, value and
# slope of 2,048 functions at 10,000 elements, in milliseconds: 128 by 4 0.32, 256 by 4 0.33, 512 by 8 0.32, 1,024 by 4
# 0.63; of one function at 12.6 million elements 0.157, 0.171, 0.176, 0.206.
ELEMENTS = 128
WARPS = 4
ELEMENTS_PER_WARP = ELEMENTS // WARPS  # fewer warps where an array has fewer elements than a program takes


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _node(wanted: Partials, table: OperatorTable, kind: Kind, opcode: Array, *jets: Jet) -> Jet:
    """Value and derivatives of the operator of an opcode, by log₂ n tests; jitted, so that it is traced once."""
    programs = [
        jax.make_jaxpr(functools.partial(of_node, functools.partial(apply_operator, operator), wanted))(*jets)
        for operator in table.by_kind[kind]
    ]
    found = choose(jnp.clip(opcode, 0, len(programs) - 1), programs, jax.tree.leaves(jets))
    return jax.tree.unflatten(jax.tree.structure(dict.fromkeys(wanted, 0)), found)


def _tree(
    wanted: Partials,
    schema: Tree,
    table: OperatorTable,
    opcode_at: Callable[[int], Array],
    value_of: Callable[[int], Array],
) -> Jet:
    """Value and derivatives of a tree.

    Every node is a switch of its own. One switch in a loop over nodes that are alike compiles no faster, and is no
    quicker even where the compiler can be kept from moving what all its branches have in common out of the loop; where
    it cannot, it takes eight times as long (measured on an H100).
    """

    def node(index: int, kind: Kind, *jets: Jet) -> Jet:
        return _node(expected(wanted, *jets), table, kind, opcode_at(index), *jets)

    return walk(schema, node, lambda variable: of_leaf(variable, value_of(variable), wanted))


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def call(
    schema: Tree,
    table: OperatorTable,
    opcodes: Array,
    constants: Array | None,
    arrays: Mapping[int, Array],
    variables: Sequence[int] = (),
    numbers: Array | None = None,
    *,
    wanted: Partials = VALUE,
    axis: int | None = None,
    shared: bool = False,
    interpret: bool = False,
) -> list[Array]:
    """Return values and partial derivatives by one kernel.

    Args:
        schema: the shape of the function.
        table: its operators.
        opcodes: [nodes], or [K, nodes] for K functions.
        constants: (mean, scale) of a normalized function, [2] or [K, 2]; None where it is not.
        arrays: by variable, x first; of one shape and floating dtypes; 16-bit floats are computed in float32.
        variables: those that are numbers.
        numbers: what they are, [variables] or [K, variables].
        wanted: the partial derivatives, with all simpler ones, the value first.
        axis: of the arrays, the one of the K functions.
        shared: whether K functions get the same arrays; the values then have a leading axis K.
        interpret: whether to run Pallas' interpreter in place of a GPU.
    """
    x = next(iter(arrays.values()))
    wide = jnp.promote_types(x.dtype, jnp.float32)
    shape = (len(opcodes), *x.shape) if shared else x.shape
    many = shared or axis is not None
    count = len(opcodes) if many else 1
    # Functions along one axis, elements before and after it.
    before = 1 if axis is None else math.prod(x.shape[:axis])
    after = x.size if axis is None else math.prod(x.shape[axis + 1 :])
    after_tile = min(ELEMENTS, _power_of_two(after))
    before_tile = min(ELEMENTS // after_tile, _power_of_two(before))
    grid = (pl.cdiv(after, after_tile), pl.cdiv(before, before_tile), count)
    tile = (before_tile, after_tile) if before > 1 else (after_tile,)
    ragged = (before % before_tile != 0, after % after_tile != 0)

    def block(many: bool) -> pl.BlockSpec:
        return pl.BlockSpec(
            (before_tile if before > 1 else None, None, after_tile), lambda j, i, k: (i, k if many else 0, j)
        )

    def scalars(length: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, length), lambda j, i, k: (k, 0))

    def mask() -> Array | None:
        inside = []
        for dimension, (size, each) in enumerate(((before, before_tile), (after, after_tile))):
            if ragged[dimension]:
                along = jax.lax.broadcasted_iota(jnp.int32, tile, len(tile) - 2 + dimension)
                inside.append(pl.program_id(1 - dimension) * each + along < size)
        return functools.reduce(jnp.logical_and, inside) if inside else None

    operands = [opcodes.reshape(count, -1)]
    operands += [each.reshape(count, -1) for each in (numbers, constants) if each is not None]
    specs = [scalars(each.shape[1]) for each in operands]
    first = len(operands)
    operands += [each.reshape(before, 1 if shared else count, after) for each in arrays.values()]
    specs += [block(not shared)] * len(arrays)
    results = [x.dtype] if wanted == VALUE else [wide] * len(wanted)

    def kernel(*refs: Any) -> None:
        ins, outs = refs[: len(operands)], refs[len(operands) :]
        inside = mask()
        load = functools.partial(plt.load, mask=inside, other=None if inside is None else 0)
        here = {variable: load(ref).astype(wide) for variable, ref in zip(arrays, ins[first:], strict=True)}
        for i, variable in enumerate(variables):
            here[variable] = jnp.broadcast_to(ins[1][i].astype(wide), tile)
        jet = _tree(wanted, schema, table, lambda i: ins[0][i], lambda variable: here[variable])
        values = [jet[each] if each in jet else jnp.zeros(tile, wide) for each in wanted]
        if constants is not None:
            mean, scale = ins[first - 1][0], ins[first - 1][1]
            values = [(values[0] - mean) * scale, *(value * scale for value in values[1:])]
        for ref, value in zip(outs, values, strict=True):
            plt.store(ref, value.astype(ref.dtype), mask=inside)

    if not math.prod(shape):
        return [jnp.zeros(shape, dtype) for dtype in results]
    values = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=specs,
        out_specs=[block(True)] * len(results),
        out_shape=[like(x, (before, count, after), dtype) for dtype in results],
        interpret=interpret,
        compiler_params=None if interpret else plt.CompilerParams(num_warps=_warps(before_tile * after_tile)),
        name=f"aqx_values_{len(wanted[-1])}",
    )(*operands)
    return [value.reshape(shape) for value in values]


def _warps(elements: int) -> int:
    return min(WARPS, max(1, elements // ELEMENTS_PER_WARP))
