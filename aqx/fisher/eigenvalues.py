"""Fisher eigenvalues of a model, layer by layer, and what they cover: what this room is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aqx.fisher.cross import own_settings
from aqx.fisher.layers import Apply, Coverage
from aqx.fisher.outputs import Loss
from aqx.fisher.probe import examples_of, probe_model
from aqx.fisher.spectrum import eigenvalues_of_A, eigenvalues_of_G, products


@own_settings()
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
    # Parameters are an argument of the program and no constants in it.
    structure, state = probe.flavour.split(model, variables)

    @jax.jit
    def compute(state: Any, x: Any, y: Any) -> dict[str, Array]:
        _, factors = probe.factors(*probe.flavour.merge(structure, state), x, y, jax.random.key(seed))
        spectra = {}
        for layer in probe.layers:
            sums = factors[layer.path]
            pairs = eigenvalues_of_A(layer.tap, sums, probe.examples), eigenvalues_of_G(layer.tap, sums)
            spectra |= zip(layer.keys, jax.vmap(products)(*pairs), strict=True)
        return spectra

    spectra = compute(state, x, y)
    # A jitted function sorts the keys of its result; the order of the layers means something.
    return {key: spectra[key] for layer in probe.layers for key in layer.keys}


@own_settings()
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
    zeros = jnp.zeros(examples_of(x))
    return probe_model(model, variables, x, zeros, loss=_any_output, sharing=sharing, apply=apply).coverage


def _any_output(outputs: Any, zeros: Float[Array, " N"]) -> Float[Array, " N"]:
    """A loss that every output reaches, each by a weight of its own: probabilities sum to one whatever the weights."""
    floating = [jnp.real(leaf) for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    weighted = (leaf.reshape(-1) * (1.5 + jnp.cos(jnp.arange(leaf.size))).astype(leaf.dtype) for leaf in floating)
    return zeros + sum(leaf.sum() for leaf in weighted)
