"""Constants that are learnt, in Flax Linen and NNX: their gradients, under every transformation, and frozen again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import aqx
from aqx.errors import InputError
from aqx.population import unstack
from aqx.spectra.naming import Namer

pytestmark = pytest.mark.usefixtures("quick_to_compile")

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)
SLOPED = "mul(0.8,softplus(mul(1.5,x)))"


def softplus(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    return a * np.log1p(np.exp(b * x))


def differences(value, at: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """The gradient of a function of an array, one entry at a time."""
    steps = h * np.eye(at.size).reshape(at.size, *at.shape)
    return np.array([(value(at + step) - value(at - step)) / (2 * h) for step in steps]).reshape(at.shape)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("swish(x)", "mul(1.0,swish(mul(1.0,x)))"),
        ("x", "mul(1.0,mul(1.0,x))"),
        ("max(x,mul(0.5,x))", "mul(1.0,max(mul(1.0,x),mul(0.5,mul(1.0,x))))"),
    ],
)
def test_a_function_gets_constants_that_change_nothing(name: str, written: str):
    found = aqx.parametrised(name)
    assert str(found) == written and found == aqx.parse(written)
    np.testing.assert_array_equal(aqx.activation(found)(X), aqx.activation(name)(X))


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        (("params", "Act_0", "c0"), True),
        ("Block_0/Act_0/c12", True),
        (("c0", "kernel"), False),
        (("Dense_0", "kernel"), False),
        (("Dense_0", "c"), False),
        (("Dense_0", "c01"), False),
        ((), False),
        ("", False),
    ],
)
def test_constants_are_known_by_their_path(path, is_one: bool):
    assert aqx.is_constant(path) == is_one


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_gradients_are_finite_differences(per: str):
    module = aqx.linen.Act(SLOPED, per=per)
    variables = module.init(jax.random.key(0), X)
    shape = () if per == "layer" else (3,)
    assert {name: value.shape for name, value in variables["params"].items()} == {"c0": shape, "c1": shape}
    np.testing.assert_allclose(variables["params"]["c1"], np.full(shape, 1.5))

    def loss(params, x):
        return (module.apply({"params": params}, x) ** 2).sum()

    found, by_x = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], X)
    x, a, b = X.astype(float), np.full(shape, 0.8), np.full(shape, 1.5)
    np.testing.assert_allclose(found["c0"], differences(lambda a: (softplus(a, b, x) ** 2).sum(), a), rtol=1e-4)
    np.testing.assert_allclose(found["c1"], differences(lambda b: (softplus(a, b, x) ** 2).sum(), b), rtol=1e-4)
    np.testing.assert_allclose(by_x, differences(lambda x: (softplus(a, b, x) ** 2).sum(), x), rtol=1e-4, atol=1e-6)
    model = aqx.nnx.Act(SLOPED, per=per, features=None if per == "layer" else 3, rngs=nnx.Rngs(0))
    other = nnx.grad(lambda model: (model(X) ** 2).sum())(model)
    np.testing.assert_allclose(other["c1"][...], found["c1"], rtol=1e-5)


class Net(nn.Module):
    act: aqx.Activation

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.Dense(4)(x)
            x = nn.remat(aqx.linen.Act)(self.act)(x)
        return nn.Dense(1)(x)


def trained(act: aqx.Activation, seed) -> dict:
    """A hundred steps of descent on a parabola."""
    x = jnp.linspace(-1, 1, 16)[:, None]
    model = Net(act)
    params = model.init(jax.random.key(seed), x)["params"]

    def loss(params):
        return ((model.apply({"params": params}, x) - x**2) ** 2).mean()

    def step(params, _):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params)), None

    params, _ = jax.lax.scan(step, params, length=100)
    return {"loss": loss(params), **{f"{name}": params["CheckpointAct_0"][name] for name in ("c0", "c1")}}


def test_a_population_learns_what_each_learns_alone():
    acts = Namer(["mul", "tanh", "softplus"])(["mul(1.0,tanh(mul(1.0,x)))", "mul(0.8,softplus(mul(1.5,x)))"])
    together = aqx.population(trained)(aqx.stack(acts), [3, 4])
    for row, (act, seed) in enumerate(zip(acts, (3, 4), strict=True)):
        alone = jax.jit(trained, static_argnums=0)(act, seed)
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][row], value, rtol=2e-3)
        assert abs(alone["c1"] - act.numbers[1]) > 1e-3, "it has learnt something"


def test_mixed_precision_keeps_constants_in_float32_and_values_in_16_bits():
    module = aqx.linen.Act(SLOPED)
    variables = module.init(jax.random.key(0), X)
    y, back = jax.vjp(lambda v: module.apply(v, jnp.asarray(X, jnp.bfloat16)), variables)
    assert y.dtype == jnp.bfloat16 and variables["params"]["c0"].dtype == jnp.float32
    assert back(jnp.ones_like(y))[0]["params"]["c0"].dtype == jnp.float32


def test_what_was_learnt_is_written_in():
    act = aqx.activation(SLOPED)
    plain = act.frozen({"c0": jnp.float32(0.1), "c1": jnp.float32(-2)})
    assert plain.name == "mul(0.1,softplus(mul(-2.0,x)))"
    module = aqx.linen.Act(act)
    np.testing.assert_array_equal(module.apply({"params": {"c0": 0.1, "c1": -2.0}}, X), plain(X))
    variables = Net(act).init(jax.random.key(0), X)
    assert {path: one.name for path, one in act.frozen(variables).items()} == {
        "params/CheckpointAct_0": SLOPED,
        "params/CheckpointAct_1": SLOPED,
    }
    channels = act.frozen({"c0": np.float32([1, 2, 3]), "c1": np.float32([0.5, 1, 1.5])})
    assert unstack(channels, 2).name == "mul(3.0,softplus(mul(1.5,x)))"
    by_channel = jax.vmap(lambda act, x: act(x), (0, 1), 1)(channels, X)
    np.testing.assert_allclose(by_channel, softplus(np.array([1, 2, 3]), np.array([0.5, 1, 1.5]), X), rtol=1e-5)
    model = nnx.Dict(act=aqx.nnx.Act(act))
    assert act.frozen(nnx.state(model, nnx.Param))["act"].name == SLOPED
    relu = aqx.activation("relu(x)")
    assert relu.frozen({}) is relu or relu.frozen({}) == relu


def test_nnx_has_paths_that_are_known():
    state = nnx.state(nnx.Dict(act=aqx.nnx.Act(SLOPED), dense=nnx.Linear(2, 2, rngs=nnx.Rngs(0))))
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    assert sorted(aqx.is_constant(path) for path, _ in leaves) == [False, False, True, True]


def test_fisher_says_why_they_are_left_out():
    model = Net(aqx.activation(SLOPED))
    x, y = jnp.ones((5, 3)), jnp.zeros((5, 1))
    variables = model.init(jax.random.key(0), x)
    found = aqx.fisher.coverage(model, variables, x)
    assert {part.path for part in found.left_out} == {"CheckpointAct_0", "CheckpointAct_1"}
    assert all("not Kronecker" in part.reason and "c0 and c1" in part.reason for part in found.left_out)
    values = aqx.fisher.eigenvalues(model, variables, x, y, loss=aqx.losses.mean_squared_error)
    assert set(values) == {"Dense_0", "Dense_1", "Dense_2"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: aqx.linen.Act("x", per="row").init(jax.random.key(0), X), "per='row' is unknown"),
        (lambda: aqx.linen.Act("x", per="channel").init(jax.random.key(0), 1.0), "needs an input with channels"),
        (lambda: aqx.nnx.Act("x", per="channel"), "features=None does not go with per='channel'"),
        (lambda: aqx.nnx.Act("x", features=3), "features=3 does not go with per='layer'"),
        (lambda: aqx.activation(SLOPED).frozen({"Dense_0": {"kernel": 1}}), "params holds no c0, c1"),
        (lambda: aqx.activation(SLOPED).frozen({"c0": np.nan, "c1": 1.0}), "is not finite"),
        (lambda: aqx.activation(SLOPED).with_constants([1.0]), "constants has 1 for the 2"),
        (lambda: aqx.activation(SLOPED).applied(X, [1.0, 2.0, 3.0]), "constants has 3 for the 2"),
    ],
)
def test_mistakes_are_named(make, words: str):
    with pytest.raises(InputError, match=words):
        make()
