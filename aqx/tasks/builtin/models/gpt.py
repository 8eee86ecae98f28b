"""A small GPT: pre-norm blocks of causal attention and a feed-forward layer, RMS norm, embeddings tied to the output.

Source: Radford, A. et al. (2019). Language Models are Unsupervised Multitask Learners; without biases, with the norm of
Zhang, B. & Sennrich, R. (2019). Root Mean Square Layer Normalization. NeurIPS. Units of two inputs: Shazeer, N.
(2020). GLU Variants Improve Transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from aqx.tasks.builtin.blocks import repeat


def feed_forward_width(width: int, inputs: int) -> int:
    """Return the units of a feed-forward layer: 4 times the width for a function of one input.

    A unit of two inputs has three weights for each number of the residual where one of one input has two, so that there
    are two thirds as many: weights and multiplications are the same, to rounding.

    Example:
        >>> feed_forward_width(64, 1), feed_forward_width(64, 2)
        (256, 171)
    """
    return 4 * width if inputs == 1 else round(8 * width / 3)


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm and beside a residual, as `nn.scan` repeats them."""

    act: Callable[..., Any]
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "N T D"], _: None) -> tuple[Float[Array, "N T D"], None]:
        width = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(self.heads, use_bias=False)(nn.RMSNorm()(x), mask=mask)
        inputs = getattr(self.act, "inputs", 1)
        units = feed_forward_width(width, inputs)
        normed = nn.RMSNorm()(x)
        hidden = self.act(*(nn.Dense(units, use_bias=False)(normed) for _ in range(inputs)))
        return x + nn.Dense(width, use_bias=False)(hidden), None


class GPT(nn.Module):
    """A transformer that predicts the next byte at each position; 119,104 weights by default.

    Attributes:
        act: the activation of the feed-forward layers.
        context: positions, at most.
        width: numbers per position.
        depth: blocks.
        heads: attention heads in each block.

    Example:
        >>> import jax
        >>> from aqx.tasks.builtin.models.gpt import GPT
        >>> shapes = jax.eval_shape(GPT(jax.nn.gelu).init, jax.random.key(0), jax.numpy.ones((1, 64), int))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        119104
    """

    act: Callable[..., Any]
    context: int = 64
    width: int = 64
    depth: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, x: Integer[ArrayLike, "N T"]) -> Float[Array, "N T 256"]:
        """Return the logits of the byte that follows each position."""
        x, small = jnp.asarray(x), nn.initializers.normal(0.02)
        embed = nn.Embed(256, self.width, embedding_init=small)
        position = self.param("position", small, (self.context, self.width))
        tokens = embed(x) + position[: x.shape[1]]
        tokens, _ = repeat(Block, self.depth)(self.act, self.heads)(tokens, None)
        return embed.attend(nn.RMSNorm()(tokens))
