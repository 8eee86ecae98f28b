"""A small vision transformer for CIFAR: pre-norm blocks, learned positions, and the mean over tokens.

Source: Dosovitskiy, A. et al. (2021). An Image is Worth 16x16 Words. ICLR; equations 1-4. The mean in place of a class
token: Beyer, L., Zhai, X. & Kolesnikov, A. (2022). Better plain ViT baselines for ImageNet-1k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx.tasks.builtin.blocks import repeat


class Block(nn.Module):
    """Attention and an MLP, each after a normalisation and beside a residual, in the form that `nn.scan` repeats."""

    act: Callable[[Any], Any]
    heads: int
    mlp_width: int

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"], _: None) -> tuple[Float[Array, "N T D"], None]:
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        hidden = self.act(nn.Dense(self.mlp_width)(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(hidden), None


class ViT(nn.Module):
    """Six blocks of DeiT-Tiny's width on patches of 4×4 pixels; 2,693,194 weights with 10 classes at 32×32 pixels.

    Attributes:
        act: the activation, at the one place in each MLP.
        classes: number of classes.
        patch: side of a patch in pixels; the sides of the image are multiples of it.
        width: numbers per token.
        depth: blocks.
        heads: attention heads in each block.
        mlp_width: units of each MLP.

    Example:
        >>> import jax
        >>> from aqx.tasks.builtin.models import ViT
        >>> shapes = jax.eval_shape(ViT(jax.nn.gelu).init, jax.random.key(0), jax.numpy.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        2693194
    """

    act: Callable[[Any], Any]
    classes: int = 10
    patch: int = 4
    width: int = 192
    depth: int = 6
    heads: int = 3
    mlp_width: int = 768

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "N H W 3"], train: bool = False) -> Float[Array, "N C"]:
        """Return the logits; training is no different, as nothing is dropped."""
        size = (self.patch, self.patch)
        tokens = nn.Conv(self.width, size, strides=size, padding="VALID")(jnp.asarray(x))
        tokens = tokens.reshape(len(tokens), -1, self.width)
        tokens += self.param("position", nn.initializers.normal(0.02), tokens.shape[1:])
        tokens, _ = repeat(Block, self.depth)(self.act, self.heads, self.mlp_width)(tokens, None)
        # No zeros in the last layer, as some start it with: nothing before it would have a gradient, or a spectrum.
        return nn.Dense(self.classes)(nn.LayerNorm()(tokens).mean(axis=1))
