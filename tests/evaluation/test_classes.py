"""Classes of equal functions against mpmath, under every symmetry, and however they are computed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import jax
import mpmath as mp
import numpy as np
import operator_oracles as oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import schemas, trees

import aqx
from aqx.evaluation import Batch, Family, class_id_of, evaluate, fingerprints, probe_points
from aqx.evaluation.fingerprint import _distinct_values
from aqx.evaluation.values import on_host
from aqx.operators import SETS
from aqx.tree import Tree, parse, parse_schema

PAPER = SETS["paper"]


def ids_of(schema: str, operators=PAPER) -> np.ndarray:
    family = Family(parse_schema(schema), tuple(operators))
    return fingerprints(family.batch(np.arange(family.size))).ids


# Symmetries, over the whole of act_bench and the paper's n-ary functions.

BASE = "binary(unary(x),unary(x))"


@pytest.mark.parametrize(
    "wrapped",
    [
        f"identity({BASE})",
        f"negative(negative({BASE}))",
        f"sum_n({BASE})",
        "binary(identity(unary(x)),unary(x))",
        "binary(unary(x),unary(identity(x)))",
        "binary(unary(x),negative(negative(unary(x))))",
    ],
)
def test_identity_and_double_negation_vanish(wrapped: str):
    np.testing.assert_array_equal(ids_of(wrapped), ids_of(BASE))


def test_the_larger_of_a_function_and_itself_is_itself():
    ids = ids_of("max(add(unary(x),zero(x)),unary(x))").reshape(27, 27, 2)
    np.testing.assert_array_equal(ids[np.arange(27), np.arange(27)], ids_of("unary(x)"))


def test_arguments_of_nary_operators_permute():
    ids = ids_of("n-ary(unary(x),unary(x),unary(x))").reshape(4, 27, 27, 27, 2)
    for axes in [(0, 2, 1, 3, 4), (0, 3, 2, 1, 4), (0, 2, 3, 1, 4)]:
        np.testing.assert_array_equal(ids, ids.transpose(axes))
    two = ids_of("n-ary(unary(x),unary(x))").reshape(4, 27, 27, 2)
    binary = ids_of(BASE).reshape(7, 27, 27, 2)  # add div max min mul pow sub; max_n min_n prod_n sum_n
    np.testing.assert_array_equal(two, binary[[2, 3, 4, 0]])


COMMUTE = {"add", "mul", "max", "min", "sum_n", "prod_n", "max_n", "min_n"}


def mirrored(tree: Tree) -> Tree:
    """The tree with the arguments of every operator that allows it in the opposite order, and some no-ops inside."""
    args = tuple(Tree("identity", (mirrored(arg),)) for arg in tree.args)
    return Tree(tree.name, args[::-1] if tree.name in COMMUTE else args) if args else tree


@given(st.lists(trees(), min_size=1, max_size=4))
@settings(max_examples=40)
def test_symmetries_hold_inside_any_tree(some: list[Tree]):
    assert [class_id_of(tree) for tree in some] == [class_id_of(mirrored(tree)) for tree in some]


@given(schemas(["abs", "exp", "tanh", "sub", "max", "sum_n"], max_leaves=4), st.integers(0, 2**32))
@settings(max_examples=40)
def test_a_family_and_its_trees_have_the_same_names_values_and_classes(schema: Tree, seed: int):
    family = Family(schema, ("abs", "exp", "tanh", "sub", "max", "sum_n"))
    some = np.random.default_rng(seed).integers(min(family.size, 2**62), size=min(family.size, 20))
    batch, names = family.batch(some), family.names(some)
    single = Batch.of_trees([parse(name) for name in names])
    assert names == [family.name(int(index)) for index in some]
    points = np.array([-2.5, 0, 0.75])
    np.testing.assert_array_equal(evaluate(batch, points), evaluate(single, points))
    np.testing.assert_array_equal(fingerprints(batch).ids, fingerprints(single).ids)


# However they are computed.

DIGEST = """
import hashlib, os, sys
import numpy as np
import aqx
from aqx.evaluation import Batch, Family, fingerprints
space = aqx.Space.paper()
digest = hashlib.sha256()
for schema in space.schemas:
    family = Family(schema, space.operators)
    indices = np.arange(family.size)
    if os.environ["PART"] != "all":
        indices = np.random.default_rng(0).choice(family.size, int(os.environ["PART"]), replace=False)
    digest.update(fingerprints(family.batch(indices)).ids.tobytes())
print(digest.hexdigest())
"""
ISA = platform.machine().lower() in ("x86_64", "amd64")


@pytest.mark.parametrize("part", ["1500", pytest.param("all", marks=pytest.mark.slow)])
def test_classes_are_the_same_on_other_machines(part: str):
    one_thread = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    # Without fused multiply-add and with narrower vectors; on one thread.
    flags = ["", f"{one_thread} --xla_cpu_max_isa=SSE4_2" if ISA else one_thread]
    if part == "all":
        flags += [one_thread, *(["--xla_cpu_max_isa=SSE4_2", "--xla_cpu_max_isa=AVX2"] if ISA else [])]
    digests = set()
    for flag in flags:
        environment = {**os.environ, "XLA_FLAGS": flag, "PART": part}
        done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


def test_classes_are_the_same_without_fusion():
    family = Family(parse_schema(BASE), PAPER)
    indices = np.random.default_rng(0).choice(family.size, 300, replace=False)
    fused = fingerprints(family.batch(indices)).ids
    with jax.disable_jit():
        apart = fingerprints(family.batch(indices)).ids
    np.testing.assert_array_equal(fused, apart)


def test_an_empty_batch_has_no_fingerprints():
    batch = Batch.of_trees([parse("add(exp(x),x)")]).take(np.arange(0))
    assert fingerprints(batch).ids.shape == (0, 2)


# Against mpmath.

LARGEST = 1e4  # of intermediate values; beyond, mpmath takes forever


def values(tree: Tree, x: float) -> tuple[float, mp.mpf] | None:
    """A value in float64 by NumPy and SciPy and in 60 digits; None where it is not defined or too large."""
    if not tree.args:
        return x, mp.mpf(x)
    args = [values(arg, x) for arg in tree.args]
    if any(arg is None for arg in args):
        return None
    with np.errstate(all="ignore"):
        plain = float(oracles.NUMPY[tree.name](*(np.float64(arg[0]) for arg in args)))
    if not np.isfinite(plain) or abs(plain) > LARGEST:
        return None
    many = [arg[1] for arg in args]
    if len(many) == 1 and not tree.name.endswith("_n"):
        return plain, oracles.UNARY[tree.name][0](many[0])
    if not tree.name.endswith("_n"):
        found = oracles.binary(tree.name, *many)
        return (plain, found[0]) if found else None
    fold = {"sum_n": mp.fsum, "prod_n": mp.fprod, "max_n": max, "min_n": min}[tree.name]
    return plain, fold(many)


def cancelling(value: tuple[float, mp.mpf]) -> bool:
    """Whether float64 itself has lost more than half of its digits."""
    return abs(value[0] - value[1]) > mp.mpf("1e-9") * abs(value[1])


def compared(one: Tree, other: Tree, points) -> tuple[int, float, bool]:
    """At how many points both can be judged, their largest relative difference there, and whether all could be."""
    judged, worst, everywhere = 0, 0.0, True
    for x in points:
        pair = values(one, float(x)), values(other, float(x))
        if pair[0] is None or pair[1] is None or cancelling(pair[0]) or cancelling(pair[1]):
            everywhere &= pair[0] is None and pair[1] is None
            continue
        a, b = pair[0][1], pair[1][1]
        judged += 1
        worst = max(worst, float(abs(a - b) / max(abs(a), abs(b)))) if a != b else worst
    return judged, worst, everywhere


@pytest.fixture(scope="module")
def paper() -> tuple[list[Family], np.ndarray, np.ndarray]:
    """The families of the paper's space, where each begins, and the class of every function."""
    space = aqx.Space.paper()
    families = [Family(schema, space.operators) for schema in space.schemas]
    ids = np.concatenate([fingerprints(family.batch(np.arange(family.size))).ids for family in families])
    _, classes = np.unique(ids.view("V16").ravel(), return_inverse=True)
    return families, np.cumsum([0, *(family.size for family in families)]), classes


def tree_at(paper, row: int) -> Tree:
    families, starts, _ = paper
    at = int(np.searchsorted(starts, row, side="right")) - 1
    return parse(families[at].name(int(row - starts[at])))


COUNTS = [20, pytest.param(2000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
def test_functions_of_one_class_are_equal(paper, count: int):
    *_, classes = paper
    rng = np.random.default_rng(count)
    order = np.argsort(classes, kind="stable")
    first = np.searchsorted(classes[order], np.arange(classes.max() + 2))
    pairs, differing, judged_pairs = 0, [], 0
    while pairs < count:
        row = int(rng.integers(len(classes)))
        members = order[first[classes[row]] : first[classes[row] + 1]]
        other = int(rng.choice(members))
        if other == row:
            continue
        pairs += 1
        one, two = tree_at(paper, row), tree_at(paper, other)
        judged, worst, _ = compared(one, two, np.clip(rng.standard_normal(6), -5, 5).astype(np.float32))
        judged_pairs += judged > 0
        if worst > 1e-6:
            differing.append((str(one), str(two), worst))
    print(f"same class: {len(differing)} of {pairs} pairs differ ({judged_pairs} could be judged): {differing}")
    assert judged_pairs > 0.5 * pairs
    assert not differing


@pytest.mark.slow
@pytest.mark.parametrize("count", [2000])
def test_the_nearest_classes_are_different_functions(paper, count: int):
    families, starts, classes = paper
    _, rows = np.unique(classes, return_index=True)
    points = probe_points()
    probes = np.empty((len(rows), len(points)))
    with on_host(float64=True):
        for family, start, stop in zip(families, starts[:-1], starts[1:], strict=True):
            inside = np.flatnonzero((rows >= start) & (rows < stop))
            table, number = _distinct_values(family.batch(rows[inside] - start), points)
            probes[inside] = table[number]
    pairs = nearest_pairs(probes, count)
    rng = np.random.default_rng(count)
    equal, exempt = [], 0
    for left, right in pairs:
        one, two = tree_at(paper, rows[left]), tree_at(paper, rows[right])
        judged, worst, _ = compared(one, two, np.clip(rng.standard_normal(6), -5, 5).astype(np.float32))
        if not judged or worst > 1e-30:
            continue
        # Equal as far as seen; what tells them apart is at a probe point: a difference, or the rounding of float64.
        judged, worst, everywhere = compared(one, two, points)
        if worst > 1e-30:
            continue
        exempt += not everywhere
        if everywhere:
            equal.append((str(one), str(two)))
    print(
        f"nearest classes: {len(equal)} of {len(pairs)} pairs are equal, {exempt} more where float64 cancels: {equal}"
    )
    assert len(pairs) == count
    assert not equal


def nearest_pairs(probes: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The pairs of rows whose largest relative difference is smallest, among neighbours in several directions."""
    usable = np.flatnonzero(np.isfinite(probes).all(axis=1))
    v = probes[usable]
    squashed = np.arcsinh(v * 1e3)
    found: dict[tuple[int, int], float] = {}
    for direction in np.random.default_rng(0).standard_normal((6, v.shape[1])):
        order = np.argsort(squashed @ direction)
        for step in range(1, 9):
            a, b = v[order[:-step]], v[order[step:]]
            with np.errstate(all="ignore"):
                difference = np.nanmax(np.abs(a - b) / np.maximum(np.abs(a), np.abs(b)), axis=1)
            for at in np.argpartition(difference, count)[:count]:
                pair = sorted((int(usable[order[at]]), int(usable[order[at + step]])))
                found[pair[0], pair[1]] = float(difference[at])
    return sorted(found, key=lambda pair: found[pair])[:count]
