"""Functions of two inputs, as of gated units: written, evaluated, differentiated, normalised, learnt, stacked."""

from __future__ import annotations

import pickle
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from operator_oracles import NUMPY
from strategies import trees
from test_kernel import assert_same, lowered

import aqx
from aqx import kernel
from aqx.activation import stack
from aqx.errors import InputError, ParseError
from aqx.population import stack_of, unstack
from aqx.simplify import full_name, simplest
from aqx.spectra.naming import Namer
from aqx.tree import Tree, parse, parse_schema

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GRID = np.linspace(-2, 2, 5)
X, Y = (each.ravel() for each in np.meshgrid(GRID, GRID + 0.3))
FORMS = ("switch", "interpreted")
# exp(x·y)·tanh(y) + 0.5·x², with its partial derivatives by hand.
NAME = "add(mul(exp(mul(x,y)),tanh(y)),mul(0.5,square(x)))"


def by_numpy(tree: Tree, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The value by NumPy and SciPy alone."""
    if not tree.args:
        return {"x": x, "y": y}[tree.name] if tree.name in "xy" else np.full_like(x, float(tree.name))
    return NUMPY[tree.name](*(by_numpy(arg, x, y) for arg in tree.args))


def few(name: str, *more: str) -> aqx.Activation:
    """The function, with a table of few operators: less to compile."""
    return Namer([*(node.name for node in parse(name).nodes), *more])([str(parse(name))])[0]


def test_names():
    tree = parse("mul( swish(x), y )")
    assert str(tree) == "mul(swish(x),y)" and (tree.inputs, tree.shape, tree.size) == (2, "binary(unary(x),y)", 2)
    assert tree != parse("mul(swish(x),x)") and len({tree, parse(str(tree)), parse("mul(swish(y),x)")}) == 2
    assert parse("relu(y)").inputs == 2 and parse("relu(x)").inputs == 1 and parse_schema("unary(y)").inputs == 2
    with pytest.raises(ParseError, match="unknown operator 'y': it is the second input"):
        parse("y")
    assert [full_name(name) for name in ("glu", "reglu", "geglu", "swiglu", "bilinear", "leaky_relu_squared")] == [
        *(f"mul({gate}(x),y)" for gate in ("sigmoid", "relu", "gelu", "swish")),
        *("mul(x,y)", "square(max(x,mul(0.5,x)))"),
    ]
    assert simplest("mul(y,negative(sigmoid(x)))") == "negative(mul(sigmoid(x),y))"
    assert simplest("mul(mul(x,sigmoid(x)),identity(y))") == "mul(swish(x),y)"
    assert simplest("mul(x,one(y))") == "mul(x,one(y))" and simplest("mul(x,one(x))") == "x"
    assert str(aqx.parametrised("mul(swish(x),y)")) == "mul(1.0,mul(swish(mul(1.0,x)),mul(1.0,y)))"


@settings(max_examples=25)
@given(trees(["tanh", "mul", "max", "sub", "sum_n"], max_leaves=6, constants=True, gated=True))
def test_values_names_and_pickles_of_any_tree(tree: Tree):
    assert parse(str(tree)) == tree
    act = aqx.activation(tree)
    again = pickle.loads(pickle.dumps(act))
    assert again == act and hash(again) == hash(act) and again.name == str(tree) and again.inputs == act.inputs
    assert unstack(stack([act, act]), 0) == act
    if act.inputs == 2 and "x" not in tree.leaves:
        with pytest.raises(InputError, match="takes y alone"):
            stack_of([str(tree)] * 2)
    else:
        assert unstack(stack_of([str(tree)] * 2), 1) == act
    x, y = X.astype(np.float32), Y.astype(np.float32)
    got = act(x, y) if act.inputs == 2 else act(x)
    np.testing.assert_allclose(got, by_numpy(tree, x, y), rtol=1e-5, atol=1e-6)
    assert np.shape(got) == x.shape


def test_a_space_counts_and_finds_them():
    space = aqx.Space.gated()
    assert len(space) == 7 * 27**2 + 27**2 and repr(aqx.Space.preset("gated")) == repr(space)
    assert space.index("mul(swish(x),identity(y))") == 2 * 27 * 27 + space.choices["unary"].index("swish") * 27 + 2
    for index in (0, 1, 27, 5102, 5103, len(space) - 1):
        assert space.index(space[index]) == index
    assert "mul(x,y)" not in space and "add(tanh(x),exp(x))" not in space
    assert len(aqx.Space.gated(["relu", "tanh", "mul"])) == 8
    assert {tree.inputs for tree in space.sample(20, 0)} == {2}


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("mul(swish(x),y)", (1.0,), r"'mul\(swish\(x\),y\)'\) takes two inputs, but got x alone; call it as act\(x, y"),
        ("relu(x)", (1.0, 2.0), r"'relu\(x\)'\) takes one input, but got x and y; call it as act\(x\)"),
        ("mul(x,y)", (np.ones(3), np.ones(2)), r"x \[3\] and y \[2\] do not broadcast"),
        ("mul(x,y)", (1.0, 1j), "y has dtype complex64"),
    ],
)
def test_a_wrong_call_is_one_line(name: str, given: tuple, why: str):
    act = aqx.activation(name)
    for call in (act, jax.jit(act), lambda *given: jax.jit(lambda act, *given: act(*given))(act, *given)):
        with pytest.raises(InputError, match=why if call is act or "takes" not in why else "takes") as caught:
            call(*given)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="takes"):
        aqx.nnx.Act(name)(*given) if "takes" in why else aqx.activation("relu(x)")(1.0, y=2.0)


@pytest.mark.parametrize(
    "dtypes", [("float32", "bfloat16"), ("float16", "float16"), ("int32", "bfloat16"), (None, None)]
)
def test_inputs_broadcast_and_promote_as_a_product_does(dtypes: tuple):
    x, y = jnp.full((3, 1), 2, dtypes[0] or "int32"), jnp.full((2, 1, 4), 3, dtypes[1] or "int32")
    act, product = few("mul(x,y)"), x * y
    want = product.dtype if jnp.issubdtype(product.dtype, jnp.floating) else jnp.float32
    for got in (act(x, y), jax.jit(lambda act, x, y: act(x, y))(act, x, y)):
        assert (got.shape, got.dtype) == (product.shape, want)
        np.testing.assert_array_equal(np.asarray(got, float), np.asarray(product, float))
    half = jnp.ones(2, jnp.bfloat16)
    assert act(half, 2.0).dtype == act(2.0, half).dtype == jnp.bfloat16 and act(2, 3).dtype == jnp.float32


def partials(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    e, t = np.exp(x * y), np.tanh(y)
    return {
        "": e * t + x * x / 2,
        "x": y * e * t + x,
        "y": x * e * t + e * (1 - t * t),
        "xx": y * y * e * t + 1,
        "xy": e * t + x * y * e * t + y * e * (1 - t * t),
        "yy": x * x * e * t + 2 * x * e * (1 - t * t) - 2 * t * e * (1 - t * t),
    }


@pytest.mark.parametrize("form", ["closed", *FORMS])
def test_derivatives_of_all_orders_are_the_analytic_ones(form: str):
    act = few(NAME)

    def found(act, x, y):
        by = {"x": 0, "y": 1}
        some = {"": act}
        for name in ("x", "y", "xx", "xy", "yx", "yy"):
            some[name] = jax.grad(some[name[:-1]], by[name[-1]])
        values = {name: jax.vmap(f)(x, y) for name, f in some.items()}
        values["along"] = jax.jvp(act, (x, y), (x, y))[1]
        values["reverse of forward"] = jax.vmap(jax.jacrev(jax.jacfwd(act, 1), 0))(x, y)
        return values

    x, y = X.astype(np.float32), Y.astype(np.float32)
    with kernel.forced(form if form != "closed" else "switch"):
        got = jax.jit(partial(found, act))(x, y) if form == "closed" else jax.jit(found)(act, x, y)
    want = partials(X, Y)
    want |= {"yx": want["xy"], "reverse of forward": want["xy"], "along": X * want["x"] + Y * want["y"]}
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_stacks_scans_and_rematerialisation(form: str):
    names = ["mul(tanh(x),y)", "max(abs(x),y)", "sub(tanh(x),y)"]
    acts = Namer(["mul", "max", "sub", "tanh", "abs"])(names)
    stacked = stack(acts)
    x, y = X.astype(np.float32), Y.astype(np.float32)

    def slopes(act, x, y):
        return jax.grad(lambda x, y: (jax.checkpoint(lambda x, y: act(x, y))(x, y) ** 2).sum(), (0, 1))(x, y)

    def scanned(act, x, y):
        return jax.lax.scan(lambda carry, _: (act(carry, y), None), x, length=2)[0]

    want = [(act(x, y), slopes(act, x, y), scanned(act, x, y)) for act in acts]
    for axes, ins in (
        ((0, None, None), (x, y)),
        ((0, 0, None), (np.stack([x] * 3), y)),
        ((0, None, 1), (x, np.stack([y] * 3, 1))),
    ):
        with kernel.forced(form):
            got = jax.jit(jax.vmap(lambda act, *ins: (act(*ins), slopes(act, *ins), scanned(act, *ins)), axes))(
                stacked, *ins
            )
        for row, each in enumerate(want):
            jax.tree.map(lambda a, b, row=row: np.testing.assert_allclose(a[row], b, rtol=1e-5, atol=1e-6), got, each)


def test_the_kernel_agrees_with_the_switch_and_lowers_for_cuda():
    act = few("max(mul(tanh(x),y),sub(x,0.5))")

    def some(act, x, y):
        value, pull = jax.vjp(lambda act, x, y: act(x, y), act, x, y)
        _, (dx, dy) = pull(value)[0], pull(value)[1:]
        return value, dx, dy, jax.jvp(jax.grad(lambda y: act(x, y).sum()), (y,), (y,))

    x, y = (jnp.asarray(np.random.default_rng(seed).normal(size=(3, 130)), "float32") for seed in (0, 1))
    assert_same(some, act, x, y)
    for dtype in ("float16", "bfloat16", "float32"):
        shape = jax.ShapeDtypeStruct((3, 700), dtype)
        text = lowered(lambda x, y: some(act_of(act), x, y), shape, shape)
        assert "aqx_values_0" in text or "aqx_values_1" in text or "triton" in text


def act_of(act: aqx.Activation) -> aqx.Activation:
    """The function with traced opcodes, in a function of its inputs alone."""
    opcodes = tuple(jax.lax.optimization_barrier(jnp.asarray(opcode)) for opcode in act.opcodes)
    return aqx.Activation(act.schema, act.table, opcodes, act.constants, act.numbers)


@pytest.mark.parametrize(
    "name", ["mul(swish(x),y)", "max(x,y)", "add(relu(x),abs(sub(x,y)))", "relu(y)", "div(x,cosh(y))"]
)
def test_normalised_functions_have_mean_0_and_variance_1(name: str):
    act = aqx.activation(name, normalize=True)
    mean, scale = act.constants
    # Brute force: the trapezoid rule on a fine grid, rotated so that the kink at x = y lies on nodes.
    u = np.linspace(-9, 9, 2401)
    weight = np.exp(-u * u / 2) / np.sqrt(2 * np.pi) * (u[1] - u[0])
    a, b = u[:, None], u[None, :]
    x, y = ((a + b) / np.sqrt(2), (a - b) / np.sqrt(2)) if "sub" in name or "max" in name else (a + 0 * b, b + 0 * a)
    values, weights = by_numpy(parse(name), x, y), weight[:, None] * weight[None, :]
    brute = (values * weights).sum()
    deviation = np.sqrt((values**2 * weights).sum() - brute**2)
    np.testing.assert_allclose([mean, scale], [brute, 1 / deviation], rtol=1e-5, atol=1e-6)
    got = act(x[::600, ::600].astype(np.float32), y[::600, ::600].astype(np.float32))
    np.testing.assert_allclose(got, (values[::600, ::600] - brute) / deviation, rtol=1e-4, atol=1e-4)


def test_known_moments_and_those_that_do_not_exist():
    assert aqx.activation("mul(x,y)", normalize=True).constants == pytest.approx((0, 1), abs=1e-12)
    mean, scale = aqx.activation("max(x,y)", normalize=True).constants
    assert (mean, scale**-2) == pytest.approx((np.pi**-0.5, 1 - 1 / np.pi), rel=1e-6)
    mean, scale = aqx.activation("div(sub(x,y),abs(sub(x,y)))", normalize=True).constants  # a sign jumps
    assert (mean, scale) == pytest.approx((0, 1), abs=1e-4)
    for name, why in (("div(x,y)", "do not converge near x"), ("one(y)", "constant"), ("exp(mul(x,y))", "it is inf")):
        with pytest.raises(InputError, match=why):
            aqx.activation(name, normalize=True)
    inside = jax.jit(lambda x: aqx.activation("mul(x,y)", normalize=True)(x, x))(2.0)
    assert float(inside) == pytest.approx(4)


def test_normalised_and_traced():
    act = aqx.activation("mul(tanh(x),y)", normalize=True)
    traced = few("mul(tanh(x),y)")
    traced = aqx.Activation(traced.schema, traced.table, traced.opcodes, act.constants, traced.numbers)
    x, y = X.astype(np.float32), Y.astype(np.float32)
    for form in FORMS:
        with kernel.forced(form):
            np.testing.assert_allclose(jax.jit(lambda a, x, y: a(x, y))(traced, x, y), act(x, y), rtol=1e-5)


class Gated(nn.Module):
    act: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(self.act(nn.Dense(4)(x), nn.Dense(4)(x)))


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_linen_learns_the_constants_of_a_gate(per: str):
    name = str(aqx.parametrised("mul(tanh(x),y)"))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
    for module in (Gated(aqx.linen.Act(name, per=per)), Gated(aqx.linen.Learning.of(aqx.activation(name), per))):
        variables = module.init(jax.random.key(0), x)
        constants = next(value for key, value in variables["params"].items() if "c0" in value)
        assert {key: value.shape for key, value in constants.items()} == dict.fromkeys(
            ("c0", "c1", "c2"), (4,) if per == "channel" else ()
        )
        gradient = jax.grad(lambda v, module=module: (module.apply(v, x) ** 2).sum())(variables)["params"]
        assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(gradient))
        frozen = aqx.activation(name).frozen({"c0": 2.0, "c1": 0.5, "c2": 1.0})
        assert frozen.name == "mul(2.0,mul(tanh(mul(0.5,x)),mul(1.0,y)))" and frozen.inputs == 2


def test_nnx_learns_and_a_plain_function_is_an_attribute():
    module = aqx.nnx.Act("mul(0.5,mul(x,y))", per="channel", features=2, rngs=nnx.Rngs(0))
    x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    np.testing.assert_allclose(module(x, y), [1.5, 4])
    gradient = nnx.grad(lambda module: module(x, y).sum())(module)
    np.testing.assert_allclose(gradient["c0"][...], [3, 8])
    with pytest.raises(InputError, match="takes two inputs"):
        module(x)


def test_a_population_of_gates_trains_as_each_does_alone():
    acts = Namer(["mul", "tanh", "abs", "add"])(["mul(tanh(x),y)", "add(abs(x),y)"])

    def fn(act, seed):
        key = jax.random.key(seed)
        x, y = jax.random.normal(key, (2, 8))
        step = jax.grad(lambda w: (act(w * x, y) ** 2).mean())
        return {"w": jax.lax.fori_loop(0, 5, lambda _, w: w - 0.1 * step(w), jnp.float32(1.0))}

    found = aqx.population(fn)(stack(acts), [0, 1])["w"]
    for row, act in enumerate(acts):
        np.testing.assert_allclose(found[row], fn(act, row)["w"], rtol=1e-5)
