"""Fisher eigenvalues of a model, layer by layer, through Kronecker factors that one backward pass returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from aqx.errors import InputError, UnsupportedError
from aqx.fisher import linen as linen_layers
from aqx.fisher import nnx as nnx_layers
from aqx.fisher.factors import Factors, Sharing, TapSettings
from aqx.fisher.layers import Apply, Coverage, Layer, LeftOut
from aqx.fisher.outputs import Fisher, Loss, output_gradients
from aqx.fisher.reach import keeping_few_rows, rows_reached, without_shared_rows
from aqx.fisher.spectrum import eigenvalues_of_A, eigenvalues_of_G, products


@dataclass(frozen=True)
class Probe:
    """A model whose layers have been found, and what to compute of them; any model of the same structure fits.

    Attributes:
        flavour: the module that reaches the layers, `aqx.fisher.linen` or `aqx.fisher.nnx`.
        layers: the covered ones, in the order of their first call.
        left_out: the other parameters.
        unreached: keys that the loss never reaches.
        loss: per example.
        fisher: which Fisher matrix.
        apply: how the model is applied.
        settings: sharing and N.
    """

    flavour: ModuleType
    layers: tuple[Layer, ...]
    left_out: tuple[LeftOut, ...]
    unreached: tuple[str, ...]
    loss: Loss
    fisher: str
    apply: Apply
    settings: TapSettings

    @property
    def examples(self) -> int:
        """N."""
        return self.settings.examples

    @property
    def coverage(self) -> Coverage:
        """Weights by key (one per slice of a stacked layer), and what is left out."""
        keys = ((key, layer.weights // len(layer.keys)) for layer in self.layers for key in layer.keys)
        return Coverage(dict(keys), self.left_out, self.unreached)

    def factors(
        self, model: Any, variables: Any, x: Any, y: Any, key: Key[Array, ""]
    ) -> tuple[Float[Array, " N"], dict[str, Factors]]:
        """Losses [N] and, by layer path, the factors as sums: A [S, B, d, d], G [S, B, p, p], positions [S]."""
        dummies = {layer.path: layer.zeros()._asdict() for layer in self.layers}
        outputs, pull_back = jax.vjp(
            lambda d: self.flavour.run(model, variables, d, x, self.apply, self.settings), dummies
        )
        losses, gradients = output_gradients(self.fisher, self.loss, outputs, y, self.examples, key)
        (stored,) = pull_back(jax.tree.map(lambda g: g[0], gradients))
        if self.fisher == "exact":

            def add_class(sums: dict[str, Array], gradient: Any) -> tuple[dict[str, Array], None]:
                (more,) = pull_back(gradient)
                return {path: sums[path] + more[path]["G"] for path in sums}, None

            others = jax.tree.map(lambda g: g[1:], gradients)
            sums, _ = jax.lax.scan(add_class, {path: part["G"] for path, part in stored.items()}, others)
            stored = {path: {**part, "G": sums[path]} for path, part in stored.items()}
        return losses, {layer.path: layer.slices(Factors(**stored[layer.path])) for layer in self.layers}


def probe_model(
    model: Any,
    variables: Any,
    x: Any,
    y: Any,
    *,
    loss: Loss,
    fisher: str = "empirical",
    sharing: str = "expand",
    apply: Apply | None = None,
) -> Probe:
    """Find the layers of a model by tracing it; nothing is computed.

    Raises:
        InputError: `fisher`, `sharing` or the batch cannot be used.
        UnsupportedError: `model` is no Flax model.
    """
    for name, value, allowed in (("fisher", fisher, get_args(Fisher)), ("sharing", sharing, get_args(Sharing))):
        if value not in allowed:
            raise InputError(f"{name}={value!r} is unknown; give one of {', '.join(allowed)}")
    if isinstance(model, nnx.Module):
        flavour, default = nnx_layers, _apply_nnx
    elif isinstance(model, nn.Module):
        flavour, default = linen_layers, _apply_linen
    else:
        raise UnsupportedError(f"model must be a Flax Linen or NNX module, but got {type(model).__name__}")
    apply, examples = apply or default, _examples(x)
    layers, left_out = flavour.discover(model, variables, x, apply, sharing, examples)
    count = partial(rows_reached, flavour, layers, model, variables, apply, loss)
    reached = count(x, y)
    layers, shared, unreached = without_shared_rows(layers, reached, count, x, y)
    layers = tuple(keeping_few_rows(layer, reached[layer.path], fisher) for layer in layers)
    return Probe(flavour, layers, (*left_out, *shared), unreached, loss, fisher, apply, TapSettings(sharing, examples))


def eigenvalues(
    model: Any,
    variables: Mapping[str, Any] | None,
    x: Any,
    y: Any,
    *,
    loss: Loss,
    fisher: str = "empirical",
    sharing: str = "expand",
    apply: Apply | None = None,
    seed: int = 0,
) -> dict[str, Float[Array, " weights"]]:
    """Eigenvalues of the Kronecker-factored Fisher matrix of each layer of a Flax model.

    A = 1/N Σₙ Σₜ a aᵀ,  G = 1/(N·T) Σₙ Σₜ g gᵀ,  eigenvalues of a layer's block = all products λ_A·λ_G,

    with a the layer's input (a homogeneous 1 appended where it has a bias; for a convolution the patch), g the gradient
    of one example's loss with respect to the layer's output, N examples, T positions that share the weights.

    Args:
        model: a Flax Linen or NNX module, as it is; it is not changed.
        variables: of a Linen model, e.g. `model.init(…)`; None for an NNX model, which holds its own.
        x: batch of inputs, N on the leading axis (a pytree of arrays where `apply` takes one).
        y: labels, as `loss` takes them.
        loss: `loss(outputs, y)` returns the loss of each example, shape [N].
        fisher: "empirical" (at the labels y), "exact" (expectation over the model's own predictions) or "sampled"
            (one label drawn per example); the last two need a loss of `aqx.losses`.
        sharing: "expand" as above, or "reduce": A of meanₜ a and G of Σₜ g, both over N.
        apply: `apply(model, variables, x)` returns the outputs; default `model.apply(variables, x)`, NNX `model(x)`.
        seed: of the labels that "sampled" draws.

    Returns:
        Eigenvalues per layer, ascending, keyed by module path (`Block_0/Dense_1`; `path/0`, `path/1`, … where a
        transform stacked the layer). Raw values: rounding may leave tiny negative ones. float64 where the model
        computes in it, else float32. A layer that the loss never reaches has zeros. Layers that are not Kronecker, such
        as normalisation, and layers whose input is the same for every example, such as a position embedding that is
        broadcast later, are left out: `aqx.fisher.coverage` says which, and why.

    Raises:
        InputError: the loss is not per example, or an option is unknown.
        UnsupportedError: the model is not a Flax model, or an option does not fit it.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, aqx
        >>> from aqx import fisher, losses
        >>> model = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(2)])
        >>> x, y = jax.random.normal(jax.random.key(0), (8, 3)), jnp.arange(8) % 2
        >>> spectra = fisher.eigenvalues(
        ...     model, model.init(jax.random.key(1), x), x, y, loss=losses.softmax_cross_entropy)
        >>> {path: values.shape for path, values in spectra.items()}
        {'layers_0': (16,), 'layers_2': (10,)}

    Source: Martens & Grosse 2015, eq. 1 and section 3; Grosse & Martens 2016, theorem 1; Eschenhagen et al. 2023.
    """
    x, y = jax.tree.map(jnp.asarray, (x, y))
    probe = probe_model(model, variables, x, y, loss=loss, fisher=fisher, sharing=sharing, apply=apply)
    # Parameters are an argument of the program and no constants in it; those of an NNX model are in the model.
    graph, state = nnx.split(model) if isinstance(model, nnx.Module) else (None, variables)

    @jax.jit
    def compute(state: Any, x: Any, y: Any) -> dict[str, Array]:
        pair = (model, state) if graph is None else (nnx.merge(graph, state), None)
        _, factors = probe.factors(*pair, x, y, jax.random.key(seed))
        spectra = {}
        for layer in probe.layers:
            sums = factors[layer.path]
            pairs = eigenvalues_of_A(layer.tap, sums, probe.examples), eigenvalues_of_G(layer.tap, sums)
            spectra |= zip(layer.keys, jax.vmap(products)(*pairs), strict=True)
        return spectra

    spectra = compute(state, x, y)
    # A jitted function sorts the keys of its result; the order of the layers means something.
    return {key: spectra[key] for layer in probe.layers for key in layer.keys}


def coverage(
    model: Any,
    variables: Mapping[str, Any] | None,
    x: Any,
    *,
    apply: Apply | None = None,
    sharing: str = "expand",
) -> Coverage:
    """Say which layers of a model the Fisher spectrum covers, the share of all weights, and why a layer is missing.

    Args:
        model: as in `eigenvalues`.
        variables: as in `eigenvalues`.
        x: as in `eigenvalues`.
        apply: as in `eigenvalues`.
        sharing: as in `eigenvalues`.

    Returns:
        Weights of each covered layer, and what is left out with the reason.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from aqx import fisher
        >>> model = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(2)])
        >>> x = jnp.ones((8, 3))
        >>> print(fisher.coverage(model, model.init(jax.random.key(0), x), x))
        layers_0: 16 weights
        layers_2: 10 weights
        layers_1: 8 weights left out: bias and scale: LayerNorm scales and shifts, which is not Kronecker
        covered: 76.47% of all weights
    """
    x = jax.tree.map(jnp.asarray, x)
    zeros = jnp.zeros(_examples(x))
    return probe_model(model, variables, x, zeros, loss=_sum_of_outputs, sharing=sharing, apply=apply).coverage


def _sum_of_outputs(outputs: Any, zeros: Float[Array, " N"]) -> Float[Array, " N"]:
    """A loss that every output reaches."""
    floating = [jnp.real(leaf) for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return zeros + sum(leaf.sum() for leaf in floating)


def _apply_linen(model: nn.Module, variables: Any, x: Any) -> Any:
    return model.apply(variables, x)


def _apply_nnx(model: nnx.Module, variables: None, x: Any) -> Any:
    return model(x)


def _examples(x: Any) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        shapes = [tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(x)]
        raise InputError(f"x has shapes {shapes}; give one batch of at least one example, on the leading axis of each")
    return sizes.pop()[0]
