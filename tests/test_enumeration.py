"""Enumeration into a real database file: counts, classes, outputs, resumption after a kill, refusals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from aqx.enumeration import enumerate_space, sample_points
from aqx.errors import InputError, StoreError
from aqx.evaluation import class_id_of
from aqx.operators import operator_table, register
from aqx.space import Space
from aqx.store import Database
from aqx.tree import parse

FEW = ["abs", "exp", "reciprocal", "zero", "negative", "add", "mul", "pow", "max_n"]
SMALL = ["unary(x)", "binary(unary(x),unary(x))", "n-ary(unary(x),unary(x),x)"]


def table(db: Database, query: str) -> list[tuple]:
    with db.read() as con:
        return con.execute(query).fetchall()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Database:
    db = Database(tmp_path_factory.mktemp("small") / "small.duckdb", create=True)
    enumerate_space(db, Space(SMALL, FEW), points=16)
    return db


def test_every_function_is_stored_once_with_its_size(small):
    space = Space(SMALL, FEW)
    stored = table(small, "SELECT name, size FROM functions")
    assert sorted(stored) == sorted({(str(tree), tree.size) for tree in space})


def test_classes_are_those_of_single_functions(small):
    rows = table(small, "SELECT name, class_id::VARCHAR FROM functions USING SAMPLE 60 ROWS (reservoir, 1)")
    assert [class_id for _, class_id in rows] == [class_id_of(parse(name)) for name, _ in rows]


def test_a_class_is_called_by_its_simplest_name(small):
    members: dict[object, list[tuple[int, str]]] = {}
    for class_id, size, name in table(small, "SELECT class_id, size, name FROM functions"):
        members.setdefault(class_id, []).append((size, name))
    represented = {row[0]: row[1:] for row in table(small, "SELECT class_id, size, name FROM classes")}
    assert represented == {class_id: min(names) for class_id, names in members.items()}


def test_outputs_and_flags_are_those_of_the_function(small):
    points = sample_points(16, "stratified")
    query = "SELECT name, outputs, finite, finite_at_0, finite_at_20, constant, affine FROM classes"
    for name, outputs, finite, finite_at_0, finite_at_20, constant, affine in table(small, query):
        values = evaluate_plainly(name, points)
        assert finite == np.isfinite(values).all(), name
        assert finite_at_0 == np.isfinite(evaluate_plainly(name, [0])).all(), name
        assert finite_at_20 == np.isfinite(evaluate_plainly(name, [-20, 20])).all(), name
        assert (outputs is not None) == finite, name
        if finite:
            np.testing.assert_allclose(outputs, values, rtol=1e-5, atol=1e-6, err_msg=name)
        wide = np.concatenate([points, [0, -6, 7]]).astype(np.float32)
        values = evaluate_plainly(name, wide).astype(np.float64)
        if np.isfinite(values).all():
            assert constant == (np.ptp(values) < 1e-5), name
            line = np.polyval(np.polyfit(wide, values, 1), wide)
            assert affine == np.allclose(values, line, rtol=0, atol=1e-5 * max(1, np.abs(values).max())), name


def evaluate_plainly(name: str, points) -> np.ndarray:
    def value(tree):
        if not tree.args:
            return jnp.asarray(points, jnp.float32)
        return operator_table().by_name[tree.name].fn(*map(value, tree.args))

    return np.asarray(value(parse(name)))


def test_again_adds_nothing(small):
    before = table(small, "FROM functions ORDER BY name")
    report = enumerate_space(small, Space(SMALL, FEW))
    assert (report.added_functions, report.added_classes) == (0, 0)
    assert report.functions == Space(SMALL, FEW).size
    assert table(small, "FROM functions ORDER BY name") == before


def test_overlapping_spaces_in_any_order_give_the_same_rows(small, tmp_path):
    db = Database(tmp_path / "reversed.duckdb", create=True)
    enumerate_space(db, Space(["mul(x,unary(x))", "abs(x)"], FEW), points=16)
    for schema in reversed(SMALL):
        enumerate_space(db, Space([schema, "exp(x)"], FEW))
    for query in (
        "SELECT * FROM functions WHERE name NOT LIKE 'mul(x,%' ORDER BY name",
        "SELECT class_id, name, size, finite, finite_at_0, constant, affine FROM classes "
        "WHERE class_id IN (SELECT class_id FROM functions WHERE name NOT LIKE 'mul(x,%') "
        "AND name NOT LIKE 'mul(x,%' ORDER BY class_id",
    ):
        assert set(table(db, query)) <= set(table(small, query))


def test_act_bench_has_5103_functions(tmp_path):
    db = Database(tmp_path / "bench.duckdb", create=True)
    report = enumerate_space(db, Space.act_bench())
    assert report.functions == report.added_functions == 5103
    # The paper counts 2,913 distinct ones by float32 outputs; some of those differ by rounding alone.
    assert 2_700 < report.added_classes < 2_913


@pytest.mark.slow
def test_the_papers_space_has_its_size_and_classes(tmp_path):
    db = Database(tmp_path / "paper.duckdb", create=True)
    report = enumerate_space(db, Space.paper())
    assert report.added_functions == 1_023_516
    assert 385_000 <= report.added_classes <= 400_000


def test_points_are_normal_and_kept():
    stratified = sample_points(256, "stratified")
    assert abs(stratified.mean()) < 1e-6 and abs(stratified.std() - 1) < 0.02
    assert np.abs(sample_points(100_000, "normal")).max() <= 5


def test_a_database_keeps_its_points(small):
    with pytest.raises(StoreError, match="16 stratified points"):
        enumerate_space(small, Space(["unary(x)"]), points=32)
    with pytest.raises(InputError, match="sampling='sobol'"):
        enumerate_space(small, Space(["unary(x)"]), sampling="sobol")


def test_an_operator_that_changed_is_refused(tmp_path):
    register("shifted", lambda x: x + 1, "unary")
    db = Database(tmp_path / "own.duckdb", create=True)
    enumerate_space(db, Space(["unary(x)"], ["shifted", "tanh"]))
    register("shifted", lambda x: x + 2, "unary")
    with pytest.raises(StoreError, match="another operator 'shifted'"):
        enumerate_space(db, Space(["unary(unary(x))"], ["shifted", "tanh"]))
    assert len(table(db, "FROM functions")) == 2


KILLED = """
import sys
from aqx.enumeration import run
from aqx.space import Space
from aqx.store import Database
run.PIECE = 500
run.enumerate_space(Database(sys.argv[1], create=True), Space.act_bench())
"""


def test_killed_at_any_moment_it_resumes_to_the_same_rows(tmp_path):
    whole = Database(tmp_path / "whole.duckdb", create=True)
    enumerate_space(whole, Space.act_bench())
    path = tmp_path / "killed.duckdb"
    delays = np.random.default_rng(0).uniform(0.02, 0.5, size=3)
    for delay in delays:
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], cwd=Path(__file__).parents[1])
        wait_until_something_is_stored(path, process)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, cwd=Path(__file__).parents[1])
    killed = Database(path)
    for query in (
        "FROM functions ORDER BY name",
        "SELECT * EXCLUDE outputs FROM classes ORDER BY class_id",
    ):
        assert table(killed, query) == table(whole, query)
    ours, theirs = (
        np.array([row for (row,) in table(db, "SELECT outputs FROM class_outputs ORDER BY class_id")])
        for db in (killed, whole)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def wait_until_something_is_stored(path: Path, process: subprocess.Popen) -> None:
    while process.poll() is None:
        if path.exists() and os.path.getsize(path) > 0:
            try:
                if table(Database(path), "SELECT count(*) FROM functions")[0][0]:
                    return
            except StoreError:
                pass
        time.sleep(0.05)
