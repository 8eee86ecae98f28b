"""Space: index and tree are each other's inverse, sizes are exact, samples are distinct."""

from __future__ import annotations

import itertools
import pickle
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

import aqx
from aqx.operators import SETS
from aqx.space import Space
from aqx.tree import Tree, parse_schema

SCHEMAS = st.recursive(
    st.just("x"),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["unary", "tanh", "relu"]), inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(st.sampled_from(["binary", "mul"]), inner, inner).map(lambda t: f"{t[0]}({t[1]},{t[2]})"),
        st.tuples(st.sampled_from(["n-ary", "max_n"]), st.lists(inner, min_size=1, max_size=3)).map(
            lambda t: f"{t[0]}({','.join(t[1])})"
        ),
    ),
    max_leaves=6,
)
SMALL = ["add", "relu", "sub", "abs"]


def deep(levels: int) -> str:
    return "unary(" * levels + "x" + ")" * levels


# Sizes


def test_presets():
    paper = Space.paper()
    assert paper.sizes == (531_441, 137_781, 137_781, 137_781, 78_732)
    assert len(paper) == paper.size == 1_023_516
    assert len(Space.act_bench()) == 5_103
    assert len(Space("n-ary(unary(x),unary(x),unary(x))", "aquasurf")) == 4 * 31**3


def test_concrete_operators_stand_for_themselves():
    space = Space("mul(x,unary(x))", ["tanh", "relu"])
    assert [str(tree) for tree in space] == ["mul(x,tanh(x))", "mul(x,relu(x))"]
    assert [str(tree) for tree in Space(["x", "n_ary(x,x)"], ["max_n"])] == ["x", "max_n(x,x)"]


def test_sizes_beyond_machine_integers():
    space = Space(deep(30))
    assert space.size == 27**30 > sys.maxsize
    with pytest.raises(OverflowError, match="space.size"):
        len(space)
    assert str(space[-1]) == deep(30).replace("unary", "hard_sigmoid") and space.index(space[10**40]) == 10**40


# Order


def test_root_is_the_most_significant_digit():
    space = Space("binary(unary(x),unary(unary(x)))", SMALL)
    want = [
        f"{root}({a}(x),{b}({c}(x)))"
        for root, a, b, c in itertools.product(("add", "sub"), ("relu", "abs"), ("relu", "abs"), ("relu", "abs"))
    ]
    assert [str(tree) for tree in space] == want == [str(space[i]) for i in range(len(space))]
    assert space.choices == {"unary": ("relu", "abs"), "binary": ("add", "sub"), "n-ary": ()}


def test_indices_and_slices():
    space = Space.act_bench()
    everything = list(space)
    assert len(set(everything)) == 5_103
    assert [space[0], space[-1], space[5102]] == [everything[0], everything[-1], everything[-1]]
    assert space[10:4000:1001] == everything[10:4000:1001] and space[-3:] == everything[-3:] and space[:0] == []


@given(st.lists(SCHEMAS, min_size=1, max_size=3), st.sampled_from(sorted(SETS)), st.data())
def test_index_inverts(schemas: list[str], operators: str, data: st.DataObject):
    space = Space(schemas, operators)
    index = data.draw(st.integers(0, space.size - 1))
    tree = space[index]
    assert tree in space and str(tree) in space
    first = space.index(tree)
    assert space[first] == tree and first <= index
    # Within its schema the index is unique.
    if len(space.schemas) == 1:
        assert first == index
    # What stands in the tree is what the schema allows.
    start = 0
    for schema, size in zip(space.schemas, space.sizes, strict=True):
        if start <= index < start + size:
            allowed = dict(space.choices)
            for wildcard, node in zip(schema.nodes, tree.nodes, strict=True):
                assert node.name in allowed.get(wildcard.name, (wildcard.name,))  # type: ignore[call-overload]
        start += size


def test_overlapping_schemas_count_twice():
    space = Space(["unary(x)", "relu(x)", "unary(x)"])
    assert space.size == 27 + 1 + 27 and space.index("relu(x)") == space.index("relu(x)") < 27
    assert space[27] == aqx.parse("relu(x)") and space[28] == space[0]
    drawn = space.sample(100, seed=0)
    assert sorted(map(str, drawn)) == sorted(f"{name}(x)" for name in SETS["paper"][:27])


def test_membership():
    space = Space.act_bench()
    for name in ("x", "relu(x)", "add(relu(x),gelu(x))", "add(x,relu(x))", "sum_n(relu(x),relu(x))"):
        assert name not in space
        with pytest.raises(aqx.InputError, match="not in this space"):
            space.index(name)
    assert 3 not in space and "add( relu(x), abs(x) )" in space and Tree("x") not in space


# Samples


@pytest.mark.parametrize("levels", [3, 9, 21])
def test_samples_are_distinct_and_deterministic(levels: int):
    space = Space(deep(levels))
    drawn = space.sample(100, seed=1)
    assert len(set(drawn)) == 100 and all(tree in space for tree in drawn)
    assert drawn == space.sample(100, seed=1) != space.sample(100, seed=2)


def test_a_sample_of_everything_is_a_shuffle():
    space = Space("unary(unary(x))")
    drawn = space.sample(10**9, seed=3)
    assert set(drawn) == set(space) and len(drawn) == 27**2 and drawn != list(space)
    assert drawn[:20] == space.sample(20, seed=3) and space.sample(0, seed=3) == []


def test_samples_are_uniform():
    space = Space("unary(x)")
    counts = dict.fromkeys(space, 0)
    for seed in range(900):
        for tree in space.sample(3, seed):
            counts[tree] += 1
    # 900 · 3 / 27 = 100 expected, with a deviation of √(900 · 1/9 · 8/9) ≈ 9.4.
    assert 50 < min(counts.values()) and max(counts.values()) < 150


# Value


def test_hash_pickle_repr():
    space = Space(("unary(x)", parse_schema("n_ary(relu(x),unary(x))")), "aquasurf")
    assert repr(space) == "Space(['unary(x)', 'n-ary(relu(x),unary(x))'], operators='aquasurf')"
    assert eval(repr(space)) == pickle.loads(pickle.dumps(space)) == space
    assert hash(eval(repr(space))) == hash(space) and space != Space("unary(x)", "aquasurf")
    assert repr(Space("unary(x)", SMALL)) == "Space(['unary(x)'], operators=['add', 'relu', 'sub', 'abs'])"
    with pytest.raises(AttributeError):
        space.operators = ()  # type: ignore[misc]


def test_registered_operators():
    aqx.register("mine", lambda x: x, "unary")
    space = Space(["unary(mine(x))", "unary(x)"], ["mine", "relu"])
    assert [str(tree) for tree in space] == ["mine(mine(x))", "relu(mine(x))", "mine(x)", "relu(x)"]


# Bad input


@pytest.mark.parametrize(
    ("schemas", "operators", "message"),
    [
        ([], "paper", "schemas is empty"),
        ("ternary(x)", "paper", "ternary"),
        ("unary(x,x)", "paper", "unary takes 1 argument"),
        ("", "paper", "schema"),
        ("unary(x)", "papers", "'papers' is not a set"),
        ("unary(x)", ["nope"], "'nope' is not an operator"),
        ("binary(x,x)", ["relu", "tanh"], r"operators has no binary operator, but schema 'binary\(x,x\)' needs one"),
        ("unary(x)", [], "no unary operator"),
    ],
)
def test_bad_spaces(schemas, operators, message: str):
    with pytest.raises(aqx.InputError, match=message):
        Space(schemas, operators)


@pytest.mark.parametrize("index", [5_103, -5_104, 10**30])
def test_index_out_of_range(index: int):
    with pytest.raises(IndexError, match=f"index {index} is out of range for a space of 5103"):
        Space.act_bench()[index]


def test_negative_sample():
    with pytest.raises(aqx.InputError, match="n=-1 is negative"):
        Space.act_bench().sample(-1, seed=0)
