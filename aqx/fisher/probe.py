"""Probe: a model whose layers have been found, and the factors that one backward pass through it returns."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from aqx.errors import InputError, UnsupportedError
from aqx.fisher import linen as linen_flavour
from aqx.fisher import nnx as nnx_flavour
from aqx.fisher.cross import Program
from aqx.fisher.factors import Factors, Sharing, TapSettings
from aqx.fisher.flavour import Flavour
from aqx.fisher.layers import Apply, Coverage, Layer, LeftOut, sort_out
from aqx.fisher.outputs import Fisher, Loss, output_gradients
from aqx.fisher.reach import keeping_few_rows, rows_reached, without_shared_rows
from aqx.fisher.refusals import without_other_gradients, without_untappable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A model whose layers have been found, and what to compute of them; any model of the same structure fits.

    Attributes:
        flavour: how the layers are reached.
        layers: the covered ones, in the order of their first call.
        left_out: the other parameters.
        unreached: keys that the loss never reaches.
        silent: keys whose gradients are all exactly zero at the given weights, and not at others.
        loss: per example.
        fisher: which Fisher matrix.
        apply: how the model is applied.
        settings: sharing and N.
    """

    flavour: Flavour
    layers: tuple[Layer, ...]
    left_out: tuple[LeftOut, ...]
    unreached: tuple[str, ...]
    loss: Loss
    fisher: str
    apply: Apply
    settings: TapSettings
    silent: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """N."""
        return self.settings.examples

    @property
    def coverage(self) -> Coverage:
        """Weights by key (one per slice of a stacked layer), and what is left out."""
        keys = ((key, layer.weights // len(layer.keys)) for layer in self.layers for key in layer.keys)
        return Coverage(dict(keys), self.left_out, self.unreached, self.silent)

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
    flavour = _flavour_of(model)
    apply, settings = apply or flavour.default_apply, TapSettings(sharing, examples_of(x))

    def tappable(*layers: Layer) -> str:
        """Why the model cannot be traced with taps on these layers; empty where it can."""
        dummies = jax.eval_shape(lambda: {layer.path: layer.zeros()._asdict() for layer in layers})
        try:
            jax.eval_shape(lambda d: flavour.run(model, variables, d, x, apply, settings), dummies)
        except Exception as error:  # whatever Flax or the model raises
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""

    def fits(layer: Layer) -> bool:
        return not tappable(layer)  # else the dummies do not lie as the kernel does

    sightings = flavour.discover(model, variables, x, apply)
    layers, left_out = sort_out(sightings, settings, fits)
    layers, untappable = without_untappable(layers, sightings.differentiated, tappable)
    count = partial(rows_reached, flavour, layers, model, variables, apply, loss)
    reached = count(x, y)
    layers, shared = without_shared_rows(layers, reached, count, sharing, x, y)
    layers = tuple(keeping_few_rows(layer, reached[layer.path], fisher) for layer in layers)
    structure, state = flavour.split(model, variables)
    program = Program(flavour, structure, apply, loss, settings)
    layers, others, silent = without_other_gradients(program, layers, sightings.differentiated, state, x, y)
    rows = {key: n for layer in layers for key, n in zip(layer.keys, reached[layer.path][:, 0], strict=True)}
    if silent:
        _log.warning("aqx: %s", Coverage({}, (), silent=silent).advice)
    missing = (*left_out, *untappable, *shared, *others)
    return Probe(
        flavour, layers, missing, tuple(key for key in rows if not rows[key]), loss, fisher, apply, settings, silent
    )


def probe_without_layers(model: Any, x: Any, *, loss: Loss, apply: Apply | None = None) -> Probe:
    """A probe of any Flax model that covers none of its layers, where only the model and its loss are wanted.

    Raises:
        InputError: the batch cannot be used.
        UnsupportedError: `model` is no Flax model.
    """
    flavour = _flavour_of(model)
    settings = TapSettings("expand", examples_of(x))
    return Probe(flavour, (), (), (), loss, "empirical", apply or flavour.default_apply, settings)


def examples_of(x: Any) -> int:
    """N of a batch.

    Raises:
        InputError: its arrays do not agree on it, or there are none.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        shapes = [tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(x)]
        raise InputError(f"x has shapes {shapes}; give one batch of at least one example, on the leading axis of each")
    return sizes.pop()[0]


def _flavour_of(model: Any) -> Flavour:
    # The one place that tells the flavours apart.
    if isinstance(model, nnx.Module):
        return nnx_flavour
    if isinstance(model, nn.Module):
        return linen_flavour
    raise UnsupportedError(f"model must be a Flax Linen or NNX module, but got {type(model).__name__}")
