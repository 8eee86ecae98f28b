"""Modules that wrap layers: scan, vmap, remat, jit, normalisation; each against the same model written out."""

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

N = 6
WIDTH = 4
pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
batch = partial(oracle.batch, N)
dense = partial(nn.Dense, param_dtype=jnp.float64)
eigenvalues = partial(fisher.eigenvalues, loss=losses.softmax_cross_entropy)
reference = partial(fisher.reference, loss=losses.softmax_cross_entropy)


def same(got, expected):
    """Eigenvalues agree to 1e-9, rounding noise aside."""
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-13 * np.max(expected))


class Block(nn.Module):
    """Two layers that share nothing."""

    @nn.compact
    def __call__(self, h, _=None):
        return jnp.tanh(dense(WIDTH, name="second")(jnp.tanh(dense(WIDTH, name="first")(h)))), None


class Stack(nn.Module):
    """Three blocks: scanned, with their parameters along `axis`, or written out."""

    axis: int | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        if self.axis is None:
            for i in range(3):
                x, _ = block(name=f"block_{i}")(x)
        else:
            scanned = nn.scan(block, variable_axes={"params": self.axis}, split_rngs={"params": True}, length=3)
            x, _ = scanned(name="block")(x, None)
        return dense(3, name="head")(x)


def unrolled(params, axis):
    """The scanned parameters as those of the written-out model."""
    blocks = {f"block_{i}": jax.tree.map(lambda p, i=i: jnp.take(p, i, axis), params["block"]) for i in range(3)}
    return blocks | {"head": params["head"]}


# 3 is not among the widths, 4 is: with length 4 and width 4 the shape of a kernel does not tell its scanned axis.
@pytest.mark.parametrize(
    ("axis", "remat"),
    [
        pytest.param(0, False, marks=pytest.mark.slow),
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(-1, False, marks=pytest.mark.slow),
        (0, True),
    ],
)
def test_scanned_equals_unrolled(axis, remat):
    x, y = batch(WIDTH)
    model = Stack(axis, remat)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    got = eigenvalues(model, variables, x, y)
    plain = {"params": unrolled(variables["params"], axis)}
    forward = oracle.linen_forward(Stack(), plain)
    for path, (module, uses) in oracle.pairs(forward, x, y, losses.softmax_cross_entropy).items():
        block, _, layer = path.partition("/")
        key = f"block/{layer}/{block[-1]}" if layer else path
        same(got.pop(key), oracle.spectrum(module, uses))
    assert not got
    if axis == 0:
        slow = reference(model, variables, x, y)
        for key, values in eigenvalues(model, variables, x, y).items():
            same(values, slow[key])


@pytest.mark.parametrize("axis", [0, *(pytest.param(axis, marks=pytest.mark.slow) for axis in (1, 2))])
def test_a_scanned_axis_that_the_shapes_do_not_tell_is_found(axis):
    class Square(nn.Module):
        @nn.compact
        def __call__(self, h, _):
            return jnp.tanh(dense(3, use_bias=False, name="layer")(h)), None

    class Cube(nn.Module):
        axis: int

        @nn.compact
        def __call__(self, x):
            scan = nn.scan(Square, variable_axes={"params": self.axis}, split_rngs={"params": True}, length=3)
            return scan(name="scan")(x, None)[0]

    x, y = batch(3)
    model = Cube(axis)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    kernel = variables["params"]["scan"]["layer"]["kernel"]
    h = x
    for i in range(3):
        slow = reference(model, variables, x, y)
        got = eigenvalues(model, variables, x, y)
        assert np.linalg.matrix_rank(h.T @ h) == 3
        # The trace of the block is the product of the traces of A and G, and A of slice i is known by hand.
        same(got[f"scan/layer/{i}"], slow[f"scan/layer/{i}"])
        h = jnp.tanh(h @ jnp.take(kernel, i, axis))


def test_recurrent_scan_counts_every_step_as_a_use():
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, h, x):
            h = jnp.tanh(dense(WIDTH, name="recurrent")(h) + dense(WIDTH, name="input")(x))
            return h, None

    class Recurrent(nn.Module):
        scanned: bool

        @nn.compact
        def __call__(self, x):
            h = jnp.zeros((len(x), WIDTH))
            if self.scanned:
                step = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1)
                h, _ = step(name="cell")(h, x)
            else:
                cell = Cell(name="cell")
                for t in range(x.shape[1]):
                    h, _ = cell(h, x[:, t])
            return dense(3, name="head")(h)

    x, y = batch(5, 2)
    variables = jax.jit(Recurrent(True).init)(jax.random.key(0), x)
    got = eigenvalues(Recurrent(True), variables, x, y)
    pairs = oracle.pairs(oracle.linen_forward(Recurrent(False), variables), x, y, losses.softmax_cross_entropy)
    assert set(got) == set(pairs)
    for path, (module, uses) in pairs.items():
        assert len(uses) == (1 if path == "head" else 5)
        same(got[path], oracle.spectrum(module, uses))


def test_vmapped_modules_have_a_key_per_slice():
    class Ensemble(nn.Module):
        together: bool

        @nn.compact
        def __call__(self, x):
            if self.together:
                many = nn.vmap(
                    nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
                )
                h = many(WIDTH, param_dtype=jnp.float64, name="member")(x)
            else:
                h = jnp.stack([dense(WIDTH, name=f"member_{i}")(x) for i in range(3)])
            return dense(3, name="head")(jnp.tanh(h).mean(0))

    x, y = batch(2)
    variables = jax.jit(Ensemble(True).init)(jax.random.key(0), x)
    params = variables["params"]
    plain = {f"member_{i}": jax.tree.map(lambda p, i=i: p[i], params["member"]) for i in range(3)}
    got = eigenvalues(Ensemble(True), variables, x, y)
    slow = eigenvalues(Ensemble(False), {"params": plain | {"head": params["head"]}}, x, y)
    assert set(got) == {"member/0", "member/1", "member/2", "head"}
    for key in got:
        same(got[key], slow[key.replace("/", "_")])


class Jitted(nn.Module):
    """A compiled module, as nn.jit makes it."""

    @nn.jit
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(dense(WIDTH)(x))


class Twins(nn.Module):
    """Two compiled modules that look alike, one of them used twice: nn.jit traces them once."""

    @nn.compact
    def __call__(self, x):
        first, second = Jitted(name="first"), Jitted(name="second")
        return dense(3, name="head")(second(first(first(x))))


@pytest.mark.parametrize("again", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_modules_whose_trace_nn_jit_reuses(again):
    x, y = batch(WIDTH)
    model = Twins()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    jax.jit(model.apply)(variables, x)  # leaves a trace without taps behind
    got = eigenvalues(model, variables, x, y)
    assert set(got) == {"first/Dense_0", "second/Dense_0", "head"}
    with jax.disable_jit():
        pairs = oracle.pairs(oracle.linen_forward(model, variables), x, y, losses.softmax_cross_entropy)
    for path, (module, uses) in pairs.items():
        same(got[path], oracle.spectrum(module, uses))


class Normed(nn.Module):
    """A residual CNN with batch normalisation in either mode."""

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Conv(3, (3, 3), param_dtype=jnp.float64)(x)
        h = jnp.tanh(nn.BatchNorm(use_running_average=not train, param_dtype=jnp.float64)(h))
        h = h + nn.Conv(3, (1, 1), use_bias=False, param_dtype=jnp.float64)(h)
        return dense(3)(nn.LayerNorm(param_dtype=jnp.float64)(h).mean((1, 2)))


def test_normalisation_is_left_out_and_reported():
    x, y = batch(4, 4, 2)
    model = Normed()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    # Flax makes running statistics in float32, and some processors round 1/√ of those differently inside a larger loop.
    variables = jax.tree.map(jnp.float64, variables)
    got = eigenvalues(model, variables, x, y)
    for path, (module, uses) in oracle.pairs(
        oracle.linen_forward(model, variables), x, y, losses.softmax_cross_entropy
    ).items():
        same(got[path], oracle.spectrum(module, uses))
    coverage = fisher.coverage(model, variables, x)
    assert {part.path: part.weights for part in coverage.left_out} == {"BatchNorm_0": 6, "LayerNorm_0": 6}
    assert all("Norm" in part.reason for part in coverage.left_out)
    assert coverage.weights == {"Conv_0": 57, "Conv_1": 9, "Dense_0": 12}
    assert coverage.share == 78 / 90


def test_batch_normalisation_by_the_batch_is_one_joint_pass():
    def apply(model, variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    x, y = batch(4, 4, 2)
    model = Normed()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    got, slow = eigenvalues(model, variables, x, y, apply=apply), reference(model, variables, x, y, apply=apply)
    for key in got:
        same(got[key], slow[key])

    # The last layer follows all normalisation, so that its factors can be had by hand.
    logits = apply(model, variables, x)
    g = jax.nn.softmax(logits) - jax.nn.one_hot(y, 3)
    assert got["Dense_0"].sum() == pytest.approx(
        float((g * g).sum() / N) * np.trace(_last_input_factor(model, variables, x)), rel=1e-9
    )


def _last_input_factor(model, variables, x):
    seen = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        model.apply(variables, x, train=True, mutable=["batch_stats"])
    a = np.concatenate([seen[0], np.ones((N, 1))], axis=1)
    return a.T @ a / N


def test_what_cannot_be_covered_is_said():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, ids):
            table = nn.Embed(4, 4, name="tied")
            h = table(ids).mean(1)
            h = nn.Conv(4, (2,), mask=jnp.ones((2, 4, 4)).at[0].set(0), name="masked")(h[:, None])[:, 0]
            h = nn.WeightNorm(nn.Dense(4, name="normed"))(nn.PReLU(name="slope")(h))
            h = h + self.param("own", nn.initializers.ones, (4,))
            return table.attend(nn.Dense(4, name="covered")(h))

    ids = jnp.arange(N * 3).reshape(N, 3) % 4
    model = Odd()
    variables = model.init(jax.random.key(0), ids)
    coverage = fisher.coverage(model, variables, ids)
    reasons = {part.path: part.reason for part in coverage.left_out}
    assert set(coverage.weights) == {"covered"}
    for path, word in {"tied": "attend", "masked": "mask", "normed": "WeightNorm", "slope": "slope", "": "Odd"}.items():
        assert word in reasons[path]
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sum(coverage.weights.values()) + sum(part.weights for part in coverage.left_out) == total
    assert "covered" in str(coverage) and "left out" in str(coverage)


class NnxStack(nnx.Module):
    """NNX layers stacked by nnx.vmap and run by nnx.scan, with normalisation, remat and jit around."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Linear(WIDTH, WIDTH, rngs=rngs, param_dtype=jnp.float64)

        self.blocks = make(rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs, param_dtype=jnp.float64)
        self.head = nnx.List([nnx.Linear(WIDTH, 3, rngs=rngs, param_dtype=jnp.float64)])

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def step(h, layer):
            return nnx.remat(lambda layer, h: jnp.tanh(layer(h)))(layer, h)

        return nnx.jit(lambda head, h: head(h))(self.head[0], self.norm(step(x, self.blocks)))


@pytest.mark.slow
def test_nnx_scanned_rematerialised_and_jitted_equals_unrolled():
    x, y = batch(WIDTH)
    model = NnxStack(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    got = eigenvalues(model, None, x, y)
    slow = reference(model, None, x, y)

    class Plain(nnx.Module):
        def __init__(self):
            self.block = nnx.List(
                [nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0), param_dtype=jnp.float64) for _ in range(3)]
            )
            for i, layer in enumerate(self.block):
                layer.kernel[...] = model.blocks.kernel[i]
            self.norm, self.head = model.norm, model.head

        def __call__(self, x):
            for layer in self.block:
                x = jnp.tanh(layer(x))
            return self.head[0](self.norm(x))

    pairs = oracle.pairs(oracle.nnx_forward(Plain()), x, y, losses.softmax_cross_entropy)
    assert {key.replace("blocks", "block") for key in got} == set(pairs)
    for path, (module, uses) in pairs.items():
        same(got[path.replace("block", "blocks")], oracle.spectrum(module, uses))
        same(slow[path.replace("block", "blocks")], oracle.spectrum(module, uses))
    assert [part.path for part in fisher.coverage(model, None, x).left_out] == ["norm"]
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    jax.tree.map(np.testing.assert_array_equal, before, after)  # the caller's model is as it was


def test_mixed_precision_has_float32_factors_of_the_rounded_inputs():
    x = jax.random.normal(jax.random.key(0), (N, 5), jnp.float32)
    model = nn.Dense(3, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    variables = model.init(jax.random.key(1), x)
    # Gradients that bfloat16 holds exactly, as fused bfloat16 programs round elsewhere than single operations do.
    slopes = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 4.0]], np.float32)[np.arange(N) % 2]
    got = fisher.eigenvalues(model, variables, x, slopes, loss=lambda out, y: (out * y).sum(1))[""]
    assert got.dtype == jnp.float32
    a = np.concatenate([np.asarray(x.astype(jnp.bfloat16), np.float64), np.ones((N, 1))], axis=1)
    G = slopes.astype(np.float64).T @ slopes / N
    expected = np.sort(np.outer(np.linalg.eigvalsh(a.T @ a / N), np.linalg.eigvalsh(G)).ravel())
    np.testing.assert_allclose(got, expected, atol=1e-6 * expected.max())
