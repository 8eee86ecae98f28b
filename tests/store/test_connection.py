"""The database file: opened by one at a time, made whole or not at all, and never harmed by what is wrong with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
from pathlib import Path

import duckdb
import pytest
from store_helpers import number, one_line, put, start_python, value_of

from aqx.errors import StoreError
from aqx.store import Database, claim_spectra, find_embedding, schema
from aqx.store.lock import Hold


def test_a_block_is_committed_when_it_ends_and_leaves_nothing_open(db_path: Path):
    db = Database(db_path, create=True)
    put(db, "a", "1")
    assert value_of(Database(db_path), "a") == "1"
    assert sorted(path.name for path in db_path.parent.iterdir()) == ["test.duckdb", "test.duckdb.lock"]
    with duckdb.connect(str(db_path)) as con:  # no lock of DuckDB's own is left
        tables = {name for (name,) in con.execute("SELECT table_name FROM information_schema.tables").fetchall()}
    assert {"functions", "classes", "tasks", "spectra", "trials", "meta"} <= tables


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_block_that_raises_is_rolled_back(db_path: Path, error: BaseException):
    db = Database(db_path, create=True)
    with pytest.raises(type(error)), db.transaction() as con:
        con.execute("INSERT INTO meta VALUES ('a', '1')")
        raise error
    put(db, "b", "2")
    assert (value_of(db, "a"), value_of(db, "b")) == (None, "2")


def test_a_mistake_in_a_statement_keeps_its_own_type_and_harms_nothing(db_path: Path):
    db = Database(db_path, create=True)
    for _ in range(2):
        with pytest.raises(duckdb.CatalogException), db.transaction() as con:
            con.execute("SELECT * FROM nowhere")
    put(db, "a", "1")


def test_reading_does_not_write(db_path: Path):
    db = Database(db_path, create=True)
    with pytest.raises(duckdb.InvalidInputException, match="read-only"), db.read() as con:
        con.execute("INSERT INTO meta VALUES ('a', '1')")


def test_transactions_do_not_nest(db_path: Path):
    db = Database(db_path, create=True)
    with db.transaction(), pytest.raises(StoreError, match="already open in this thread"):
        put(db, "a", "1")


def test_threads_take_turns(db_path: Path):
    db = Database(db_path, create=True)
    put(db, "n", "0")

    def increment() -> None:
        for _ in range(10):
            with db.transaction() as con:
                n = number(con, "SELECT value FROM meta WHERE key = 'n'")
                con.execute("UPDATE meta SET value = ? WHERE key = 'n'", [str(n + 1)])

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value_of(db, "n") == "40"


def test_a_symbolic_link_leads_to_the_same_lock(db_path: Path):
    db = Database(db_path, create=True)
    link = db_path.with_name("link.duckdb")
    link.symlink_to(db_path)
    assert Database(link).path == db.path


def test_files_are_out_of_reach_of_what_a_database_holds(db_path: Path):
    db = Database(db_path, create=True)
    with pytest.raises(StoreError, match="cannot be read or written"), db.read() as con:
        con.execute("SELECT * FROM read_text('/etc/hostname')")
    with pytest.raises(duckdb.Error), db.read() as con:
        con.execute("SET enable_external_access = true")


def test_a_path_with_quotes_is_a_path(tmp_path: Path):
    path = tmp_path / 'it\'s "a" ; DROP TABLE × .duckdb'
    put(Database(path, create=True), "a", "1")
    assert value_of(Database(path), "a") == "1"


# What can be wrong with a file, each with what the error says of it.


def _truncated(path: Path) -> None:
    db = Database(path, create=True)
    with db.transaction() as con:
        con.execute("INSERT INTO functions SELECT 'f' || range, uuid(), 1 FROM range(100000)")
    os.truncate(path, path.stat().st_size // 2)


def _damaged(path: Path) -> None:
    Database(path, create=True)
    data = bytearray(path.read_bytes())
    data[4096 * 3 + 8 : 4096 * 3 + 4096] = os.urandom(4088)
    path.write_bytes(data)


def _newer(path: Path) -> None:
    put(Database(path, create=True), "schema_version", "99")


def _foreign(path: Path) -> None:
    with duckdb.connect(str(path)) as con:
        con.execute("CREATE TABLE meta (a INTEGER)")


def _sqlite(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as con:
        con.execute("CREATE TABLE meta (key, value)")


BAD_FILES = {
    "text": (lambda path: path.write_text("hello " * 10_000), "not a database of aqx"),
    "empty": (lambda path: path.touch(), "not a database of aqx"),
    "sqlite": (_sqlite, "not a database of aqx"),
    "foreign": (_foreign, "not one of aqx"),
    "truncated": (_truncated, "truncated"),
    "damaged": (_damaged, "damaged"),
    "newer": (_newer, "newer aqx (schema version 99"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("create", [False, True], ids=["open", "create"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_and_left_as_it_is(db_path: Path, kind: str, create: bool):
    make, words = BAD_FILES[kind]
    make(db_path)
    before = db_path.read_bytes() if db_path.is_file() else None
    with pytest.raises(StoreError) as error:
        Database(db_path, create=create)
    one_line(error, words, str(db_path))
    if before is not None:
        assert db_path.read_bytes() == before


def test_a_draft_left_by_a_killed_process_is_no_obstacle(db_path: Path):
    Path(f"{db_path}.new").write_text("half of a file")
    put(Database(db_path, create=True), "a", "1")
    assert sorted(path.name for path in db_path.parent.iterdir()) == ["test.duckdb", "test.duckdb.lock"]


def test_a_missing_file_says_how_to_make_one(db_path: Path):
    with pytest.raises(StoreError) as error:
        Database(db_path)
    one_line(error, "does not exist", "create=True")
    with pytest.raises(StoreError) as error:
        Database(db_path.parent / "none" / "x.duckdb", create=True)
    one_line(error, "no folder")
    assert list(db_path.parent.iterdir()) == []


def test_a_file_replaced_or_moved_while_in_use_is_noticed(db_path: Path):
    db = Database(db_path, create=True)
    other = db_path.with_name("other.duckdb")
    Database(other, create=True)
    db_path.rename(db_path.with_name("moved.duckdb"))
    with pytest.raises(StoreError) as error:
        put(db, "a", "1")
    one_line(error, "moved or deleted")
    assert not db_path.exists()
    shutil.copy(other, db_path)
    with pytest.raises(StoreError) as error:
        put(db, "a", "1")
    one_line(error, "replaced")
    assert value_of(Database(db_path), "a") is None


def test_an_older_version_is_brought_forward(db_path: Path, monkeypatch: pytest.MonkeyPatch):
    db = Database(db_path, create=True)
    put(db, "a", "1")
    monkeypatch.setattr(
        schema,
        "MIGRATIONS",
        (
            *schema.MIGRATIONS,
            "ALTER TABLE trials ADD COLUMN device VARCHAR; CREATE TABLE b (i INTEGER);",
            "INSERT INTO b VALUES (7)",
        ),
    )
    newer = Database(db_path)
    with newer.read() as con:
        assert con.execute("SELECT i FROM b").fetchall() == [(7,)]
        assert con.execute("SELECT device FROM trials").fetchall() == []
    assert (value_of(newer, "schema_version"), value_of(newer, "a")) == (str(1 + len(schema.MIGRATIONS)), "1")
    Database(db_path)  # a second time there is nothing to do
    monkeypatch.undo()
    with pytest.raises(StoreError) as error:  # the older aqx, still running, stops rather than misread
        put(db, "a", "2")
    one_line(error, f"newer aqx (schema version {schema.current_version() + 2}")


def test_a_database_of_the_first_version_gets_what_came_since(db_path: Path):
    old = Database(db_path, create=True)
    put(old, "a", "1")
    with old.transaction() as con:
        con.execute("DROP TABLE spectra_claims; DROP TABLE embeddings; DROP TABLE embedding_rows; DROP TABLE studies")
        for column in ("retry_of", "seconds", "environment", "study_id"):
            con.execute(f"ALTER TABLE trials DROP COLUMN {column}")
        con.execute("DROP SEQUENCE embedding_ids; UPDATE meta SET value = '1' WHERE key = 'schema_version'")
        con.execute(
            "CREATE TABLE embeddings (embedding_id BIGINT NOT NULL, task_id BIGINT NOT NULL, preset VARCHAR NOT NULL,"
            "fingerprint VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL);"
            "CREATE TABLE embedding_rows (embedding_id BIGINT NOT NULL, class_id UUID NOT NULL, coordinates FLOAT[]);"
            "INSERT INTO embeddings VALUES (1, 1, 'forest', 'print', '2026-01-01'); "
            "INSERT INTO embedding_rows VALUES (1, uuid(), [1, 2])"
        )
    newer = Database(db_path)
    assert claim_spectra(newer, 1, "worker", limit=1, lease_seconds=60).missing == 0
    assert find_embedding(newer, 1, "forest", 0)[1] is None  # of another form: fitted anew when it is wanted
    with newer.read() as con, Database(db_path.with_name("new.duckdb"), create=True).read() as fresh:
        columns = "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() WHERE NOT internal"
        order = " AND database_name = 'aqx' ORDER BY ALL"
        assert con.execute(columns + order).fetchall() == fresh.execute(columns + order).fetchall()
    assert (value_of(newer, "schema_version"), value_of(newer, "a")) == (str(schema.current_version()), "1")


def test_a_migration_that_fails_leaves_the_older_version(db_path: Path, monkeypatch: pytest.MonkeyPatch):
    Database(db_path, create=True)
    broken = (*schema.MIGRATIONS, "CREATE TABLE b (i INTEGER); SELECT * FROM nowhere")
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    with pytest.raises(duckdb.CatalogException):
        Database(db_path)
    monkeypatch.undo()
    with Database(db_path).read() as con:
        assert con.execute("FROM duckdb_tables() WHERE table_name = 'b'").fetchall() == []


def test_list_columns_are_kept_in_small_row_groups(db_path: Path):
    db = Database(db_path, create=True)
    with db.transaction() as con:
        con.execute("INSERT INTO class_outputs SELECT uuid(), [1, 2] FROM range(20000)")
    with db.read() as con:
        groups = con.execute("SELECT DISTINCT row_group_id FROM pragma_storage_info('class_outputs')").fetchall()
    assert len(groups) == 2


READING = """
import sys
from aqx.store import Database
Database._fold = lambda self: None
with Database(sys.argv[1]).read() as con:
    print(con.execute("SELECT value FROM meta WHERE key = 'a'").fetchone()[0], flush=True)
    sys.stdin.read()
"""


def test_readers_stand_beside_each_other_whatever_lies_in_the_log(db_path: Path, monkeypatch: pytest.MonkeyPatch):
    db = Database(db_path, create=True)
    log = Path(f"{db_path}.wal")
    monkeypatch.setattr(Hold, "others_wait", lambda self: True)
    put(db, "a", "1")
    assert log.stat().st_size, "it was left to who waits"
    with start_python(READING, str(db_path)) as reader:
        assert reader.stdout and reader.stdout.readline() == "1\n"
        assert value_of(Database(db_path, timeout=1.0), "a") == "1" and log.exists()
        with pytest.raises(StoreError, match="stayed locked"):
            put(Database(db_path, timeout=0.1), "a", "2")
        reader.communicate()
    assert value_of(db, "a") == "1" and not log.exists(), "with nobody else there, who reads brings it into the file"
    put(db, "a", "2")
    assert value_of(db, "a") == "2"
