"""Axes and uses that only seem to be what a count says: time as long as the batch, integrals, shared weights."""

from __future__ import annotations

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.ode import odeint

from aqx import fisher, losses
from aqx.errors import InputError, UnsupportedError
from aqx.spectra import check
from aqx.tasks import Task

pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
F64 = {"param_dtype": jnp.float64}
KEY = jax.random.key(0)


def numbers(*shape):
    return np.random.default_rng(2).normal(size=shape)


class TimeMajor(nn.Module):
    """Layers that see [T, N, d]."""

    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.Dense(4, name="layer", **F64)(x.swapaxes(0, 1)))
        return nn.Dense(3, name="head", **F64)(h.mean(0))


@pytest.mark.parametrize("t", [5, 4])
def test_reduce_refuses_time_in_front_even_where_it_is_as_long_as_the_batch(t):
    x, y = numbers(5, t, 2), np.arange(5) % 3
    variables = TimeMajor().init(KEY, x)
    with pytest.raises(UnsupportedError, match="the examples on the leading axis of every layer, but .*layer"):
        fisher.eigenvalues(TimeMajor(), variables, x, y, loss=losses.softmax_cross_entropy, sharing="reduce")
    assert set(fisher.coverage(TimeMajor(), variables, x).weights) == {"layer", "head"}


def test_reduce_takes_positions_that_are_as_many_as_the_examples():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head", **F64)(jnp.tanh(nn.Dense(4, name="layer", **F64)(x)).mean(1))

    x, y = numbers(5, 5, 2), np.arange(5) % 3
    arguments = (Model(), Model().init(KEY, x), x, y)
    got = fisher.eigenvalues(*arguments, loss=losses.softmax_cross_entropy, sharing="reduce")
    slow = fisher.reference(*arguments, loss=losses.softmax_cross_entropy, sharing="reduce")
    for key, values in slow.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-9, atol=1e-12 * values.max())


class Field(nn.Module):
    @nn.compact
    def __call__(self, h):
        return jnp.tanh(nn.Dense(8, name="field", **F64)(h))


def integrated(m, v, x):
    """Over a time of 1, so that N rows per call seem to be N rows in all."""
    return odeint(lambda h, _: m.apply(v, h), x, jnp.array([0.0, 1.0]))[-1][:, :3]


@pytest.mark.slow
def test_rows_of_an_integral_are_not_kept_as_those_of_one_use():
    x, y = numbers(4, 8), np.arange(4) % 3
    variables = jax.tree.map(jnp.float64, Field().init(KEY, x))

    def spectrum(times):
        batch = np.concatenate([x] * times), np.concatenate([y] * times)
        return fisher.eigenvalues(Field(), variables, *batch, loss=losses.softmax_cross_entropy, apply=integrated)[
            "field"
        ]

    once = spectrum(1)
    np.testing.assert_allclose(spectrum(3), once, rtol=0, atol=1e-6 * once.max())


class Parts(nnx.Module):
    """Parameters in dicts and lists, and one layer whose kernel is another's."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(4, 4, rngs=rngs, **F64), nnx.Linear(4, 4, rngs=rngs, **F64)
        self.second.kernel = self.first.kernel
        self.loose = nnx.data({"scale": nnx.Param(jnp.ones(4)), "more": [nnx.Param(jnp.ones(2))]})
        self.head = nnx.Linear(4, 3, rngs=rngs, **F64)

    def __call__(self, x):
        h = self.second(jnp.tanh(self.first(x))) * self.loose["scale"][...]
        return self.head(jnp.tanh(h)) * self.loose["more"][0][0]


def test_each_stored_weight_counts_once_and_loose_ones_are_named():
    coverage = fisher.coverage(Parts(), None, numbers(5, 4))
    weights = {part.path: part.weights for part in coverage.left_out}
    assert weights == {"first": 20, "second": 4, "loose": 4, "loose/more": 2}
    reasons = {part.path: part.reason for part in coverage.left_out}
    assert "also used elsewhere, in second" in reasons["first"] and "outside of any layer" in reasons["loose"]
    assert coverage.weights == {"head": 15} and coverage.share == 15 / 45


class ZeroHead(nn.Module):
    zero: bool = True

    @nn.compact
    def __call__(self, x):
        init = {"kernel_init": nn.initializers.zeros} if self.zero else {}
        return nn.Dense(3, name="head", **init, **F64)(jnp.tanh(nn.Dense(8, name="body", **F64)(x)))


def test_a_head_that_starts_at_zero_is_said_once(caplog):
    x, y = numbers(6, 4), np.arange(6) % 3
    with caplog.at_level(logging.WARNING):
        got = fisher.eigenvalues(ZeroHead(), ZeroHead().init(KEY, x), x, y, loss=losses.softmax_cross_entropy)
    assert not got["body"].any() and got["head"].max() > 0
    assert len(caplog.records) == 1 and "body are exactly zero" in caplog.text and "kernel_init" in caplog.text
    coverage = fisher.coverage(ZeroHead(), ZeroHead().init(KEY, x), x)
    assert coverage.silent == ("body",) and str(coverage).count("exactly zero") == 1
    coverage = fisher.coverage(ZeroHead(False), ZeroHead(False).init(KEY, x), x)
    assert not coverage.silent and "exactly zero" not in str(coverage)


def recurrent(act):
    return nn.Sequential([nn.RNN(nn.GRUCell(3, activation_fn=act)), lambda h: h.mean(1), nn.Dense(3)])


def graph(act):
    class Gcn(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x["edges"] @ act(nn.Dense(4)(x["edges"] @ x["nodes"])))

    return Gcn()


def narrow(*shape):
    return numbers(*shape).astype(np.float32)


@pytest.mark.parametrize(
    ("build", "x"),
    [
        pytest.param(recurrent, lambda: narrow(5, 3, 2), marks=pytest.mark.slow),
        (graph, lambda: {"edges": np.abs(narrow(5, 5)), "nodes": narrow(5, 2)}),
    ],
)
def test_the_check_of_recurrent_cells_and_of_graphs(build, x):
    with jax.enable_x64(False):
        task = Task("t", build, lambda: (x(), np.arange(5) % 3), losses.softmax_cross_entropy)
        assert check(task, ["tanh(x)"]) < 1e-4


def test_one_function_that_cannot_be_compared_does_not_end_the_check(caplog):
    with jax.enable_x64(False):
        x = 1e3 * np.ones((5, 4), np.float32)
        task = Task(
            "t",
            lambda act: nn.Sequential([nn.Dense(4), act, nn.Dense(3)]),
            lambda: (x * narrow(5, 4), np.arange(5) % 3),
            losses.softmax_cross_entropy,
        )
        with caplog.at_level(logging.WARNING):
            assert check(task, ["exp(x)", "tanh(x)"]) < 1e-3
        assert "'exp(x)' cannot be compared" in caplog.text


class Mapped(nn.Module):
    """A layer that works on one example after another, by its variables."""

    act: Any = jnp.tanh

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="layer")
        layer(x)
        variables = layer.variables
        h = jax.lax.map(lambda row: layer.clone(parent=None).apply(variables, row), x)
        return nn.Dense(3, name="head")(self.act(h))


@pytest.mark.slow
def test_what_the_plain_reference_cannot_follow_is_said_in_one_line():
    with jax.enable_x64(False):
        x, y = narrow(5, 4), np.arange(5) % 3
        variables = Mapped().init(KEY, x)
        got = fisher.eigenvalues(Mapped(), variables, x, y, loss=losses.softmax_cross_entropy)
        plain = nn.Sequential([nn.Dense(4), jnp.tanh, nn.Dense(3)])
        held = variables["params"]
        same = {"params": {"layers_0": held["layer"], "layers_2": held["head"]}}
        wanted = fisher.eigenvalues(plain, same, x, y, loss=losses.softmax_cross_entropy)
        for path, twin in (("layer", "layers_0"), ("head", "layers_2")):
            np.testing.assert_allclose(got[path], wanted[twin], atol=1e-5 * wanted[twin].max())
        with pytest.raises(UnsupportedError, match=r"reference cannot follow this model \(.+\); use aqx.fisher.eigenv"):
            fisher.reference(Mapped(), variables, x, y, loss=losses.softmax_cross_entropy)
        task = Task("t", Mapped, lambda: (x, y), losses.softmax_cross_entropy)
        with pytest.raises(InputError, match=r"names: 'tanh\(x\)' cannot be compared: reference cannot follow"):
            check(task, ["tanh(x)", "relu(x)"])
