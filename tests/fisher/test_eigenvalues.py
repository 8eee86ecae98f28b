"""`eigenvalues` and `reference` against a brute-force float64 oracle, layer by layer, for Linen and NNX."""

from __future__ import annotations

import fisher_oracle as oracle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fisher_oracle import assert_all_same, assert_same
from flax import nnx

from aqx import fisher, losses
from aqx.errors import InputError, UnsupportedError

pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
F64 = {"param_dtype": jnp.float64}
N = 5

# name: (shape of one input, Linen layer, NNX layer)
LAYERS = {
    "dense": ((6,), lambda: nn.Dense(4, **F64), lambda r: nnx.Linear(6, 4, rngs=r, **F64)),
    "dense_no_bias": (
        (6,),
        lambda: nn.Dense(4, use_bias=False, **F64),
        lambda r: nnx.Linear(6, 4, use_bias=False, rngs=r, **F64),
    ),
    "dense_sequence": ((7, 3), lambda: nn.Dense(4, **F64), lambda r: nnx.Linear(3, 4, rngs=r, **F64)),
    "dense_two_axes": ((2, 3, 3), lambda: nn.Dense(4, **F64), lambda r: nnx.Linear(3, 4, rngs=r, **F64)),
    "general": (
        (2, 3, 4),
        lambda: nn.DenseGeneral((2, 2), axis=(-2, -1), **F64),
        lambda r: nnx.LinearGeneral((3, 4), (2, 2), axis=(-2, -1), rngs=r, **F64),
    ),
}


def conv(shape, features, size, **options):
    """A case of Conv in both flavours."""
    return (
        shape,
        lambda: nn.Conv(features, size, **options, **F64),
        lambda r: nnx.Conv(shape[-1], features, size, rngs=r, **options, **F64),
    )


def conv_transpose(shape, features, size, **options):
    """A case of ConvTranspose in both flavours."""
    return (
        shape,
        lambda: nn.ConvTranspose(features, size, **options, **F64),
        lambda r: nnx.ConvTranspose(shape[-1], features, size, rngs=r, **options, **F64),
    )


LAYERS |= {
    "conv1d": conv((7, 2), 3, (3,)),
    "conv1d_causal_dilated": conv((7, 2), 3, (3,), padding="CAUSAL", kernel_dilation=2),
    "conv2d": conv((4, 4, 2), 3, (3, 3)),
    "conv2d_many_channels": conv((6, 5, 16), 3, (2, 2)),  # the moment of patches without the patches
    "conv2d_no_bias": conv((4, 4, 2), 3, (3, 3), use_bias=False),
    "conv2d_stride2_even": conv((6, 6, 2), 3, (3, 3), strides=2),
    "conv2d_stride2_odd": conv((5, 7, 2), 3, (3, 3), strides=(2, 3)),
    "conv2d_valid_rectangular": conv((5, 6, 2), 3, (2, 3), padding="VALID", strides=(1, 2)),
    "conv2d_circular": conv((4, 5, 2), 3, (3, 2), padding="CIRCULAR", strides=(1, 2)),
    "conv2d_reflect": conv((5, 5, 2), 3, (3, 3), padding="REFLECT"),
    "conv2d_explicit": conv((4, 4, 2), 3, (3, 3), padding=((2, 0), (1, 3)), strides=2),
    "conv2d_number": conv((4, 4, 2), 3, (3, 3), padding=2),
    "conv2d_kernel_dilation": conv((6, 6, 2), 3, (3, 3), kernel_dilation=(2, 1)),
    "conv2d_input_dilation": conv((3, 3, 2), 3, (3, 3), input_dilation=2, padding=((1, 1), (1, 1))),
    "conv2d_groups": conv((4, 4, 4), 6, (3, 2), feature_group_count=2, strides=2),
    "conv2d_depthwise": conv((4, 4, 3), 3, (3, 3), feature_group_count=3),
    "conv2d_depthwise_multiplier": conv((4, 4, 3), 6, (3, 3), feature_group_count=3, use_bias=False),
    "conv2d_more_batch_axes": conv((2, 4, 4, 2), 3, (3, 3)),
    "conv3d": conv((3, 4, 3, 2), 2, (2, 3, 1), strides=(1, 2, 1)),
    "transpose_same": conv_transpose((3, 4, 2), 3, (3, 3), strides=(2, 2)),
    "transpose_valid": conv_transpose((3, 4, 2), 3, (2, 3), strides=(3, 1), padding="VALID", use_bias=False),
    "transpose_flipped": conv_transpose((3, 4, 2), 2, (3, 3), strides=(2, 2), transpose_kernel=True),
}


class LinenModel(nn.Module):
    """One layer between two known ones."""

    make: object

    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(self.make()(jnp.sin(x) + x))
        return nn.Dense(3, **F64)(h.reshape(*h.shape[:1], -1)[:, :7])


class NnxModel(nnx.Module):
    """The same in NNX."""

    def __init__(self, make, width, rngs):
        self.layer = make(rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs, **F64)

    def __call__(self, x):
        h = jnp.tanh(self.layer(jnp.sin(x) + x))
        return self.head(h.reshape(*h.shape[:1], -1)[:, :7])


def batch(shape):
    """Inputs [N, …] and labels [N]."""
    return oracle.batch(N, *shape)


def build(flavour, name):
    """(model, variables, x, y, forward of the oracle)."""
    shape, make_linen, make_nnx = LAYERS[name]
    x, y = batch(shape)
    if flavour == "linen":
        model = LinenModel(make_linen)
        variables = shaken(jax.jit(model.init)(jax.random.key(1), x))
        return model, variables, x, y, oracle.linen_forward(model, variables)
    width = min(7, make_nnx(nnx.Rngs(0))(x)[0].size)
    model = NnxModel(make_nnx, width, nnx.Rngs(1))
    return model, None, x, y, oracle.nnx_forward(model)


def shaken(variables):
    """Biases are zero at first: move every parameter, so that a forgotten one shows."""
    rng = np.random.default_rng(9)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape)), variables)


# Both flavours share the code behind the layer, so a few cases show that NNX layers are read rightly.
QUICK_NNX = ("dense_no_bias", "general", "conv2d_groups")
# A second case of what another holds: sequences, one axis, no bias, a number as padding, groups of one channel.
SLOW_LINEN = (
    "dense_two_axes",
    "conv1d",
    "conv2d_no_bias",
    "conv2d_number",
    "conv2d_depthwise",
    "conv2d_many_channels",
    "conv2d_stride2_odd",
    "conv2d_stride2_even",
    "conv2d_valid_rectangular",
    "conv2d_circular",
    "conv2d_kernel_dilation",
    "conv2d_input_dilation",
    "conv2d_reflect",
    "conv2d_more_batch_axes",
    "conv2d_explicit",
    "transpose_flipped",
    "transpose_valid",
)
CASES = [
    *(pytest.param("linen", name, marks=pytest.mark.slow if name in SLOW_LINEN else ()) for name in LAYERS),
    *(pytest.param("nnx", name, marks=() if name in QUICK_NNX else pytest.mark.slow) for name in LAYERS),
]


@pytest.mark.parametrize(("flavour", "name"), CASES)
def test_layer_equals_brute_force(flavour, name):
    model, variables, x, y, forward = build(flavour, name)
    got = fisher.eigenvalues(model, variables, x, y, loss=losses.softmax_cross_entropy)
    assert_all_same(got, forward, x, y, losses.softmax_cross_entropy)
    assert fisher.coverage(model, variables, x).share == 1


@pytest.mark.parametrize("flavour", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["dense_sequence", "conv2d_stride2_even", "conv2d_groups", "general", "conv1d"])
def test_reduce_equals_brute_force(flavour, name):
    model, variables, x, y, forward = build(flavour, name)
    got = fisher.eigenvalues(model, variables, x, y, loss=losses.softmax_cross_entropy, sharing="reduce")
    assert_all_same(got, forward, x, y, losses.softmax_cross_entropy, "reduce")


@pytest.mark.parametrize("flavour", ["linen", "nnx"])
@pytest.mark.parametrize(
    "name",
    [
        "dense",
        "conv2d_groups",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("dense_sequence", "conv1d_causal_dilated", "transpose_same")
        ),
    ],
)
def test_reference_equals_brute_force(flavour, name):
    model, variables, x, y, forward = build(flavour, name)
    got = fisher.reference(model, variables, x, y, loss=losses.softmax_cross_entropy)
    assert_all_same(got, forward, x, y, losses.softmax_cross_entropy)


def test_same_padding_with_stride_2_on_an_even_size_pads_the_end():
    # One channel, kernel 3, stride 2, length 4: patches start at 0 and 2, and only the last reaches over the edge.
    model = nn.Conv(1, (3,), strides=2, use_bias=False, **F64)
    x = jnp.array([[1.0, 2.0, 3.0, 4.0]]).reshape(1, 4, 1)
    variables = {"params": {"kernel": jnp.ones((3, 1, 1))}}
    got = fisher.eigenvalues(model, variables, x, jnp.zeros(1), loss=lambda out, y: out.sum((1, 2)))
    rows = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 0.0]])
    # g = 1 at both positions: G = 2 / (N·T) = 1.
    np.testing.assert_allclose(got[""], np.linalg.eigvalsh(rows.T @ rows), atol=1e-12)


class Shared(nn.Module):
    """One layer called twice, at different numbers of positions."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, **F64)
        h = jnp.tanh(layer(jnp.tanh(layer(x)[:, ::2])))
        return nn.Dense(3, **F64)(h.mean(1))


class SharedNnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 4, rngs=rngs, **F64)
        self.again = self.layer
        self.head = nnx.Linear(4, 3, rngs=rngs, **F64)

    def __call__(self, x):
        return self.head(jnp.tanh(self.again(jnp.tanh(self.layer(x)[:, ::2]))).mean(1))


@pytest.mark.parametrize("compute", [fisher.eigenvalues, pytest.param(fisher.reference, marks=pytest.mark.slow)])
def test_shared_layer_sums_A_and_averages_G_over_all_positions(compute):
    x, y = batch((6, 4))
    for model in (Shared(), SharedNnx(nnx.Rngs(0))):
        variables = model.init(jax.random.key(0), x) if isinstance(model, nn.Module) else None
        forward = oracle.linen_forward(model, variables) if variables else oracle.nnx_forward(model)
        got = compute(model, variables, x, y, loss=losses.softmax_cross_entropy)
        pairs = oracle.pairs(forward, x, y, losses.softmax_cross_entropy)
        assert sorted(len(uses) for _, uses in pairs.values()) == [1, 2]
        for path, (module, uses) in pairs.items():
            assert_same(got[path], oracle.spectrum(module, uses))


class Tokens(nn.Module):
    """A small transformer block on token ids."""

    @nn.compact
    def __call__(self, ids):
        h = nn.Embed(6, 4, **F64)(ids)
        h = h + nn.MultiHeadDotProductAttention(num_heads=2, **F64)(nn.LayerNorm(**F64)(h))
        h = h + nn.Dense(4, **F64)(jnp.tanh(nn.Dense(5, **F64)(h)))
        return nn.Dense(3, **F64)(h.mean(1))


@pytest.mark.slow
def test_transformer_block():
    ids = jax.random.randint(jax.random.key(0), (N, 4), 0, 5)  # token 5 never occurs
    y, model = jnp.arange(N) % 3, Tokens()
    variables = shaken(jax.jit(model.init)(jax.random.key(1), ids))
    got = fisher.eigenvalues(model, variables, ids, y, loss=losses.softmax_cross_entropy)
    slow = fisher.reference(model, variables, ids, y, loss=losses.softmax_cross_entropy)
    pairs = oracle.pairs(oracle.linen_forward(model, variables), ids, y, losses.softmax_cross_entropy)
    assert set(got) == set(pairs) == set(slow)
    assert {f"MultiHeadDotProductAttention_0/{part}" for part in ("query", "key", "value", "out")} < set(got)
    for path, (module, uses) in pairs.items():
        # A key's bias shifts all scores alike, so its gradient is rounding noise: compare with the largest value.
        expected = oracle.spectrum(module, uses)
        np.testing.assert_allclose(got[path], expected, atol=1e-12 * max(expected.max(), 1e-20), rtol=1e-9)
        np.testing.assert_allclose(slow[path], expected, atol=1e-12 * max(expected.max(), 1e-20), rtol=1e-9)
    left_out = fisher.coverage(model, variables, ids).left_out
    assert [part.path for part in left_out] == ["LayerNorm_0"] and "LayerNorm" in left_out[0].reason


@pytest.mark.parametrize(
    ("loss", "outputs", "labels", "hessian"),
    [
        (
            losses.softmax_cross_entropy,
            3,
            lambda z: jnp.arange(N) % 3,
            lambda z: np.diag(np.exp(z) / np.exp(z).sum()) - np.outer(np.exp(z), np.exp(z)) / np.exp(z).sum() ** 2,
        ),
        (losses.mean_squared_error, 4, lambda z: 0 * z, lambda z: np.eye(4) * 2 / 4),
        (
            losses.binary_cross_entropy,
            2,
            lambda z: 0 * z,
            lambda z: np.diag(1 / (2 + np.exp(z) + np.exp(-z))) / 2,
        ),
    ],
)
def test_exact_fisher_of_a_linear_model_is_its_output_hessian(loss, outputs, labels, hessian):
    x, _ = batch((6,))
    model = nn.Dense(outputs, **F64)
    variables = shaken(jax.jit(model.init)(jax.random.key(1), x))
    z = model.apply(variables, x)
    got = fisher.eigenvalues(model, variables, x, labels(z), loss=loss, fisher="exact")[""]
    rows = np.concatenate([x, np.ones((N, 1))], axis=1)
    G = sum(hessian(np.asarray(row)) for row in z) / N
    expected = np.sort(np.linalg.eigvalsh(np.kron(rows.T @ rows / N, G)))
    assert_same(got, expected)


@pytest.mark.slow
def test_exact_is_the_mean_of_many_sampled():
    x, y = batch((4,))
    model = nn.Sequential([nn.Dense(3, **F64), nn.tanh, nn.Dense(3, **F64)])
    variables = shaken(jax.jit(model.init)(jax.random.key(1), x))
    x, y = jnp.tile(x, (4000, 1)), jnp.tile(y, 4000)  # each example draws 4000 labels
    options = {"loss": losses.softmax_cross_entropy}
    exact = fisher.eigenvalues(model, variables, x, y, fisher="exact", **options)
    sampled = fisher.eigenvalues(model, variables, x, y, fisher="sampled", **options)
    for path in exact:
        np.testing.assert_allclose(sampled[path], exact[path], atol=0.03 * exact[path].max())


def test_a_layer_that_the_loss_never_reaches_has_zeros():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            nn.Dense(2, name="unused")(x)
            return nn.Dense(3, name="used")(x)

    x, y = batch((4,))
    model = Half()
    got = fisher.eigenvalues(model, model.init(jax.random.key(0), x), x, y, loss=losses.softmax_cross_entropy)
    assert not got["unused"].any() and got["used"].any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": lambda out, y: losses.softmax_cross_entropy(out, y).mean()}, InputError, "one value per example"),
        ({"fisher": "true"}, InputError, "fisher='true'"),
        ({"sharing": "none"}, InputError, "sharing='none'"),
        ({"loss": lambda out, y: out.sum(1), "fisher": "exact"}, UnsupportedError, "aqx.losses"),
        ({"model": object()}, UnsupportedError, "Flax Linen or NNX"),
        ({"x": jnp.zeros((0, 4))}, InputError, "at least one example"),
    ],
)
def test_bad_input_is_one_clear_line(options, error, message):
    x, y = batch((4,))
    model = nn.Dense(3)
    arguments = {"model": model, "variables": model.init(jax.random.key(0), x), "x": x, "y": y}
    arguments |= {"loss": losses.softmax_cross_entropy} | options
    with pytest.raises(error, match=message) as caught:
        fisher.eigenvalues(**arguments)
    assert "\n" not in str(caught.value)
