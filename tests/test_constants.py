"""Numbers in functions: written in one way, evaluated as any leaf, one program for all of them."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_helpers import aqx_command, check_error
from hypothesis import given, settings
from operator_oracles import NUMPY
from strategies import numbers, trees

import aqx
from aqx import kernel
from aqx.constants import canonical, text_of
from aqx.errors import InputError, ParseError
from aqx.evaluation import Batch, Family, class_id_of, evaluate, finite_at
from aqx.export import formula, latex, source
from aqx.population import shape_of, stack_of, unstack
from aqx.spectra.naming import Namer
from aqx.tree import Tree, parse, parse_schema

pytestmark = pytest.mark.usefixtures("quick_to_compile")

X = np.linspace(-3, 3, 7, dtype=np.float32)


def by_numpy(tree: Tree, x: np.ndarray) -> np.ndarray:
    """The value by NumPy and SciPy alone."""
    if tree.name == "x":
        return x
    if not tree.args:
        return np.full_like(x, float(tree.name))
    return NUMPY[tree.name](*(by_numpy(arg, x) for arg in tree.args))


# Text


@given(numbers())
def test_a_number_is_written_with_numpys_digits_of_a_float32(number: float):
    text = text_of(number)
    assert text == repr(float(str(np.float32(number))))
    assert np.float32(text).tobytes() == np.float32(number).tobytes()
    assert canonical(text) == text


@pytest.mark.parametrize("exponent", range(-149, 128))
def test_powers_of_two_whose_neighbours_are_unlike_are_written_right(exponent: int):
    assert np.float32(text_of(2.0**exponent)) == np.float32(2.0**exponent)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2", "2.0"),
        ("+.5", "0.5"),
        ("5.", "5.0"),
        ("0.50", "0.5"),
        ("1E-3", "0.001"),
        ("-2", "-2.0"),
        ("1e20", "1e+20"),
    ],
)
def test_spellings_of_one_number_are_one(text: str, written: str):
    assert str(parse(f"mul( {text} ,x)")) == f"mul({written},x)"
    assert str(Tree(text)) == written


@given(trees(constants=True))
def test_parse_undoes_print(tree: Tree):
    assert parse(str(tree)) == tree
    assert str(parse(str(tree))) == str(tree)
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert tree.size == len(tree.nodes) == str(tree).count("(")
    assert len(tree.constants) == sum(leaf != "x" for leaf in tree.leaves)
    assert parse_schema(tree.shape).shape == tree.shape
    assert parse_schema(tree.shape).leaves.count("c") == len(tree.constants)
    shape, operators = shape_of(str(tree))
    assert (shape, operators) == (tree.shape, [node.name for node in tree.nodes])


@pytest.mark.parametrize(
    ("literal", "reason"),
    [
        ("1e999", "1e999 is larger than the largest float32"),
        ("-3.5e38", "-3.5e38 is larger than the largest float32"),
        ("1e-60", "1e-60 is smaller than the smallest float32"),
        ("nan", "nan is not a finite number"),
        ("Infinity", "Infinity is not a finite number"),
        ("0x1", "'0x1' is not a decimal number"),
        ("1_000", "'1_000' is not a decimal number"),
        ("1..2", "'1..2' is not a decimal number"),
        ("1e+", "'1e+' is not a decimal number"),
        ("1٣", "'1٣' is not a decimal number"),
        ("3" * 400, "a number of 400 characters is longer than the 64 allowed"),
        ("--1", "unexpected character '-'"),
        ("c", "c is any constant, which only a schema may hold"),
        ("1(x)", "expected ',' or ')', found '('"),
    ],
)
def test_a_hostile_literal_is_one_line_with_a_caret(literal: str, reason: str):
    with pytest.raises(ParseError) as caught:
        parse(f"max(x,{literal})")
    line, _, caret = str(caught.value).split("\n")
    assert reason in line
    assert len(line) < 300
    assert caret.index("^") == caught.value.position + 2


@pytest.mark.parametrize("wrong", ["nan", float("inf"), "0x1", 1e39, None, "1,2", "x"])
def test_a_wrong_constant_of_a_space_is_named(wrong):
    with pytest.raises(InputError, match="^constants: "):
        aqx.Space("mul(c,x)", constants=(0.5, wrong))


# Spaces


def test_index_and_tree_are_inverse_and_a_fixed_order():
    space = aqx.Space(
        ["mul(c,unary(mul(c,x)))", "max(0.5,unary(x))"], ["tanh", "abs"], constants=(0.25, "0.50", 2, 0.5)
    )
    assert len(space) == 3 * 2 * 3 + 2
    want = [
        f"mul({a},{f}(mul({b},x)))"
        for a, f, b in itertools.product(("0.25", "0.5", "2.0"), ("tanh", "abs"), ("0.25", "0.5", "2.0"))
    ]
    assert [str(tree) for tree in space] == [*want, "max(0.5,tanh(x))", "max(0.5,abs(x))"]
    assert [space.index(tree) for tree in space] == list(range(len(space)))
    assert [str(space[i]) for i in range(18)] == want
    assert "mul(0.25,abs(mul(2,x)))" in space and "mul(0.3,abs(mul(2,x)))" not in space
    again = pickle.loads(pickle.dumps(space))
    assert again == space and list(again) == list(space)
    assert "constants=(0.25, 0.5, 2.0,)" in repr(space)


def test_a_large_space_costs_nothing():
    space = aqx.Space("mul(c,unary(add(c,binary(mul(c,x),unary(x)))))", "extended", constants=range(1, 1001))
    assert space.size > 10**12
    assert space.index(space[10**11]) == 10**11


def test_a_schema_that_lacks_constants_is_refused():
    with pytest.raises(InputError, match=r"constants is empty, but schema 'mul\(c,x\)' needs one"):
        aqx.Space("mul(c,x)")


# Values


@settings(max_examples=30, deadline=None)
@given(trees(["abs", "tanh", "square", "sub", "mul", "max", "sum_n"], max_leaves=5, constants=True))
def test_values_in_bulk_are_numpys(tree: Tree):
    points = X.astype(np.float64)
    with np.errstate(all="ignore"):
        want = by_numpy(tree, points)
        got = evaluate(Batch.of_trees([tree]), points)[0]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert finite_at(Batch.of_trees([parse("mul(0.5,sqrt_abs(x))")])).gradient_at_0.all()


def test_a_family_has_the_names_values_and_order_of_its_trees():
    family = Family(
        parse_schema("binary(c,unary(binary(x,c)))"), ("tanh", "sub", "max"), ("0.5", "1e-05", "-2.0", "0.55")
    )
    names = family.names(np.arange(family.size))
    assert names == sorted(names) and len({*names}) == family.size == 2 * 4 * 2 * 4
    got = evaluate(family.batch(np.arange(family.size)), X.astype(np.float64))
    want = evaluate(Batch.of_trees([parse(name) for name in names]), X.astype(np.float64))
    np.testing.assert_array_equal(got, want)
    assert Family.of_key(*family.key).key == family.key
    assert [family.name(i) for i in range(family.size)] == names


@pytest.mark.parametrize("form", ["switch", "interpreted"])
def test_one_program_serves_all_values_of_a_shape(form: str):
    traced = []

    @jax.jit
    def run(act: aqx.Activation, x: jax.Array) -> jax.Array:
        traced.append(act)
        return act(x)

    acts = Namer(["mul", "sub"])(["mul(0.5,x)", "mul(-3.25,x)", "sub(1e-05,x)"])
    with kernel.forced(form):
        run(acts[0], X), run(acts[0], X)  # the first time in a process, JAX 0.12 traces again once Pallas is imported
        before = len(traced)
        for act in acts:
            want = by_numpy(act.tree, X)
            np.testing.assert_allclose(run(act, X), want, rtol=1e-6)
            np.testing.assert_allclose(act(X), want, rtol=1e-6)
    assert len(traced) == before <= 2


def few(name: str) -> aqx.Activation:
    """The function, with a table of its own operators alone: less to compile."""
    return Namer([node.name for node in parse(name).nodes])([str(parse(name))])[0]


NAME = "mul(1.5,softplus(add(x,mul(0.7,tanh(x)))))"


@pytest.mark.parametrize("form", ["switch", "interpreted"])
@pytest.mark.parametrize("wide", [False, True])
def test_derivatives_by_constants_are_finite_differences(form: str, wide: bool):
    act = few(NAME)

    def value(numbers: tuple, opcodes: tuple, x: jax.Array) -> jax.Array:
        return (aqx.Activation(act.schema, act.table, opcodes, (), numbers)(x) ** 2).sum()

    def plain(a: float, b: float, x: np.ndarray) -> float:
        return float(((a * np.log1p(np.exp(x + b * np.tanh(x)))) ** 2).sum())

    points, h = X[:4].astype(np.float64), 1e-5
    want = [
        (plain(1.5 + h, 0.7, points) - plain(1.5 - h, 0.7, points)) / (2 * h),
        (plain(1.5, 0.7 + h, points) - plain(1.5, 0.7 - h, points)) / (2 * h),
    ]
    with kernel.forced(form), jax.enable_x64(wide):
        x = jnp.asarray(points)
        traced = jax.jit(jax.grad(value))(act.numbers, act.opcodes, x)
        mixed = jax.jit(jax.jacobian(jax.grad(value), 2))(act.numbers, act.opcodes, x)
        closed = jax.jit(jax.grad(partial(value, opcodes=act.opcodes, x=x)))(act.numbers)
        swapped = jax.jit(jax.jacobian(jax.grad(value, 2)))(act.numbers, act.opcodes, x)
    np.testing.assert_allclose(traced, want, rtol=1e-7 if wide else 1e-5)
    np.testing.assert_allclose(closed, want, rtol=1e-7 if wide else 1e-5)
    np.testing.assert_allclose(mixed, swapped, rtol=1e-9 if wide else 1e-4)


@pytest.mark.parametrize("form", ["switch", "interpreted"])
def test_a_stack_is_its_members_and_learns_as_they_do(form: str):
    names = ["mul(0.5,tanh(x))", "mul(-2.0,square(x))", "sub(1.0,abs(x))"]
    acts = Namer(["mul", "tanh", "square", "sub", "abs"])(names)

    def slope(act: aqx.Activation, x: jax.Array):
        def value(numbers, x):
            return aqx.Activation(act.schema, act.table, act.opcodes, (), numbers)(x).sum()

        return jax.grad(value, (0, 1))(act.numbers, x)

    with kernel.forced(form):
        for axis, x in ((None, X), (0, np.stack([X, X + 1, X - 1]))):
            values, slopes = (jax.jit(jax.vmap(f, (0, axis)))(aqx.stack(acts), x) for f in (lambda a, x: a(x), slope))
            for row, act in enumerate(acts):
                at = x if axis is None else x[row]
                np.testing.assert_allclose(values[row], act(at), rtol=1e-5)
                want = slope(act, jnp.asarray(at))
                jax.tree.map(
                    lambda got, want, row=row: np.testing.assert_allclose(got[row], want, rtol=1e-5), slopes, want
                )


def test_normalization_stands_beside_constants():
    name = "mul(3.0,tanh(add(0.5,x)))"
    act = replace(few(name), constants=aqx.activation(name, normalize=True).constants)
    assert (len(act.numbers), len(act.constants)) == (2, 2)
    z = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    assert abs(float(act(z).mean())) < 0.02 and abs(float(act(z).std()) - 1) < 0.02
    with kernel.forced("interpreted"):
        np.testing.assert_allclose(jax.jit(lambda a, x: a(x))(act, X), act(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda a, x: a(x))(act, X), act(X), rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(trees(["abs", "tanh", "sub"], max_leaves=4, constants=True))
def test_pickles_hashes_stacks_and_names_are_by_value(tree: Tree):
    act = aqx.activation(tree)
    again = pickle.loads(pickle.dumps(act))
    assert again == act and hash(again) == hash(act) and again.name == str(tree)
    assert jax.tree.unflatten(jax.tree.structure(act), jax.tree.leaves(act)) == act
    assert stack_of([str(tree)] * 2).schema == act.schema
    assert unstack(stack_of([str(tree)] * 2), 1) == act == unstack(aqx.stack([act, act]), 0)
    assert Namer(["abs", "tanh", "sub"])([str(tree)])[0].name == str(tree)


def test_other_constants_are_other_functions():
    half, third = aqx.activation("mul(0.5,x)"), aqx.activation("mul(0.25,x)")
    assert half != third and half == aqx.activation("mul(.50,x)")
    assert jax.tree.structure(half) == jax.tree.structure(third)


def test_numbers_that_came_through_float32_keep_their_name():
    act = jax.jit(lambda act: act)(aqx.activation("mul(0.1,x)"))
    assert unstack(jax.tree.map(lambda leaf: leaf[None], act), 0).name == "mul(0.1,x)"


# Classes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("max(x,mul(0.01,x))", "leakyrelu(x)"),
        ("mul(2.0,x)", "add(x,x)"),
        ("pow(x,2.0)", "square(x)"),
        ("add(0.0,tanh(x))", "tanh(x)"),
        ("mul(0.5,mul(0.5,x))", "mul(0.25,x)"),
        ("0.0", "zero(x)"),
        ("max(x,mul(0.0,x))", "relu(x)"),
    ],
)
def test_equal_functions_are_one_class(one: str, other: str):
    assert class_id_of(parse(one)) == class_id_of(parse(other))


def test_unequal_constants_are_other_classes():
    names = [f"mul({c},x)" for c in (0.5, 0.50001, -0.5, 2, 1e-5)] + ["0.5", "0.50001", "2.0"]
    assert len({class_id_of(parse(name)) for name in names}) == len(names)


# Formulas and sources


def test_formulas():
    assert formula("mul(x,sigmoid(mul(-1.702,x)))") == "x·σ((−1.702)·x)"
    assert latex("mul(2,mul(3,x))") == r"2 \cdot 3 \, x"
    assert latex("mul(1e-5,x)") == r"1 \cdot 10^{-5} \, x"


@pytest.mark.parametrize("target", ["numpy", "jax"])
@pytest.mark.parametrize(
    "name", ["square(max(x,mul(0.5,x)))", "sum_n(0.5,x,mul(2,3))", "pow(2,x)", "div(1,max(0.25,x))", "2", "tanh(0.5)"]
)
def test_sources_have_its_values_and_the_dtype_of_x(target: str, name: str):
    namespace: dict = {}
    exec(source(name, target), namespace)
    got = np.asarray(namespace["activation"](X))
    assert (got.shape, got.dtype) == (X.shape, X.dtype)
    np.testing.assert_allclose(got, by_numpy(parse(name), X), rtol=1e-6)


# The command line


def test_a_database_is_filled_with_constants_and_says_how(tmp_path):
    db = tmp_path / "found.duckdb"
    arguments = ["--schema", "mul(c,unary(mul(c,x)))", "--constants", "0.5, 1,2"]
    assert aqx_command("enumerate", db, *arguments, "-q").exit_code == 0
    again = aqx_command("enumerate", db, *arguments, "-q")
    assert "new in" in again.output and "0 functions, 0 classes" in again.output
    with_more = aqx_command("enumerate", db, *arguments[:3], "0.5,1,2,4", "-q")
    assert f"{27 * (16 - 9)} functions" in with_more.output
    shown = aqx_command("show", "mul(.5,tanh(mul(2,x)))", db)
    assert "mul(0.5,tanh(mul(2.0,x)))" in shown.output and "binary(c,unary(binary(c,x)))" in shown.output
    assert "not in" not in shown.output


def test_mistakes_with_constants_are_one_line(tmp_path):
    enumerate_ = partial(aqx_command, "enumerate", tmp_path / "found.duckdb")
    check_error(enumerate_("--schema", "mul(c,x)"), "constants is empty")
    check_error(enumerate_("--schema", "mul(c,x)", "--constants", "0.5,zwei"), "constants: 'zwei'")
    check_error(enumerate_("--space", "paper", "--constants", "0.5"), "--constants goes with --schema")
