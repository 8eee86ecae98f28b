"""Features of a spectrum: a few numbers per layer whose Manhattan distance is the paper's distance of spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

QUANTILES = 32
# What float32 cannot hold, it takes for zero: so does every dtype here, and an all-zero factor sits at this value.
TINY = float(np.finfo(np.float32).tiny)
LOG_OF_ZERO = float(np.log(TINY))


def log_factor(values: Float[np.ndarray, "*K d"]) -> Float[np.ndarray, "*K d"]:
    """Natural logarithms of one factor's eigenvalues, raised to at least 2⁻²³ · d · the largest of them.

    That floor is the rounding error of float32, taken in every dtype, so that float32, float64, CPU and GPU agree on
    null directions and on gradients that vanish. On the products it would wipe out most of a hidden layer's spectrum;
    so it is on the factors.
    """
    values = values.astype(np.float64)
    return np.log(np.maximum(values, np.maximum(floors(values), TINY)))


def floors(values: Any) -> Any:
    """2⁻²³ · d · the largest of each factor's eigenvalues [*K, d], as [*K, 1]; of NumPy or JAX."""
    return 2.0**-23 * values.shape[-1] * values.max(axis=-1, keepdims=True)


def log_spectrum(of_A: Float[np.ndarray, "K B d"], of_G: Float[np.ndarray, "K B p"]) -> Float[np.ndarray, "K n"]:
    """Log eigenvalues of K blocks, ascending, n = B·d·p, from the eigenvalues of their factors."""
    logs = log_factor(of_A)[..., :, None] + log_factor(of_G)[..., None, :]
    # float32 sorts several times faster, and its rounding is far below what the floor leaves to see.
    return np.sort(logs.astype(np.float32).reshape(len(logs), -1), axis=-1)


def quantile_means(ascending: Float[np.ndarray, "K n"], quantiles: int = QUANTILES) -> Float[np.ndarray, "K Q"]:
    """Mean of the quantile function over each of Q equal shares of the mass.

    m_q = Q ∫ F⁻¹(u) du over u in [q/Q, (q+1)/Q],

    so that 1/Q Σ_q |m_q − m'_q| ≤ ∫ |F⁻¹ − F'⁻¹| du, the Wasserstein-1 distance, with equality where one quantile
    function is nowhere above the other within a share (point quantiles have no such bound).

    Args:
        ascending: K sorted samples of n values, any n ≥ 1.
        quantiles: Q.

    Returns:
        The means [K, Q], ascending.
    """
    count = ascending.shape[-1]
    # The integral of a step function is linear between its steps.
    integral = np.concatenate(
        [np.zeros((*ascending.shape[:-1], 1)), np.cumsum(ascending, axis=-1, dtype=np.float64)], axis=-1
    )
    at = np.arange(quantiles + 1) * count / quantiles
    whole = np.minimum(at.astype(int), count - 1)
    edges = integral[..., whole] + (at - whole) * ascending[..., whole]
    return np.diff(edges, axis=-1) * (quantiles / count)


def _together(spectra: Sequence[Float[np.ndarray, "K _"]]) -> Float[np.ndarray, "K n"]:
    return spectra[0] if len(spectra) == 1 else np.sort(np.concatenate(spectra, axis=-1), axis=-1)


def spectrum_features(
    pairs: Mapping[str, tuple[Float[np.ndarray, "K B d"], Float[np.ndarray, "K B p"]]],
    weights: Mapping[str, int],
    quantiles: int = QUANTILES,
    layout: Mapping[str, tuple[float, tuple[str, ...]]] | None = None,
) -> Float[np.ndarray, "K D"]:
    """Feature vectors of K candidates whose Manhattan distance is Σ_l share_l · W₁(log-spectra of layer l).

    Args:
        pairs: per layer key, eigenvalues of A and G of K candidates.
        weights: weights per layer key; share_l = weights_l / sum of all.
        quantiles: Q.
        layout: for each layer of the form that is stored, its share and the keys whose eigenvalues together are its
            own; default each key alone.

    Returns:
        float32 [K, L·Q], layers in the order of `weights`, or of the layout.

    Source: Bingham & Miikkulainen 2023, section 4.1, which compares CDFs with bins in proportion to the weights.
    """
    total = sum(weights.values())
    form = layout or {key: (weight / total, (key,)) for key, weight in weights.items()}
    blocks: Sequence[np.ndarray] = [
        quantile_means(_together([log_spectrum(*pairs[key]) for key in keys]), quantiles) * (share / quantiles)
        for share, keys in form.values()
    ]
    return np.concatenate(blocks, axis=-1).astype(np.float32)
