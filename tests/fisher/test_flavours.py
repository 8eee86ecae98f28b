"""What a flavour promises, held by both; a new kind of layer is one entry; nothing else knows Linen from NNX."""

from __future__ import annotations

import re
from pathlib import Path

import fisher_oracle as oracle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import aqx
from aqx import fisher, losses
from aqx.fisher import linen as linen_flavour
from aqx.fisher import nnx as nnx_flavour
from aqx.fisher.kinds import Kind
from aqx.fisher.rows import dense_rows

pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
F64 = {"param_dtype": jnp.float64}


class Affine(nn.Module):
    """A layer of somebody's own: other names than Flax gives, and a call of its own."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.lecun_normal(), (x.shape[-1], self.features), jnp.float64)
        return x @ weight + self.param("bias", nn.initializers.ones, (self.features,), jnp.float64)


class Model(nn.Module):
    """A layer of that kind, or the layer of Flax that computes the same, before one that is known."""

    own: bool = True

    @nn.compact
    def __call__(self, x):
        h = Affine(4, name="own")(x) if self.own else nn.Dense(4, name="own", **F64)(x)
        return nn.Dense(3, name="head", **F64)(jnp.tanh(h))


class AffineNnx(nnx.Module):
    """The same layer in NNX."""

    def __init__(self, inside, outside, rngs):
        self.use_bias = True
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (inside, outside), jnp.float64))
        self.bias = nnx.Param(jnp.ones(outside, jnp.float64))

    def __call__(self, x):
        return x @ self.weight[...] + self.bias[...]


class ModelNnx(nnx.Module):
    """The same model in NNX."""

    def __init__(self, rngs, own=True):
        self.own = AffineNnx(5, 4, rngs) if own else nnx.Linear(5, 4, rngs=rngs, **F64)
        self.head = nnx.Linear(4, 3, rngs=rngs, **F64)

    def __call__(self, x):
        return self.head(jnp.tanh(self.own(x)))


def build(flavour, own=True):
    """(flavour, build(), variables, type of the layer, x, y)."""
    x, y = oracle.batch(4, 5)
    if flavour == "nnx":
        return nnx_flavour, lambda: ModelNnx(nnx.Rngs(0), own), None, AffineNnx, x, y
    variables = Model(own).init(jax.random.key(0), x)
    return linen_flavour, lambda: Model(own), variables, Affine, x, y


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_a_model_is_the_same_from_its_parts(name):
    flavour, new, variables, _, x, _ = build(name, own=False)
    model = new()
    structure, state = flavour.split(model, variables)
    expected = flavour.default_apply(model, variables, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 5 * 4 + 4 + 4 * 3 + 3
    for made in (structure, flavour.structure(new)):
        np.testing.assert_array_equal(flavour.default_apply(*flavour.merge(made, state), x), expected)


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_structure_computes_no_parameters(name):
    flavour, new, variables, _, x, _ = build(name, own=False)
    _, state = flavour.split(new(), variables)
    zeros = jax.tree.map(jnp.zeros_like, state)
    assert not flavour.default_apply(*flavour.merge(flavour.structure(new), zeros), x).any()


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_a_new_kind_of_layer_is_one_entry(name, monkeypatch):
    flavour, new, variables, layer, x, y = build(name)
    model = new()
    before = fisher.coverage(model, variables, x)
    assert set(before.weights) == {"head"} and layer.__name__ in before.left_out[0].reason
    monkeypatch.setitem(flavour.KINDS, layer, Kind(dense_rows, kernel="weight"))
    after = fisher.coverage(model, variables, x)
    assert after.weights == {"own": 24, "head": 15} and after.share == 1
    # The same weights in a layer of Flax, by the brute-force oracle.
    if name == "linen":
        own = variables["params"]["own"]
        named = {"own": {"kernel": own["weight"], "bias": own["bias"]}, "head": variables["params"]["head"]}
        forward = oracle.linen_forward(Model(own=False), {"params": named})
    else:
        plain = ModelNnx(nnx.Rngs(0), own=False)
        plain.own.kernel[...], plain.own.bias[...] = model.own.weight[...], model.own.bias[...]
        plain.head = model.head
        forward = oracle.nnx_forward(plain)
    got = fisher.eigenvalues(model, variables, x, y, loss=losses.softmax_cross_entropy)
    oracle.assert_all_same(got, forward, x, y)


def test_only_the_flavours_and_their_choice_know_flax():
    package = Path(aqx.__file__).parent
    sources = [*package.joinpath("fisher").glob("*.py"), *package.joinpath("spectra").glob("*.py")]
    knowing = {source.name for source in sources if re.search(r"^(from|import) flax", source.read_text(), re.MULTILINE)}
    assert knowing == {"linen.py", "nnx.py", "probe.py"}
