"""What is left when the machine stops in the midst of a checkpoint: any of the pages written, the header not yet."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from store_helpers import as_nobody, number, one_line, put, run_python, start_python, value_of

from aqx.errors import StoreError
from aqx.store import Database
from aqx.store.backup import back_up
from aqx.store.engine import Engine
from aqx.store.health import check_file
from aqx.store.undo import Undo

PAGE, HEADERS = 4096, 3 * 4096


class CutOff:
    """A database before and after the checkpoint of its last transaction."""

    before: bytes
    log: bytes
    kept: bytes

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, many_blocks: bool):
        self.path = path
        db = Database(path, create=True)
        if many_blocks:
            with db.transaction() as con:
                for table in range(40):
                    columns = ", ".join(f"column_{column} BIGINT" for column in range(300))
                    con.execute(f"CREATE TABLE wide_{table} ({columns})")
                    con.execute(f"INSERT INTO wide_{table} (column_0) VALUES (1)")
        for key in "abc":
            put(db, key, "1")
        checkpoint = Engine.__dict__["_checkpoint"]

        def seen(engine: Engine, on: bool) -> None:
            self.before, self.log = path.read_bytes(), Path(f"{path}.wal").read_bytes()
            self.kept = Path(f"{path}.lock").read_bytes()
            checkpoint(engine, on)

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "_checkpoint", seen)
            with db.transaction() as con:
                con.execute("INSERT INTO meta VALUES ('last', '1')")
                con.execute("INSERT INTO meta SELECT 'row ' || range, uuid()::VARCHAR FROM range(20000)")
        self.after = path.read_bytes()
        size = max(len(self.before), len(self.after))
        before, after = self.before.ljust(size, b"\0"), self.after.ljust(size, b"\0")
        pages = range(HEADERS, size, PAGE)
        self.written = [start for start in pages if before[start : start + PAGE] != after[start : start + PAGE]]

    def leave(self, written: list[int]) -> None:
        """Leave the database with these pages of the checkpoint written."""
        torn = bytearray(self.before)
        for start in written:
            torn[start : start + PAGE] = self.after[start : start + PAGE]
        self.path.write_bytes(torn)
        Path(f"{self.path}.wal").write_bytes(self.log)
        Path(f"{self.path}.lock").write_bytes(self.kept)

    def check(self) -> None:
        with Database(self.path).read() as con:
            keys = number(con, "SELECT count(*) FROM meta WHERE key IN ('a', 'b', 'c', 'last')")
            assert (keys, number(con, "SELECT count(DISTINCT value) FROM meta WHERE key LIKE 'row %'")) == (4, 20000)
        assert not check_file(self.path).problems
        put(Database(self.path), "next", "1")
        assert value_of(Database(self.path), "next") == "1"


@pytest.fixture
def cut_off(request: pytest.FixtureRequest, db_path: Path, monkeypatch: pytest.MonkeyPatch) -> CutOff:
    found = CutOff(db_path, monkeypatch, many_blocks=getattr(request, "param", False))
    assert len(found.written) > 3
    return found


@pytest.mark.parametrize("cut_off", [False, True], ids=["one block", "several blocks"], indirect=True)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 40))])
def test_any_pages_of_a_checkpoint_may_be_written_when_it_is_cut_off(cut_off: CutOff, seed: int):
    chance = random.Random(seed)
    end = chance.choice(cut_off.written)
    for written in (
        [start for start in cut_off.written if start <= end],  # a killed process writes in this order
        chance.sample(cut_off.written, chance.randrange(1, len(cut_off.written))),  # a disk in any
    ):
        cut_off.leave(written)
        cut_off.check()


def test_a_block_of_metadata_written_by_half_is_what_duckdb_cannot_open(cut_off: CutOff):
    """What the copies are for: without them the same file is lost."""
    cut_off.leave(cut_off.written[:1])
    Path(f"{cut_off.path}.lock").unlink()
    with pytest.raises(StoreError) as error:
        Database(cut_off.path)
    one_line(error, "is damaged", "checksum")


def test_what_was_copied_by_half_is_not_put_back(cut_off: CutOff):
    """A process killed while it copies: nothing has been written over yet, and the copies are of no use."""
    cut_off.leave([])
    cut = bytearray(cut_off.kept)
    cut[len(cut) // 2 :] = os.urandom(len(cut) - len(cut) // 2)
    odd = bytearray(cut_off.kept)
    odd[PAGE + 12 : PAGE + 20] = b"\xff" * 8  # how many blocks
    for kept in (cut_off.kept[: len(cut_off.kept) // 2], bytes(cut), bytes(odd), b""):
        Path(f"{cut_off.path}.lock").write_bytes(kept)
        assert not Undo(str(cut_off.path), f"{cut_off.path}.lock").is_due()
    cut_off.check()


def test_what_the_system_writes_in_parts_is_written_whole(db_path: Path, monkeypatch: pytest.MonkeyPatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: pwrite(fd, data[:10_000], place))
    cut_off = CutOff(db_path, monkeypatch, many_blocks=False)
    cut_off.leave(cut_off.written[:1])
    cut_off.check()


def test_copies_of_an_earlier_checkpoint_are_not_put_back(cut_off: CutOff):
    cut_off.path.write_bytes(cut_off.after)
    Path(f"{cut_off.path}.wal").unlink(missing_ok=True)
    Path(f"{cut_off.path}.lock").write_bytes(cut_off.kept)
    assert not Undo(str(cut_off.path), f"{cut_off.path}.lock").is_due()
    cut_off.check()


def test_who_only_looks_leaves_it_as_it_is_and_says_what_to_do(cut_off: CutOff, tmp_path: Path):
    cut_off.leave(cut_off.written[:1])
    before = cut_off.path.read_bytes()
    assert "puts it right" in " ".join(check_file(cut_off.path).problems)
    with pytest.raises(StoreError) as error:
        back_up(cut_off.path, tmp_path / "copy.duckdb")
    one_line(error, "was being written when its process was killed", "aqx summary")
    assert cut_off.path.read_bytes() == before
    cut_off.check()


LOOK = """
import sys
from aqx.errors import StoreError
from aqx.store import Database
try:
    Database(sys.argv[1])
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become a user who may not write")
def test_who_may_not_write_is_told_who_puts_it_right(cut_off: CutOff):
    cut_off.leave(cut_off.written[:1])
    with as_nobody(cut_off.path.parent):
        said = run_python(LOOK, str(cut_off.path), user=65534).stdout
    assert "whoever may write it puts it right" in said
    cut_off.check()


def test_nothing_is_checkpointed_before_the_copies_are_made(db_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Left to itself, DuckDB checkpoints at the end of a transaction of so many rows."""
    db, seen, kept = Database(db_path, create=True), [], Undo.kept
    before = db_path.read_bytes()[:HEADERS]

    def looked(undo: Undo, blocks: list[int]):
        seen.append(db_path.read_bytes()[:HEADERS])
        return kept(undo, blocks)

    monkeypatch.setattr(Undo, "kept", looked)
    with db.transaction() as con:
        con.execute("INSERT INTO meta SELECT 'row ' || range, 'x' FROM range(600000)")
    assert seen == [before] and db_path.read_bytes()[:HEADERS] != before


def test_where_there_is_no_room_for_the_copies_the_log_keeps_what_was_stored(small_disk: Path):
    path = small_disk / "a.duckdb"
    db = Database(path, create=True)
    with open(small_disk / "filler", "wb", buffering=0) as filler:
        free = os.statvfs(small_disk)
        filler.write(b"\0" * (free.f_bavail * free.f_frsize - 8 * PAGE))
    put(db, "a", "1")
    assert Path(f"{path}.wal").stat().st_size and value_of(db, "a") == "1"
    (small_disk / "filler").unlink()
    put(db, "b", "1")
    assert not Path(f"{path}.wal").exists() and value_of(db, "a") == "1"


READ = """
import sys
from aqx.store import Database
sys.stdin.readline()
with Database(sys.argv[1]).read() as con:
    print(con.execute("SELECT count(*) FROM meta WHERE key IN ('a', 'b', 'c', 'last')").fetchone()[0])
"""


def test_of_several_who_come_one_puts_it_right(cut_off: CutOff):
    cut_off.leave(cut_off.written[:1])
    readers = [start_python(READ, str(cut_off.path)) for _ in range(4)]
    with readers[0] as one, readers[1] as two, readers[2] as three, readers[3] as four:
        processes = [one, two, three, four]
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.stdout and process.stdout.readline() for process in processes] == ["4\n"] * 4
    cut_off.check()
