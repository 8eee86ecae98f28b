"""Second moment of convolution patches without the patches: Σ p pᵀ from a few products of shifted inputs.

For kernel positions i and j, stride s and patch t the block (i, j) of Σₜ pₜ pₜᵀ is Σₜ x[st + i] x[st + j]ᵀ. Two blocks
whose positions lie equally far apart sum the same products over ranges that differ at the borders only: a 3×3 kernel of
stride 1 has 81 blocks and 13 such distances up to transposition. So every product is summed once per distance, piece by
piece, and each block adds up its pieces: as exact as the patches, with a sixth of the operations.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import reduce

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from aqx.fisher.rows import ConvRows

# Measured on 2 cores, 3×3 kernels: with 16 channels the pieces take half the time of the patches; with 3 they cannot.
_LEAST_CHANNELS = 16
# Values of the maps whose pieces are summed at a time: more leave the cache (twice as slow at 2**20), and 2**15 lose to
# the overhead of the loop.
_CHUNK = 2**16


def is_quicker(rows: ConvRows) -> bool:
    """Whether `patch_moment` beats the product of the patches themselves."""
    groups, d, _ = rows.dimensions
    positions = math.prod(rows.kernel)
    return groups == 1 and positions > 1 and d // positions >= _LEAST_CHANNELS


def patch_moment(rows: ConvRows, x: Float[Array, "M ..."]) -> Float[Array, "d d"]:
    """Σ p pᵀ over all patches p of M maps [M, *spatial, channels], d = kernel positions · channels."""
    x, pads = _unpadded(rows, x)
    axes = [
        _pieces_of(*axis)
        for axis in zip(x.shape[1:-1], rows.kernel, rows.strides, rows.kernel_dilation, pads, strict=True)
    ]
    positions = list(itertools.product(*map(range, rows.kernel)))
    pieces = {
        (i, j): list(itertools.product(*(axis[pair] for axis, pair in zip(axes, zip(i, j, strict=True), strict=True))))
        for i, j in itertools.combinations_with_replacement(positions, 2)
    }
    products = _products(x, list(dict.fromkeys(itertools.chain(*pieces.values()))))
    zero = jnp.zeros((x.shape[-1],) * 2, x.dtype)
    blocks = {pair: reduce(jnp.add, (products[piece] for piece in parts), zero) for pair, parts in pieces.items()}
    return jnp.block([[blocks[i, j] if i <= j else blocks[j, i].T for j in positions] for i in positions])


def patch_sum(rows: ConvRows, x: Float[Array, "M ..."]) -> Float[Array, "B d"]:
    """Σ p over all patches p of M maps, for each group."""
    # Patches of the summed map are the sums of the patches.
    return rows.inputs(x.sum(axis=0, keepdims=True)).sum(axis=(0, 1))


@dataclass(frozen=True)
class _Piece:
    """Along one axis: inputs start, start + stride, … up to stop, each with the one `apart` further on."""

    start: int
    stop: int
    stride: int
    apart: int


def _pieces_of(
    size: int, kernel: int, stride: int, dilation: int, pad: tuple[int, int]
) -> dict[tuple[int, int], list[_Piece]]:
    """The pieces that make up the sum over t of each pair of kernel positions along one axis."""
    low, high = pad
    count = (size + low + high - (kernel - 1) * dilation - 1) // stride + 1
    ranges: dict[tuple[int, int], tuple[int, int]] = {}
    ends: dict[tuple[int, int], set[int]] = {}
    for i, j in itertools.product(range(kernel), repeat=2):
        at, apart = i * dilation - low, (j - i) * dilation
        # The padding is zero, so only those t count that take both inputs from the map.
        first = max(0, -(min(at, at + apart) // stride))
        last = min(count - 1, (size - 1 - max(at, at + apart)) // stride)
        # In steps of the stride from the first input of this phase, so that pairs equally far apart can share.
        begin = first + at // stride
        ranges[i, j] = begin, max(begin, last + 1 + at // stride)
        ends.setdefault((at % stride, apart), set()).update(ranges[i, j])
    pieces = {}
    for (i, j), (begin, end) in ranges.items():
        phase, apart = (i * dilation - low) % stride, (j - i) * dilation
        inner = sorted(e for e in ends[phase, apart] if begin <= e <= end)
        pieces[i, j] = [
            _Piece(phase + a * stride, phase + (b - 1) * stride + 1, stride, apart)
            for a, b in itertools.pairwise(inner)
        ]
    return pieces


def _products(x: Array, pieces: list[tuple[_Piece, ...]]) -> dict[tuple[_Piece, ...], Float[Array, "c c"]]:
    """Σ x[piece] x[piece shifted]ᵀ for each piece, some maps at a time so that their copies stay in the cache."""
    maps = x.shape[0]
    chunk = max(1, min(maps, _CHUNK // math.prod(x.shape[1:])))
    if chunk == maps:
        return {piece: _product(x, piece) for piece in pieces}
    # Maps of zeros fill up the last chunk.
    x = jnp.pad(x, ((0, -maps % chunk), *((0, 0),) * (x.ndim - 1)))

    def add(sums: list[Array], part: Array) -> tuple[list[Array], None]:
        return [total + _product(part, piece) for total, piece in zip(sums, pieces, strict=True)], None

    zeros = [jnp.zeros((x.shape[-1],) * 2, x.dtype)] * len(pieces)
    sums, _ = lax.scan(add, zeros, x.reshape(-1, chunk, *x.shape[1:]))
    return dict(zip(pieces, sums, strict=True))


def _product(x: Array, piece: tuple[_Piece, ...]) -> Float[Array, "c c"]:
    def rows(shift: int) -> Array:
        starts = [p.start + shift * p.apart for p in piece]
        stops = [p.stop + shift * p.apart for p in piece]
        steps = [p.stride for p in piece]
        cut = lax.slice(x, (0, *starts, 0), (x.shape[0], *stops, x.shape[-1]), (1, *steps, 1))
        return cut.reshape(-1, x.shape[-1])

    return jnp.matmul(rows(0).T, rows(1), precision=lax.Precision.HIGHEST)


def _unpadded(rows: ConvRows, x: Array) -> tuple[Array, list[tuple[int, int]]]:
    """The map and its zero padding per axis; a padding that is not zeros around the map becomes part of it."""
    pads = rows.zero_padding(x.shape[1:-1])
    if pads is None or max(rows.input_dilation) > 1:
        return rows.padded(x), [(0, 0)] * (x.ndim - 2)
    return x, list(pads)
