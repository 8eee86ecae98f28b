"""A convolution as one matrix product over patches, for the small networks of the built-in tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from aqx.pallas import default_platform


def convolve(
    x: Float[Array, "N *S D"],
    kernel: Float[Array, "*K D F"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **_: Any,
) -> Float[Array, "N *T F"]:
    """Convolve, features last, without dilation and groups: `nn.Conv(..., conv_general_dilated=convolve)`.

    XLA's own convolution on a CPU is slow for the few channels and positions here, its gradient most of all.
    """
    sizes = kernel.shape[:-2]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], sizes, strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    spans = [
        (total - size) // stride * stride + 1 for total, size, stride in zip(x.shape[1:-1], sizes, strides, strict=True)
    ]
    windows = [
        tuple(slice(first, first + span, stride) for first, span, stride in zip(offset, spans, strides, strict=True))
        for offset in np.ndindex(*sizes)
    ]
    patches = jnp.concatenate([x[:, *window] for window in windows], axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def repeat(block: type[nn.Module], length: int, unroll: int = 1) -> Any:
    """Return the class of so many blocks, each with weights and running statistics of its own: `block(carry, None)`.

    Compile time grows with the sites at which a traced activation stands; scanned blocks have those of one.

    Args:
        block: the class of one block.
        length: how many.
        unroll: so many are written out in each turn of the loop.
    """
    return nn.scan(
        block,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=length,
        unroll=unroll,
    )


def unrolled(length: int) -> int:
    """Return how many small layers to write out instead of repeating them in a loop: on a CPU one, on a GPU all.

    A GPU's kernel is compiled once for all sites of one size, and a loop copies what the gradient needs of each layer
    into stacks and out of them. 2,048 trainings together, programs for an H100: those of `digits`, `digits-cnn`,
    `digits-vit` and `mnist1d-cnn` move 0.65, 0.56, 0.58 and 0.59 times the bytes of the loops, start half the kernels,
    and compile no longer.
    """
    return 1 if default_platform() == "cpu" else length


def convolution_to_repeat() -> Callable[..., Any] | None:
    """Return what computes the convolutions of repeated blocks: `nn.Conv(..., conv_general_dilated=…)`, None for XLA's.

    Measured on a CPU, four 3×3 convolutions and their gradients, 16 channels at 32×32 and 64 at 8×8: inside a scan
    XLA's take 20 times as long as outside, those of `convolve` twice to three times.
    """
    return convolve if jax.default_backend() == "cpu" else None
