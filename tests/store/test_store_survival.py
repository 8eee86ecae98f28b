"""The database among other processes, killed ones, full disks and folders that may not be written."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from store_helpers import as_nobody, number, one_line, put, run_python, start_python, value_of

from aqx.errors import StoreError
from aqx.stopping import asked, held, let_through, stoppable
from aqx.store import Database
from aqx.store.engine import Engine

HOLD = """
import sys, time
from aqx.store import Database
from aqx.store.engine import Engine
with Database(sys.argv[1]).transaction() as con:
    con.execute("INSERT INTO meta VALUES ('held', '1')")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_held_too_long_is_an_error_and_a_dead_process_holds_none(db_path: Path):
    db = Database(db_path, create=True, timeout=0.05)
    with start_python(HOLD, str(db_path)) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        for use in (lambda: put(db, "a", "1"), lambda: value_of(db, "a"), lambda: Database(db_path, timeout=0)):
            with pytest.raises(StoreError) as error:
                use()
            one_line(error, "stayed locked")
        holder.kill()
        holder.wait()
    put(Database(db_path), "a", "1")
    assert (value_of(db, "a"), value_of(db, "held")) == ("1", None)


def test_a_program_that_ignores_the_lock_file_is_named(db_path: Path):
    db = Database(db_path, create=True, timeout=3)
    hold = "import sys, duckdb; con = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with start_python(hold, str(db_path)) as holder:
        assert holder.stdout and holder.stdout.readline()
        with pytest.raises(StoreError) as error:
            put(db, "a", "1")
        one_line(error, "open in another program")
        holder.kill()
        holder.wait()
    put(db, "a", "1")


INCREMENT = """
import sys
import threading
from aqx.store import Database
from aqx.store.engine import Engine
db = Database(sys.argv[1])
for _ in range(25):
    with db.transaction() as con:
        (n,) = con.execute("SELECT value FROM meta WHERE key = 'n'").fetchone()
        con.execute("UPDATE meta SET value = ? WHERE key = 'n'", [str(int(n) + 1)])
"""


def test_no_increment_of_four_processes_is_lost(db_path: Path):
    db = Database(db_path, create=True)
    put(db, "n", "0")
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(start_python(INCREMENT, str(db_path))) for _ in range(4)]
        assert [worker.wait() for worker in workers] == [0] * 4
    assert value_of(db, "n") == "100"


def test_processes_that_make_the_same_file_meet_in_one(db_path: Path):
    code = "import sys; from aqx.store import Database; Database(sys.argv[1], create=True)"
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(start_python(code, str(db_path))) for _ in range(3)]
        assert [worker.wait() for worker in workers] == [0] * 3
    assert sorted(path.name for path in db_path.parent.iterdir()) == ["test.duckdb", "test.duckdb.lock"]


WRITE = """
import sys
import threading
import numpy as np
from aqx.store import Database
from aqx.store.engine import Engine
db = Database(sys.argv[1])
number = int(sys.argv[2])
while True:
    with db.transaction() as con:
        con.execute("INSERT INTO functions SELECT ? || '-' || range, uuid(), 1 FROM range(20000)", [number])
        con.execute("INSERT INTO class_outputs SELECT class_id, list_value(1, 2, 3) FROM functions LIMIT 500")
        con.execute("INSERT INTO meta VALUES ('run ' || ?, 'x')", [number])
    print(number, flush=True)
    number += 1
"""


@pytest.mark.parametrize(
    "pauses",
    [(0.0, 0.02, 0.05, 0.1), pytest.param([0.003 * n**1.5 for n in range(25)], marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_a_process_killed_at_any_moment_leaves_whole_transactions(db_path: Path, pauses: list[float]):
    db = Database(db_path, create=True)
    done = 0
    for pause in pauses:
        with start_python(WRITE, str(db_path), str(done)) as writer:
            assert writer.stdout and writer.stdout.readline() == f"{done}\n"
            time.sleep(pause)  # kills at a moment of no one's choosing; what is asserted holds at all of them
            writer.kill()
            finished = [int(line) for line in writer.stdout.readlines()]
            writer.wait()
        # Reading comes first: it must do without folding the log into the file.
        runs = 0
        for _ in range(2):
            with db.read() as con:
                runs = number(con, "SELECT count(*) FROM meta WHERE key LIKE 'run %'")
                functions = number(con, "SELECT count(DISTINCT name) FROM functions")
                outputs = number(con, "SELECT count(*) FROM class_outputs")
            assert runs - (done + 1 + len(finished)) in (0, 1)  # the last may be committed, but not yet told
            assert (functions, outputs) == (20000 * runs, 500 * runs)
            put(db, "killed", str(pause))
        done = runs


# Disks and permissions.


def test_a_full_disk_loses_nothing(small_disk: Path):
    db = Database(small_disk / "a.duckdb", create=True)
    stored = 0
    with pytest.raises(StoreError) as error:
        while True:
            with db.transaction() as con:
                con.execute(
                    "INSERT INTO functions SELECT ? || md5(range::VARCHAR), uuid(), 1 FROM range(1000)", [str(stored)]
                )
            stored += 1000
    one_line(error, "no room left on the disk", "make room")
    assert stored >= 5000

    def count() -> int:
        with db.read() as con:
            return number(con, "SELECT count(*) FROM functions")

    assert count() == stored
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    with db.transaction() as con:
        con.execute("INSERT INTO functions SELECT range::VARCHAR, uuid(), 1 FROM range(1000)")
    assert count() == stored + 1000


def test_a_full_disk_makes_no_half_of_a_file(small_disk: Path):
    with open(small_disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(b"\0" * 4096):
            pass
    with pytest.raises(StoreError) as error:
        Database(small_disk / "a.duckdb", create=True)
    one_line(error, "no room left on the disk")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


USE = """
import sys
import threading
from aqx.errors import StoreError
from aqx.store import Database
from aqx.store.engine import Engine
path = sys.argv[1]
with Database(path).read() as con:
    print("reads", con.execute("SELECT count(*) FROM tasks").fetchone())
for use in (lambda: Database(path).transaction().__enter__(), lambda: Database(path + "2", create=True)):
    try:
        use()
    except StoreError as error:
        print("refused", error)
"""


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become a user who may not write")
@pytest.mark.parametrize("locked_before", [True, False], ids=["lock file there", "no lock file"])
def test_a_read_only_folder_is_read_and_not_written(db_path: Path, locked_before: bool):
    Database(db_path, create=True)
    if not locked_before:
        Path(f"{db_path}.lock").unlink()
    before = db_path.read_bytes()
    with as_nobody(db_path.parent):
        done = run_python(USE, str(db_path), user=65534)
    lines = done.stdout.splitlines()
    assert lines[0] == "reads (0,)", done.stderr
    assert [line.split(" ")[0] for line in lines[1:]] == ["refused", "refused"], done.stdout
    assert all("may not be written by this user" in line for line in lines[1:])
    assert db_path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork here")
def test_a_forked_child_is_told_to_open_the_database_anew(db_path: Path):
    code = """
import os, sys, warnings
from aqx.errors import StoreError
from aqx.store import Database
from aqx.store.engine import Engine
warnings.simplefilter("ignore")
path = sys.argv[1]
db = Database(path, create=True)
def put(db, key):
    with db.transaction() as con:
        con.execute("INSERT INTO meta VALUES (?, '1')", [key])
put(db, "before")
if pid := os.fork():
    put(db, "parent")
    assert os.waitpid(pid, 0)[1] == 0
    put(db, "after")
else:
    try:
        put(db, "child with the parent's")
    except StoreError as error:
        assert "open it anew" in str(error)
        put(Database(path), "child")
"""
    run_python(code, str(db_path))
    db = Database(db_path)
    assert [value_of(db, key) for key in ("before", "child", "parent", "after")] == ["1"] * 4


def test_an_interruption_at_the_end_of_a_transaction_waits_for_it(db_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A program that uses the library, and has no handlers of aqx: what is half closed could not be opened again."""
    db, checkpoint = Database(db_path, create=True), Engine.__dict__["_checkpoint"]

    def interrupted(self: Engine, on: bool) -> None:
        signal.raise_signal(signal.SIGINT)
        checkpoint(self, on)

    monkeypatch.setattr(Engine, "_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put(db, "a", "1")
    with stoppable(once=True):  # as in the command, which is sent the signal again: what was stored is told first
        put(db, "b", "2")
        assert asked() is None
    monkeypatch.undo()
    put(db, "c", "3")
    assert (value_of(db, "a"), value_of(db, "b"), value_of(db, "c")) == ("1", "2", "3")


def test_signals_wait_until_they_are_let_through_and_the_second_until_the_end():
    before, steps = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), held():
        signal.raise_signal(signal.SIGINT)
        with held():
            signal.raise_signal(signal.SIGINT)
        steps.append("waited")
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), held():
        signal.raise_signal(signal.SIGINT)
        with let_through():
            steps.append("not reached")
    with pytest.raises(KeyboardInterrupt) as second, held():
        with pytest.raises(KeyboardInterrupt) as first, let_through():
            with held():
                signal.raise_signal(signal.SIGINT)
                steps.append("waited inside")
            steps.append("not reached")
        signal.raise_signal(signal.SIGINT)
        steps.append("tidied up")
    assert first.value is not second.value and signal.getsignal(signal.SIGINT) is before
    assert steps == ["waited", "waited inside", "tidied up"]


@pytest.mark.parametrize("seconds", [1.5, pytest.param(60, marks=pytest.mark.slow)])
def test_interruptions_at_random_moments_leave_a_database_that_can_be_used(db_path: Path, seconds: float):
    db, until, counted = Database(db_path, create=True), time.monotonic() + seconds, 0
    chance = random.Random(0)
    while time.monotonic() < until:
        timer = threading.Timer(0.02 * chance.random(), signal.raise_signal, [signal.SIGINT])
        before = signal.getsignal(signal.SIGINT)
        try:
            timer.start()
            while timer.is_alive():
                with db.transaction() as con:
                    con.execute("INSERT OR REPLACE INTO meta VALUES ('n', ?)", [str(counted)])
            timer.join()
        except (KeyboardInterrupt, RuntimeError):  # DuckDB makes the latter of the former
            timer.join()
        assert signal.getsignal(signal.SIGINT) is before
        counted += 1
        put(db, "n", str(counted))
        assert value_of(db, "n") == str(counted)
    assert counted > 3
