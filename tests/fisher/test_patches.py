"""Second moments of patches and eigenvalues of symmetric matrices: the quick ways against the plain ones."""

from __future__ import annotations

import fisher_oracle as oracle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqx.fisher import patches
from aqx.fisher.rows import conv_rows
from aqx.fisher.spectrum import eigvalsh

pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
CHANNELS = 2


@st.composite
def convolutions(draw):
    """A convolution of one or two axes, and maps that it fits."""
    rank = draw(st.integers(1, 2))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    size, kernel, dilation = each(6, 9), each(1, 3), each(1, 2)
    padding = draw(st.sampled_from(["SAME", "VALID", "CIRCULAR", "CAUSAL", "explicit"]))
    if padding == "explicit":
        padding = tuple((draw(st.integers(-1, 3)), draw(st.integers(-1, 3))) for _ in range(rank))
    elif padding == "CAUSAL" and rank == 2:
        padding = "SAME"
    spread = each(1, 2) if padding == "VALID" else (1,) * rank
    layer = nn.Conv(3, kernel, each(1, 3), padding, input_dilation=spread, kernel_dilation=dilation)
    maps = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(draw(st.integers(1, 4)), *size, CHANNELS))
    return layer, maps


def crop(layer, maps):
    """The oracle pads; a negative padding crops."""
    if isinstance(layer.padding, str):
        return layer, maps
    cut = tuple(
        slice(max(0, -low), n - max(0, -high)) for (low, high), n in zip(layer.padding, maps.shape[1:-1], strict=True)
    )
    padding = tuple((max(0, low), max(0, high)) for low, high in layer.padding)
    return layer.clone(padding=padding), maps[(slice(None), *cut)]


@pytest.mark.slow
@settings(max_examples=25)
@given(convolutions(), st.sampled_from([1, 2**30]))
def test_the_moment_of_patches_needs_no_patches(convolution, chunk):
    layer, maps = convolution
    rows = conv_rows(layer, (*layer.kernel_size, CHANNELS, 3), {})
    before, patches._CHUNK = patches._CHUNK, chunk  # one map at a time, or all at once
    try:
        moment, total = jax.jit(lambda x: (patches.patch_moment(rows, x), patches.patch_sum(rows, x)))(maps)
    finally:
        patches._CHUNK = before
    cropped, inside = crop(layer, maps)
    expected = oracle.conv_patches(cropped, inside).reshape(-1, rows.dimensions[1])
    np.testing.assert_allclose(moment, expected.T @ expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(total[0], expected.sum(0), rtol=1e-12, atol=1e-12)


def test_many_channels_take_the_quick_way_and_groups_do_not():
    def quick(channels, kernel, **options):
        inside = channels // options.get("feature_group_count", 1)
        return patches.is_quicker(conv_rows(nn.Conv(32, kernel, **options), (*kernel, inside, 32), {}))

    assert quick(64, (3, 3)) and quick(16, (2, 1))
    assert not quick(3, (3, 3)) and not quick(64, (1, 1)) and not quick(64, (3, 3), feature_group_count=2)


@pytest.mark.parametrize("d", [1, 2, 255, 256, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eigenvalues_of_small_and_large_matrices(d, dtype):
    rows = np.random.default_rng(0).normal(size=(2, d + 3, d))
    matrices = np.swapaxes(rows, 1, 2) @ rows
    got = jax.jit(eigvalsh)(jnp.asarray(matrices, dtype))
    assert got.dtype == dtype and got.shape == (2, d)
    expected = np.linalg.eigvalsh(matrices)
    # Rounding errors of d columns, as in a random walk; a fixed bound held or not by the BLAS of the machine.
    np.testing.assert_allclose(got, expected, rtol=0, atol=2 * np.sqrt(d) * np.finfo(dtype).eps * expected.max())
