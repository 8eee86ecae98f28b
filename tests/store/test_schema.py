"""What is no database of aqx, or lacks a part, is named in one line and left byte for byte as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner
from store_helpers import one_line, put

from aqx.cli import main
from aqx.errors import StoreError
from aqx.store import Database, schema


def change(path: Path, statement: str) -> None:
    with duckdb.connect(str(path)) as con:
        con.execute(statement)


def structure(path: Path) -> dict[str, list[str]]:
    """DuckDB's own account of the tables, views and sequences of a new database, and their columns."""
    with duckdb.connect(str(path), read_only=True) as con:
        found = con.execute(
            "SELECT table_name, list(column_name) FROM duckdb_columns() WHERE NOT internal GROUP BY ALL"
        )
        tables = dict(found.fetchall())
        views = con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        sequences = con.execute("SELECT sequence_name FROM duckdb_sequences()").fetchall()
    return tables | {name: [] for (name,) in views + sequences}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A new database under a name of its own, as what was once found whole is not looked at again."""
    return Database(tmp_path / "found.duckdb", create=True).path


def test_what_is_looked_for_is_what_a_new_database_has(path: Path):
    wanted = schema._columns_of(schema.current_version(), schema.MIGRATIONS)
    assert {name: sorted(columns) for name, columns in wanted.items()} == {
        name: sorted(columns) for name, columns in structure(path).items()
    }


def test_an_earlier_version_has_no_more_than_a_later_one():
    earlier = schema._columns_of(1, schema.MIGRATIONS)
    assert "studies" not in earlier and "embeddings" not in earlier and "seconds" not in earlier["trials"]
    assert {"meta", "functions", "class_info", "trials", "tasks", "spectra"} < set(earlier)


COMMANDS = [
    ["summary", "DB"],
    ["trials", "DB", "--task", "mnist1d"],
    ["top", "DB", "--task", "mnist1d"],
    ["claim", "DB", "--task", "mnist1d"],
    ["enumerate", "DB", "--fn", "relu(x)", "-q"],
    ["report", "DB", "-q", "-o", "/dev/null"],
    ["backup", "DB", "/dev/null", "-q"],
]
each_command = pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])


def check_refused(words: list[str], path: Path, said: str) -> None:
    before = path.read_bytes()
    result = CliRunner().invoke(main, [str(path) if word == "DB" else word for word in words])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and said in result.stderr
    assert path.read_bytes() == before


@each_command
@pytest.mark.parametrize("version", [0, -1, -3, 999, "nine", "1e9", "9" * 5000, ""])
def test_versions_that_aqx_has_never_written(path: Path, tmp_path: Path, words: list[str], version: int | str):
    copy = Path(shutil.copy(path, tmp_path / "copy.duckdb"))
    change(copy, f"UPDATE meta SET value = '{version}' WHERE key = 'schema_version'")
    check_refused(words, copy, "999" if version == 999 else "no aqx has written" if version in (0, -1, -3) else "aqx")


@each_command
def test_a_missing_table(path: Path, tmp_path: Path, words: list[str]):
    for table in ("trials", "tasks", "studies", "class_info", "functions"):
        copy = Path(shutil.copy(path, tmp_path / f"{table}.duckdb"))
        change(copy, f"DROP TABLE {table}")
        check_refused(words, copy, f"{table} missing from its tables")


def test_each_missing_part_is_named(path: Path, tmp_path: Path):
    for number, (name, columns) in enumerate(structure(path).items()):
        if name == "meta":
            continue
        kind = "SEQUENCE" if name == "embedding_ids" else "TABLE" if columns and name != "classes" else "VIEW"
        changes = {name: f"DROP {kind} {name}"}
        if kind == "TABLE" and len(columns) > 2 and name not in ("class_info", "families"):
            changes[f"{name}.{columns[-1]}"] = f"ALTER TABLE {name} DROP COLUMN {columns[-1]}"
        for part, statement in changes.items():
            copy = Path(shutil.copy(path, tmp_path / f"{number}{part}.duckdb"))
            change(copy, statement)
            with pytest.raises(StoreError) as error:
                Database(copy)
            one_line(error, f": {part}", "missing from its tables")


def test_an_older_database_that_lacks_a_table_is_not_brought_forward(path: Path):
    put(Database(path), "schema_version", "4")
    change(path, "DROP TABLE functions")
    before = path.read_bytes()
    with pytest.raises(StoreError) as error:
        Database(path)
    one_line(error, "functions missing from its tables")
    assert path.read_bytes() == before
