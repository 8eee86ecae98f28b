"""Types of layers: Flax's own, exactly; and people's, as they register them."""

from __future__ import annotations

import fisher_oracle as oracle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqx import fisher, losses
from aqx.errors import InputError
from aqx.fisher import kinds

N = 5
pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
F64 = {"param_dtype": jnp.float64}
KEY = jax.random.key(0)
COMPUTED = "its weights are computed from others"


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(kinds, "_registered", {})


class Affine(nn.Module):
    """A Dense of one's own."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], 3), jnp.float64)
        return x @ w + self.param("shift", nn.initializers.zeros, (3,), jnp.float64)


class Transposed(nn.Module):
    """A Dense whose kernel is stored the other way round."""

    @nn.compact
    def __call__(self, x):
        return x @ self.param("w", nn.initializers.lecun_normal(), (3, x.shape[-1]), jnp.float64).T


class Window(nn.Module):
    """A convolution in one dimension."""

    strides: int = 2

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, x.shape[-1], 3), jnp.float64)
        return jax.lax.conv_general_dilated(x, kernel, (self.strides,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


class Scaled(nn.Module):
    """A table whose rows are scaled by √features, or not."""

    by: float

    @nn.compact
    def __call__(self, t):
        return self.by * self.param("embedding", nn.initializers.normal(1), (7, 4), jnp.float64)[t]


class Lookup(nnx.Module):
    """A table of one's own, in NNX."""

    def __init__(self, rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (7, 4), jnp.float64))

    def __call__(self, t):
        return self.table[...][t]


class Headed(nn.Module):
    """A layer below a head."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head", **F64)(jnp.tanh(self.layer(x).reshape(len(x), -1)))


def looked_at(layer, x):
    model = Headed(layer)
    variables = jax.tree.map(jnp.float64, model.init(KEY, x))
    return model, variables, fisher.coverage(model, variables, x)


def assert_equals_plain(layer, plain, rename, x):
    """The same weights in a layer of Flax have the spectrum of the oracle, and so has one's own."""
    model, variables, coverage = looked_at(layer, x)
    assert coverage.share == 1
    y = np.arange(N) % 3
    params = {
        "head": variables["params"]["head"],
        "layer": {rename.get(name, name): leaf for name, leaf in variables["params"]["layer"].items()},
    }
    forward = oracle.linen_forward(Headed(plain), {"params": params})
    got = fisher.eigenvalues(model, variables, x, y, loss=losses.softmax_cross_entropy)
    oracle.assert_all_same(got, forward, x, y)


def test_layers_of_ones_own_equal_those_of_flax():
    x, _ = oracle.batch(N, 4)
    assert "aqx knows no Kronecker form of Affine" in str(looked_at(Affine(), x)[2])
    fisher.register_layer(Affine, like="dense", kernel="w", bias="shift")
    fisher.register_layer(Window, like="conv")
    fisher.register_layer(Scaled, like="embed")
    assert_equals_plain(Affine(), nn.Dense(3, **F64), {"w": "kernel", "shift": "bias"}, x)
    plain = nn.Conv(3, (3,), strides=2, use_bias=False, **F64)
    assert_equals_plain(Window(), plain, {}, oracle.batch(N, 6, 2)[0])
    assert_equals_plain(Scaled(1.0), nn.Embed(7, 4, **F64), {}, np.arange(N * 3).reshape(N, 3) % 7)


def test_an_nnx_layer_of_ones_own_is_covered():
    class Model(nnx.Module):
        def __init__(self):
            self.lookup = Lookup(nnx.Rngs(0))
            self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(1), **F64)

        def __call__(self, t):
            return self.head(jnp.tanh(self.lookup(t).mean(1)))

    fisher.register_layer(Lookup, like="embed", kernel="table")
    assert set(fisher.coverage(Model(), None, np.arange(N * 3).reshape(N, 3) % 7).weights) == {"lookup", "head"}


@pytest.mark.parametrize(
    ("layer", "like", "kernel", "x", "reason"),
    [
        (Transposed(), "dense", "w", np.ones((N, 4)), "it cannot be read like 'dense'"),
        (
            Transposed(),
            "dense",
            "w",
            np.random.default_rng(0).normal(size=(N, 3)),
            "its weights are computed from others",
        ),
        (Scaled(2.0), "embed", None, np.arange(N * 3).reshape(N, 3) % 7, COMPUTED),
        (Affine(), "einsum", "w", np.ones((N, 4)), "it cannot be read like 'einsum'"),
        (Window(1), "conv", None, np.ones((N, 6, 2)), None),
    ],
)
def test_what_is_registered_as_something_else_is_named(layer, like, kernel, x, reason):
    fisher.register_layer(type(layer), like=like, kernel=kernel)
    reasons = {part.path: part.reason for part in looked_at(layer, x)[2].left_out}
    assert reason in reasons["layer"] if reason else not reasons


def test_mistakes_are_said():
    with pytest.raises(InputError, match="like='linear' is unknown; give one of dense, conv, einsum, embed"):
        fisher.register_layer(Affine, like="linear")
    with pytest.raises(InputError, match="is not a class"):
        fisher.register_layer(Affine(), like="dense")


class Renamed(nn.Dense):
    """Other defaults, and a method beside."""

    kernel_init: nn.initializers.Initializer = nn.initializers.normal(1.0)

    def helper(self):
        return self.features


class Doubled(nn.Dense):
    def param(self, name, *args, **kwargs):
        return 2 * super().param(name, *args, **kwargs)


class Quiet(nnx.Linear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, use_bias=False, **kwargs)


def test_a_subclass_that_overrides_nothing_is_what_it_inherits_from():
    x, _ = oracle.batch(N, 4)
    assert looked_at(Renamed(3, **F64), x)[2].share == 1
    assert "Doubled" in {part.path: part.reason for part in looked_at(Doubled(3, **F64), x)[2].left_out}["layer"]
    assert fisher.coverage(Quiet(4, 3, rngs=nnx.Rngs(0)), None, x).share == 1


def test_a_convolution_that_shares_nothing_is_named():
    x = oracle.batch(N, 5, 5, 1)[0]
    coverage = looked_at(nn.ConvLocal(2, (3, 3), padding="VALID", **F64), x)[2]
    assert "ConvLocal" in coverage.left_out[0].reason and set(coverage.weights) == {"head"}
