"""Functions of two inputs in bulk: points of the plane, values, classes, flags, enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from operator_oracles import NUMPY
from scipy.stats import kstest
from strategies import trees

import aqx
from aqx.enumeration import enumerate_space
from aqx.errors import InputError
from aqx.evaluation import Batch, Family, class_id_of, evaluate, fingerprints, finite_at, probe_pairs
from aqx.plane import images, normal_pairs
from aqx.store import Database
from aqx.store.functions import classes_by_inputs, holds_two_inputs
from aqx.tree import Tree, parse, parse_schema

OPERATORS = ["relu", "tanh", "identity", "one", "mul"]


def by_numpy(tree: Tree, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if not tree.args:
        return {"x": x, "y": y}[tree.name] if tree.name in "xy" else np.full_like(x, float(tree.name))
    return NUMPY[tree.name](*(by_numpy(arg, x, y) for arg in tree.args))


def flags(name: str) -> tuple[bool, ...]:
    batch = Batch.of_trees([parse(name)])
    prints, found = fingerprints(batch), finite_at(batch)
    return tuple(
        bool(each[0]) for each in (prints.constant, prints.affine, found.zero, found.twenty, found.gradient_at_0)
    )


@pytest.mark.parametrize("n", [256, 1000, 100])
def test_points_are_normal_and_stand_with_their_mirror_images(n: int):
    points = normal_pairs(n)
    x, y = points.astype(float)
    assert points.shape == (2, n) and points.dtype == np.float32
    assert kstest(x, "norm").pvalue > 0.5 and kstest(y, "norm").pvalue > 0.5
    # Better than random points, whose averages are off by 1/√n of the deviation.
    known = ((abs(x), np.sqrt(2 / np.pi)), (np.maximum(x, y), np.pi**-0.5), (np.cos(x + y), np.exp(-1)), (x * x, 1.0))
    errors = [(values.mean() - mean) / values.std() * np.sqrt(n) for values, mean in known]
    assert np.sqrt(np.mean(np.square(errors))) < 0.6
    of_x, of_y, exchanged = images(n)
    whole = n // 8 * 8
    for image, wanted in ((of_x, [-x, y]), (of_y, [x, -y]), (exchanged, [y, x])):
        np.testing.assert_array_equal(points[:, image][:, :whole], np.array(wanted, np.float32)[:, :whole])
    assert len(np.unique(points, axis=1).T) == n


@settings(max_examples=20)
@given(trees(["abs", "tanh", "sub", "max", "mul"], max_leaves=5, constants=True, gated=True))
def test_values_are_numpys(tree: Tree):
    x, y = np.random.default_rng(0).normal(size=(2, 9))
    got = evaluate(Batch.of_trees([tree]), np.stack([x, y]))[0]
    np.testing.assert_allclose(got, by_numpy(tree, x, y), rtol=1e-12, atol=1e-12)
    assert Batch.of_trees([tree]).inputs == tree.inputs


def test_functions_of_two_inputs_need_points_of_the_plane():
    with pytest.raises(InputError, match="points of the plane"):
        evaluate(Batch.of_trees([parse("mul(x,y)")]), np.ones(3))


def test_a_family_has_the_names_and_values_of_its_trees():
    family = Family(parse_schema("binary(unary(x),binary(c,y))"), ("tanh", "abs", "mul", "max"), ("0.5",))
    names = family.names(np.arange(family.size))
    assert names == sorted(names) and family.size == 8 and family.name(3) == names[3]
    points = np.random.default_rng(0).normal(size=(2, 5))
    np.testing.assert_array_equal(
        evaluate(family.batch(np.arange(8)), points), evaluate(Batch.of_trees([parse(name) for name in names]), points)
    )
    assert not family.overlaps(Family(parse_schema("binary(unary(x),binary(c,x))"), ("tanh", "abs", "mul"), ("0.5",)))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("mul(swish(x),y)", "mul(mul(x,sigmoid(x)),identity(y))", True),
        ("mul(x,y)", "mul(y,x)", True),
        ("max(x,y)", "sub(add(x,y),min(x,y))", True),
        ("mul(x,y)", "div(x,reciprocal(y))", True),
        ("mul(x,y)", "div(square(x),div(x,y))", False),  # not at x = 0
        ("mul(swish(x),y)", "mul(swish(y),x)", False),
        ("mul(tanh(x),y)", "mul(tanh(x),negative(y))", False),
        ("mul(x,y)", "mul(1.00001,mul(x,y))", False),
        ("max(x,max(y,-4.9))", "max(x,y)", False),
        ("add(x,zero(y))", "x", False),  # a unit of two inputs is another one
        ("zero(y)", "zero(x)", False),
    ],
)
def test_classes(one: str, other: str, same: bool):
    assert (class_id_of(parse(one)) == class_id_of(parse(other))) is same


def test_classes_of_functions_of_one_input_are_what_they_were():
    known = {
        "relu(x)": "ffe28cdc-4b5c-838e-1cc0-71aa0ead14e9",
    }
    assert {name: class_id_of(parse(name)) for name in known} == known


def test_probe_points_are_fixed_and_lie_apart():
    points = probe_pairs()
    assert points.shape == (2, 128) and not points[:, 0].any()
    inner = points[:, 7:-4]
    assert np.abs(inner).min() > 0.05 and np.abs(points).max() == 13.1
    assert np.abs(np.abs(inner[0]) - np.abs(inner[1])).min() > 0.02


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mul(x,y)", (False, False, True, True, True)),
        ("add(mul(2,x),sub(y,1))", (False, True, True, True, True)),
        ("one(y)", (True, True, True, True, True)),
        ("mul(exp(square(x)),y)", (False, False, True, False, True)),
        ("div(x,y)", (False, False, False, True, False)),
        ("mul(pow(abs(y),0.5),x)", (False, False, True, True, False)),
        ("exp(mul(x,y))", (False, False, True, False, True)),
    ],
)
def test_flags(name: str, wanted: tuple[bool, ...]):
    assert flags(name) == wanted  # constant, affine, finite at 0, at ±20, its derivatives at 0


def test_both_kinds_stand_in_one_database(tmp_path):
    db = Database(tmp_path / "both.duckdb", create=True)
    first = enumerate_space(db, aqx.Space("unary(unary(x))", OPERATORS))
    assert not holds_two_inputs(db)
    second = enumerate_space(db, aqx.Space.gated(OPERATORS))
    assert holds_two_inputs(db) and (first.functions, second.functions) == (16, 32)
    assert enumerate_space(db, aqx.Space.gated(OPERATORS)).added_functions == 0
    with db.read() as con:
        some = "FROM classes WHERE finite AND NOT constant"
        rows = con.execute(f"SELECT name, class_id::VARCHAR, outputs {some}").fetchall()
        names = dict(con.execute("SELECT name, class_id::VARCHAR FROM functions").fetchall())
    for name, class_id in names.items():
        assert class_id_of(parse(name)) == class_id
    x, y = normal_pairs(256)
    for name, class_id, outputs in rows:
        if parse(name).inputs == 2:
            np.testing.assert_allclose(outputs, by_numpy(parse(name), x, y), rtol=1e-5, atol=1e-6)
            assert class_id in classes_by_inputs(db, 2)
        else:
            assert class_id not in classes_by_inputs(db, 2)
    assert len({class_id for name, class_id in names.items() if "relu(x),relu(y)" in name}) == 1
