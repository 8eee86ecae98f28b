"""Operators: what belongs to the sets, and each operator's values and derivatives against many digits of mpmath."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from operator_oracles import NUMPY, UNARY, binary

from aqx.errors import InputError
from aqx.operators import KINDS, SETS, operator_names, operator_table, register

PAPER_UNARY = (
    "zero one identity negative abs reciprocal square exp erf erfc sinh cosh tanh expm1 sigmoid log_sigmoid arcsinh "
    "arctan bessel_i0e bessel_i1e relu elu selu swish softplus softsign hard_sigmoid"
).split()
BINARY = "add sub mul div pow max min".split()
N_ARY = "sum_n prod_n max_n min_n".split()
AQUASURF = "elish leakyrelu mish gelu".split()
EXTENDED = "sin cos sqrt_abs log1p_abs cube gaussian squareplus isru relu6 relu_squared hard_swish hard_tanh".split()
ALL_UNARY = (*PAPER_UNARY, *AQUASURF, *EXTENDED)

ULPS = 16
# derivatives that cross 0 between -3 and 3: there an error of some units of 1/8 counts, not of the vanishing derivative
CROSSING = {"swish", "elish", "mish", "gelu", "bessel_i1e", "hard_swish"}


def fn(name: str):
    return operator_table().by_name[name].fn


@cache
def points(dtype) -> np.ndarray:
    """200 points of [-30, 30], and more between, around 0, far out, and where exp over- or underflows."""
    decades = 10.0 ** np.concatenate([np.linspace(-37, 37, 38), np.linspace(-7, 5, 50)])
    edge = np.linspace(60, 110, 60)
    kinks = [0, -1, 1, -2.4999, -2.5, 2.5, -3, 3, 6, 1e4, -1e4, 2.9e38, -2.9e38, 1.2e-38, -1.2e-38]
    core = [np.linspace(-30, 30, 200), np.linspace(-6, 6, 151), np.random.default_rng(0).normal(size=50)]
    single = np.concatenate([*core, decades, -decades, edge, -edge, kinks]).astype(np.float32)
    if dtype == np.float32:
        return np.unique(single)
    edge = np.linspace(660, 760, 40)
    return np.unique(np.concatenate([single.astype(np.float64), np.linspace(-12, 12, 50), edge, -edge]))


@cache
def truth(name: str, x: float) -> tuple:
    """Value and derivative in many digits."""
    value, slope = UNARY[name]
    return mp.mpf(value(mp.mpf(x))), mp.mpf(slope(mp.mpf(x)))


def representable(t, dtype) -> bool:
    """Whether a number is 0 or a normal one of the dtype."""
    info = np.finfo(dtype)
    return t == 0 or float(info.tiny) <= abs(t) <= float(info.max)


def errors(got: np.ndarray, true: Sequence, floor: np.ndarray) -> np.ndarray:
    """Errors in units in the last place, of the floor where that is larger; subnormal numbers may be 0."""
    info = np.finfo(got.dtype)
    out = []
    for g, t, least in zip(got.tolist(), true, floor, strict=True):
        if abs(t) > float(info.max):
            out.append(0 if np.isinf(g) and (g > 0) == (t > 0) else np.inf)
        elif not np.isfinite(g):
            out.append(np.inf)
        elif abs(t) < float(info.tiny):
            out.append(0 if abs(g - float(t)) <= float(info.tiny) else np.inf)
        else:
            out.append(float(abs(mp.mpf(g) - t)) / float(np.spacing(got.dtype.type(max(abs(float(t)), least)))))
    return np.array(out)


def assert_right(name: str, got: np.ndarray, true: Sequence, at: np.ndarray, floor: np.ndarray):
    wrong = errors(got, true, floor)
    worst = int(np.argmax(wrong))
    assert wrong[worst] <= ULPS, (
        f"{name} at {at[worst]!r}: {got[worst]!r}, not {float(true[worst])!r}, {wrong[worst]:.3g}"
    )


# Sets


def test_sets_hold_what_the_paper_and_aquasurf_name():
    assert set(SETS["paper"]) == {*PAPER_UNARY, *BINARY, *N_ARY}
    assert set(SETS["aquasurf"]) == {*SETS["paper"], *AQUASURF}
    assert set(SETS["extended"]) == {*SETS["aquasurf"], *EXTENDED} == set(operator_table().by_name)
    assert all(len(names) == len(set(names)) for names in SETS.values())


def test_every_operator_has_its_kind_opcode_and_oracle():
    table = operator_table()
    assert [op.name for op in table.by_kind["unary"]] == list(ALL_UNARY)
    assert [op.name for op in table.by_kind["binary"]] == BINARY
    assert [op.name for op in table.by_kind["n-ary"]] == N_ARY
    for kind in KINDS:
        assert [table.opcodes[op.name] for op in table.by_kind[kind]] == list(range(len(table.by_kind[kind])))
    assert set(UNARY) == set(ALL_UNARY)
    assert set(NUMPY) == set(table.by_name)


# Unary


@pytest.mark.parametrize("name", ALL_UNARY)
def test_oracle_agrees_with_itself_and_with_scipy(name):
    value, slope = UNARY[name]
    for x in (-7.3, -2.1, -1.3, -0.6, 0.4, 1.7, 2.9, 8.2):
        assert float(mp.diff(value, mp.mpf(x))) == pytest.approx(float(slope(mp.mpf(x))), rel=1e-12, abs=1e-25)
        assert float(NUMPY[name](np.array(x))) == pytest.approx(float(value(mp.mpf(x))), rel=1e-12)


@pytest.mark.parametrize("name", ALL_UNARY)
def test_float32_values_and_derivatives_are_right(name):
    check_unary(name, np.float32)


@pytest.mark.parametrize("name", ALL_UNARY)
def test_float64_values_and_derivatives_are_right(name):
    with jax.enable_x64(True):
        check_unary(name, np.float64)


def check_unary(name: str, dtype):
    x = points(dtype)
    values, slopes = zip(*(truth(name, t) for t in x.tolist()), strict=True)
    (got, got_slopes), reverse = jax.jit(
        lambda x: (jax.jvp(fn(name), (x,), (jnp.ones_like(x),)), jax.vmap(jax.grad(fn(name)))(x))
    )(x)
    assert got.dtype == got_slopes.dtype == reverse.dtype == dtype
    assert_right(name, np.asarray(got), values, x, np.zeros(len(x)))
    keep = np.array([representable(value, dtype) for value in values])
    floor = np.where((np.abs(x) < 3) & (name in CROSSING), 1 / 8, 0)[keep]
    for g in (got_slopes, reverse):
        true = [slope for slope, kept in zip(slopes, keep, strict=True) if kept]
        assert_right(f"d {name}", np.asarray(g)[keep], true, x[keep], floor)


@pytest.mark.parametrize("name", ALL_UNARY)
def test_second_derivatives_are_right_and_forward_is_reverse(name):
    x = np.array([-20, -7.3, -2.2, -1.7, -0.6, 0.4, 1.6, 2.4, 7.3, 20, -1e4, 0, 1e4], np.float32)
    f = fn(name)
    second, forward = jax.jit(lambda x: (jax.vmap(jax.grad(jax.grad(f)))(x), jax.vmap(jax.jacfwd(jax.jacfwd(f)))(x)))(x)
    np.testing.assert_allclose(forward, second, rtol=1e-4, atol=1e-6)
    true = [float(mp.diff(UNARY[name][1], mp.mpf(float(t)))) for t in x[:10]]
    np.testing.assert_allclose(second[:10], true, rtol=1e-3, atol=1e-6)
    assert not np.isnan(second).any()


SMOOTH_AT_0 = {
    "tanh": 0,
    "sigmoid": 0,
    "softplus": 0.25,
    "swish": 0.5,
    "mish": 0.64,
    "gelu": 2 / math.sqrt(2 * math.pi),
}


@pytest.mark.parametrize("name", SMOOTH_AT_0)
def test_second_derivatives_at_0(name):
    assert float(jax.grad(jax.grad(fn(name)))(0.0)) == pytest.approx(SMOOTH_AT_0[name], abs=1e-6)


KINKS = {
    "abs": {0: 0},
    "relu": {0: 0},
    "leakyrelu": {0: 0.01},
    "sqrt_abs": {0: 0},
    "log1p_abs": {0: 0},
    "relu6": {0: 0, 6: 0},
    "hard_tanh": {-1: 0, 1: 0},
    "hard_sigmoid": {-2.5: 0, 2.5: 0},
    "hard_swish": {-3: 0, 3: 1},
    "elu": {0: 1},
    "elish": {0: 0.5},
}


@pytest.mark.parametrize(("name", "x", "slope"), [(name, x, d) for name, at in KINKS.items() for x, d in at.items()])
def test_derivative_at_a_kink(name, x, slope):
    assert float(jax.grad(fn(name))(jnp.float32(x))) == pytest.approx(slope)


LIMITS = {  # at -inf and inf; None where there is none
    "tanh": (-1, 1),
    "sigmoid": (0, 1),
    "log_sigmoid": (-np.inf, 0),
    "sinh": (-np.inf, np.inf),
    "cosh": (np.inf, np.inf),
    "erfc": (2, 0),
    "bessel_i1e": (0, 0),
    "elu": (-1, np.inf),
    "swish": (0, np.inf),
    "elish": (0, np.inf),
    "mish": (0, np.inf),
    "gelu": (0, np.inf),
    "softplus": (0, np.inf),
    "softsign": (-1, 1),
    "isru": (-1, 1),
    "squareplus": (0, np.inf),
    "gaussian": (0, 0),
    "hard_swish": (0, np.inf),
    "reciprocal": (0, 0),
}


@pytest.mark.parametrize("name", LIMITS)
def test_an_overflowed_argument_gives_the_limit(name):
    np.testing.assert_array_equal(fn(name)(jnp.array([-jnp.inf, jnp.inf])), np.float32(LIMITS[name]))


@pytest.mark.parametrize("name", [name for name in ALL_UNARY if name not in ("zero", "one")])
def test_nan_stays_nan(name):
    assert np.isnan(fn(name)(jnp.float32(jnp.nan)))


def test_reciprocal_knows_the_sign_of_zero():
    np.testing.assert_array_equal(fn("reciprocal")(jnp.array([0.0, -0.0])), np.array([np.inf, -np.inf]))


@pytest.mark.parametrize("name", ALL_UNARY)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_keeps_dtype_and_shape(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        for shape in ((), (3,), (2, 1, 3), (0, 2)):
            x = jax.ShapeDtypeStruct(shape, dtype)
            y, slope = jax.eval_shape(lambda x: jax.jvp(fn(name), (x,), (x,)), x)
            assert (y.dtype, y.shape) == (slope.dtype, slope.shape) == (x.dtype, shape)


@pytest.mark.parametrize("name", ALL_UNARY)
def test_narrow_floats_are_rounded_once(name):
    x = jnp.linspace(-4, 4, 41, dtype=jnp.bfloat16)
    narrow, exact = jax.jit(lambda x: (fn(name)(x), fn(name)(x.astype(jnp.float32))))(x)
    np.testing.assert_allclose(np.asarray(narrow, np.float32), exact, rtol=2**-7, atol=1e-30)


@pytest.mark.parametrize("name", ALL_UNARY)
def test_a_python_float_promotes_nothing(name):
    assert jax.eval_shape(lambda: fn(name)(0.5)).dtype == jnp.float32
    assert jax.eval_shape(lambda: fn(name)(0.5) * jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ALL_UNARY)
def test_arrays_and_single_numbers_agree(name):
    x = jnp.linspace(-3, 3, 7).reshape(7, 1)
    together, alone = jax.jit(lambda x: (fn(name)(x), jax.vmap(jax.vmap(fn(name)))(x)))(x)
    np.testing.assert_allclose(together, alone, rtol=1e-6)


# Binary and n-ary


@cache
def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)

    def numbers():
        sign, size = rng.choice([-1, 1], 150), 10 ** rng.uniform(-25, 25, 150)
        return rng.permutation(np.concatenate([rng.uniform(-30, 30, 150), rng.normal(size=150), sign * size]))

    x, y = numbers(), numbers()
    x[:40], y[:10], y[10:20], y[20:30] = 0, 0, 1, 2  # zero base; exponents 0, 1, 2
    y[40:120] = rng.integers(-6, 7, 80)
    x[120:240], y[120:240] = np.abs(x[120:240]), rng.uniform(-3, 3, 120)
    x[240:250] = y[240:250]  # ties
    x[250:254], y[250:254] = (-1e4, 1e4, 1e-20, 1e4), (2, 0.5, 1.5, -3)
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", BINARY)
def test_binary_values_and_partials_are_right(name, dtype):
    with jax.enable_x64(dtype == np.float64):
        x, y = (numbers.astype(dtype) for numbers in pairs())
        true = [binary(name, float(a), float(b)) for a, b in zip(x, y, strict=True)]
        keep = np.array([t is not None and representable(t[0], dtype) for t in true])
        gradient = jax.jit(jax.vmap(jax.grad(fn(name), (0, 1))))(x, y)
        alone = [jax.jit(jax.vmap(jax.grad(fn(name), i)))(x, y) for i in (0, 1)]
        for got, i in ((fn(name)(x, y), 0), (gradient[0], 1), (gradient[1], 2), (alone[0], 1), (alone[1], 2)):
            right = keep & np.array([t is not None and representable(t[i], dtype) for t in true])
            exact = [t[i] for t, kept in zip(true, right, strict=True) if kept]  # type: ignore[index]
            assert right.sum() > 200
            at = np.stack([x, y], 1)[right]
            assert_right(f"{name}[{i}]", np.asarray(got)[right], exact, at, np.zeros(len(at)))


@pytest.mark.parametrize(
    ("name", "x", "y", "value"),
    [
        ("div", 1.0, 0.0, np.inf),
        ("div", -1.0, 0.0, -np.inf),
        ("div", 0.0, 0.0, np.nan),
        ("pow", -2.0, 0.5, np.nan),
        ("pow", -2.0, 3.0, -8.0),
        ("pow", 0.0, 0.0, 1.0),
        ("pow", 0.0, -1.0, np.inf),
        ("pow", -0.0, -1.0, -np.inf),
        ("pow", np.nan, 0.0, 1.0),
        ("max", np.nan, 1.0, np.nan),
        ("min", 1.0, np.nan, np.nan),
    ],
)
def test_binary_values_follow_ieee(name, x, y, value):
    np.testing.assert_array_equal(fn(name)(jnp.float32(x), jnp.float32(y)), np.float32(value))


PARTIALS_OF_POW = [jax.jit(jax.grad(lambda x, y: fn("pow")(x, y), i)) for i in (0, 1)]


@pytest.mark.parametrize("x", [-3.5, -1.0, -0.0, 0.0, 2.0])
@pytest.mark.parametrize("y", [-2.0, 0.0, 0.5, 1.0, 2.0])
def test_partials_of_pow_that_the_contract_fixes(x, y):
    by_x, by_y = (float(PARTIALS_OF_POW[i](x, y)) for i in (0, 1))
    if y == 0:
        assert by_x == 0
    if x <= 0:
        assert by_y == 0


@pytest.mark.parametrize("name", BINARY)
def test_binary_keeps_dtypes_and_broadcasts(name):
    x = jnp.full((2, 3), 0.5, jnp.bfloat16)
    for y in (2.0, jnp.ones(3, jnp.bfloat16), jnp.bfloat16(2)):
        out, slope = jax.eval_shape(lambda x, y=y: jax.jvp(lambda x: fn(name)(x, y), (x,), (x,)), x)
        assert (out.dtype, out.shape) == (slope.dtype, slope.shape) == (jnp.bfloat16, (2, 3))
    total = jax.eval_shape(jax.grad(lambda y: fn(name)(jnp.ones((2, 3)), y).sum()), jnp.float32(2))
    assert total.shape == ()


@pytest.mark.parametrize("name", BINARY)
def test_binary_second_derivatives(name):
    def along(t):
        return fn(name)(1.5 + t * t, 0.7 + t)

    def exact(t):
        return float(NUMPY[name](1.5 + t * t, 0.7 + t))

    second, h = float(jax.jit(jax.grad(jax.grad(along)))(0.3)), 1e-4
    assert second == pytest.approx((exact(0.3 + h) - 2 * exact(0.3) + exact(0.3 - h)) / h**2, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("name", N_ARY)
def test_n_ary_values_and_partials(name, count):
    xs = np.random.default_rng(count).normal(size=(count, 40)).astype(np.float32)
    args = tuple(jnp.asarray(xs))
    np.testing.assert_allclose(fn(name)(*args), NUMPY[name](*xs.astype(float)), rtol=1e-6, atol=1e-7)
    got = jax.jit(jax.grad(lambda args: fn(name)(*args).sum()))(args)
    for i in range(count):
        others = np.delete(xs.astype(float), i, axis=0)
        true = {
            "sum_n": np.ones(40),
            "prod_n": others.prod(axis=0),
            "max_n": xs.argmax(axis=0) == i,
            "min_n": xs.argmin(axis=0) == i,
        }[name]
        np.testing.assert_allclose(got[i], true, rtol=1e-6)


# Sets of names, registration


def test_operator_names_takes_a_set_or_names():
    assert operator_names("paper") == SETS["paper"]
    assert operator_names(["relu", "max", "relu"]) == ("relu", "max")
    with pytest.raises(InputError, match="'papers' is not a set; give one of paper, aquasurf, extended"):
        operator_names("papers")
    with pytest.raises(InputError, match="'rely' is not an operator"):
        operator_names(["relu", "rely"])


def double(x):
    return x + x


def test_register_makes_a_new_table_and_leaves_the_old_one():
    before = operator_table()
    register("double", double, "unary")
    first = operator_table()
    assert first is not before
    assert "double" not in before.by_name
    assert first.by_name["double"].fn is double
    assert {name: first.opcodes[name] for name in before.opcodes} == before.opcodes
    register("double", double, "unary")
    assert operator_table() is first, "nothing changed, so compiled programs stay"
    register("double", lambda x: 2 * x, "unary")
    second = operator_table()
    assert second is not first
    assert first.by_name["double"].fn is double
    assert [op.name for op in second.operators].count("double") == 1


@pytest.mark.parametrize(("kind", "kept"), [("n-ary", "n-ary"), ("n_ary", "n-ary"), ("binary", "binary")])
def test_register_takes_every_kind(kind, kept):
    register("total", lambda *xs: jnp.stack(xs).sum(axis=0), kind)
    assert operator_table().by_name["total"].kind == kept


@pytest.mark.parametrize(
    "name", ["relu", "x", "unary", "binary", "n_ary", "", "2x", "a b", "a-b", "é", "a" * 65, "f(x)"]
)
def test_register_refuses_names(name):
    with pytest.raises(InputError, match="cannot be registered"):
        register(name, double, "unary")


@pytest.mark.parametrize(
    ("fn", "kind", "reason"),
    [
        (double, "ternary", "kind='ternary' is not a kind of operator; give one of unary, binary, n-ary"),
        (double, "binary", "fails on 2"),
        (lambda x, y: x, "unary", "fails on 1"),
        (lambda x: np.asarray(x), "unary", "fails on 1 JAX array.*TracerArrayConversionError"),
        (lambda x: x.sum(), "unary", "is not elementwise"),
        (lambda x: x > 0, "unary", "is not elementwise"),
        (lambda x: 0.0, "unary", "is not elementwise"),
        (lambda *xs: jnp.stack(xs), "n-ary", "is not elementwise"),
        (3, "unary", "fn=3 is not callable"),
    ],
)
def test_register_refuses_functions_in_one_line(fn, kind, reason):
    before = operator_table()
    with pytest.raises(InputError, match=reason) as caught:
        inspect.unwrap(register)("mine", fn, kind)
    assert "\n" not in str(caught.value)
    assert operator_table() is before


def test_operators_pickle_and_copy_by_name():
    register("double", double, "unary")
    table = operator_table()
    for name in ("relu", "double", "max_n"):
        assert pickle.loads(pickle.dumps(table.by_name[name])) is table.by_name[name]
    assert pickle.loads(pickle.dumps(table)) is table
    assert copy.deepcopy(table) is table


def test_unpickling_an_operator_that_is_not_registered_says_so(monkeypatch):
    from aqx import operators

    register("double", double, "unary")
    data = pickle.dumps(operator_table().by_name["double"])
    monkeypatch.setattr(operators, "_in_force", operators._BUILT_IN)
    with pytest.raises(InputError, match="'double' is not registered here; call aqx.register"):
        pickle.loads(data)
