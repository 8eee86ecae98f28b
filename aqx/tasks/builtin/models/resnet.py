"""ResNet-56 and its like for CIFAR.

Source: He, K., Zhang, X., Ren, S. & Sun, J. (2016). Deep Residual Learning for Image Recognition. CVPR; section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from aqx.tasks.builtin.blocks import convolution_to_repeat, repeat


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut without weights (option A), in the form that `nn.scan` repeats."""

    act: Callable[[Any], Any]
    width: int
    train: bool
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "N H W D"], _: None) -> tuple[Float[Array, "N P Q F"], None]:
        hidden = self.act(_norm(self.train)(_conv(self.width, self.stride)(x)))
        hidden = _norm(self.train)(_conv(self.width)(hidden))
        shortcut = x[:, :: self.stride, :: self.stride]
        missing = self.width - x.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        return self.act(hidden + shortcut), None


class ResNet(nn.Module):
    """ResNet of depth 6·blocks + 2 for images of 32×32: ResNet-56 has 9 blocks a stage and 853,018 weights.

    Attributes:
        act: the activation.
        classes: number of classes.
        blocks: residual blocks in each of the three stages; 3 makes ResNet-20, 18 ResNet-110.

    Example:
        >>> import jax
        >>> from aqx.tasks.builtin.models import ResNet
        >>> shapes = jax.eval_shape(ResNet(jax.nn.relu).init, jax.random.key(0), jax.numpy.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        853018
    """

    act: Callable[[Any], Any]
    classes: int = 10
    blocks: int = 9

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "N H W D"], train: bool = False) -> Float[Array, "N C"]:
        """Return the logits; training normalises by the batch, and else by the running statistics."""
        hidden = self.act(_norm(train)(_conv(16)(jnp.asarray(x))))
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            same = self.blocks
            if stride > 1:
                hidden, _ = Block(self.act, width, train, stride)(hidden, None)
                same -= 1
            # The other blocks of a stage are equal: scanned, they are compiled once, and 11 sites stand for 55.
            if same:
                hidden, _ = repeat(Block, same)(self.act, width, train)(hidden, None)
        return nn.Dense(self.classes, kernel_init=nn.initializers.he_normal())(hidden.mean(axis=(1, 2)))


def _conv(width: int, stride: int = 1) -> nn.Conv:
    # Padding by 1 on both sides centres a stride of 2 on the pixels that the shortcut keeps; SAME would not.
    return nn.Conv(
        width,
        (3, 3),
        strides=stride,
        padding=1,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=convolution_to_repeat(),
    )


def _norm(train: bool) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)
