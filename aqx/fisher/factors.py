"""Kronecker factors of one use of a layer: A from its input rows, G from the rows of its output gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from aqx.errors import UnsupportedError
from aqx.fisher import patches
from aqx.fisher.rows import ConvRows, Rows

Sharing = Literal["expand", "reduce"]


class Factors(NamedTuple):
    """Sums over examples (and, for "expand", positions) for one layer; plain sums, so uses of the layer add up.

    As dummies of a tap they have these shapes; stacked modules put their axes in between (see `Layer`).
    """

    A: Float[Array, "*B d e"]  # [B, d, d]; [B, d, 1] the diagonal of a one-hot layer; [B, M, d] kept rows
    G: Float[Array, "*B p q"]  # [B, p, p], or [B, M, p] kept rows
    positions: Float[Array, "1 1 1"]  # how many gradient rows G sums, per group


@runtime_checkable
class Attach(Protocol):
    """What to do at each layer: (path, rows, input, output, dummies of one slice) -> output."""

    def __call__(self, path: str, rows: Rows, a: Array, out: Array, dummies: Mapping[str, Array]) -> Array:
        """Return what takes the place of the layer's output."""
        ...


@dataclass(frozen=True)
class TapSettings:
    """What all taps of a model have in common; called, it attaches one."""

    sharing: str
    examples: int

    def __call__(self, path: str, rows: Rows, a: Array, out: Array, dummies: Mapping[str, Array]) -> Array:
        """Attach a tap."""
        mine = Factors(**dummies)
        # Kept rows are fewer than the dimension, so the shape of a dummy tells them.
        kept_A, kept_G = (0 if dummy.shape[-2] == dummy.shape[-1] else dummy.shape[-2] for dummy in (mine.A, mine.G))
        kept = (0 if rows.one_hot else kept_A, kept_G)
        return tap(Tap(path, rows, self, str(mine.A.dtype), kept), a, out, mine)


@dataclass(frozen=True)
class Tap:
    """What a tap needs to know of its layer; static and hashable."""

    path: str
    rows: Rows
    settings: TapSettings
    dtype: str = "float32"  # of the factors: float32, or float64 where the layer computes in it
    # How many rows of A and of G are kept as they are, being fewer than their dimension and of one use alone; else 0.
    # Their Gram matrix has the same eigenvalues but zeros, and is smaller.
    kept: tuple[int, int] = (0, 0)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of A, G and positions."""
        groups, d, p = self.rows.dimensions
        d += self.rows.bias
        kept_A, kept_G = self.kept
        return (groups, kept_A or d, 1 if self.rows.one_hot else d), (groups, kept_G or p, p), (1, 1, 1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(spec: Tap, a: Array, out: Array, dummies: Factors) -> Array:
    """Identity on `out` whose backward pass returns the layer's factors as the cotangents of zero dummies."""
    return out


def _forward(spec: Tap, a: Array, out: Array, dummies: Factors) -> tuple[Array, Array]:
    return out, a


def _backward(spec: Tap, a: Array, g: Array) -> tuple[None, Array, Factors]:
    return None, g, use_factors(spec, a, g)


_tap.defvjp(_forward, _backward)
tap: Callable[[Tap, Array, Array, Factors], Array] = cast(Any, _tap)  # a custom_vjp forgets its types


def use_factors(spec: Tap, a: Array, g: Array) -> Factors:
    """Sums of one use of a layer.

    expand: A = Σₙ Σₜ a aᵀ, G = Σₙ Σₜ g gᵀ, positions = N·T
    reduce: A = Σₙ ā āᵀ with ā = meanₜ a, G = Σₙ g̃ g̃ᵀ with g̃ = Σₜ g, positions = N

    Sources: Grosse & Martens 2016 (expand); Eschenhagen et al. 2023, eq. 22 (reduce).
    """
    rows = spec.rows
    gradients = rows.gradients(g.astype(spec.dtype))
    a = a if rows.one_hot else as_computed(a, g).astype(spec.dtype)
    if spec.settings.sharing == "reduce":
        if gradients.shape[0] != spec.settings.examples:
            raise UnsupportedError(
                f'sharing="reduce" needs the examples on the leading axis of every layer, but {spec.path} gets '
                f'{gradients.shape[0]} there instead of {spec.settings.examples}; use sharing="expand"'
            )
        gradients = gradients.sum(axis=1, keepdims=True)
    count = gradients.shape[0] * gradients.shape[1]
    A = _input_moment(spec, a, count)
    G = _flat(gradients) if spec.kept[1] else _gram(gradients)
    return Factors(looking_at(g, A), G, looking_at(g, jnp.full((1, 1, 1), count, spec.dtype)))


def looking_at(g: Array, cotangent: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The cotangent as it is, though it depends on the gradient: vmap does not sum one that is the same for all."""
    return lax.select_n(g.reshape(-1)[0] == 0, cotangent, cotangent)


def _input_moment(spec: Tap, a: Array, count: int) -> Float[Array, "B d e"]:
    rows, expand = spec.rows, spec.settings.sharing == "expand"
    # To a GPU operations are cheap, and dozens of products for each layer take it a minute to compile.
    if expand and not spec.kept[0] and isinstance(rows, ConvRows) and patches.is_quicker(rows) and not gpu_in_use():
        moment = patches.patch_moment(rows, rows.maps(a))[None]
        return _with_ones(moment, patches.patch_sum(rows, rows.maps(a)), count) if rows.bias else moment
    inputs = rows.inputs(a)
    if rows.one_hot:
        hits = jnp.zeros((rows.dimensions[1],), spec.dtype).at[inputs.reshape(-1)].add(1.0, mode="drop")
        return hits[None, :, None]
    if not expand:
        inputs = inputs.mean(axis=1, keepdims=True)
    if spec.kept[0]:
        flat = _flat(inputs)
        return jnp.concatenate([flat, jnp.ones_like(flat[..., :1])], axis=-1) if rows.bias else flat
    if not rows.bias:
        return _gram(inputs)
    # Patches are many times the maps: reading them once more would take as long as the product.
    sums = patches.patch_sum(rows, rows.maps(a)) if expand and isinstance(rows, ConvRows) else inputs.sum(axis=(0, 1))
    return _with_ones(_gram(inputs), sums, count)


def as_computed(a: Array, g: Array) -> Array:
    """A layer's input as its kernel meets it: one that computes in bfloat16 rounds it first."""
    return a.astype(g.dtype) if jnp.finfo(g.dtype).bits < jnp.finfo(a.dtype).bits else a


def gpu_in_use() -> bool:
    """Whether JAX computes on a GPU unless told otherwise, so that programs for one are worth their tracing."""
    return jax.default_backend() in ("gpu", "cuda", "rocm")


def _flat(rows: Float[Array, "N T B d"]) -> Float[Array, "B M d"]:
    return jnp.moveaxis(rows.reshape(-1, *rows.shape[2:]), 0, 1)


def _gram(rows: Float[Array, "N T B d"]) -> Float[Array, "B d d"]:
    *_, groups, d = rows.shape
    if groups == 1:
        flat = rows.reshape(-1, d)
        return jnp.matmul(flat.T, flat, precision=lax.Precision.HIGHEST)[None]
    flat = rows.reshape(-1, groups, d)
    return jnp.einsum("mbd,mbe->bde", flat, flat, precision=lax.Precision.HIGHEST)


def _with_ones(moment: Float[Array, "B d d"], sums: Float[Array, "B d"], count: int) -> Float[Array, "B e e"]:
    # The row and column of the homogeneous 1 are sums: cheaper than copying all rows to append it.
    edge = sums[..., None]
    corner = jnp.full((len(moment), 1, 1), count, moment.dtype)
    return jnp.block([[moment, edge], [jnp.swapaxes(edge, 1, 2), corner]])
