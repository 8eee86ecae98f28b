"""MobileViTv2: inverted residuals, and transformers whose attention costs no more than linear in the tokens.

Source: Mehta, S. & Rastegari, M. (2023). Separable Self-attention for Mobile Vision Transformers. TMLR; section 3 and
figure 3 for the attention, table 7 for the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx.errors import InputError
from aqx.tasks.builtin.blocks import repeat

Act = Callable[[Any], Any]
PATCH = 2  # side of a patch of positions
CHANNELS = (64, 128, 256, 384, 512)  # of the five stages at width 1; the stem has half of the first
INVERTED = (1, 2, 1, 1, 1)  # inverted residuals of each stage
TRANSFORMERS = (0, 0, 2, 4, 3)  # transformer blocks of each stage


class ConvNorm(nn.Module):
    """A convolution without bias and its batch normalisation."""

    features: int
    size: int
    train: bool
    stride: int = 1
    groups: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "N H W D"]) -> Float[Array, "N P Q F"]:
        x = nn.Conv(
            self.features,
            (self.size, self.size),
            strides=self.stride,
            padding=self.size // 2,
            feature_group_count=self.groups,
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
        )(x)
        return nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(x)


class InvertedResidual(nn.Module):
    """A 1×1 convolution to twice the channels, a depthwise one, and a 1×1 back (Sandler et al. 2018)."""

    act: Act
    features: int
    train: bool
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "N H W D"]) -> Float[Array, "N P Q F"]:
        expanded = 2 * x.shape[-1]
        hidden = self.act(ConvNorm(expanded, 1, self.train)(x))
        hidden = self.act(ConvNorm(expanded, 3, self.train, self.stride, groups=expanded)(hidden))
        hidden = ConvNorm(self.features, 1, self.train)(hidden)
        return hidden + x if self.stride == 1 and self.features == x.shape[-1] else hidden


class SeparableAttention(nn.Module):
    """Separable self-attention: o = (Σ_t softmax_t(W_I x)_t · W_K x_t) * ReLU(W_V x), then W_O.

    Each token scores once, against a latent token, and not against each other. ReLU belongs to the attention: the
    published code fixes it there, and exchanges the activation everywhere else.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "N P T D"]) -> Float[Array, "N P T D"]:
        width = x.shape[-1]
        scores, keys, values = jnp.split(nn.Dense(1 + 2 * width)(x), (1, 1 + width), axis=-1)
        context = (jax.nn.softmax(scores, axis=2) * keys).sum(axis=2, keepdims=True)
        return nn.Dense(width)(context * jax.nn.relu(values))


class TransformerBlock(nn.Module):
    """Separable attention and an MLP of twice the width, in the form that `nn.scan` repeats."""

    act: Act

    @nn.compact
    def __call__(self, x: Float[Array, "N P T D"], _: None) -> tuple[Float[Array, "N P T D"], None]:
        x = x + SeparableAttention()(_layer_norm()(x))
        hidden = self.act(nn.Dense(2 * x.shape[-1])(_layer_norm()(x)))
        return x + nn.Dense(x.shape[-1])(hidden), None


class MobileViTBlock(nn.Module):
    """A depthwise convolution, then transformers at half the channels, over the positions of the same place in 2×2."""

    act: Act
    depth: int
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N H W D"]) -> Float[Array, "N H W D"]:
        _, height, width, channels = x.shape
        if height % PATCH or width % PATCH:
            raise InputError(
                f"images lead to {height}×{width} positions at a transformer, which 2×2 patches do not cover; "
                "give images whose sides are multiples of 64, or other strides"
            )
        local = self.act(ConvNorm(channels, 3, self.train, groups=channels)(x))
        local = nn.Dense(channels // 2, use_bias=False)(local)
        tokens, _ = repeat(TransformerBlock, self.depth)(self.act)(_unfold(local), None)
        return ConvNorm(channels, 1, self.train)(_fold(_layer_norm()(tokens), height, width))


class MobileViTv2(nn.Module):
    """MobileViTv2-0.5, 1,370,593 weights with 1000 classes, and the other widths.

    Attributes:
        act: the activation where the published model has Swish.
        classes: number of classes.
        width: multiplies the channels; 0.5, 0.75, …, 2 are the published ones.
        strides: of the stem and the five stages. The published ones reduce by 32, for images of 256×256; with the 32×32
            pixels of CIFAR, (1, 1, 1, 2, 2, 2) leave 4×4 positions. The weights are the same.

    Example:
        >>> import jax
        >>> from aqx.tasks.builtin.models import MobileViTv2
        >>> shapes = jax.eval_shape(MobileViTv2(jax.nn.silu).init, jax.random.key(0), jax.numpy.ones((1, 256, 256, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        1370593
    """

    act: Act
    classes: int = 1000
    width: float = 0.5
    strides: Sequence[int] = (2, 1, 2, 2, 2, 2)

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "N H W 3"], train: bool = False) -> Float[Array, "N C"]:
        """Return the logits; training normalises by the batch, and else by the running statistics."""
        stem, *strides = self.strides
        hidden = self.act(ConvNorm(int(CHANNELS[0] * self.width) // 2, 3, train, stem)(jnp.asarray(x)))
        for channels, inverted, depth, stride in zip(CHANNELS, INVERTED, TRANSFORMERS, strides, strict=True):
            for number in range(inverted):
                residual = InvertedResidual(self.act, int(channels * self.width), train, stride if number == 0 else 1)
                hidden = residual(hidden)
            if depth:
                hidden = MobileViTBlock(self.act, depth, train)(hidden)
        return nn.Dense(self.classes)(hidden.mean(axis=(1, 2)))


def _layer_norm() -> nn.GroupNorm:
    """Normalise each example over all its tokens and channels, as the published code does, not each token."""
    return nn.GroupNorm(1, epsilon=1e-5)


def _unfold(x: Float[Array, "N H W D"]) -> Float[Array, "N P T D"]:
    """Tokens T of each of the P = 4 places in a patch."""
    n, height, width, d = x.shape
    patches = x.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, d)
    return patches.transpose(0, 2, 4, 1, 3, 5).reshape(n, PATCH * PATCH, -1, d)


def _fold(tokens: Float[Array, "N P T D"], height: int, width: int) -> Float[Array, "N H W D"]:
    n, *_, d = tokens.shape
    places = tokens.reshape(n, PATCH, PATCH, height // PATCH, width // PATCH, d)
    return places.transpose(0, 3, 1, 4, 2, 5).reshape(n, height, width, d)
