"""Whole models as people write them, in both flavours, against the brute-force float64 oracle."""

from __future__ import annotations

from functools import partial

import fisher_oracle as oracle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fisher_oracle import assert_all_same, assert_same
from flax import nnx

from aqx import fisher, losses
from aqx.spectra.quantiles import log_factor, spectrum_features

N = 6
pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
batch = partial(oracle.batch, N)
F64 = {"param_dtype": jnp.float64}
both = pytest.mark.parametrize("compute", [fisher.eigenvalues, pytest.param(fisher.reference, marks=pytest.mark.slow)])


def initialised(model, *arguments):
    """Parameters moved from where they start, so that a forgotten bias shows."""
    rng = np.random.default_rng(9)
    shapes = jax.eval_shape(model.init, jax.random.key(1), *arguments)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape)), shapes)


class Transformer(nnx.Module):
    """Token embedding, attention and a small MLP, with normalisation and dropout."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(6, 4, rngs=rngs, **F64)
        self.norm = nnx.LayerNorm(4, rngs=rngs, **F64)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, use_bias=False, rngs=rngs, **F64)
        self.mlp = nnx.Sequential(nnx.Linear(4, 5, rngs=rngs, **F64), jnp.tanh, nnx.Linear(5, 4, rngs=rngs, **F64))
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs, **F64)

    def __call__(self, ids):
        h = self.embed(ids)
        h = h + self.dropout(self.attention(self.norm(h)))
        h = h + self.mlp(h)
        return self.head(h.mean(1))


@pytest.mark.slow
def test_nnx_transformer():
    ids = jax.random.randint(jax.random.key(0), (N, 3), 0, 5)  # token 5 never occurs
    y, model = jnp.arange(N) % 3, Transformer(nnx.Rngs(0))
    got = fisher.eigenvalues(model, None, ids, y, loss=losses.softmax_cross_entropy)
    assert {f"attention/{part}" for part in ("query", "key", "value", "out")} < set(got)
    assert_all_same(got, oracle.nnx_forward(model), ids, y)


class Residual(nnx.Module):
    """A residual CNN with batch normalisation by running statistics."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 4, (3, 3), use_bias=False, rngs=rngs, **F64)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs, **F64)
        self.depthwise = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs, **F64)
        self.pointwise = nnx.Conv(4, 4, (1, 1), rngs=rngs, **F64)
        self.head = nnx.Linear(4, 3, rngs=rngs, **F64)

    def __call__(self, x):
        h = jnp.tanh(self.norm(self.stem(x)))
        h = h + self.pointwise(jnp.tanh(self.depthwise(h)))
        return self.head(h.mean((1, 2)))


@pytest.mark.slow
def test_nnx_residual_cnn():
    x, y = batch(3, 3, 2)
    model = Residual(nnx.Rngs(0))
    # Statistics start in float32, whose 1/√ differs by the program it stands in.
    model.norm.mean, model.norm.var = nnx.BatchStat(jnp.full(4, 0.1)), nnx.BatchStat(jnp.full(4, 1.5))
    got = fisher.eigenvalues(model, None, x, y, loss=losses.softmax_cross_entropy)
    assert_all_same(got, oracle.nnx_forward(model), x, y)
    assert [part.path for part in fisher.coverage(model, None, x).left_out] == ["norm"]


class Inner(nn.Module):
    """One residual layer, in setup() style; returns a pair, as nn.scan wants it."""

    def setup(self):
        self.dense = nn.Dense(4, **F64)

    def __call__(self, h, _=None):
        return h + jnp.tanh(self.dense(h)), None


class Wrapped(nn.Module):
    """Every transform in setup() style, or the same written out."""

    transformed: bool

    def setup(self):
        if self.transformed:
            scan = nn.scan(Inner, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            many = nn.vmap(
                nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2
            )
            self.remat, self.jit, self.scan, self.vmap = nn.remat(Inner)(), nn.jit(Inner)(), scan(), many(4, **F64)
        else:
            self.remat, self.jit = Inner(), Inner()
            self.scan, self.vmap = [Inner(), Inner()], [nn.Dense(4, **F64), nn.Dense(4, **F64)]
        self.head = nn.Dense(N, **F64)  # with few classes the gradients are nearly in a plane

    def __call__(self, x):
        h = self.jit(self.remat(x)[0])[0]
        if self.transformed:
            h = self.vmap(self.scan(h, None)[0])
        else:
            for layer in self.scan:
                h, _ = layer(h)
            h = jnp.stack([layer(h) for layer in self.vmap])
        return self.head(jnp.tanh(h).sum(0))


def test_transforms_in_setup_style_equal_the_model_written_out():
    x, y = batch(4)[0], jnp.arange(N)
    model = Wrapped(True)
    variables = initialised(model, x)
    got = fisher.eigenvalues(model, variables, x, y, loss=losses.softmax_cross_entropy)
    params = dict(variables["params"])
    for name in ("scan", "vmap"):
        stacked = params.pop(name)
        params |= {f"{name}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(2)}
    keys = {"scan_0/dense": "scan/dense/0", "scan_1/dense": "scan/dense/1", "vmap_0": "vmap/0", "vmap_1": "vmap/1"}
    forward = oracle.linen_forward(Wrapped(False), {"params": params})
    assert_all_same(got, forward, x, y, key=lambda path: keys.get(path, path))


class Masked(nn.Module):
    """Two inputs, and dropout that is off."""

    @nn.compact
    def __call__(self, x, mask, train=False):
        h = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(4, **F64)(x)))
        return nn.Dense(3, **F64)((h * mask[..., None]).sum(1))


def apply_masked(model, variables, x):
    return model.apply(variables, x["tokens"], x["mask"])


@both
def test_several_inputs_through_apply(compute):
    tokens, y = batch(3, 2)
    x = {"tokens": tokens, "mask": jnp.arange(N * 3).reshape(N, 3) % 2 == 0}
    model = Masked()
    variables = initialised(model, tokens, x["mask"])
    got = compute(model, variables, x, y, loss=losses.softmax_cross_entropy, apply=apply_masked)
    assert_all_same(got, oracle.linen_forward(model, variables, apply_masked), x, y)
    assert fisher.coverage(model, variables, x, apply=apply_masked).share == 1


class Mlp(nn.Module):
    """Two layers over tokens or over features."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs, **F64)(jnp.tanh(nn.Dense(4, **F64)(x)))


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (losses.binary_cross_entropy, lambda: (jnp.arange(N * 3).reshape(N, 3) % 2).astype(jnp.float64)),
        (losses.mean_squared_error, lambda: jnp.linspace(-1, 1, N * 3).reshape(N, 3)),
        (losses.softmax_cross_entropy, lambda: jax.nn.one_hot(jnp.arange(N) % 3, 3)),
    ],
)
def test_empirical_fisher_of_each_loss(loss, labels):
    x, y = batch(5)[0], labels()
    variables = initialised(Mlp(), x)
    got = fisher.eigenvalues(Mlp(), variables, x, y, loss=loss)
    assert_all_same(got, oracle.linen_forward(Mlp(), variables), x, y, loss)


def test_one_hot_labels_equal_integers():
    x, y = batch(5)
    variables = initialised(Mlp(), x)
    numbers = fisher.eigenvalues(Mlp(), variables, x, y, loss=losses.softmax_cross_entropy)
    one_hot = fisher.eigenvalues(Mlp(), variables, x, jax.nn.one_hot(y, 3), loss=losses.softmax_cross_entropy)
    for key, values in numbers.items():
        np.testing.assert_allclose(one_hot[key], values, rtol=1e-12, atol=1e-16 * values.max())


class Cnn(nn.Module):
    """A convolution, a layer and a head."""

    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Conv(2, (2, 2), **F64)(x))
        h = jnp.tanh(nn.Dense(3, **F64)(h.mean(1)))
        return nn.Dense(3, **F64)(h.mean(1))


@both
def test_exact_fisher_of_a_deep_model_sums_over_the_classes(compute):
    x, y = batch(3, 3, 1)
    model = Cnn()
    variables = initialised(model, x)
    p = np.asarray(jax.nn.softmax(model.apply(variables, x)))
    forward, blocks = oracle.linen_forward(model, variables), {}
    for c in range(3):
        for path, (module, uses) in oracle.pairs(forward, x, jnp.full(N, c), losses.softmax_cross_entropy).items():
            ((a, g),) = uses
            weighted = g * np.sqrt(p[:, c]).reshape(-1, *(1,) * (g.ndim - 1))
            ((A, G),) = oracle.factors(module, [(a, weighted)])
            blocks[path] = (A, G + blocks.get(path, (A, 0))[1])
    got = compute(model, variables, x, y, loss=losses.softmax_cross_entropy, fisher="exact")
    assert set(got) == set(blocks)
    for path, (A, G) in blocks.items():
        assert_same(got[path], np.sort(np.linalg.eigvalsh(np.kron(A, G))))


def test_bfloat16_in_nnx_has_float32_factors_of_the_rounded_inputs():
    x = jax.random.normal(jax.random.key(0), (N, 5), jnp.float32)
    model = nnx.Linear(5, 3, dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    # Gradients that bfloat16 holds exactly.
    slopes = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 4.0]], np.float32)[np.arange(N) % 2]
    got = fisher.eigenvalues(model, None, x, slopes, loss=lambda out, y: (out * y).sum(1))[""]
    assert got.dtype == jnp.float32
    a = np.concatenate([np.asarray(x.astype(jnp.bfloat16), np.float64), np.ones((N, 1))], axis=1)
    G = slopes.astype(np.float64).T @ slopes / N
    expected = np.sort(np.outer(np.linalg.eigvalsh(a.T @ a / N), np.linalg.eigvalsh(G)).ravel())
    np.testing.assert_allclose(got, expected, atol=1e-6 * expected.max())


class Narrow(nn.Module):
    """A layer with one weight before a head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head", **F64)(nn.Dense(1, use_bias=False, name="one", **F64)(x))


@both
@pytest.mark.parametrize("examples", [1, N])
def test_a_layer_with_one_weight_and_a_batch_of_one(examples, compute):
    x, y = batch(1)
    x, y = x[:examples], y[:examples]
    variables = initialised(Narrow(), x)
    got = compute(Narrow(), variables, x, y, loss=losses.softmax_cross_entropy)
    assert got["one"].shape == (1,)
    assert_all_same(got, oracle.linen_forward(Narrow(), variables), x, y)
    pair = np.asarray(got["one"]).reshape(1, 1, 1)
    features = spectrum_features({"one": (pair, np.ones((1, 1, 1)))}, {"one": 1}, quantiles=4)
    np.testing.assert_allclose(features, np.log(pair[0]).repeat(4, axis=1) / 4, rtol=1e-6)


def test_features_agree_on_the_null_direction_of_a_softmax_head():
    # Every gradient softmax(z) − e_y sums to zero, so that G maps the vector of ones to zero.
    z, one_hot = np.random.default_rng(0).normal(size=(50, 6)), np.eye(6)[np.arange(50) % 6]
    of_G = {}
    for dtype in (np.float32, np.float64):
        p = np.exp(z.astype(dtype))
        g = p / p.sum(1, keepdims=True) - one_hot.astype(dtype)
        of_G[dtype] = np.linalg.eigvalsh(g.T @ g / 50)[None]
    narrow, wide = of_G[np.float32], of_G[np.float64]
    assert narrow.dtype == np.float32 and abs(wide[0, 0]) < 1e-15 * wide.max()
    assert abs(narrow[0, 0] - wide[0, 0]) > 10 * abs(wide[0, 0])  # noise, of either sign
    np.testing.assert_allclose(log_factor(narrow), log_factor(wide), atol=1e-5)
    assert log_factor(wide)[0, 0] == pytest.approx(np.log(2.0**-23 * 6 * wide.max()))
