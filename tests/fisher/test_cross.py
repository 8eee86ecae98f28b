"""The cross test: a layer whose taps do not see the gradient of its stored weights is named, and no other is."""

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
from aqx.fisher import cross

N = 6
pytestmark = pytest.mark.usefixtures("quick_to_compile")
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
TOKENS = np.arange(N * 5).reshape(N, 5) % 11
DERIVATIVE = "a derivative is taken inside the model"
ELSEWHERE = "its kernel is also used elsewhere"
COMPUTED = "its weights are computed from others"


def named(model, x, apply=None, variables=None):
    """By path: why a layer is left out; and the covered keys."""
    if variables is None and isinstance(model, nn.Module):
        variables = model.init(KEY, x)
    coverage = fisher.coverage(model, variables, x, apply=apply)
    return {part.path: part.reason for part in coverage.left_out}, set(coverage.weights)


def mlp():
    return nn.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(1)])


def one(m, v):
    """The model's scalar output at one point."""
    return lambda z: m.apply(v, z[None])[0, 0]


def value_of_value_and_grad(m, v, x):
    return jax.vmap(jax.value_and_grad(one(m, v)))(x)[0][:, None]


def gradient(m, v, x):
    return jax.vmap(jax.grad(one(m, v)))(x)


def second_derivative(m, v, x):
    return jax.vmap(lambda z: jax.grad(lambda q: jax.grad(one(m, v))(q)[0])(z)[:1])(x)


def residual(m, v, x):
    return m.apply(v, x) + second_derivative(m, v, x)


def directional(m, v, x):
    return jax.vmap(lambda z: jax.jvp(one(m, v), (z,), (jnp.ones(4),))[1][None])(x)


def laplacian(m, v, x):
    return jax.vmap(lambda z: jnp.trace(jax.hessian(one(m, v))(z))[None])(x)


def penalised(m, v, x):
    return m.apply(v, x) + (gradient(m, v, x) ** 2).sum(1, keepdims=True)


def adapted(m, v, x):
    """One inner step of MAML."""
    inner = jax.grad(lambda v: (m.apply(v, x[:2]) ** 2).mean())(v)
    return m.apply(jax.tree.map(lambda w, g: w - 0.1 * g, v, inner), x)


@pytest.mark.parametrize(
    "apply",
    [value_of_value_and_grad, gradient, second_derivative, residual, directional, laplacian, penalised, adapted],
)
def test_a_derivative_inside_the_model_is_named(apply):
    reasons, covered = named(mlp(), X, apply)
    # A bias of the last layer is in no derivative by the input.
    assert reasons == {"layers_0": DERIVATIVE, "layers_2": DERIVATIVE} and not covered


@pytest.mark.parametrize("apply", [value_of_value_and_grad, directional])
def test_a_task_with_a_derivative_inside_has_no_spectrum_of_zeros(apply):
    model = mlp()
    assert fisher.eigenvalues(model, model.init(KEY, X), X, X[:, :1], loss=losses.mean_squared_error, apply=apply) == {}


def test_a_derivative_that_the_loss_never_sees_costs_nothing():
    def apply(m, v, x):
        jax.vmap(jax.grad(one(m, v)))(x)
        return m.apply(v, x)

    assert named(mlp(), X, apply) == ({}, {"layers_0", "layers_2"})


class NnxMlp(nnx.Module):
    def __init__(self, rngs=None):
        rngs = rngs or nnx.Rngs(0)
        self.first, self.second = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


@pytest.mark.parametrize("mode", [jax.grad, jax.jacfwd])
def test_a_derivative_inside_an_nnx_model_is_named(mode):
    reasons, covered = named(NnxMlp(), X, lambda m, _, x: jax.vmap(mode(lambda z: m(z[None])[0, 0]))(x))
    assert reasons == {"first": DERIVATIVE, "second": DERIVATIVE} and not covered


class TiedByTable(nn.Module):
    @nn.compact
    def __call__(self, t):
        embed = nn.Embed(11, 8, name="embed")
        return jnp.tanh(nn.Dense(8, name="dense")(embed(t))) @ embed.embedding.T


class TiedByVariables(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="layer")
        return jnp.tanh(nn.Dense(4, name="dense")(layer(x))) @ layer.variables["params"]["kernel"].T


class TiedBias(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="layer")
        return jnp.tanh(nn.Dense(4, name="dense")(layer(x))) * layer.variables["params"]["bias"]


class NnxTied(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(11, 8, rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(8, 8, rngs=nnx.Rngs(1))

    def __call__(self, t):
        return jnp.tanh(self.dense(self.embed(t))) @ self.embed.embedding[...].T


@pytest.mark.parametrize(
    ("model", "x", "path", "reason"),
    [
        (TiedByTable(), TOKENS, "embed", ELSEWHERE),
        (NnxTied(), TOKENS, "embed", ELSEWHERE),
        (TiedByVariables(), X, "layer", ELSEWHERE),
        (TiedBias(), X, "layer", "its bias is also used elsewhere"),
    ],
    ids=["table", "nnx", "variables", "bias"],
)
def test_weights_that_are_also_used_elsewhere_are_named(model, x, path, reason):
    assert named(model, x) == ({path: reason}, {"dense"})


def test_a_table_below_a_head_that_starts_at_zero_is_named_too():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, t):
            h = TiedByTable(name="body")(t)
            return nn.Dense(3, kernel_init=nn.initializers.zeros, name="head")(h)

    reasons, covered = named(Model(), TOKENS)
    assert reasons == {"body/embed": ELSEWHERE} and covered == {"body/dense", "head"}


class Standardised(nn.Module):
    """A Dense within nn.map_variables, which standardises its kernel."""

    @nn.compact
    def __call__(self, x):
        def inwards(variables):
            return jax.tree.map(lambda w: w - w.mean() if w.ndim > 1 else w, variables)

        layer = nn.map_variables(nn.Dense, "params", inwards, init=True)(4, name="layer")
        return nn.Dense(2, name="head")(jnp.tanh(layer(x)))


class Frozen(NnxMlp):
    def __call__(self, x):
        self.first.kernel[...] = jax.lax.stop_gradient(self.first.kernel[...])
        return super().__call__(x)


def halved(m, v, x):
    """All weights, so also what stands beside them."""
    return m.apply(jax.tree.map(lambda w: w / 2, v), x)


def test_weights_that_are_computed_from_others_are_named():
    assert named(Standardised(), X) == ({"layer": COMPUTED}, {"head"})
    assert named(mlp(), X, halved) == ({"layers_0": COMPUTED, "layers_2": COMPUTED}, set())
    reasons, covered = named(Frozen(), X)
    assert "no gradient reaches its kernel" in reasons["first"] and covered == {"second"}


def wrapped(norm):
    class Model(nnx.Module):
        def __init__(self):
            self.body = norm(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
            self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(2))

        def __call__(self, x):
            return self.head(jnp.tanh(self.body(x)))

    return Model()


@pytest.mark.parametrize("norm", [nnx.SpectralNorm, nnx.WeightNorm])
def test_nnx_wrappers_that_change_the_weights_are_named(norm):
    reasons, covered = named(wrapped(norm), X)
    assert f"{norm.__name__} changes its weights" in reasons["body/layer_instance"] and covered == {"head"}


def test_straight_through_weights_are_right():
    """Rounded weights whose gradient passes through: the taps see just the gradient of the stored ones."""

    class Rounded(nn.Module):
        @nn.compact
        def __call__(self, x):
            def inwards(variables):
                return jax.tree.map(lambda w: w + jax.lax.stop_gradient(jnp.round(8 * w) / 8 - w), variables)

            layer = nn.map_variables(nn.Dense, "params", inwards, init=True)(4, name="layer")
            return nn.Dense(2, name="head")(jnp.tanh(layer(x)))

    assert named(Rounded(), X) == ({}, {"layer", "head"})


class Everything(nn.Module):
    """Layers of every kind, in the ways that models use them, computed in some precision."""

    dtype: jnp.dtype | None = None
    train: bool = False

    @nn.compact
    def __call__(self, x):
        kind = {"dtype": self.dtype}
        h = nn.Conv(8, (3, 3), strides=2, name="conv", **kind)(x)
        h = nn.BatchNorm(use_running_average=not self.train, name="norm", **kind)(h)
        h = jnp.tanh(nn.Conv(8, (3, 3), feature_group_count=8, padding="CIRCULAR", name="depthwise", **kind)(h))
        h = jnp.tanh(nn.Conv(8, (2, 2), feature_group_count=4, kernel_dilation=2, name="grouped", **kind)(h))
        h = nn.ConvTranspose(4, (3, 3), strides=(2, 2), name="up", **kind)(h)
        h = nn.ConvTranspose(4, (2, 3), transpose_kernel=True, padding="VALID", name="flipped", **kind)(h)
        h = h.reshape(len(h), -1, 4)
        h = h + nn.MultiHeadDotProductAttention(2, name="attention", **kind)(h)
        twice = nn.Dense(4, name="twice", **kind)
        h = nn.remat(nn.Dense)(4, name="remat", **kind)(jnp.tanh(twice(twice(h))))
        h = h + nn.Einsum((4, 4), "nta,ab->ntb", name="einsum", **kind)(h)
        h = nn.DenseGeneral((2, 3), axis=-1, name="general", **kind)(jnp.tanh(h.mean(1)))
        many = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=1, out_axes=1)
        h = many(3, name="many", **kind)(h)
        h = nn.Dropout(0.3, deterministic=not self.train)(h)
        return nn.Dense(3, name="head", **kind)(h.mean(1))


def training(m, v, x):
    return m.apply(v, x, mutable=["batch_stats"], rngs={"dropout": KEY})[0]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "dtype", [None, *(pytest.param(few, marks=pytest.mark.slow) for few in (jnp.bfloat16, jnp.float16))]
)
def test_no_right_layer_is_named(dtype, train):
    x = np.random.default_rng(1).normal(size=(N, 6, 6, 2)).astype(np.float32)
    model = Everything(dtype)
    variables = jax.jit(model.init)(KEY, x)
    reasons, covered = named(Everything(dtype, train), x, training if train else None, variables)
    assert set(reasons) == {"norm"}
    assert len(covered) == 10 + 4 + 2  # attention has four, `many` two slices


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_few_bits_do_not_hide_another_use(dtype):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, t):
            embed = nn.Embed(11, 8, name="embed", dtype=dtype)
            h = jnp.tanh(nn.Dense(8, name="dense", dtype=dtype)(embed(t)))
            return h @ jnp.asarray(embed.embedding.T, dtype)

    assert named(Model(), TOKENS) == ({"embed": ELSEWHERE}, {"dense"})


def test_a_scanned_stack_and_a_recurrent_cell_stay():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, h, _):
            return jnp.tanh(nn.Dense(4, name="layer")(h)), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=4)
            h, _ = stack(name="stack")(x, None)
            return nn.RNN(nn.GRUCell(3), name="rnn")(jnp.stack([h, x], axis=1))[:, -1]

    reasons, covered = named(Model(), X)
    assert not reasons
    assert {f"stack/layer/{i}" for i in range(4)} < covered and len(covered) == 4 + 6


class Convolved(nnx.Module):
    def __init__(self):
        self.up = nnx.ConvTranspose(2, 3, (3,), transpose_kernel=True, rngs=nnx.Rngs(0))
        self.einsum = nnx.Einsum("nta,gab->gntb", (2, 3, 4), (2, 4), rngs=nnx.Rngs(1))
        self.general = nnx.LinearGeneral((2, 4), (3,), axis=(0, 3), rngs=nnx.Rngs(2))

    def __call__(self, x):
        return self.general(jnp.tanh(self.einsum(jnp.tanh(self.up(x))))).mean(1)


def test_nnx_layers_with_kernels_in_other_orders_stay():
    reasons, covered = named(Convolved(), np.random.default_rng(0).normal(size=(N, 5, 2)).astype(np.float32))
    assert not reasons and covered == {"up", "einsum", "general"}


def test_a_model_that_insists_on_few_bits_is_tested_in_them():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4, name="layer", param_dtype=jnp.bfloat16)
            layer(x)
            kernel = layer.variables["params"]["kernel"]

            def step(h, _):
                return jnp.tanh(h @ kernel), None

            h, _ = jax.lax.scan(step, jnp.ones((len(x), 4), jnp.bfloat16), length=2)
            return nn.Dense(2, name="head")(jnp.tanh(h) + layer(x))

    assert named(Model(), jnp.asarray(X, jnp.bfloat16)) == ({"layer": ELSEWHERE}, {"head"})


def test_moved_weights_that_the_model_cannot_use_do_not_decide():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones, (4,))
            h = nn.Dense(4, name="layer")(x) * jnp.sqrt(1 - scale**2 + 1e-6)
            return nn.Dense(2, name="head")(jnp.tanh(h))

    reasons, covered = named(Model(), X)
    assert set(reasons) == {""} and covered == {"layer", "head"}


@pytest.mark.usefixtures("float64")
def test_what_stays_beside_a_named_layer_equals_the_oracle():
    x, y = oracle.batch(N, 4)
    model = TiedByVariables()
    variables = jax.tree.map(jnp.float64, model.init(KEY, x))
    got = fisher.eigenvalues(model, variables, x, y, loss=losses.softmax_cross_entropy)
    pairs = oracle.pairs(oracle.linen_forward(model, variables), x, y, losses.softmax_cross_entropy)
    assert set(got) == {"dense"}
    oracle.assert_same(got["dense"], oracle.spectrum(*pairs["dense"]))


@pytest.mark.parametrize("setting", ["jax_debug_nans", "jax_debug_infs"])
def test_the_settings_of_others_do_not_stop_it(setting):
    before = getattr(jax.config, setting)
    jax.config.update(setting, True)
    try:
        assert named(mlp(), X) == ({}, {"layers_0", "layers_2"})
    finally:
        jax.config.update(setting, before)


@pytest.mark.parametrize(
    "set_",
    [
        partial(jax.transfer_guard, "disallow"),
        partial(jax.numpy_rank_promotion, "raise"),
        pytest.param(partial(jax.numpy_dtype_promotion, "strict"), marks=pytest.mark.slow),
        pytest.param(partial(jax.debug_nans, True), marks=pytest.mark.slow),
    ],
    ids=["transfer_guard", "rank_promotion", "dtype_promotion", "debug_nans"],
)
def test_spectra_are_the_same_whatever_is_set(set_):
    model = nn.Sequential([nn.Conv(2, (3,)), nn.relu, nn.Dense(3)])
    x, y = np.tile(X[:, :, None], 2), np.arange(N)[:, None] % np.ones(4, int) % 3
    batch = model, model.init(KEY, x), x, y
    loss = losses.softmax_cross_entropy
    wanted = fisher.eigenvalues(*batch, loss=loss)
    with set_():
        found = fisher.eigenvalues(*batch, loss=loss), fisher.reference(*batch, loss=loss)
        assert set(fisher.coverage(*batch[:3]).weights) == set(wanted)
    for path, values in wanted.items():
        np.testing.assert_array_equal(found[0][path], values)
        np.testing.assert_allclose(found[1][path], values, atol=1e-5 * values.max())


def test_coverage_is_what_eigenvalues_compute():
    model = TiedByTable()
    variables = model.init(KEY, TOKENS)
    got = fisher.eigenvalues(model, variables, TOKENS, TOKENS, loss=losses.softmax_cross_entropy)
    assert set(got) == set(fisher.coverage(model, variables, TOKENS).weights) == {"dense"}


@pytest.mark.parametrize("wide", ["inputs", "constant"])
def test_float64_beside_weights_in_float32_is_no_fault(wide: str):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(4, param_dtype=jnp.float32)(x)
            h = h * jnp.linspace(0.5, 1.5, 4, dtype=jnp.float64) if wide == "constant" else h
            return nn.Dense(3, param_dtype=jnp.float32)(jnp.tanh(h))

    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float64 if wide == "inputs" else np.float32)
        variables = Model().init(jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
        assert fisher.coverage(Model(), variables, x).share == 1


class Narrow(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, dtype=jnp.bfloat16)(nn.tanh(nn.Dense(4, dtype=jnp.bfloat16)(x)))


class NarrowNNX(nnx.Module):
    def __init__(self):
        self.first, self.last = (nnx.Linear(4, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)) for _ in range(2))

    def __call__(self, x):
        return self.last(nnx.tanh(self.first(x)))


@pytest.mark.parametrize("model", [Narrow(), NarrowNNX()], ids=["linen", "nnx"])
def test_layers_of_few_bits_are_tested_in_float32(model, monkeypatch: pytest.MonkeyPatch):
    tap, types = cross._tap, []

    def watched(*args):
        types.append(args[3].dtype)
        return tap(*args)

    monkeypatch.setattr(cross, "_tap", watched)
    assert not named(model, X)[0]
    assert types and set(types) == {jnp.dtype(jnp.float32)}
    again = model.apply(model.init(jax.random.key(0), X), X) if isinstance(model, nn.Module) else model(X)
    assert again.dtype == jnp.bfloat16  # as before
