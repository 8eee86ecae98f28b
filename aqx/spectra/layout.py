"""Which layers of a model with gated units stand for which of the same model with plain ones, in their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aqx.fisher.layers import Layer

# By the key of a layer with plain units: its share of the weights, and the keys of the layers that stand for it.
Layout = Mapping[str, tuple[float, tuple[str, ...]]]


def layout_of(plain: Sequence[Layer], gated: Sequence[Layer], weights: Mapping[str, int]) -> Layout:
    """Match the layers of two models, so that spectra of both have features of one form.

    In a module where the one has n layers and the other m > n, as two projections in place of one, the first m − n + 1
    are taken together as one layer, whose spectrum is that of both. Where modules do not correspond, every layer is
    described by the spectrum of the whole network.

    Args:
        plain: layers of the model whose features have the form that is stored.
        gated: layers of the other model.
        weights: of the first, per layer key.
    """
    total, every = sum(weights.values()), tuple(key for layer in gated for key in layer.keys)
    ours, theirs = _by_module(plain), _by_module(gated)
    found: dict[str, tuple[str, ...]] = {}
    for module, layers in ours.items():
        others = theirs.get(module, [])
        more = len(others) - len(layers)
        if more < 0:
            break
        groups = [others[: more + 1], *([each] for each in others[more + 1 :])]
        for layer, group in zip(layers, groups, strict=True):
            if any(len(each.keys) != len(layer.keys) for each in group):
                break
            found |= {key: tuple(each.keys[i] for each in group) for i, key in enumerate(layer.keys)}
    if found.keys() != weights.keys() or ours.keys() != theirs.keys():
        found = dict.fromkeys(weights, every)
    return {key: (weight / total, found[key]) for key, weight in weights.items()}


def _by_module(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.path.rpartition("/")[0], []).append(layer)
    return found
