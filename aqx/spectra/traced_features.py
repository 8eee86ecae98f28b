"""The features of `quantiles` as a part of the program that computes the spectrum, where a host would not keep up."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from aqx.spectra.quantiles import QUANTILES, TINY, floors


def traced_features(
    pairs: Mapping[str, tuple[Float[Array, "B d"], Float[Array, "B p"]]],
    weights: Mapping[str, int],
    quantiles: int = QUANTILES,
) -> Float[Array, " D"]:
    """The feature vector of one candidate; `spectrum_features` says what it is.

    Args:
        pairs: per layer key, eigenvalues of A and G.
        weights: weights per layer key.
        quantiles: Q.
    """
    total = sum(weights.values())
    blocks = [
        _means(lax.sort(_log_products(*pairs[key]), is_stable=False), quantiles) * (weight / total / quantiles)
        for key, weight in weights.items()
    ]
    return jnp.concatenate(blocks).astype(jnp.float32)


def _log_products(of_A: Float[Array, "B d"], of_G: Float[Array, "B p"]) -> Float[Array, " n"]:
    logs = (jnp.log(jnp.maximum(values, jnp.maximum(floors(values), TINY))) for values in (of_A, of_G))
    a, g = logs
    return (a[:, :, None] + g[:, None, :]).reshape(-1)


def _means(ascending: Float[Array, " n"], quantiles: int) -> Float[Array, " Q"]:
    """Mean over each share: its values, the first and the last by the part of them that lies in it.

    Differences of one running sum, as on the host in float64, would lose what float32 has of it.
    """
    n = len(ascending)
    edges = np.arange(quantiles + 1) * n / quantiles
    first = np.floor(edges[:-1]).astype(np.int32)
    offset = np.arange(int(np.ceil(n / quantiles)) + 1)
    start, end = (np.asarray(edge - first, np.float32)[:, None] for edge in (edges[:-1], edges[1:]))
    inside = jnp.clip(jnp.minimum(offset + 1, end) - jnp.maximum(offset, start), 0)
    values = ascending[jnp.minimum(first[:, None] + offset, n - 1)]
    return (values * inside).sum(axis=1) * (quantiles / n)
