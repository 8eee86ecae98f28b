"""What goes wrong without a word elsewhere: layers that no loss reaches, and rows that all examples share."""

from __future__ import annotations

from functools import partial

import fisher_oracle as oracle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqx import fisher, losses
from aqx.errors import UnsupportedError
from aqx.spectra.subject import prepare
from aqx.tasks import Task

N = 4
pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
batch = partial(oracle.batch, N)
F64 = {"param_dtype": jnp.float64}
SHARED = "the same for every example"


def initialised(model, x):
    return jax.jit(model.init)(jax.random.key(1), x)


def reasons(coverage):
    return {part.path: part.reason for part in coverage.left_out}


def assert_equals_oracle(got, forward, x, y, loss=losses.softmax_cross_entropy):
    """Every key of `got` has the eigenvalues of the oracle, to 1e-9 where above 1e-10 of the largest."""
    pairs = oracle.pairs(forward, x, y, loss)
    for path, values in got.items():
        oracle.assert_same(values, oracle.spectrum(*pairs[path]))


class Heads(nn.Module):
    """Two outputs, and a layer that is never used."""

    @nn.compact
    def __call__(self, x):
        nn.Dense(2, name="unused", **F64)(x)
        h = jnp.tanh(nn.Dense(3, name="trunk", **F64)(x))
        return {"logits": nn.Dense(3, name="first", **F64)(h), "value": nn.Dense(2, name="second", **F64)(h)}


def first_head(outputs, y):
    return losses.softmax_cross_entropy(outputs["logits"], y)


def test_a_layer_that_no_output_reaches_is_named():
    x, _ = batch(4)
    model = Heads()
    coverage = fisher.coverage(model, initialised(model, x), x)
    assert coverage.unreached == ("unused",) and coverage.share == 1
    assert "unused: 10 weights, but the loss never reaches it: its eigenvalues are zero" in str(coverage)


def test_a_layer_that_the_loss_of_a_task_never_reaches_is_named():
    task = Task(name="t", build_model=lambda act: Heads(), batch=lambda: batch(4), loss=first_head)
    assert prepare(task).probe.coverage.unreached == ("unused", "second")


@pytest.mark.parametrize("compute", [fisher.eigenvalues, pytest.param(fisher.reference, marks=pytest.mark.slow)])
def test_several_outputs_equal_the_oracle_and_unreached_layers_are_zero(compute):
    x, y = batch(4)
    model = Heads()
    variables = initialised(model, x)
    got = dict(compute(model, variables, x, y, loss=first_head))
    assert not got.pop("unused").any() and not got.pop("second").any()
    assert set(got) == {"trunk", "first"}
    assert_equals_oracle(got, oracle.linen_forward(model, variables), x, y, first_head)


class Positions(nn.Module):
    """A position embedding, made for one example and broadcast later, or for each example at once."""

    per_example: bool = False
    hard_coded: bool = False

    @nn.compact
    def __call__(self, x):
        n, t, _ = x.shape
        where = jnp.arange(t)
        where = jnp.broadcast_to(where, (n, t)) if self.per_example else where
        h = nn.Dense(3, name="content", **F64)(x) + nn.Embed(t, 3, name="where", **F64)(where)
        h = h.reshape(N if self.hard_coded else n, -1)
        return nn.Dense(3, name="head", **F64)(jnp.tanh(h))


class PositionsNnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, t, per_example=False):
        self.per_example = per_example
        self.where = nnx.Embed(t, 3, rngs=nnx.Rngs(0), **F64)
        self.content = nnx.Linear(2, 3, rngs=nnx.Rngs(1), **F64)
        self.head = nnx.Linear(3 * t, 3, rngs=nnx.Rngs(2), **F64)

    def __call__(self, x):
        n, t, _ = x.shape
        where = jnp.arange(t)
        where = jnp.broadcast_to(where, (n, t)) if self.per_example else where
        return self.head(jnp.tanh((self.content(x) + self.where(where)).reshape(n, -1)))


# As many positions as examples must not hide it.
@pytest.mark.parametrize("t", [3, N])
@pytest.mark.parametrize("flavour", ["linen", "nnx"])
def test_positions_that_are_broadcast_later_are_left_out(flavour, t):
    x, _ = batch(t, 2)
    model = Positions() if flavour == "linen" else PositionsNnx(t)
    variables = initialised(model, x) if flavour == "linen" else None
    coverage = fisher.coverage(model, variables, x)
    assert SHARED in reasons(coverage)["where"] and set(coverage.weights) == {"content", "head"}


@pytest.mark.parametrize("compute", [fisher.eigenvalues, fisher.reference])
def test_positions_that_are_broadcast_later_have_no_eigenvalues(compute):
    x, y = batch(N, 2)
    model = PositionsNnx(N)
    assert set(compute(model, None, x, y, loss=losses.softmax_cross_entropy)) == {"content", "head"}


def test_a_task_leaves_them_out_too():
    x, y = batch(N, 2)
    model = PositionsNnx(N)
    task = Task(name="t", build_model=lambda act, rngs: model, batch=lambda: (x, y), loss=losses.softmax_cross_entropy)
    assert SHARED in reasons(prepare(task).probe.coverage)["where"]


@pytest.mark.parametrize("flavour", ["linen", "nnx"])
def test_positions_of_each_example_stay(flavour, t=N):
    x, y = batch(t, 2)
    model = Positions(per_example=True) if flavour == "linen" else PositionsNnx(t, per_example=True)
    variables = initialised(model, x) if flavour == "linen" else None
    forward = oracle.linen_forward(model, variables) if flavour == "linen" else oracle.nnx_forward(model)
    got = fisher.eigenvalues(model, variables, x, y, loss=losses.softmax_cross_entropy)
    assert set(got) == {"content", "where", "head"}
    assert_equals_oracle(got, forward, x, y)


def test_a_table_used_for_tokens_and_for_broadcast_positions_is_left_out():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, ids):
            table = nn.Embed(5, 3, name="table", **F64)
            return nn.Dense(3, name="head", **F64)((table(ids) + table(jnp.arange(3))).mean(1))

    ids = jnp.arange(N * 3).reshape(N, 3) % 5
    coverage = fisher.coverage(Tied(), initialised(Tied(), ids), ids)
    assert f"some of its input is {SHARED}" in reasons(coverage)["table"]
    assert set(coverage.weights) == {"head"}


@pytest.mark.parametrize("t", [3, N])
def test_a_model_for_one_size_of_batch_is_covered_as_far_as_the_numbers_tell(t):
    x, _ = batch(t, 2)
    model = Positions(hard_coded=True)
    coverage = fisher.coverage(model, initialised(model, x), x)
    assert {"content", "head"} <= set(coverage.weights)
    assert ("where" in coverage.weights) == (t == N)  # 3 rows cannot be one number per example of 4


class Mapped(nn.Module):
    """A layer mapped over the examples, or called on all of them."""

    mapped: bool
    norm: bool = False

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense
        if self.mapped:
            layer = nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": False}, in_axes=0)
        h = layer(3, name="layer", **F64)(x)
        h = h - h.mean(0) if self.norm else h
        return nn.Dense(3, name="head", **F64)(jnp.tanh(h))


@pytest.mark.parametrize("compute", [fisher.eigenvalues, fisher.reference])
def test_a_module_mapped_over_the_examples_equals_the_oracle(compute):
    x, y = batch(4)
    variables = initialised(Mapped(True), x)
    assert fisher.coverage(Mapped(True), variables, x).share == 1
    got = compute(Mapped(True), variables, x, y, loss=losses.softmax_cross_entropy)
    assert_equals_oracle(got, oracle.linen_forward(Mapped(False), variables), x, y)


class MappedNnx(nnx.Module):
    """A layer mapped over the examples by JAX, and one by NNX."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        h = jnp.tanh(jax.vmap(lambda row: self.first(row))(x))
        return nnx.vmap(lambda layer, row: layer(row), in_axes=(None, 0))(self.second, h)


def test_nnx_layers_mapped_over_the_examples_stay():
    x, _ = batch(4)
    coverage = fisher.coverage(MappedNnx(nnx.Rngs(0)), None, x)
    assert coverage.share == 1 and not coverage.unreached


@pytest.mark.slow
def test_the_reference_refuses_examples_that_are_mapped_and_depend_on_one_another():
    x, y = batch(4)
    variables = initialised(Mapped(True), x)
    with pytest.raises(UnsupportedError, match="cannot tell the uses of layer apart"):
        fisher.reference(Mapped(True, norm=True), variables, x, y, loss=losses.softmax_cross_entropy)


class PairOfWeights(nn.Module):
    """A parameter that is a tuple, of arrays of different shapes."""

    @nn.compact
    def __call__(self, x):
        scale, shift = self.param("pair", lambda key: (jnp.ones(4), jnp.ones((3, 4))))
        return nn.Dense(3)(jnp.tanh(nn.Dense(4)(x) * scale + shift.sum(0)))


def test_a_parameter_that_is_a_tuple_is_counted_and_named():
    x, y = np.random.default_rng(0).normal(size=(6, 4)), np.arange(6) % 3
    model = PairOfWeights()
    variables = model.init(jax.random.key(0), x)
    coverage = fisher.coverage(model, variables, x)
    assert coverage.share == (20 + 15) / (20 + 15 + 16) and "pair" in str(coverage)
    found = fisher.eigenvalues(model, variables, x, y, loss=losses.softmax_cross_entropy)
    expected = fisher.reference(model, variables, x, y, loss=losses.softmax_cross_entropy)
    for path in ("Dense_0", "Dense_1"):
        np.testing.assert_allclose(found[path], expected[path], atol=1e-9)
