"""Activation: one function whether closed over or traced, one program per shape, at home in Flax."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx
from jax.typing import ArrayLike

import aqx
from aqx import operators
from aqx.activation import Activation, activation, stack
from aqx.operators import SETS, OperatorTable, operator_table
from aqx.tree import parse_schema

X = np.array([-7.5, -2.6, -1.0, -0.3, 0.2, 0.7, 1.0, 2.4, 6.5], "float32")
OPERATORS = [operator_table().by_name[name] for name in SETS["extended"]]
ARGUMENTS = {"unary": "x", "binary": "square(x),softplus(x)", "n-ary": "x,tanh(x),exp(x)"}
FEW = ("relu", "abs", "exp", "tanh", "swish", "add", "mul", "max", "sum_n", "prod_n")
SHAPES = [
    "x",
    "unary(x)",
    "unary(unary(unary(x)))",
    "binary(x,x)",
    "n-ary(x)",
    "binary(unary(unary(x)),n-ary(x,unary(x),x))",
]
BINARY = [f"{op}({u}(x),{v}(x))" for op in FEW[5:7] for u in FEW[:5] for v in FEW[:2]]  # 20 functions of one shape


@pytest.fixture
def few_operators() -> None:
    """A table of ten operators, which compiles in a fraction of the time; `conftest.py` puts the full one back."""
    table = operator_table()
    operators._in_force = OperatorTable(tuple(table.by_name[name] for name in FEW))


few = pytest.mark.usefixtures("few_operators")


@jax.jit
def traced_value(act: Activation, x: ArrayLike) -> jax.Array:
    return act(x)


@jax.jit
def traced_slope(act: Activation, x: ArrayLike) -> jax.Array:
    return jax.grad(lambda x: act(x).sum())(x)


def slope(act: Activation, x: ArrayLike) -> jax.Array:
    return jax.grad(lambda x: act(x).sum())(x)


def example(shape: str, unary: str = "tanh") -> Activation:
    return activation(shape.replace("unary", unary).replace("binary", "mul").replace("n-ary", "sum_n"))


# Values and derivatives


def test_value_is_the_composition():
    act = activation("max(relu(x), cosh(elu(x)))")
    want = np.maximum(np.maximum(X, 0), np.cosh(np.where(X > 0, X, np.expm1(X))))
    np.testing.assert_allclose(act(X), want, rtol=1e-6)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_traced_is_concrete(operator):
    act = activation(f"{operator.name}({ARGUMENTS[operator.kind]})")
    np.testing.assert_allclose(traced_value(act, X), act(X), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(traced_slope(act, X), slope(act, X), rtol=1e-5, atol=1e-7)


@few
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_traces(shape: str):
    act = example(shape)
    assert act.shape == shape
    np.testing.assert_allclose(traced_value(act, X), act(X), rtol=2e-6)
    np.testing.assert_allclose(traced_slope(act, X), slope(act, X), rtol=1e-5, atol=1e-6)


@few
@pytest.mark.parametrize("name", ["mul(tanh(x),swish(x))", "exp(tanh(mul(x,x)))"])
def test_higher_derivatives_and_forward_mode(name: str):
    act, x = activation(name), 0.8

    @jax.jit
    def derivatives(act, x):
        forward = jax.jacfwd(act)
        return forward(x), jax.hessian(act)(x), jax.grad(jax.grad(act))(x), jax.jacfwd(forward)(x)

    first, *seconds = derivatives(act, x)
    np.testing.assert_allclose(first, jax.grad(act)(x), rtol=1e-5)
    np.testing.assert_allclose(seconds, [jax.grad(jax.grad(act))(x)] * 3, rtol=1e-4)
    # Against the function itself, by central differences in float64.
    with jax.enable_x64(True):
        f, h = act, 1e-3
        want = (f(x + h) - 2 * f(x) + f(x - h)) / h**2
        np.testing.assert_allclose(seconds[0], want, rtol=1e-4)


@few
def test_gradient_by_the_activation_itself():
    act = activation("tanh(x)", normalize=True)
    gradient = jax.grad(lambda act: act(0.5), allow_int=True)(act)
    assert gradient.opcodes[0].dtype == jax.dtypes.float0
    np.testing.assert_allclose(gradient.constants, [-act.constants[1], np.tanh(0.5) - act.constants[0]], rtol=1e-6)


@few
def test_backward_pass_keeps_one_residual():
    act = activation("add(relu(x),swish(x))")

    @jax.jit
    def residuals(act, x):
        _, pullback = jax.vjp(act, x)
        return pullback

    kept = [leaf for leaf in jax.tree.leaves(residuals(act, X)) if leaf.shape == X.shape]
    assert len(kept) == 1


# Types


@few
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("normalize", [False, True])
def test_dtype_is_kept(dtype: str, normalize: bool):
    act, x = activation("swish(tanh(x))", normalize=normalize), jnp.asarray(X, dtype)
    wide = act(x.astype("float32")).astype(dtype)
    for y in act(x), traced_value(act, x):
        assert y.dtype == dtype
        np.testing.assert_allclose(y.astype("float32"), wide.astype("float32"), rtol=2 * float(jnp.finfo(dtype).eps))
    assert traced_slope(act, x).dtype == slope(act, x).dtype == dtype


@few
def test_float64():
    act = activation("exp(tanh(x))", normalize=True)
    with jax.enable_x64(True):
        x = np.linspace(-1, 1, 5)
        want = np.exp(np.tanh(x)) * act.constants[1] - act.constants[0] * act.constants[1]
        for y in act(x), traced_value(act, x):
            assert y.dtype == "float64"
            np.testing.assert_allclose(y, want, rtol=1e-13, atol=1e-13)


@few
@pytest.mark.parametrize("x", [2, 2.0, True, np.int8(2), np.arange(3), np.bool_(True)])
def test_numbers_and_integers_become_float32(x):
    act = activation("exp(x)")
    for y in act(x), traced_value(act, x):
        assert y.dtype == "float32" and not y.weak_type
        np.testing.assert_allclose(y, np.exp(np.asarray(x, "float32")), rtol=1e-6)


def test_complex_is_refused():
    with pytest.raises(aqx.InputError, match="complex64.*real"):
        activation("exp(x)")(np.complex64(1))


# One program per shape


@few
def test_twenty_functions_compile_once():
    traces = 0

    @jax.jit
    def step(act, w, x):
        nonlocal traces
        traces += 1
        return jax.value_and_grad(lambda w: act(x @ w).sum())(w)

    w, x = np.ones((3, 3), "float32"), np.ones((2, 3), "float32")
    assert len(set(BINARY)) == 20
    for name in BINARY:
        value, _ = step(activation(name), w, x)
        np.testing.assert_allclose(value, activation(name)(x @ w).sum(), rtol=1e-5)
    assert traces == 1 and step._cache_size() == 1  # type: ignore[attr-defined]


@few
def test_normalized_functions_share_a_program_of_their_own():
    step = jax.jit(lambda act, x: act(x))
    for name in ("relu(x)", "swish(x)"):
        for normalize in (False, True):
            step(activation(name, normalize=normalize), X)
    assert step._cache_size() == 2  # type: ignore[attr-defined]


def test_a_leaf_round_trip_stays_concrete():
    act = jax.jit(lambda act: act)(activation("add(x,relu(x))"))
    assert act.is_concrete and act.name == "add(x,relu(x))" and act == activation("add(x,relu(x))")


@few
def test_register_makes_no_program_stale():
    aqx.register("mine", lambda x: x + 1, "unary")
    step = jax.jit(lambda act, x: act(x))
    old, relu = activation("mine(x)"), activation("relu(x)")
    assert step(old, 1.0) == 2
    aqx.register("mine", lambda x: x + 2, "unary")
    new = activation("mine(x)")
    assert step(new, 1.0) == new(1.0) == 3 and step(old, 1.0) == old(1.0) == 2
    assert old != new and relu == activation("relu(x)") and hash(relu) == hash(activation("relu(x)"))
    with pytest.raises(aqx.InputError, match="operator table"):
        stack([old, new])


@few
def test_registered_function_of_one_precision():
    aqx.register("single", lambda x: jnp.tanh(x.astype("float32")), "unary")
    act = activation("single(x)")
    with jax.enable_x64(True):
        x = np.float64(X)
        for y in act(x), traced_value(act, x):
            assert y.dtype == "float64"
            np.testing.assert_allclose(y, np.tanh(x), rtol=1e-6)


# Stacks


@few
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("over", [lambda f, acts: jax.vmap(f)(acts), lambda f, acts: jax.lax.map(f, acts)])
def test_stack(over, normalize: bool):
    acts = [activation(name, normalize=normalize) for name in BINARY[:5]]
    stacked = stack(acts)
    assert not stacked.is_concrete and all(leaf.shape == (5,) for leaf in jax.tree.leaves(stacked))
    np.testing.assert_allclose(over(lambda act: act(X), stacked), [act(X) for act in acts], rtol=1e-5, atol=1e-6)
    got = over(lambda act: slope(act, X), stacked)
    np.testing.assert_allclose(got, [slope(act, X) for act in acts], rtol=1e-5, atol=1e-6)


def test_no_nan_from_branches_not_taken():
    # reciprocal, sqrt_abs and the like are inf or nan at 0; under vmap all branches run.
    stacked = stack([activation(name) for name in ("tanh(x)", "exp(x)", "identity(x)")])
    for derivative, want in [(jax.grad, [1, 1, 1]), (lambda f: jax.grad(jax.grad(f)), [0, 1, 0])]:
        got = jax.vmap(lambda act, d=derivative: d(act)(0.0))(stacked)
        np.testing.assert_allclose(got, want, atol=1e-6)


@few
def test_scan_over_a_stack():
    acts = [activation("relu(x)"), activation("exp(x)"), activation("tanh(x)")]
    got, _ = jax.lax.scan(lambda x, act: (act(x), None), X, stack(acts))
    np.testing.assert_allclose(got, np.tanh(np.exp(np.maximum(X, 0))), rtol=1e-6)


def test_stacks_are_not_called_named_or_mixed():
    stacked = stack([activation("relu(x)")] * 2)
    with pytest.raises(aqx.InputError, match="stack; call jax.vmap"):
        stacked(1.0)
    with pytest.raises(aqx.UnsupportedError, match="stacked"):
        _ = stacked.name
    with pytest.raises(aqx.InputError, match="at least one"):
        stack([])
    with pytest.raises(aqx.InputError, match="another shape"):
        stack([activation("relu(x)"), activation("add(x,x)")])
    with pytest.raises(aqx.InputError, match="another normalization"):
        stack([activation("relu(x)"), activation("relu(x)", normalize=True)])


# Identity, pickles


def test_equal_by_value_when_concrete():
    a, b = activation("add(relu(x),x)"), activation("add( relu(x), x )")
    assert a == b and hash(a) == hash(b) and a != activation("add(abs(x),x)") and a != "add(relu(x),x)"
    assert activation("relu(x)") != activation("relu(x)", normalize=True)
    assert activation(a) is a and copy.deepcopy(a) is a and copy.copy(a) is a
    assert repr(a) == "Activation('add(relu(x),x)')" and a.tree == aqx.parse("add(relu(x),x)")


def test_equal_by_identity_when_traced():
    @jax.jit
    def check(a, b):
        assert a == a and a != b and hash(a) != hash(b) and a != activation("relu(x)")
        assert repr(a) == "Activation(<unary(x)>)" and not a.is_concrete and a.shape == "unary(x)"
        assert copy.deepcopy(a) is a
        with pytest.raises(aqx.UnsupportedError, match="traced"):
            _ = a.name
        with pytest.raises(aqx.UnsupportedError, match="pickle"):
            pickle.dumps(a)
        return a(1.0)

    check(activation("relu(x)"), activation("relu(x)"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normalize", [False, True])
def test_pickle(shape: str, normalize: bool):
    act = activation(example(shape), normalize=normalize)
    again = pickle.loads(pickle.dumps(act))
    assert again == act and jax.tree.structure(again) == jax.tree.structure(act)
    assert [type(leaf) for leaf in jax.tree.leaves(again)] == [type(leaf) for leaf in jax.tree.leaves(act)]


def test_pickles_carry_names():
    aqx.register("mine", lambda x: x, "unary")
    stored, both = pickle.dumps(activation("add(mine(x),relu(x))")), [activation("mine(x)"), activation("relu(x)")]
    stored_stack = pickle.dumps(stack(both))
    aqx.register("aaa", lambda x: 2 * x, "unary")
    aqx.register("mine", lambda x: 3 * x, "unary")
    assert pickle.loads(stored)(2.0) == 8
    np.testing.assert_array_equal(jax.lax.map(lambda act: act(-2.0), pickle.loads(stored_stack)), [-6, 0])
    aqx.register("mine", jnp.add, "binary")
    with pytest.raises(aqx.InputError, match="'mine', a unary operator; aqx.register it"):
        pickle.loads(stored)


def test_leaves_are_host_scalars():
    leaves = jax.tree.leaves(activation("add(relu(x),swish(x))", normalize=True))
    assert [type(leaf) for leaf in leaves] == [np.int32] * 3 + [float] * 2


@pytest.mark.parametrize("bad", ["", "nope(x)", "relu(x", "relu(x,x)", "unary(x)", parse_schema("unary(x)")])
def test_bad_names(bad):
    with pytest.raises(aqx.ParseError):
        activation(bad)


# In Flax

NAME = "add(relu(x),swish(x))"
BATCH = np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3)


class Attribute(nn.Module):
    act: Activation

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(self.act(nn.Dense(3)(x)))


class Named(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(activation(NAME)(nn.Dense(3)(x)))


class Remat(nn.Module):
    act: Activation

    @nn.compact
    def __call__(self, x):
        return nn.remat(Attribute)(self.act)(x)


class Block(nn.Module):
    act: Activation

    @nn.compact
    def __call__(self, x, _):
        return self.act(nn.Dense(3)(x)), None


class Scanned(nn.Module):
    act: Activation

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers(self.act)(x, None)[0]


def linen_step(module, act):
    model = module(act)
    variables = model.init(jax.random.key(0), BATCH)
    return jax.value_and_grad(lambda variables: jnp.square(model.apply(variables, BATCH)).sum())(variables)


class Nnx(nnx.Module):
    def __init__(self, act, rngs):
        self.inner, self.outer, self.act = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs), act

    def __call__(self, x):
        return self.outer(self.act(self.inner(x)))


def nnx_step(act, wrap=lambda act: act):
    model = Nnx(wrap(act), nnx.Rngs(0))
    graph, state = nnx.split(model)
    model = nnx.merge(graph, state, copy=True)
    nnx.jit(lambda model, x: model(x))(model, BATCH)
    return nnx.value_and_grad(lambda model: jnp.square(model(BATCH)).sum())(model)


def assert_close(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)


@few
@pytest.mark.parametrize(
    ("module", "normalize"),
    [
        (Attribute, True),
        (Scanned, False),
        *(pytest.param(module, False, marks=pytest.mark.slow) for module in (Attribute, Remat)),
    ],
)
def test_linen(module, normalize: bool):
    act, step = activation(NAME, normalize=normalize), partial(linen_step, module)
    want = jax.jit(lambda: step(lambda x: act(x)))()
    assert_close(jax.jit(lambda: step(act))(), want)  # closed over
    assert_close(jax.jit(step)(act), want)  # traced: the module is built inside
    got = jax.jit(lambda acts: jax.lax.map(step, acts))(stack([act, act]))
    assert_close(jax.tree.map(lambda leaf: leaf[1], got), want)


def test_linen_inside_compact():
    assert_close(linen_step(lambda act: Named(), None), linen_step(Attribute, activation(NAME)))


@few
def test_linen_modules_compare_by_their_activation():
    assert Attribute(activation("relu(x)")) == Attribute(activation("relu(x)")) != Attribute(activation("abs(x)"))
    assert hash(Attribute(activation("relu(x)"))) == hash(Attribute(activation("relu(x)")))
    static = jax.jit(lambda x, model: model.act(x), static_argnums=1)
    static(X, Attribute(activation("relu(x)")))
    static(X, Attribute(activation("relu(x)")))
    assert static._cache_size() == 1  # type: ignore[attr-defined]


@few
@pytest.mark.parametrize("normalize", [pytest.param(False, marks=pytest.mark.slow), True])
def test_nnx(normalize: bool):
    act = activation(NAME, normalize=normalize)
    want, want_gradient = nnx_step(lambda x: act(x))
    for step in (nnx_step, jax.jit(nnx_step), jax.jit(partial(nnx_step, wrap=nnx.data))):
        got, gradient = step(act)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        assert_close(nnx.to_pure_dict(gradient), nnx.to_pure_dict(want_gradient))


def test_nnx_static_attribute():
    graph, state = nnx.split(Nnx(nnx.static(activation(NAME)), nnx.Rngs(0)))
    again, _ = nnx.split(Nnx(activation(NAME), nnx.Rngs(1)))
    assert graph == again and hash(graph) == hash(again)
    assert set(nnx.to_pure_dict(state)) == {"inner", "outer"}
    nnx.jit(nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), activation(NAME)))(BATCH)


@few
def test_checkpoint_and_scan():
    @jax.jit
    def run(act, x):
        body = jax.checkpoint(lambda x, _: (act(x), None))
        return jax.grad(lambda x: jax.lax.scan(body, x, None, length=3)[0].sum())(x)

    act = activation("add(tanh(x),swish(x))")
    want = jax.grad(lambda x: act(act(act(x))).sum())(X)
    np.testing.assert_allclose(run(act, X), want, rtol=1e-5, atol=1e-6)


# Normalization

# name, kinks
MOMENTS = [
    ("x", ()),
    ("relu(x)", (0,)),
    ("abs(sub(x,one(x)))", (1,)),
    ("hard_sigmoid(x)", (-2.5, 2.5)),
    ("max(sigmoid(x),square(x))", (-0.6, 0.0, 0.8)),
    ("relu(sub(exp(x),erfc(negative(one(x)))))", (math.log(scipy.special.erfc(-1)),)),
    ("elu(x)", (0,)),
    ("selu(x)", (0,)),
    ("swish(x)", ()),
    ("exp(x)", ()),
    ("sinh(sinh(tanh(x)))", ()),
    ("square(square(x))", ()),
    ("sigmoid(sigmoid(sigmoid(x)))", ()),
    ("sqrt_abs(x)", (0,)),
    ("sin(exp(x))", ()),
    ("reciprocal(cosh(x))", ()),
    ("div(x,abs(x))", (0,)),
    ("bessel_i0e(square(x))", ()),
]


@pytest.mark.parametrize(("name", "kinks"), MOMENTS, ids=[name for name, _ in MOMENTS])
def test_normalized_moments(name: str, kinks: tuple[float, ...]):
    act = activation(name, normalize=True)
    with jax.enable_x64(True):
        edges = [-16.0, *kinks, 16.0]
        total = np.zeros(3)
        for low, high in pairwise(edges):
            # The tanh-sinh rule, which forgives whatever happens at an edge.
            t = np.linspace(-3.3, 3.3, 20001)
            u = np.pi / 2 * np.sinh(t)
            x = (low + high) / 2 + (high - low) / 2 * np.tanh(u)
            inside = (x > low) & (x < high)
            dx = (high - low) / 2 * np.pi / 2 * np.cosh(t) / np.cosh(u) ** 2 * (t[1] - t[0])
            weight = np.where(inside, dx * np.exp(-x * x / 2) / math.sqrt(2 * math.pi), 0)
            y = np.where(inside, np.asarray(act(np.where(inside, x, (low + high) / 2))), 0)
            total += [weight.sum(), (weight * y).sum(), (weight * y * y).sum()]
    np.testing.assert_allclose(total, [1, 0, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "mean", "variance"),
    [
        ("relu(x)", 1 / math.sqrt(2 * math.pi), 0.5 - 0.5 / math.pi),
        ("square(x)", 1, 2),
        ("exp(x)", math.exp(0.5), math.exp(2) - math.exp(1)),
        ("sinh(x)", 0, (math.exp(2) - 1) / 2),
        ("erf(x)", 0, 2 / math.pi * math.asin(2 / 3)),
        ("square(square(square(square(x))))", 15 * 13 * 11 * 9 * 7 * 5 * 3, None),
        ("reciprocal(sqrt_abs(sqrt_abs(x)))", 2**-0.125 * math.gamma(0.375) / math.sqrt(math.pi), None),
    ],
)
def test_moments_known_exactly(name: str, mean: float, variance: float | None):
    got, scale = activation(name, normalize=True).constants
    np.testing.assert_allclose(got, mean, rtol=1e-9, atol=1e-12)
    if variance is not None:
        np.testing.assert_allclose(scale**-2, variance, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("reciprocal(x)", "do not converge near x = 1"),
        ("reciprocal(sub(x,one(x)))", "x = 1"),
        ("reciprocal(sub(x,exp(tanh(one(x)))))", r"x = 2\.14"),
        ("reciprocal(sqrt_abs(x))", "converge"),
        ("exp(square(x))", "inf at x"),
        ("exp(mul(square(x),sigmoid(zero(x))))", "too fast"),
        ("exp(exp(x))", "inf at x"),
        ("pow(x,x)", "nan at x = -"),
        ("div(zero(x),zero(x))", "nan at x"),
        ("one(x)", "constant, 1"),
        ("zero(x)", "constant, 0"),
        ("sigmoid(one(x))", "constant, 0.731"),
        ("sub(x,x)", "constant"),
        ("prod_n(exp(cosh(zero(x))),zero(x))", "constant"),
    ],
)
def test_moments_that_do_not_exist(name: str, why: str):
    with pytest.raises(aqx.InputError, match=f"normalize=True: .*{why}") as error:
        activation(name, normalize=True)
    assert "\n" not in str(error.value)


def test_normalize_while_tracing():
    traced = jax.jit(lambda x: activation("gelu(x)", normalize=True)(x))
    np.testing.assert_allclose(traced(X), activation("gelu(x)", normalize=True)(X), rtol=1e-5)
