"""A backup is one whole, healthy database of one moment, whatever others do meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
from store_helpers import put, run_python, start_python, value_of

from aqx.errors import InputError, StoreError
from aqx.store import Database, claim, list_trials, register_task, schema
from aqx.store.backup import back_up
from aqx.store.endings import result
from aqx.store.health import check_file
from aqx.store.pending import Note, waiting

# Each transaction says the same thing in two tables, the second over many blocks.
WRITE = """
import sys
from aqx.store import Database
db, me = Database(sys.argv[1]), sys.argv[2]
print(flush=True)
number = 0
while True:
    number += 1
    with db.transaction() as con:
        con.execute("DELETE FROM meta WHERE key = ?", [me])
        con.execute("INSERT INTO meta VALUES (?, ?)", [me, str(number)])
        con.execute("INSERT INTO meta SELECT $1 || '-' || $2 || '-' || i, repeat('x', 200) FROM range(300) r(i)",
                    [me, number])
"""


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def test_a_copy_beside_writers_is_whole(db_path: Path, tmp_path: Path):
    Database(db_path, create=True)
    seen = []
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(start_python(WRITE, str(db_path), f"w{i}")) for i in range(2)]
        for worker in workers:
            assert worker.stdout and worker.stdout.readline() == "\n"
        for number in range(4):
            copy = back_up(db_path, tmp_path / f"copy{number}.duckdb")
            assert not check_file(copy).problems and not Path(f"{copy}.wal").exists()
            with Database(copy).read() as con:
                counts = dict(con.execute("SELECT key, value::INT FROM meta WHERE key IN ('w0', 'w1')").fetchall())
                ((rows,),) = con.execute("SELECT count(*) FROM meta WHERE key LIKE 'w_-%'").fetchall()
            assert rows == 300 * sum(counts.values())
            seen.append(sum(counts.values()))
        assert [worker.poll() for worker in workers] == [None, None]
        for worker in workers:
            worker.kill()
    assert seen == sorted(set(seen)), "the writers went on between the copies"
    locks = {f"copy{number}.duckdb.lock" for number in range(4)}
    left = names(tmp_path) - {"test.duckdb.wal"}
    assert left == {f"copy{number}.duckdb" for number in range(4)} | locks | {"test.duckdb", "test.duckdb.lock"}


CRASH = """
import os, sys
from aqx.store import Database
with Database(sys.argv[1]).transaction() as con:
    con.execute("INSERT INTO meta VALUES ('committed', '1')")
    con.execute("COMMIT")
    os._exit(9)  # it lies in the write-ahead log alone
"""


def test_what_lies_in_the_log_alone_is_in_the_copy(db_path: Path, tmp_path: Path):
    Database(db_path, create=True)
    assert run_python(CRASH, str(db_path), check=False).returncode == 9
    before = {name: (tmp_path / name).read_bytes() for name in ("test.duckdb", "test.duckdb.wal")}
    copy = back_up(db_path, tmp_path / "copy.duckdb")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert names(tmp_path) == {*before, "test.duckdb.lock", "copy.duckdb"}
    with contextlib.closing(duckdb.connect(str(copy), read_only=True)) as con:
        assert con.execute("SELECT value FROM meta WHERE key = 'committed'").fetchall() == [("1",)]


def test_results_that_wait_beside_the_database_are_in_the_copy(db_path: Path, tmp_path: Path):
    db = Database(db_path, create=True)
    task = register_task(db, "t", {"objective": "acc", "direction": "maximize"})
    trial = claim(db, task, class_id=None, name="relu(x)", seed=0, lease_seconds=60)
    assert trial is not None
    note = Note.of(db.path, db.identity, None, {trial.trial_id: result(0.5, {"acc": 0.5})})
    note.write()
    copy = back_up(db_path, tmp_path / "copy.duckdb")
    assert [row.objective for row in list_trials(Database(copy), task)] == [0.5]
    assert not waiting(db.path)


def test_an_older_schema_is_copied_as_it_is(db_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Database(db_path, create=True)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE later (x INT)"))
    before = db_path.read_bytes()
    copy = back_up(db_path, tmp_path / "copy.duckdb")
    assert db_path.read_bytes() == copy.read_bytes() == before
    assert value_of(Database(copy), "schema_version") == str(schema.current_version())


def test_it_replaces_only_what_it_may(db_path: Path, tmp_path: Path):
    put(Database(db_path, create=True), "a", "1")
    copy = tmp_path / "copy.duckdb"
    copy.write_text("older")
    (tmp_path / "link.duckdb").symlink_to(db_path)
    (tmp_path / "hard.duckdb").hardlink_to(db_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is there already; give another file, or --force"):
        back_up(db_path, copy)
    for own in ("test.duckdb", "link.duckdb", "hard.duckdb", "test.duckdb.wal", "test.duckdb.lock", "pipe"):
        with pytest.raises(InputError, match="is the database's own file, or none"):
            back_up(db_path, tmp_path / own, force=True)
    (tmp_path / "copy.duckdb.wal").touch()
    with pytest.raises(InputError, match="has a write-ahead log beside it"):
        back_up(db_path, copy, force=True)
    (tmp_path / "copy.duckdb.wal").unlink()
    for place in (tmp_path, tmp_path / "no" / "copy.duckdb", "null\0byte"):
        with pytest.raises(StoreError, match="copy=.*cannot be "):
            back_up(db_path, place)
    with pytest.raises(StoreError, match="does not exist"):
        back_up(tmp_path / "no.duckdb", tmp_path / "new.duckdb")
    assert copy.read_text() == "older" and value_of(Database(db_path), "a") == "1"
    assert value_of(Database(back_up(db_path, copy, force=True)), "a") == "1"
    known = {"link.duckdb", "hard.duckdb", "pipe", "test.duckdb", "test.duckdb.lock"}
    assert names(tmp_path) == known | {"copy.duckdb", "copy.duckdb.lock"}


@pytest.mark.parametrize("damage", ["bytes", "rows"])
def test_a_damaged_database_replaces_no_good_copy(db_path: Path, tmp_path: Path, damage: str):
    db = Database(db_path, create=True)
    with db.transaction() as con:
        con.execute("INSERT INTO meta SELECT i, hash(i) FROM range(50000) r(i)")
    copy = Path(shutil.copy(db_path, tmp_path / "copy.duckdb"))
    good = copy.read_bytes()
    if damage == "rows":
        with db.transaction() as con:
            con.execute("INSERT INTO functions VALUES ('relu(x)', uuid(), 1)")
    else:
        broken = np.frombuffer(good, np.uint8).copy()
        broken[2**18 :: 10_000] ^= 0xFF
        db_path.write_bytes(broken.tobytes())
    with pytest.raises(StoreError) as error:
        back_up(db_path, copy, force=True)
    assert "\n" not in str(error.value) and str(db_path) in str(error.value)
    assert copy.read_bytes() == good and names(tmp_path) == {"test.duckdb", "test.duckdb.lock", "copy.duckdb"}
