"""Families evaluated at once: the same values one function at a time, and classes that follow the mathematics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqx.errors import InputError
from aqx.evaluation import (
    Batch,
    Family,
    class_id_of,
    evaluate,
    evaluate_family,
    fingerprints,
    finite_at,
    operator_behaviours,
    probe_points,
)
from aqx.operators import SETS, operator_table, register
from aqx.tree import Tree, parse, parse_schema

SCHEMAS = [
    "x",
    "unary(x)",
    "binary(unary(x),unary(x))",
    "unary(binary(x,unary(x)))",
    "n-ary(unary(x),x,unary(x))",
    "mul(x,unary(x))",
    "binary(unary(unary(x)),tanh(x))",
]
FEW = ("abs", "sinh", "exp", "sub", "pow", "max", "sum_n", "min_n")


def one_at_a_time(tree: Tree, x):
    """The plain way: each operator applied to its arguments, nothing shared."""
    if not tree.args:
        return x
    return operator_table().by_name[tree.name].fn(*(one_at_a_time(arg, x) for arg in tree.args))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_values_are_those_of_one_function_at_a_time(schema):
    family = Family(parse_schema(schema), FEW)
    rng = np.random.default_rng(0)
    indices = np.unique(rng.integers(family.size, size=40))
    points = np.linspace(-4, 4, 33, dtype=np.float32)
    values = evaluate(family.batch(indices), points)
    for row, name in enumerate(family.names(indices)):
        expected = np.asarray(one_at_a_time(parse(name), jnp.asarray(points)))
        np.testing.assert_allclose(values[row], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_piece_of_a_family_gives_the_same_values():
    family = Family(parse_schema("binary(unary(x),unary(x))"), SETS["paper"])
    points = np.linspace(-3, 3, 8, dtype=np.float32)
    whole = evaluate(family.batch(np.arange(family.size)), points)
    shuffled = np.random.default_rng(0).permutation(family.size)
    np.testing.assert_array_equal(evaluate(family.batch(shuffled), points), whole[shuffled])


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_familys_own_program_gives_the_same_values(schema):
    family = Family(parse_schema(schema), FEW)
    points = np.linspace(-4, 4, 16, dtype=np.float32)
    values = evaluate(family.batch(np.arange(family.size)), points)
    for _ in range(2):
        out = evaluate_family(family, points, jnp.full((family.size, 16), 7, jnp.float32))
        np.testing.assert_allclose(np.asarray(out), values, rtol=1e-5, atol=1e-6)


def test_kept_values_follow_the_operators():
    register("own_operator", lambda x: x + 1, "unary")
    family = Family(parse_schema("unary(unary(x))"), ("own_operator", "tanh"))
    batch, points = family.batch(np.arange(family.size)), np.array([1.0])
    first, ids = evaluate(batch, points), fingerprints(batch).ids
    register("own_operator", lambda x: x + 2, "unary")
    np.testing.assert_array_equal(evaluate(batch, points) != first, [[True], [True], [True], [False]])
    np.testing.assert_array_equal((fingerprints(batch).ids != ids).any(axis=1), [True, True, True, False])


def test_indices_ascend_with_names():
    family = Family(parse_schema("unary(binary(x,unary(x)))"), SETS["paper"])
    names = family.names(np.arange(family.size))
    assert names == sorted(names)
    assert len(set(names)) == family.size == 27 * 7 * 27


EQUAL = [
    ("max(x,zero(x))", "relu(x)"),
    ("negative(negative(x))", "x"),
    ("identity(tanh(x))", "tanh(x)"),
    ("mul(x,x)", "square(x)"),
    ("mul(x,sigmoid(x))", "swish(x)"),
    ("sum_n(exp(x),one(x),x)", "sum_n(x,exp(x),one(x))"),
    ("negative(zero(x))", "zero(x)"),
    ("log_sigmoid(negative(x))", "negative(softplus(x))"),
    ("div(x,x)", "div(x,identity(x))"),
]
DIFFERENT = [
    ("relu(x)", "x"),
    ("elu(x)", "selu(x)"),
    ("swish(x)", "mish(x)"),
    ("relu(x)", "relu6(x)"),
    ("div(x,x)", "one(x)"),  # 0/0 is nan
    ("erf(x)", "tanh(x)"),
    ("leakyrelu(x)", "relu(x)"),
]


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_equal_functions_share_a_class(left, right):
    assert class_id_of(parse(left)) == class_id_of(parse(right))


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_different_functions_do_not(left, right):
    assert class_id_of(parse(left)) != class_id_of(parse(right))


def test_symmetries_hold_in_the_whole_of_act_bench():
    family = Family(parse_schema("binary(unary(x),unary(x))"), SETS["paper"])
    ids = fingerprints(family.batch(np.arange(family.size))).ids
    name_to_id = dict(zip(family.names(np.arange(family.size)), map(tuple, ids.tolist()), strict=True))
    for name, class_id in name_to_id.items():
        tree = parse(name)
        if tree.name in ("add", "mul", "max", "min"):
            assert class_id == name_to_id[f"{tree.name}({tree.args[1]},{tree.args[0]})"], name


def test_flags_of_constants_and_lines():
    names = ("zero", "one", "identity", "negative", "relu", "square")
    prints = fingerprints(Family(parse_schema("unary(x)"), names).batch(np.arange(6)))
    flags = dict(zip(sorted(names), zip(prints.constant, prints.affine, strict=True), strict=True))
    assert {name for name, (constant, _) in flags.items() if constant} == {"zero", "one"}
    assert {name for name, (_, affine) in flags.items() if affine} == {"zero", "one", "identity", "negative"}


def test_gradient_at_0_is_that_of_the_chain_rule():
    names = ("relu(reciprocal(x))", "sqrt_abs(x)", "relu(x)", "tanh(x)", "reciprocal(exp(x))")
    for name in names:
        tree = parse(name)
        found = finite_at(Batch.of_trees([tree])).gradient_at_0[0]
        assert found == np.isfinite(jax.grad(lambda x, tree=tree: one_at_a_time(tree, x))(0.0)), name


def test_fingerprints_ignore_signs_of_zero_and_kinds_of_non_finite():
    assert class_id_of(parse("mul(zero(x),negative(x))")) == class_id_of(parse("zero(x)"))
    assert class_id_of(parse("reciprocal(zero(x))")) == class_id_of(parse("negative(reciprocal(zero(x)))"))


def test_probe_points_are_distinct_and_hold_0():
    points = probe_points()
    assert points.dtype == np.float64 and 0.0 in points and len(set(points.tolist())) == 64
    assert (np.abs(points) <= 5).sum() == 60 and np.abs(points).max() < 20


def test_behaviour_tells_operators_of_one_name_apart():
    register("own_operator", lambda x: x + 1, "unary")
    first = operator_behaviours(["own_operator", "tanh"])
    register("own_operator", lambda x: x + 2, "unary")
    second = operator_behaviours(["own_operator", "tanh"])
    assert first["tanh"] == second["tanh"] and first["own_operator"] != second["own_operator"]


@pytest.mark.parametrize("number", [32, 33, 3_000])
def test_arguments_are_bounded(number: int):
    """NumPy's arrays, by whose axes functions of a shape are numbered, have at most 64."""
    tree = parse(f"sum_n({','.join(['x'] * number)})")
    nested = parse(f"abs({tree})")
    if number == 32:
        assert class_id_of(tree) != class_id_of(nested)
        return
    for refused in (
        lambda: class_id_of(tree),
        lambda: class_id_of(nested),
        lambda: Family(parse_schema(str(tree)), ("sum_n",)).size,
    ):
        with pytest.raises(InputError, match=f"sum_n is evaluated with at most 32 arguments, found {number:,}"):
            refused()
