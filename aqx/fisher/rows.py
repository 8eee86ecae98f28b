"""Rows: how input and output gradient of each kind of layer become the vectors whose covariances are the factors.

Axes: N leading axis of the layer's input (the examples, where the model keeps them there), T further positions that
share the weights, B groups (one Kronecker pair each), d inputs and p outputs of one group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact, Int, Num

from aqx.errors import UnsupportedError

# Arguments of one call of a layer by name, the layer itself aside.
Call = Mapping[str, Any]


@runtime_checkable
class Rows(Protocol):
    """The part of a layer that the factors depend on; hashable, so that a tap can close over it."""

    @property
    def bias(self) -> bool:
        """Whether a homogeneous 1 belongs to each input row."""
        ...

    @property
    def one_hot(self) -> bool:
        """Whether input rows are indices, so that A is diagonal."""
        ...

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """(B, d, p), the homogeneous 1 not counted."""
        ...

    def inputs(self, a: Num[Array, "..."]) -> Num[Array, "N T B d"] | Int[Array, "N T"]:
        """Input rows; indices [N, T] where `one_hot`."""
        ...

    def gradients(self, g: Inexact[Array, "..."]) -> Inexact[Array, "N T B p"]:
        """Rows of the gradient with respect to the layer's output."""
        ...

    def matrix(self, kernel: Num[Array, "..."]) -> Num[Array, "B d p"]:
        """The kernel of one slice as what multiplies an input row from the right."""
        ...

    def bias_row(self, bias: Num[Array, "..."]) -> Num[Array, "B 1 p"]:
        """The bias of one slice as what multiplies the homogeneous 1."""
        ...


@dataclass(frozen=True)
class LinearRows:
    """Dense, DenseGeneral and their like: contraction over `axis`, the kernel flattened to (∏ in, ∏ out).

    Leading `batch_dims` axes of the input have a kernel each: they are groups.
    """

    bias: bool
    axis: tuple[int, ...]
    batch_dims: tuple[int, ...]
    output_axes: int
    dimensions: tuple[int, int, int]
    one_hot: bool = False

    def inputs(self, a: Num[Array, "..."]) -> Num[Array, "N T B d"]:
        """Input rows: what the kernel contracts, for each group."""
        axis = tuple(i % a.ndim for i in self.axis)
        batch = tuple(i % a.ndim for i in self.batch_dims)
        kept = tuple(i for i in range(a.ndim) if i not in axis and i not in batch)
        return self._arrange(a.transpose((*batch, *kept, *axis)), len(kept), self.dimensions[1])

    def gradients(self, g: Inexact[Array, "..."]) -> Inexact[Array, "N T B p"]:
        """Rows of the output's gradient, for each group."""
        return self._arrange(g, g.ndim - len(self.batch_dims) - self.output_axes, self.dimensions[2])

    def matrix(self, kernel: Num[Array, "..."]) -> Num[Array, "B d p"]:
        """The kernel, its axes flattened."""
        return kernel.reshape(self.dimensions)

    def bias_row(self, bias: Num[Array, "..."]) -> Num[Array, "B 1 p"]:
        """The bias, its axes flattened."""
        return _bias_row(self.dimensions, bias)

    def _arrange(self, x: Array, kept: int, features: int) -> Array:
        leading = x.shape[len(self.batch_dims)] if kept else 1
        return jnp.moveaxis(x.reshape(self.dimensions[0], leading, -1, features), 0, 2)


@dataclass(frozen=True)
class ConvRows:
    """Convolution of any number of spatial axes; a row is a patch in (kernel position, channel) order."""

    bias: bool
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    dimensions: tuple[int, int, int]
    flipped: bool = False  # stored as the kernel of the convolution that this one is the transpose of
    one_hot: bool = False

    def maps(self, a: Num[Array, "..."]) -> Num[Array, "M ..."]:
        """The input as a batch of maps, whatever axes stand before the layer's own."""
        return a.reshape(-1, *a.shape[-len(self.kernel) - 1 :])

    def inputs(self, a: Num[Array, "..."]) -> Num[Array, "N T B d"]:
        """Input rows: the patches, for each group."""
        groups, d, _ = self.dimensions
        leading = a.shape[0] if a.ndim > len(self.kernel) + 1 else 1
        patches = self.patches(self.maps(a))
        split = patches.reshape(leading, -1, math.prod(self.kernel), groups, a.shape[-1] // groups)
        return jnp.moveaxis(split, 2, 3).reshape(leading, -1, groups, d)

    def gradients(self, g: Inexact[Array, "..."]) -> Inexact[Array, "N T B p"]:
        """Rows of the output's gradient, for each group."""
        groups, _, p = self.dimensions
        leading = g.shape[0] if g.ndim > len(self.kernel) + 1 else 1
        # Output channels of one group are contiguous, as in `lax.conv_general_dilated`.
        return g.reshape(leading, -1, groups, p)

    def matrix(self, kernel: Num[Array, "..."]) -> Num[Array, "B d p"]:
        """The kernel by group, its positions and channels flattened."""
        groups, d, p = self.dimensions
        if self.flipped:
            kernel = jnp.flip(kernel, range(len(self.kernel))).swapaxes(-1, -2)
        return jnp.moveaxis(kernel.reshape(d, groups, p), 1, 0)

    def bias_row(self, bias: Num[Array, "..."]) -> Num[Array, "B 1 p"]:
        """The bias by group."""
        return _bias_row(self.dimensions, bias)

    def patches(self, x: Num[Array, "M ..."]) -> Num[Array, "M ..."]:
        """[M, *spatial, channels] -> [M, *positions, ∏ kernel · channels], exact copies (no arithmetic)."""
        return jnp.concatenate([*self.pieces(x)], axis=-1)

    def pieces(self, x: Num[Array, "M ..."]) -> Iterator[Num[Array, "M ..."]]:
        """What each position of the kernel sees: [M, *spatial, channels] -> [M, *positions, channels] each."""
        x = self.padded(x)
        extent = self.extent
        out = [(size - e) // s + 1 for size, e, s in zip(x.shape[1:-1], extent, self.strides, strict=True)]
        for offset in itertools.product(*map(range, self.kernel)):
            start = [o * step for o, step in zip(offset, self.kernel_dilation, strict=True)]
            stop = [i + (n - 1) * s + 1 for i, n, s in zip(start, out, self.strides, strict=True)]
            yield lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *self.strides, 1))

    @property
    def extent(self) -> tuple[int, ...]:
        """Size of the dilated kernel."""
        return tuple((k - 1) * step + 1 for k, step in zip(self.kernel, self.kernel_dilation, strict=True))

    def padded(self, x: Num[Array, "M ..."]) -> Num[Array, "M ..."]:
        """The input as the kernel sees it: padded and dilated."""
        pads = self.zero_padding(x.shape[1:-1])
        if pads is None:
            width = [(0, 0), *(((e - 1) // 2, e // 2) for e in self.extent), (0, 0)]
            return jnp.pad(x, width, mode="wrap" if self.padding == "CIRCULAR" else "reflect")
        inner = ((low, high, step - 1) for (low, high), step in zip(pads, self.input_dilation, strict=True))
        return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *inner, (0, 0, 0)))

    def zero_padding(self, size: tuple[int, ...]) -> tuple[tuple[int, int], ...] | None:
        """Zeros (before, after) a map of this size, per axis; None where the padding repeats the map instead."""
        if self.padding in ("CIRCULAR", "REFLECT"):
            return None
        if self.padding == "CAUSAL":
            return ((self.extent[0] - 1, 0),)
        if isinstance(self.padding, str):
            # SAME puts the odd one at the end: (0, 1) for kernel 3, stride 2, even size.
            return tuple(lax.padtype_to_pads(size, self.extent, self.strides, self.padding))
        return self.padding


@dataclass(frozen=True)
class EmbedRows:
    """Embedding table: input rows are one-hot, so only the counts of the indices matter and A is diagonal."""

    dimensions: tuple[int, int, int]
    bias: bool = False
    one_hot: bool = True

    def inputs(self, a: Num[Array, "..."]) -> Int[Array, "N T"]:
        """Input rows, as indices."""
        # `jnp.take` counts negative indices from the end.
        ids = jnp.where(a < 0, a + self.dimensions[1], a)
        return ids.reshape(a.shape[0] if a.ndim else 1, -1)

    def gradients(self, g: Inexact[Array, "..."]) -> Inexact[Array, "N T B p"]:
        """Rows of the output's gradient."""
        return g.reshape(g.shape[0] if g.ndim > 1 else 1, -1, 1, g.shape[-1])

    def matrix(self, kernel: Num[Array, "..."]) -> Num[Array, "B d p"]:
        """The table."""
        return kernel.reshape(self.dimensions)

    def bias_row(self, bias: Num[Array, "..."]) -> Num[Array, "B 1 p"]:
        """Never asked for: a table has no bias."""
        return _bias_row(self.dimensions, bias)


def dense_rows(layer: Any, kernel: tuple[int, ...], call: Call) -> Rows:
    """Rows of a Linen `Dense` or NNX `Linear`."""
    return LinearRows(layer.use_bias, (-1,), (), 1, (1, kernel[0], kernel[1]))


def dense_general_rows(layer: Any, kernel: tuple[int, ...], call: Call) -> Rows:
    """Rows of a Linen `DenseGeneral` or NNX `LinearGeneral`, so also of the projections in attention."""
    # Linen names the axes that have a kernel each; NNX maps them to their sizes.
    batch = tuple(layer.batch_axis) if hasattr(layer, "batch_axis") else _tuple(layer.batch_dims)
    axis = _tuple(layer.axis)
    groups, inside = kernel[: len(batch)], kernel[len(batch) : len(batch) + len(axis)]
    outside = kernel[len(batch) + len(axis) :]
    dimensions = (math.prod(groups), math.prod(inside), math.prod(outside))
    return LinearRows(layer.use_bias, axis, batch, len(outside), dimensions)


def conv_rows(layer: Any, kernel: tuple[int, ...], call: Call) -> Rows:
    """Rows of a Linen or NNX `Conv`, any number of spatial axes."""
    if layer.mask is not None:
        raise UnsupportedError("its kernel is masked, which is not Kronecker")
    size, groups = kernel[:-2], layer.feature_group_count
    rank = len(size)
    padding = layer.padding if isinstance(layer.padding, str) else _pairs(layer.padding, rank)
    dilation, kernel_dilation = _tuple(layer.input_dilation, rank), _tuple(layer.kernel_dilation, rank)
    dimensions = (groups, math.prod(kernel[:-1]), kernel[-1] // groups)
    strides = _tuple(layer.strides, rank)
    return ConvRows(layer.use_bias, size, strides, padding, dilation, kernel_dilation, dimensions)


def conv_transpose_rows(layer: Any, kernel: tuple[int, ...], call: Call) -> Rows:
    """Rows of a Linen or NNX `ConvTranspose`: a convolution of the dilated input."""
    if layer.mask is not None:
        raise UnsupportedError("its kernel is masked, which is not Kronecker")
    if layer.padding == "CIRCULAR":
        raise UnsupportedError("circular padding of a transposed convolution folds outputs together")
    size = kernel[:-2]
    rank = len(size)
    strides, kernel_dilation = _tuple(layer.strides, rank), _tuple(layer.kernel_dilation, rank)
    if isinstance(layer.padding, str):
        extent = [(k - 1) * step + 1 for k, step in zip(size, kernel_dilation, strict=True)]
        padding = tuple(_transposed_pads(e, s, layer.padding) for e, s in zip(extent, strides, strict=True))
    else:
        padding = _pairs(layer.padding, rank)
    inside, outside = kernel[-2:][:: -1 if layer.transpose_kernel else 1]
    dimensions = (1, math.prod(size) * inside, outside)
    ones = (1,) * rank
    flipped = bool(layer.transpose_kernel)
    return ConvRows(layer.use_bias, size, ones, padding, strides, kernel_dilation, dimensions, flipped)


def embed_rows(layer: Any, kernel: tuple[int, ...], call: Call) -> Rows:
    """Rows of a Linen or NNX `Embed`."""
    return EmbedRows((1, kernel[0], kernel[1]))


def _bias_row(dimensions: tuple[int, int, int], bias: Array) -> Array:
    groups, _, p = dimensions
    return bias.reshape(groups, 1, p)


def _transposed_pads(extent: int, stride: int, padding: str) -> tuple[int, int]:
    # As `lax.conv_transpose` pads: the gradient of a SAME or VALID convolution.
    total = extent + stride - 2 + (max(extent - stride, 0) if padding == "VALID" else 0)
    if padding == "SAME" and stride <= extent - 1:
        return math.ceil(total / 2), total - math.ceil(total / 2)
    return extent - 1, total - extent + 1


def _tuple(value: int | Sequence[int] | None, rank: int = 1) -> tuple[int, ...]:
    value = 1 if value is None else value
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _pairs(padding: int | Sequence[int | Sequence[int]], rank: int) -> tuple[tuple[int, int], ...]:
    each = (padding,) * rank if isinstance(padding, int) else tuple(padding)
    return tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in each)
