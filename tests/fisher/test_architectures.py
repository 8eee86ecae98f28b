"""Public architectures in small, each by our own hand and named after what it resembles.

Every layer with weights is covered or named, and what is covered has the spectrum of the brute force per example.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqx import fisher, losses

pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
N = 4
F64 = {"param_dtype": jnp.float64}
KEY = jax.random.key(0)
DERIVATIVE = "a derivative is taken inside the model"
ELSEWHERE = "its kernel is also used elsewhere"
COMPUTED = "its weights are computed from others"


def numbers(*shape):
    return np.random.default_rng(5).normal(size=shape)


def tokens(*shape, of=7):
    return np.random.default_rng(6).integers(0, of, shape)


class Mlp(nn.Module):
    outputs: int = 1

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs, name="out", **F64)(jnp.tanh(nn.Dense(5, name="hidden", **F64)(x)))


def pinn(m, v, x):
    """Burgers' residual u·u_x − u_xx beside u."""

    def u(z):
        return m.apply(v, z[None])[0, 0]

    def at(z):
        return jnp.stack([u(z), u(z) * jax.grad(u)(z)[0] - jax.hessian(u)(z)[0, 0]])

    return jax.vmap(at)(x)


class Nerf(nn.Module):
    """A density whose gradient by the position is the normal that the colour sees."""

    @nn.compact
    def __call__(self, x):
        hidden, density = nn.Dense(5, name="hidden", **F64), nn.Dense(1, name="density", **F64)

        def field(z):
            return density(jnp.tanh(hidden(z)))[..., 0]

        value = field(x)
        normal = jax.vmap(jax.grad(lambda z: field(z[None])[0]))(x)
        colour = nn.Dense(3, name="colour", **F64)(jnp.concatenate([x, normal], axis=-1))
        return jnp.concatenate([value[:, None], colour], axis=-1)


class NerfNnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden, self.density = nnx.Linear(3, 5, rngs=rngs, **F64), nnx.Linear(5, 1, rngs=rngs, **F64)
        self.colour = nnx.Linear(6, 3, rngs=rngs, **F64)

    def __call__(self, x):
        def field(z):
            return self.density(jnp.tanh(self.hidden(z)))[..., 0]

        normal = jax.vmap(jax.grad(lambda z: field(z[None])[0]))(x)
        return jnp.concatenate([field(x)[:, None], self.colour(jnp.concatenate([x, normal], axis=-1))], axis=-1)


class Gpt(nn.Module):
    """One causal block between a table and its transpose."""

    @nn.compact
    def __call__(self, t):
        table = nn.Embed(7, 4, name="table", **F64)
        h = table(t) + nn.Embed(3, 4, name="positions", **F64)(jnp.arange(t.shape[1]))
        attention = nn.MultiHeadDotProductAttention(2, name="attention", **F64)
        h = h + attention(nn.LayerNorm(name="norm", **F64)(h), mask=nn.make_causal_mask(t))
        h = h + nn.Dense(4, name="down", **F64)(jnp.tanh(nn.Dense(6, name="up", **F64)(h)))
        return (h @ table.embedding.T).mean(1)


class GptNnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.table = nnx.Embed(7, 4, rngs=rngs, **F64)
        self.up, self.down = nnx.Linear(4, 6, rngs=rngs, **F64), nnx.Linear(6, 4, rngs=rngs, **F64)
        self.head = nnx.Linear(4, 4, rngs=rngs, **F64)
        self.tied = nnx.Linear(4, 4, rngs=rngs, **F64)
        self.tied.kernel = self.head.kernel

    def __call__(self, t):
        h = self.table(t)
        h = self.tied(self.head(h + self.down(jnp.tanh(self.up(h)))))
        return (h @ self.table.embedding[...].T).mean(1)


class StandardConv(nn.Module):
    """A convolution by a kernel of mean zero and variance one, as in Big Transfer."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features), jnp.float64)
        kernel = (kernel - kernel.mean((0, 1, 2))) / kernel.std((0, 1, 2))
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class ResNet(nn.Module):
    """A residual block of standardised convolutions with group normalisation."""

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(4, (3, 3), name="stem", **F64)(x)
        h = h + StandardConv(4, name="standard")(jnp.tanh(nn.GroupNorm(2, name="norm", **F64)(h)))
        return nn.Dense(3, name="head", **F64)(h.mean((1, 2)))


class Seq2Seq(nn.Module):
    """An encoder whose last state starts a decoder that is fed the target."""

    cell: type

    @nn.compact
    def __call__(self, x):
        encoder, decoder = self.cell(3, name="encoder", **F64), self.cell(3, name="decoder", **F64)
        carry, _ = nn.RNN(encoder, return_carry=True)(x["source"])
        h = nn.RNN(decoder)(x["target"], initial_carry=carry)
        return nn.Dense(3, name="head", **F64)(h).mean(1)


class Seq2SeqNnx(nnx.Module):
    def __init__(self, cell):
        rngs = nnx.Rngs(0)
        self.encoder = nnx.RNN(cell(2, 3, rngs=rngs, **F64), return_carry=True, rngs=rngs)
        self.decoder = nnx.RNN(cell(2, 3, rngs=rngs, **F64), rngs=rngs)
        self.head = nnx.Linear(3, 3, rngs=rngs, **F64)

    def __call__(self, x):
        carry, _ = self.encoder(x["source"])
        return self.head(self.decoder(x["target"], initial_carry=carry)).mean(1)


class Policy(nn.Module):
    """A recurrent policy and its value, whose state is reset at the ends of episodes."""

    @nn.compact
    def __call__(self, x):
        cell, encode = nn.GRUCell(3, name="cell", **F64), nn.Dense(3, name="encode", **F64)
        h, outs = jnp.zeros((len(x["seen"]), 3)), []
        for step in range(x["seen"].shape[1]):
            h = jnp.where(x["done"][:, step, None], 0, h)
            h, out = cell(h, jnp.tanh(encode(x["seen"][:, step])))
            outs.append(out)
        out = jnp.stack(outs, 1).mean(1)
        return jnp.concatenate([nn.Dense(2, name="logits", **F64)(out), nn.Dense(1, name="value", **F64)(out)], -1)


class Gnn(nn.Module):
    """Message passing on padded graphs: nodes that are none neither send nor count."""

    @nn.compact
    def __call__(self, x):
        real = x["mask"][..., None]
        h = x["nodes"]
        for i in range(2):
            h = jnp.tanh(nn.Dense(4, name=f"send_{i}", **F64)(h) * real)
            h = h + jnp.tanh(nn.Dense(4, name=f"own_{i}", **F64)(x["edges"] @ h))
        return nn.Dense(3, name="head", **F64)((h * real).sum(1) / real.sum(1))


class MoE(nn.Module):
    """Experts stacked by vmap, weighted by a softmax gate."""

    @nn.compact
    def __call__(self, x):
        many = nn.vmap(
            Mlp, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3, out_axes=1
        )
        gate = jax.nn.softmax(nn.Dense(3, name="gate", **F64)(x))
        return (many(3, name="experts")(x) * gate[..., None]).sum(1)


class UNet(nn.Module):
    """Down, a bottom that sees the time, up, and a skip."""

    @nn.compact
    def __call__(self, x):
        first = jnp.tanh(nn.Conv(3, (3, 3), name="first", **F64)(x["image"]))
        h = jnp.tanh(nn.Conv(4, (3, 3), strides=2, name="down", **F64)(first))
        h = h + nn.Dense(4, name="time", **F64)(x["time"][:, None])[:, None, None]
        h = jnp.tanh(nn.ConvTranspose(3, (3, 3), strides=(2, 2), name="up", **F64)(nn.GroupNorm(2, **F64)(h)))
        return nn.Conv(1, (3, 3), name="last", **F64)(jnp.concatenate([h, first], -1)).reshape(len(h), -1)


class UNetNnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(1, 3, (3, 3), rngs=rngs, **F64)
        self.down = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs, **F64)
        self.up = nnx.ConvTranspose(4, 3, (3, 3), strides=(2, 2), rngs=rngs, **F64)
        self.last = nnx.Conv(6, 1, (3, 3), rngs=rngs, **F64)

    def __call__(self, x):
        first = jnp.tanh(self.first(x["image"]))
        h = jnp.tanh(self.up(jnp.tanh(self.down(first))))
        return self.last(jnp.concatenate([h, first], -1)).reshape(len(h), -1)


class Mamba(nn.Module):
    """A selective state space with a causal depthwise convolution and a gate."""

    @nn.compact
    def __call__(self, x):
        h, gate = jnp.split(nn.Dense(8, name="inside", **F64)(x), 2, axis=-1)
        h = nn.Conv(4, (2,), padding="CAUSAL", feature_group_count=4, name="conv", **F64)(h)
        step = jax.nn.softplus(nn.Dense(4, name="step", **F64)(h))
        b, c = jnp.split(nn.Dense(4, use_bias=False, name="select", **F64)(h), 2, axis=-1)
        decay = -jnp.exp(self.param("decay", nn.initializers.zeros, (4, 2), jnp.float64))

        def move(state, now):
            h, step, b, c = now
            state = jnp.exp(step[..., None] * decay) * state + (step * h)[..., None] * b[:, None]
            return state, (state * c[:, None]).sum(-1)

        over_time = jax.tree.map(lambda part: jnp.moveaxis(part, 1, 0), (h, step, b, c))
        _, h = jax.lax.scan(move, jnp.zeros((len(x), 4, 2)), over_time)
        h = jnp.moveaxis(h, 0, 1) * jnp.tanh(gate)
        return nn.Dense(3, name="out", **F64)(h).mean(1)


GATES = [f"{a}{b}" for a in "hi" for b in "ifgo"]
SEQUENCES = {"source": numbers(N, 3, 2), "target": numbers(N, 2, 2)}
REAL = np.arange(3) < np.array([[3], [2], [1], [3]])
GRAPH = {"nodes": numbers(N, 3, 2), "edges": np.abs(numbers(N, 3, 3)), "mask": REAL}
EXPERTS = [f"experts/{part}/{i}" for part in ("hidden", "out") for i in range(3)]
EPISODE = {"seen": numbers(N, 3, 2), "done": np.arange(N * 3).reshape(N, 3) % 4 == 1}
IMAGE = {"image": numbers(N, 4, 4, 1), "time": np.linspace(0, 1, N)}
HEADS = [f"attention/{part}" for part in ("query", "key", "value", "out")]

# name: (a Linen model or what builds an NNX one, apply, x, covered, named)
CASES = {
    "PINN": (Mlp(), pinn, numbers(N, 2), [], {"hidden": DERIVATIVE, "out": DERIVATIVE}),
    "NeRF": (Nerf(), None, numbers(N, 3), ["colour"], {"hidden": DERIVATIVE, "density": DERIVATIVE}),
    "NeRF nnx": (NerfNnx, None, numbers(N, 3), ["colour"], {"hidden": DERIVATIVE, "density": DERIVATIVE}),
    "tied GPT": (
        Gpt(),
        None,
        tokens(N, 3),
        [*HEADS, "up", "down"],
        {"table": ELSEWHERE, "positions": "the same for every example", "norm": "LayerNorm"},
    ),
    "tied GPT nnx": (
        GptNnx,
        None,
        tokens(N, 3),
        ["up", "down"],
        {"table": ELSEWHERE, "head": "used elsewhere, in tied", "tied": "used elsewhere, in head"},
    ),
    "standardised ResNet": (
        ResNet(),
        None,
        numbers(N, 4, 4, 2),
        ["stem", "head"],
        {"standard": "StandardConv", "norm": "GroupNorm"},
    ),
    **{
        f"{cell.__name__} seq2seq": (
            Seq2Seq(cell),
            None,
            SEQUENCES,
            [*(f"{half}/{gate}" for half in ("encoder", "decoder") for gate in GATES), "head"],
            {},
        )
        for cell in (nn.LSTMCell, nn.OptimizedLSTMCell)
    },
    **{
        f"{cell.__name__} seq2seq nnx": (partial(Seq2SeqNnx, cell), None, SEQUENCES, None, {})
        for cell in (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell)
    },
    "GRU policy": (
        Policy(),
        None,
        EPISODE,
        [*(f"cell/{a}{b}" for a in "hi" for b in "rzn"), "encode", "logits", "value"],
        {},
    ),
    "GNN": (Gnn(), None, GRAPH, ["send_0", "own_0", "send_1", "own_1", "head"], {}),
    "MoE": (
        MoE(),
        None,
        numbers(N, 4),
        ["gate", *EXPERTS],
        {},
    ),
    "U-Net": (UNet(), None, IMAGE, ["first", "down", "time", "up", "last"], {"GroupNorm_0": "GroupNorm"}),
    "U-Net nnx": (UNetNnx, None, IMAGE, ["first", "down", "up", "last"], {}),
    "Mamba": (Mamba(), None, numbers(N, 3, 2), ["inside", "conv", "step", "select", "out"], {"": "Mamba"}),
}
# Recurrent ones take seconds to unroll.
QUICK = ("MoE",)  # layers of one shape that share the examples


def squares(outputs, y):
    return ((outputs - y[:, None]) ** 2).mean(1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_every_layer_is_named_or_equals_brute_force(name):
    model, apply, x, covered, named = CASES[name]
    variables = None
    model = model if isinstance(model, nn.Module) else model()
    if isinstance(model, nn.Module):
        variables = jax.tree.map(jnp.float64, jax.jit(model.init)(KEY, x))
        total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    else:
        total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    y = numbers(N)
    coverage = fisher.coverage(model, variables, x, apply=apply)
    assert covered is None or sorted(coverage.weights) == sorted(covered)
    reasons = {part.path: part.reason for part in coverage.left_out}
    assert set(reasons) == set(named)
    for path, reason in named.items():
        assert reason in reasons[path]
    assert sum(coverage.weights.values()) + sum(part.weights for part in coverage.left_out) == total
    got = fisher.eigenvalues(model, variables, x, y, loss=squares, apply=apply)
    slow = fisher.reference(model, variables, x, y, loss=squares, apply=apply)
    assert set(got) == set(slow) == set(coverage.weights)
    for key, values in slow.items():
        assert values.max() > 0
        np.testing.assert_allclose(got[key], values, rtol=1e-9, atol=1e-11 * values.max())


def test_the_losses_of_the_house_name_the_same():
    model = GptNnx()
    got = fisher.eigenvalues(model, None, tokens(N, 3), np.arange(N), loss=losses.softmax_cross_entropy)
    assert set(got) == {"up", "down"}
