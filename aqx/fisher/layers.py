"""What is known of a model's layers before any factor is computed: which are covered, and why the others are not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from aqx.fisher.factors import Factors, Tap

# apply(model, variables, x) -> outputs
Apply = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Layer:
    """One covered leaf of the module tree, as stored: `stack` slices of it lie along `axes` of its parameters.

    Attributes:
        path: module path joined with "/".
        tap: rows, sharing and size, as one slice sees them.
        stack: lengths of the axes that nn.scan, nn.vmap and their like added, outermost first.
        axes: where in the stored array each of those axes lies, outermost first (negative: from the end).
        weights: number of parameters of all slices together.
        count: gradient rows N·T of one call, or 0 where calls differ.
    """

    path: str
    tap: Tap
    stack: tuple[int, ...]
    axes: tuple[int, ...]
    weights: int
    count: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """One key per slice: `path`, or `path/0`, `path/1` and so on."""
        return tuple("/".join((self.path, *map(str, i))) for i in itertools.product(*map(range, self.stack)))

    def zeros(self) -> Factors:
        """Zero dummies in the stored layout."""
        shapes = (insert_axes(shape, self.stack, self.axes) for shape in self.tap.shapes)
        return Factors(*(jnp.zeros(shape, self.tap.dtype) for shape in shapes))

    @property
    def eigenvalue_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Shapes of the eigenvalues of A [S, B, d] and of G [S, B, p]."""
        groups, d, p = self.tap.rows.dimensions
        slices = math.prod(self.stack)
        return (slices, groups, d + self.tap.rows.bias), (slices, groups, p)

    def slices(self, stored: Factors) -> Factors:
        """Factors with the stacked axes in front, flattened into one: A [S, B, d, d], G [S, B, p, p], positions [S]."""
        fronted = []
        for leaf in stored:
            for depth, axis in enumerate(self.axes):
                # Outermost first: once it is at the front, the inner ones keep their places behind it.
                rest = leaf.ndim - depth
                leaf = jnp.moveaxis(leaf, depth + axis % rest, depth)
            fronted.append(leaf.reshape(-1, *leaf.shape[len(self.axes) :]))
        return Factors(fronted[0], fronted[1], fronted[2].reshape(-1))


@dataclass(frozen=True)
class LeftOut:
    """Parameters outside the Kronecker factors, and why.

    Attributes:
        path: of the module that holds them.
        weights: how many.
        reason: one phrase for people.
    """

    path: str
    weights: int
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Which layers of a model the Fisher spectrum covers.

    Attributes:
        weights: covered weights by the keys that `eigenvalues` uses.
        left_out: everything else that has parameters, with the reason.
        unreached: keys of covered layers that the loss never reaches; their eigenvalues are zero.
    """

    weights: Mapping[str, int]
    left_out: tuple[LeftOut, ...]
    unreached: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Covered weights / all weights."""
        covered = sum(self.weights.values())
        return covered / max(1, covered + sum(part.weights for part in self.left_out))

    def __str__(self) -> str:
        unused = ", but the loss never reaches it: its eigenvalues are zero"
        lines = [f"{key}: {n:,} weights{unused * (key in self.unreached)}" for key, n in self.weights.items()]
        lines += [f"{part.path}: {part.weights:,} weights left out: {part.reason}" for part in self.left_out]
        return "\n".join([*lines, f"covered: {self.share:.2%} of all weights"])


def insert_axes(shape: tuple[int, ...], stack: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """Shape of a stored array whose slice has `shape`: inner axes are inserted first."""
    for length, axis in zip(reversed(stack), reversed(axes), strict=True):
        at = axis % (len(shape) + 1)
        shape = (*shape[:at], length, *shape[at:])
    return shape


def stack_axes(stored: tuple[int, ...], inner: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield every (stack, axes) that turns a slice's shape into the stored one, the usual axis 0 first."""
    depth = len(stored) - len(inner)
    choices = (0, -1, *range(1, len(stored)))
    for axes in itertools.product(choices, repeat=depth):
        left, stack = list(stored), []
        for axis in axes:
            if not -len(left) <= axis < len(left):
                break
            stack.append(left.pop(axis))
        else:
            if tuple(left) == inner:
                yield tuple(stack), axes
