"""Enumeration killed, interrupted, doubled and out of room: it always ends with the rows of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aqx.enumeration import enumerate_space
from aqx.space import Space
from aqx.store import Database

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from aqx.enumeration import run
from aqx.space import Space
from aqx.store import Database
run.PIECE = int(sys.argv[2])
space = Space.paper() if sys.argv[3] == "paper" else Space(sys.argv[3].split(";"))
print(run.enumerate_space(Database(sys.argv[1], create=True), space))
"""
SPACE = ["binary(unary(x),unary(x))", "unary(unary(x))", "n-ary(unary(x),unary(x))"]


def start(path: Path, piece: int, space: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", RUN, str(path), str(piece), space], cwd=ROOT)


def finish(path: Path, piece: int, space: str) -> None:
    with start(path, piece, space) as process:
        assert process.wait() == 0


def checksums(db: Database) -> dict[str, tuple]:
    """What is stored, without the outputs."""
    with db.read() as con:
        return {
            table: con.execute(f"SELECT count(*), bit_xor(hash(r)), sum(hash(r) % 1000003) FROM {table} r").fetchone()
            for table in ("functions", "class_info", "families")
        } | {"outputs": con.execute("SELECT count(*), bit_xor(hash(class_id)) FROM class_outputs").fetchone()}


def outputs(db: Database) -> np.ndarray:
    with db.read() as con:
        found = con.sql("SELECT outputs FROM class_outputs ORDER BY class_id").to_arrow_table()["outputs"]
    column = found.combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def wait_for_rows(path: Path, process: subprocess.Popen) -> None:
    """Until something new is stored; killing before that would test nothing."""
    before = path.stat().st_size if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_size > max(before, 1 << 20)):
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("space", "piece", "kills"),
    [(";".join(SPACE), 400, 3), pytest.param("paper", 1 << 15, 12, marks=pytest.mark.slow)],
    ids=["small", "paper"],
)
def test_killed_at_any_moment_it_resumes_to_the_same_rows(tmp_path, space, piece, kills):
    whole, path = tmp_path / "whole.duckdb", tmp_path / "killed.duckdb"
    finish(whole, 1 << 17, space)
    rng = np.random.default_rng(0)
    killed = 0
    for _ in range(kills):
        with start(path, piece, space) as process:
            wait_for_rows(path, process)
            time.sleep(rng.uniform(0, 0.25))  # any moment will do: what is asserted holds at all of them
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        with Database(path).read() as con:
            names, distinct = con.execute("SELECT count(*), count(DISTINCT name) FROM functions").fetchall()[0]
            assert names == distinct
    assert killed >= min(kills, 2)
    finish(path, piece, space)
    assert checksums(Database(path)) == checksums(Database(whole))
    np.testing.assert_allclose(outputs(Database(path)), outputs(Database(whole)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_at_once_end_as_if_one_came_after_the_other(tmp_path):
    both, whole = tmp_path / "both.duckdb", tmp_path / "whole.duckdb"
    spaces = [SPACE, ["unary(unary(x))", "mul(unary(x),unary(x))", "binary(unary(x),unary(x))", "unary(relu(x))"]]
    Database(both, create=True)
    processes = [start(both, 300, ";".join(space)) for space in spaces]
    assert [process.wait() for process in processes] == [0, 0]
    db = Database(whole, create=True)
    for space in spaces:
        enumerate_space(db, Space(space))
    assert checksums(Database(both)) == checksums(db)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(small_disk: Path, tmp_path: Path):
    path = small_disk / "full.duckdb"
    command = [sys.executable, "-m", "aqx", "enumerate", str(path), "--space", "act_bench", "--points", "1000", "-q"]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1, failed.stderr
    assert "no room left on the disk" in failed.stderr and "make room" in failed.stderr
    with Database(path).read() as con:
        con.execute("SELECT count(*) FROM functions").fetchall()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    whole = Database(tmp_path / "whole.duckdb", create=True)
    enumerate_space(whole, Space.act_bench(), points=1000)
    assert checksums(Database(path)) == checksums(whole)


def stored_files(path: Path) -> list[Path]:
    return [found for found in (path, path.with_name(path.name + ".wal")) if found.exists()]


def test_interrupted_it_says_so_and_resumes(tmp_path: Path):
    path = tmp_path / "interrupted.duckdb"
    command = [sys.executable, "-m", "aqx", "enumerate", str(path), "--space", "paper"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        # What is stored is in the log beside the file at first.
        while process.poll() is None and sum(found.stat().st_size for found in stored_files(path)) < 1 << 22:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and out == "", out
    assert err.strip().split("\n")[-1].startswith("interrupted; what is stored stays") and "Traceback" not in err
    with Database(path).read() as con:
        stored, functions = con.execute("SELECT (SELECT sum(done) FROM families), count(*) FROM functions").fetchall()[
            0
        ]
    assert 0 < stored == functions < Space.paper().size
    assert set(os.listdir(tmp_path)) <= {path.name, path.name + ".lock", path.name + ".wal"}
