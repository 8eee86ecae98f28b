"""Trees: print and parse are inverse; hostile text, and trees made by hand, cost one clear error."""

from __future__ import annotations

import copy
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_oracles import NUMPY
from strategies import LEAF, schemas, trees

from aqx import operators
from aqx.errors import InputError, ParseError
from aqx.operators import KINDS, operator_table, register
from aqx.tree import MAX_DEPTH, MAX_LENGTH, Tree, parse, parse_schema


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def count(tree: Tree) -> int:
    return sum(map(count, tree.args)) + (tree.name != "x")


def evaluate(tree: Tree, functions, x):
    return functions(tree.name)(*(evaluate(arg, functions, x) for arg in tree.args)) if tree.args else x


# Laws


@given(trees())
def test_parse_undoes_print(tree):
    text = str(tree)
    assert parse(text) == tree
    assert str(parse(text)) == text
    assert " " not in text
    assert repr(tree) == f"Tree({text!r})"


@given(schemas())
def test_parse_schema_undoes_print(schema):
    assert parse_schema(str(schema)) == schema
    assert parse_schema(str(schema).replace("n-ary", "n_ary")) == schema
    assert parse_schema(schema) is schema


@given(trees(), st.data())
def test_white_space_is_free(tree, data):
    blanks = st.text(" \t\n\r\u00a0", max_size=3)
    tokens = str(tree).replace("(", " ( ").replace(")", " ) ").replace(",", " , ").split()
    assert parse("".join(data.draw(blanks) + token for token in tokens) + data.draw(blanks)) == tree


@given(trees())
def test_size_depth_and_nodes(tree):
    assert tree.size == len(tree.nodes) == count(tree)
    assert tree.depth == max((text.count("(") - text.count(")") for text in prefixes(str(tree))), default=0)
    assert [node.name for node in tree.nodes] == [
        name for name in str(tree).replace("(", " ").replace(")", " ").replace(",", " ").split() if name != "x"
    ]


def prefixes(text: str) -> list[str]:
    return [text[:i] for i in range(len(text) + 1)]


@given(trees())
def test_shape_is_the_schema_the_tree_belongs_to(tree):
    shape = parse_schema(tree.shape)
    assert all(node.name in KINDS for node in shape.nodes)
    assert [operator_table().by_name[node.name].kind for node in tree.nodes] == [node.name for node in shape.nodes]
    assert [len(node.args) for node in tree.nodes] == [len(node.args) for node in shape.nodes]
    assert shape.shape == tree.shape


POINTS = np.array([-7.0, -2.5, -1.0, -0.3, 0.0, 0.2, 1.0, 1.7, 6.0])


@settings(max_examples=50)
@given(trees(max_leaves=4))
def test_composing_the_table_is_composing_scipy(tree):
    table = operator_table().by_name
    with jax.enable_x64(True), np.errstate(all="ignore"):
        got = np.asarray(evaluate(tree, lambda name: table[name].fn, POINTS))
        true = evaluate(tree, NUMPY.__getitem__, POINTS)
        # Where the exact function is steep, rounding inside the tree shows: compare where a nudge of x changes little.
        nudged = evaluate(tree, wobbly, POINTS)
        calm = np.isfinite(true) & np.isfinite(nudged) & (np.abs(nudged - true) <= 1e-6 * np.abs(true))
        calm &= np.abs(true) < 1e300
    np.testing.assert_allclose(got[calm], true[calm], rtol=1e-5)


def wobbly(name: str):
    """An operator whose every value is off by some rounding errors."""
    return lambda *args: NUMPY[name](*args) * (1 + 1e-13)


@given(trees(), trees())
def test_trees_are_equal_and_hashed_by_their_text(a, b):
    assert (a == b) == (str(a) == str(b))
    assert hash(a) == hash(parse(str(a)))
    assert a != str(a)


@given(trees())
def test_trees_pickle_and_copy(tree):
    for again in (pickle.loads(pickle.dumps(tree)), copy.copy(tree), copy.deepcopy(tree)):
        assert again == tree
        assert again.shape == tree.shape


# Text


@pytest.mark.parametrize(
    ("text", "size", "shape"),
    [
        ("x", 0, "x"),
        ("relu(x)", 1, "unary(x)"),
        ("max(relu(x), cosh(elu(x)))", 4, "binary(unary(x),unary(unary(x)))"),
        ("sum_n(x)", 1, "n-ary(x)"),
        ("n".join(["sum_", "(x,relu(x),x)"]), 2, "n-ary(x,unary(x),x)"),
    ],
)
def test_examples(text, size, shape):
    tree = parse(text)
    assert (tree.size, tree.shape) == (size, shape)
    assert parse(tree) is tree


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "expected x or an operator, found the end"),
        (" \n\t ", 4, "expected x or an operator, found the end"),
        ("relu", 4, "expected '(', found the end"),
        ("relu(", 5, "expected x or an operator, found the end"),
        ("relu(x", 6, "expected ',' or ')', found the end"),
        ("relu(x))", 7, "')' is left over after the end"),
        ("relu()", 5, "expected x or an operator, found ')'"),
        ("relu x", 5, "expected '(', found 'x'"),
        ("max(x x)", 6, "expected ',' or ')', found 'x'"),
        ("max(x,)", 6, "expected x or an operator, found ')'"),
        ("x(x)", 1, "'(' is left over after the end"),
        ("x,x", 1, "',' is left over after the end"),
        ("relu(x,x)", 0, "relu takes 1 argument, found 2"),
        ("abs(max(x))", 4, "max takes 2 arguments, found 1"),
        ("sum_n()", 6, "expected x or an operator, found ')'"),
        ("rleu(x)", 0, "unknown operator 'rleu'; did you mean relu"),
        ("ReLU(x)", 0, "unknown operator 'ReLU'; did you mean relu"),
        ("rélu(x)", 0, "unknown operator 'rélu'; did you mean relu"),
        ("leaky_relu(x)", 0, "unknown operator 'leaky_relu'; did you mean leakyrelu"),
        ("zzzzzz(x)", 0, "unknown operator 'zzzzzz'"),
        ("y", 0, "unknown operator 'y'"),
        ("unary(x)", 0, "unary is a kind of operator, which only a schema may name"),
        ("n-ary(x)", 0, "n-ary is a kind of operator, which only a schema may name"),
        ("max(x;x)", 5, "unexpected character ';'"),
        ("relu(\x00x)", 5, "unexpected character '\\x00'"),
        ("\x1b[31mrelu(x)", 0, "unexpected character '\\x1b'"),
        ("\ud800", 0, "unexpected character '\\ud800'"),
        ("relu(x)\N{PILE OF POO}", 7, "unexpected character"),
        ("__import__('os').system('true')", 0, "unknown operator '__import__'"),
        ("relu(-x)", 5, "unexpected character '-'"),
    ],
)
def test_what_does_not_parse_is_said_in_one_line_with_a_caret(text, position, reason):
    with pytest.raises(ParseError) as caught:
        parse(text)
    line, window, caret = str(caught.value).split("\n")
    assert line.startswith("cannot parse function name ")
    assert reason in line
    assert line.endswith(f"(at position {position})")
    assert caught.value.position == position
    assert line.isprintable()
    assert window.isprintable()
    assert caret.index("^") == position + 2
    if position < len(text):
        assert window[caret.index("^")] == (text[position] if text[position].isprintable() else " ")


def test_the_window_follows_the_error():
    text = f"sum_n({','.join(['x'] * 400)},rely(x))"
    with pytest.raises(ParseError) as caught:
        parse(text)
    line, window, caret = str(caught.value).split("\n")
    assert len(line) < 200
    assert len(window) < 100
    assert window[caret.index("^") :].startswith("rely(x)")


HOSTILE = [
    "(" * 10_000,
    ")" * 10_000,
    "relu(" * 10_000,
    "relu(" * 1_900,
    "relu(" * 1_500 + "x" + ")" * 1_500,
    "max(" * 2_400,
    "sum_n(" + "x," * 4_900,
    "," * 10_000,
    "a" * 10_000,
    "a" * 1_000_000,
    "relu(x)" * 150_000,
    " " * 10_000,
    " " * 1_000_000,
    "\x00" * 10_000,
    "é(" * 5_000,
    "n-ary(" * 1_600,
    "x" + ")" * 9_999,
]


@pytest.mark.parametrize("read", [parse, parse_schema])
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: f"{text[:8]!r}-{len(text)}")
def test_hostile_text_costs_one_short_error(read, text):
    with pytest.raises(ParseError) as caught:
        read(text)
    assert len(str(caught.value)) < 400


@given(st.text(max_size=60) | st.text("relumaxsn_-y(), \t", max_size=200))
def test_any_text_parses_or_raises_parse_error(text):
    for read in (parse, parse_schema):
        try:
            assert read(str(read(text))) == read(text)
        except ParseError as error:
            assert 0 <= error.position <= len(text)
            assert first_line(error).isprintable()


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1])
def test_depth_is_bounded(depth):
    text = "abs(" * depth + "x" + ")" * depth
    if depth <= MAX_DEPTH:
        assert parse(text).depth == depth
        assert pickle.loads(pickle.dumps(parse(text))) == parse(text)
    else:
        with pytest.raises(ParseError, match="nested deeper than the 64 levels allowed"):
            parse(text)


def test_the_longest_text_parses():
    text = f"sum_n({','.join(['x'] * 4_996)})"
    text += " " * (MAX_LENGTH - len(text))
    assert len(parse(text).args) == 4_996
    with pytest.raises(ParseError, match="10,001 characters are more than the 10,000 allowed"):
        parse(text + " ")


def test_a_schema_names_kinds_and_operators():
    schema = parse_schema("n_ary(unary(x), relu(x), binary(x, x))")
    assert str(schema) == "n-ary(unary(x),relu(x),binary(x,x))"
    assert schema.shape == "n-ary(unary(x),unary(x),binary(x,x))"
    with pytest.raises(ParseError, match="n-ary is a kind of operator"):
        parse(schema)
    with pytest.raises(ParseError, match="unknown operator 'binry'; did you mean binary"):
        parse_schema("binry(x,x)")
    with pytest.raises(ParseError, match="binary takes 2 arguments, found 1"):
        parse_schema("binary(x)")


@pytest.mark.parametrize("read", [parse, parse_schema])
@pytest.mark.parametrize("thing", [None, 3, b"relu(x)", ["relu(x)"]])
def test_only_text_is_read(read, thing):
    with pytest.raises(InputError, match=f"must be a string or a Tree, but got {type(thing).__name__}"):
        run_unchecked(read, thing)


def run_unchecked(function, *args):
    """Call without the run-time checks of annotations under which tests run, as users do."""
    return inspect.unwrap(function)(*args)


def test_a_subclass_of_str_is_text():
    tree = parse(np.str_("relu(x)"))
    assert type(tree.name) is str


# Trees made by hand


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("relu", (), "relu takes 1 argument, found 0"),
        ("relu", (LEAF, LEAF), "relu takes 1 argument, found 2"),
        ("max", (LEAF,), "max takes 2 arguments, found 1"),
        ("binary", (LEAF,), "binary takes 2 arguments, found 1"),
        ("sum_n", (), "sum_n takes 1 argument or more, found 0"),
        ("x", (LEAF,), "x takes no arguments, found 1"),
        ("rely", (LEAF,), "unknown operator 'rely'; did you mean relu"),
        ("n_ary", (LEAF,), "unknown operator 'n_ary'"),
        ("", (), "unknown operator ''"),
    ],
)
def test_a_tree_made_by_hand_is_checked(name, args, reason):
    with pytest.raises(InputError, match="cannot make a Tree: ") as caught:
        Tree(name, args)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tree_made_by_hand_is_bounded():
    deep = parse("abs(" * MAX_DEPTH + "x" + ")" * MAX_DEPTH)
    with pytest.raises(InputError, match="nested deeper than the 64 levels allowed"):
        Tree("abs", (deep,))
    doubled = LEAF
    with pytest.raises(InputError, match="longer than the 10,000 characters allowed"):
        for _ in range(40):
            doubled = Tree("add", (doubled, doubled))
    assert len(str(doubled)) <= MAX_LENGTH


def test_a_tree_does_not_change():
    with pytest.raises(AttributeError):
        parse("relu(x)").name = "elu"  # type: ignore[misc]


# Operators of one's own


def test_registered_operators_parse_print_and_have_shapes():
    register("halve", lambda x: x / 2, "unary")
    register("mean_n", lambda *xs: jnp.stack(xs).mean(axis=0), "n-ary")
    tree = parse("mean_n(halve(x),x)")
    assert tree.shape == "n-ary(unary(x),x)"
    assert parse(str(tree)) == tree
    with pytest.raises(ParseError, match="did you mean halve"):
        parse("halv(x)")


def test_a_pickle_with_an_unknown_operator_says_which(monkeypatch):
    register("halve", lambda x: x / 2, "unary")
    data = pickle.dumps(parse("abs(halve(x))"))
    monkeypatch.setattr(operators, "_in_force", operators._BUILT_IN)
    with pytest.raises(InputError, match="cannot make a Tree: unknown operator 'halve'"):
        pickle.loads(data)
