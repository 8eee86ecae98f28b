"""The cross test: whether what the taps see of a layer is the gradient of its stored weights.

With a the input of a layer and g the gradient at its output, the gradient of the summed loss with respect to its kernel
and bias is Σₙ Σₜ [a, 1] gᵀ, if the layer multiplies its input with exactly these weights and nothing else in the model
depends on them. Where that sum differs from one ordinary `jax.grad`, a spectrum would be one of something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aqx.fisher.factors import Tap, TapSettings, as_computed, looking_at, use_factors
from aqx.fisher.flavour import Flavour
from aqx.fisher.layers import Apply, Layer
from aqx.fisher.outputs import Loss, per_example_losses
from aqx.fisher.rows import ConvRows, Rows
from aqx.pallas import default_platform

# What XLA may lose of a sum of products, relative to √(Σ|a|² Σ|g|²), in float64 and in float32: less than any fault,
# which is as large as a gradient. All in float64 would tell no more, and on a CPU its convolutions take minutes.
_LOST = {64: 1e-9, 32: 1e-4}
# A layer of fewer bits rounds the result once for each of its uses, and its parts.
_ROUNDINGS = 8
# The value of a dummy by which a tap sees whether it gets what is stored, whole as a quantised weight would be.
_MARK = 2.0
# Rows of one use have the squares that they should to so many parts.
_SAME = {64: 1e-9, 32: 1e-4}


@dataclass(frozen=True)
class Program:
    """What the programs of this test have in common: a model without its numbers.

    Attributes:
        flavour: how its layers are reached.
        structure: as from `Flavour.split`.
        apply: how it is applied.
        loss: per example.
        settings: of its taps.
        wide: whether modules that are told to compute in few bits compute in float32.
    """

    flavour: Flavour
    structure: Any
    apply: Apply
    loss: Loss
    settings: TapSettings
    wide: bool = True

    def total(
        self, parameters: Mapping[str, Mapping[str, Any]], dummies: Any, attach: Any, state: Any, x: Any, y: Any
    ) -> Float[Array, ""]:
        """The summed loss at parameters that take the place of those in the state."""
        pair = self.flavour.merge(self.structure, self.flavour.replaced(state, parameters))
        outputs = self.flavour.run(*pair, dummies, x, self.apply, attach, self.wide)
        return per_example_losses(self.loss, outputs, y, self.settings.examples).sum()


@dataclass(frozen=True)
class Verdict:
    """What the test says of one layer.

    Attributes:
        differs: roles of the weights ("kernel", "bias") whose gradient is not what the taps see.
        frozen: whether no gradient at all reaches those.
        one_use: whether the rows that its factors keep are the rows of one use.
        silent: whether the gradient at its output is exactly zero at the given weights, and not at others.
    """

    differs: tuple[str, ...]
    frozen: bool
    one_use: bool
    silent: bool


def cross_test(program: Program, layers: Sequence[Layer], state: Any, x: Any, y: Any) -> dict[str, Verdict]:
    """Compare what the taps see with the gradients of the stored weights.

    At the given weights and at moved ones, as below a head that starts at zero all gradients are equal; few bits are
    widened to float32, or to what the others have, where the model can be traced so, as sums in them tell too little.

    Args:
        program: the model.
        layers: those to test.
        state: its numbers, as from `Flavour.split`.
        x: a batch.
        y: its labels.

    Returns:
        A verdict for each layer, by path.
    """
    if not layers:
        return {}
    with own_settings(), jax.default_matmul_precision("highest"):
        try:
            moved, given = _both(program, layers, *_widened((state, x, y)))
        except Exception:  # whatever Flax or the model raises: something in it insists on the few bits
            moved, given = _both(replace(program, wide=False), layers, state, x, y)
    return {layer.path: _verdict(moved[layer.path], given[layer.path]) for layer in layers}


def _both(program: Program, layers: Sequence[Layer], state: Any, x: Any, y: Any) -> tuple[Any, Any]:
    @partial(jax.jit, compiler_options=_quick_to_compile())
    def compare(by: Float[Array, ""], state: Any, x: Any, y: Any) -> dict[str, dict[str, Array]]:
        parameters = _moved(program.flavour.parameters(state), by)

        def total(tested: Mapping[str, Mapping[str, Array]], dummies: Any) -> Float[Array, ""]:
            changed = {path: {**held, **tested.get(path, {})} for path, held in parameters.items()}
            return program.total(changed, dummies, _Attach(program.settings, stored, program.wide), state, x, y)

        tested = {layer.path: {name: parameters[layer.path][name] for name in layer.names} for layer in layers}
        stored = tuple((path, str(leaf.dtype)) for path, held in tested.items() for leaf in held.values())
        truth, seen = jax.grad(total, argnums=(0, 1))(tested, {layer.path: _zeros(layer) for layer in layers})
        return {layer.path: _compared(layer, truth[layer.path], seen[layer.path]) for layer in layers}

    moved, given = (jax.device_get(compare(jnp.asarray(by), state, x, y)) for by in (1.0, 0.0))
    return moved, given


def _zeros(layer: Layer) -> dict[str, Array]:
    """Dummies whose cotangents are the sums over all uses of what `_backward` returns, in the stored layout."""
    groups, d, p = layer.tap.rows.dimensions
    d += layer.tap.rows.bias
    kept_A, kept_G = layer.tap.kept
    shapes = {
        "product": (groups, d, p),
        "noise": (1, 1, 2),
        "A": (groups, kept_A, d),
        "G": (groups, kept_G, p),
        "squares": (1, 1, 3),
    }
    wide = jnp.promote_types(layer.tap.dtype, jnp.zeros(()).dtype)
    zeros = {name: jnp.zeros(layer.stored(shape), wide) for name, shape in shapes.items()}
    return zeros | {"mark": jnp.full(layer.stored((1, 1, 2)), _MARK, wide)}


@dataclass(frozen=True)
class _Attach:
    """Attaches a tap that sums products of input and gradient, and what tells how much these may lose."""

    settings: TapSettings
    stored: tuple[tuple[str, str], ...]  # types of the stored weights, by path
    wide: bool

    def __call__(self, path: str, rows: Rows, a: Array, out: Array, dummies: Mapping[str, Array]) -> Array:
        types = [out.dtype, *(jnp.dtype(name) for of, name in self.stored if of == path)]
        narrowest = str(max(types, key=lambda dtype: jnp.finfo(dtype).eps))
        kept = dummies["A"].shape[-2], dummies["G"].shape[-2]
        spec = Tap(path, rows, self.settings, str(dummies["product"].dtype), kept)
        return _tap(spec, narrowest, a, out, dict(dummies))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tap(spec: Tap, narrowest: str, a: Array, out: Array, dummies: dict[str, Array]) -> Array:
    return out


def _forward(
    spec: Tap, narrowest: str, a: Array, out: Array, dummies: dict[str, Array]
) -> tuple[Array, tuple[Array, Array]]:
    return out, (a, dummies["mark"])


def _backward(spec: Tap, narrowest: str, kept: tuple[Array, Array], g: Array) -> tuple[None, Array, dict[str, Array]]:
    rows, (a, mark) = spec.rows, kept
    wide_a = a if rows.one_hot else as_computed(a, g).astype(spec.dtype)
    wide_g = g.astype(spec.dtype)
    product, of_a = _product(rows, wide_a, wide_g)
    flat = wide_g.reshape(-1, rows.dimensions[2])
    of_g, uses = _squares(flat), len(flat)
    bits, eps = jnp.finfo(narrowest).bits, _ROUNDINGS * float(jnp.finfo(narrowest).eps)
    lost = _LOST[64 if bits >= 64 else 32]
    # XLA may accumulate in few bits, too, and round an input for the one product and not for the other.
    kernel = eps * jnp.sqrt(_squares(product)) + max(lost, eps if bits < 32 else 0) * jnp.sqrt(of_a * of_g)
    bias = eps * jnp.sqrt(_squares(flat.sum(0))) + max(lost, eps if bits < 32 else 0) * jnp.sqrt(uses * of_g)
    if rows.bias:
        edge = rows.gradients(wide_g).sum((0, 1))[:, None]
        product = jnp.concatenate([product, edge], axis=1)
    kept_A, kept_G = _kept(spec, a, g, product.shape[1])
    found = {
        "product": product,
        "noise": jnp.stack([kernel, bias]).reshape(1, 1, 2),
        "A": kept_A,
        "G": kept_G,
        "squares": jnp.stack([_squares(kept_A), _squares(kept_G), of_g]).reshape(1, 1, 3),
        # Weights that are scaled scale the dummies beside them too: what is returned then comes back scaled, and what
        # is returned of the square of the mark even more so.
        "mark": jnp.concatenate([mark[..., :1] ** 2, jnp.ones_like(mark[..., :1])], axis=-1),
    }
    return None, g, {name: looking_at(g, value.astype(spec.dtype)) for name, value in found.items()}


_tap.defvjp(_forward, cast(Any, _backward))


def _kept(spec: Tap, a: Array, g: Array, d: int) -> tuple[Float[Array, "B M d"], Float[Array, "B K p"]]:
    """The rows of one use that the factors keep, none where they keep none."""
    groups, _, p = spec.rows.dimensions
    none = jnp.zeros((groups, 0, d), spec.dtype), jnp.zeros((groups, 0, p), spec.dtype)
    if not any(spec.kept):
        return none
    factors = use_factors(spec, a, g)
    return factors.A if spec.kept[0] else none[0], factors.G if spec.kept[1] else none[1]


def _product(rows: Rows, a: Array, g: Array) -> tuple[Float[Array, "B d p"], Float[Array, ""]]:
    """Σ a gᵀ over all rows of one use, and Σ|a|²."""
    groups, d, p = rows.dimensions
    gradients = rows.gradients(g).reshape(-1, groups, p)
    if rows.one_hot:
        ids = rows.inputs(a).reshape(-1)
        return jnp.zeros((d, p), g.dtype).at[ids].add(gradients[:, 0], mode="drop")[None], jnp.float32(len(ids))
    if isinstance(rows, ConvRows):
        # One position of the kernel at a time: all patches together take its size times the memory.
        pieces = rows.pieces(a.reshape(-1, *a.shape[-len(rows.kernel) - 1 :]))
        inputs = [piece.reshape(len(gradients), groups, -1) for piece in pieces]
    else:
        inputs = [rows.inputs(a).reshape(-1, groups, d)]
    parts = [jnp.einsum("mbd,mbp->bdp", part, gradients, precision=lax.Precision.HIGHEST) for part in inputs]
    return jnp.concatenate(parts, axis=1), sum((_squares(part) for part in inputs), jnp.zeros(()))


def _squares(values: Array) -> Float[Array, ""]:
    return jnp.square(jnp.abs(values)).sum()


def _compared(layer: Layer, truth: Mapping[str, Array], seen: Mapping[str, Array]) -> dict[str, Array]:
    """Numbers [S, …] of one layer: per role of its weights [S, 2], and of the rows that are kept."""
    rows = layer.tap.rows
    fronted = {name: layer.fronted(value) for name, value in seen.items()}
    true = [jax.vmap(rows.matrix)(layer.fronted(truth[layer.names[0]]))]
    if rows.bias:
        true.append(jax.vmap(rows.bias_row)(layer.fronted(truth[layer.names[1]])))
    _, d, _ = rows.dimensions
    mine = [fronted["product"][:, :, :d], fronted["product"][:, :, d:]][: len(true)]
    squares = fronted["squares"].reshape(-1, 3)
    return {
        "true": jnp.stack([_norm(part) for part in true], axis=1),
        "apart": jnp.stack([_norm(part - other) for part, other in zip(true, mine, strict=True)], axis=1),
        "noise": jnp.abs(fronted["noise"].reshape(-1, 2))[:, : len(true)],
        "kept": jnp.stack([_norm(fronted["A"]) ** 2, _norm(fronted["G"]) ** 2], axis=1),
        "squares": jnp.abs(squares[:, :2]),
        "mark": jnp.real(fronted["mark"].reshape(-1, 2)),
        "gradient": jnp.abs(squares[:, 2]),
    }


def _norm(values: Float[Array, "S B d p"]) -> Float[Array, " S"]:
    return jnp.sqrt(jnp.square(jnp.abs(values)).sum((1, 2, 3)))


def _verdict(moved: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> Verdict:
    bad, one_use = np.zeros(moved["true"].shape[1], bool), True
    for seen in (moved, given):
        # Moved weights may be none that the model can use: where the true gradient is not finite, nothing is said.
        told = np.isfinite(seen["true"])
        # A constant in float64 has the taps see float64 beside weights, and gradients of those, in float32.
        noise = seen["noise"] + _ROUNDINGS * float(jnp.finfo(seen["true"].dtype).eps) * seen["true"]
        bad |= (told & ~(seen["apart"] <= noise)).any(0)
        squared, once = seen["mark"].T
        bad |= bool((~(np.abs(squared - _MARK**2 * once) <= 1e-4 * np.abs(once))).any())
        same = _SAME[8 * seen["kept"].itemsize]
        told = np.isfinite(seen["squares"])
        one_use &= not (told & ~(np.abs(seen["kept"] - seen["squares"]) <= same * seen["squares"])).any()
    roles = tuple(role for role, wrong in zip(("kernel", "bias"), bad, strict=False) if wrong)
    frozen = bool(bad.any()) and not any(seen["true"][:, bad].any() for seen in (moved, given))
    silent = not given["gradient"].any() and bool((moved["gradient"] > 0).any())
    return Verdict(roles, frozen, one_use, silent)


def used_elsewhere(
    program: Program, layers: Sequence[Layer], verdicts: Mapping[str, Verdict], state: Any, x: Any, y: Any
) -> set[str]:
    """Paths of the layers whose weights the loss depends on even where the outputs of them all are held fixed.

    Args:
        program: as in `cross_test`.
        layers: those whose weights have another gradient than the taps see.
        verdicts: of each.
        state: as in `cross_test`.
        x: as in `cross_test`.
        y: as in `cross_test`.
    """
    program = replace(program, wide=False)

    @partial(jax.jit, compiler_options=_quick_to_compile())
    def gradients(state: Any, x: Any, y: Any) -> dict[str, list[Array]]:
        parameters = _moved(program.flavour.parameters(state), jnp.ones(()))
        cuts = {layer.path: {"cut": jnp.zeros(layer.stored((1, 1, 1)))} for layer in layers}

        def total(tested: Mapping[str, Mapping[str, Array]]) -> Float[Array, ""]:
            changed = {path: {**held, **tested.get(path, {})} for path, held in parameters.items()}
            return program.total(changed, cuts, _Cut(), state, x, y)

        found = jax.grad(total)({layer.path: {n: parameters[layer.path][n] for n in layer.names} for layer in layers})
        return {layer.path: [jnp.abs(found[layer.path][name]).sum() for name in layer.names] for layer in layers}

    with own_settings(), jax.default_matmul_precision("highest"):
        found = jax.device_get(gradients(state, x, y))
    roles = ("kernel", "bias")
    return {
        path
        for path, sums in found.items()
        if any(role in verdicts[path].differs and of_role > 0 for role, of_role in zip(roles, sums, strict=False))
    }


@dataclass(frozen=True)
class _Cut:
    """Holds the outputs of the layers that have a dummy fixed."""

    def __call__(self, path: str, rows: Rows, a: Array, out: Array, dummies: Mapping[str, Array]) -> Array:
        return lax.stop_gradient(out)


def _quick_to_compile() -> dict[str, Any] | None:
    """Compiler options for a program that runs twice: on a CPU most of its time is spent on optimising it."""
    if default_platform() != "cpu":
        return None
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@contextmanager
def own_settings() -> Iterator[None]:
    """JAX as this library needs it, whatever is set: moved weights may lead anywhere, and x may be of NumPy."""
    with ExitStack() as stack:
        for setting in (
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.numpy_rank_promotion("allow"),
            jax.numpy_dtype_promotion("standard"),
            jax.transfer_guard("allow"),
        ):
            stack.enter_context(setting)
        yield


def _widened(numbers: Any) -> Any:
    """Numbers of few bits as those of the most that are among them, and of float32 at least.

    Otherwise the gradient of a weight in float32 below inputs in float64 would be rounded, and what the taps see not.
    """
    kinds = {leaf.dtype for leaf in jax.tree.leaves(numbers) if jnp.issubdtype(_dtype(leaf), jnp.inexact)}
    widest = jnp.finfo(jnp.result_type(jnp.float32, *kinds)).dtype  # of complex numbers, that of their parts
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(leaf, jnp.promote_types(leaf.dtype, widest))
            if jnp.issubdtype(_dtype(leaf), jnp.inexact)
            else leaf
        ),
        numbers,
    )


def _dtype(leaf: Any) -> Any:
    return getattr(leaf, "dtype", bool)


def _moved(parameters: Mapping[str, Mapping[str, Any]], by: Float[Array, ""]) -> dict[str, dict[str, Any]]:
    """Parameters moved by a tenth of their size; those that are all zero to what an initialisation might give."""
    moved: dict[str, dict[str, Any]] = {}
    for i, (path, held) in enumerate(sorted(parameters.items())):
        moved[path] = dict(held)
        for j, (name, leaf) in enumerate(sorted(held.items())):
            if jnp.issubdtype(_dtype(leaf), jnp.inexact) and leaf.size:
                size = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(leaf))))
                step = jnp.where(size > 0, size / 10, 0.3 / max(9, int(np.prod(leaf.shape[:-1]))) ** 0.5)
                noise = _noise(leaf.shape, 1 + i + j / 7)
                moved[path][name] = (leaf + by * step * noise).astype(leaf.dtype)
    return moved


def _noise(shape: tuple[int, ...], seed: float) -> Array:
    """Numbers without a pattern, of mean 0 and variance 1; a generator's program takes long to compile."""
    scattered = jnp.sin(seed + 12.9898 * jnp.arange(np.prod(shape, dtype=int))) * 43758.5453
    return (12**0.5 * (scattered - jnp.floor(scattered) - 0.5)).reshape(shape)
