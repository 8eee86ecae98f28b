"""All-CNN-C: nine convolutions and nothing else.

Source: Springenberg, J. T., Dosovitskiy, A., Brox, T. & Riedmiller, M. (2015). Striving for Simplicity: The All
Convolutional Net. ICLR workshop; tables 1 and 2, and section 3.1 for the dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, Float

# Channels, kernel, stride, padding; the last hidden 3×3 convolution has none and leaves 6×6 positions.
LAYERS = (
    (96, 3, 1, "SAME"),
    (96, 3, 1, "SAME"),
    (96, 3, 2, "SAME"),
    (192, 3, 1, "SAME"),
    (192, 3, 1, "SAME"),
    (192, 3, 2, "SAME"),
    (192, 3, 1, "VALID"),
    (192, 1, 1, "SAME"),
)


class AllCNNC(nn.Module):
    """All-CNN-C, 1,369,738 weights with 10 classes.

    The activation stands after each of the nine convolutions, also after that of the classes, whose mean over the
    positions are the logits: so table 1 of the paper has it.

    Attributes:
        act: the activation.
        classes: number of classes.

    Example:
        >>> import jax
        >>> from aqx.tasks.builtin.models import AllCNNC
        >>> shapes = jax.eval_shape(AllCNNC(jax.nn.relu).init, jax.random.key(0), jax.numpy.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
        1369738
    """

    act: Callable[[Any], Any]
    classes: int = 10

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "N H W 3"], train: bool = False) -> Float[Array, "N C"]:
        """Return the logits; training drops 20 % of the image, and half of what each stride of two leaves."""
        hidden = nn.Dropout(0.2, deterministic=not train)(jnp.asarray(x))
        for channels, size, stride, padding in (*LAYERS, (self.classes, 1, 1, "SAME")):
            conv = nn.Conv(
                channels, (size, size), strides=stride, padding=padding, kernel_init=nn.initializers.he_normal()
            )
            hidden = self.act(conv(hidden))
            if stride == 2:
                hidden = nn.Dropout(0.5, deterministic=not train)(hidden)
        return hidden.mean(axis=(1, 2))
