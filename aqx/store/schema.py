"""The schema's version: making a database, recognising one, and bringing an older one forward."""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

from aqx.errors import StoreError
from aqx.store import clock
from aqx.store.driver import duckdb
from aqx.store.moment import Moment
from aqx.store.trouble import LEFT_AS_IT_WAS

# The SQL script at index i takes a database from version i + 1 to i + 2. Append here, and change schema.sql alike.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE spectra_claims (
        task_id BIGINT NOT NULL, class_id UUID NOT NULL, worker VARCHAR NOT NULL, expires_at TIMESTAMP NOT NULL
    );
    """,
    # Embeddings are fitted anew when they are wanted.
    """
    DROP TABLE embedding_rows;
    DROP TABLE embeddings;
    CREATE SEQUENCE embedding_ids;
    CREATE TABLE embeddings (
        embedding_id BIGINT NOT NULL, task_id BIGINT NOT NULL, preset VARCHAR NOT NULL, seed BIGINT NOT NULL,
        classes BIGINT NOT NULL, spectra BIGINT NOT NULL, loadings BLOB NOT NULL, created_at TIMESTAMP NOT NULL
    );
    CREATE TABLE embedding_rows (
        embedding_id BIGINT NOT NULL, class_id UUID NOT NULL, has_spectrum BOOLEAN NOT NULL,
        coordinates FLOAT[] NOT NULL
    );
    """,
    """
    ALTER TABLE trials ADD COLUMN retry_of BIGINT;
    ALTER TABLE trials ADD COLUMN seconds DOUBLE;
    ALTER TABLE trials ADD COLUMN environment JSON;
    """,
    """
    CREATE TABLE IF NOT EXISTS studies (
        study_id BIGINT NOT NULL, task_id BIGINT NOT NULL, seed BIGINT NOT NULL, surrogate VARCHAR NOT NULL,
        pruner VARCHAR NOT NULL, created_at TIMESTAMP NOT NULL
    );
    ALTER TABLE trials ADD COLUMN IF NOT EXISTS study_id BIGINT;
    """,
    # Claims of before, of no known clock, lapse by the wall clock as they always did.
    """
    CREATE TABLE IF NOT EXISTS clocks (clock VARCHAR NOT NULL, epoch TIMESTAMP NOT NULL, reached TIMESTAMP NOT NULL);
    CREATE TABLE IF NOT EXISTS sightings (
        observer VARCHAR NOT NULL, clock VARCHAR NOT NULL, reached TIMESTAMP NOT NULL, seen_at TIMESTAMP NOT NULL,
        at_least TIMESTAMP NOT NULL, ahead DOUBLE NOT NULL
    );
    ALTER TABLE trials ADD COLUMN IF NOT EXISTS clock VARCHAR;
    ALTER TABLE trials ADD COLUMN IF NOT EXISTS process VARCHAR;
    ALTER TABLE trials ADD COLUMN IF NOT EXISTS token VARCHAR;
    """,
    # Spectra that are there stay in force: they are taken to be of the first digest that comes.
    """
    CREATE TABLE IF NOT EXISTS subjects (
        subject_id BIGINT NOT NULL, task_id BIGINT NOT NULL, digest JSON, current BOOLEAN NOT NULL,
        created_at TIMESTAMP NOT NULL
    );
    CREATE TABLE IF NOT EXISTS spectra_aside (
        subject_id BIGINT NOT NULL, class_id UUID NOT NULL, status VARCHAR NOT NULL, reason VARCHAR,
        features FLOAT[], created_at TIMESTAMP NOT NULL
    );
    """,
    # Short runs beside the spectra. Embeddings of before know of none.
    """
    CREATE TABLE IF NOT EXISTS runs (
        task_id BIGINT NOT NULL, class_id UUID NOT NULL, status VARCHAR NOT NULL, reason VARCHAR,
        features FLOAT[], created_at TIMESTAMP NOT NULL
    );
    CREATE TABLE IF NOT EXISTS runs_aside (
        subject_id BIGINT NOT NULL, class_id UUID NOT NULL, status VARCHAR NOT NULL, reason VARCHAR,
        features FLOAT[], created_at TIMESTAMP NOT NULL
    );
    CREATE TABLE IF NOT EXISTS runs_claims (
        task_id BIGINT NOT NULL, class_id UUID NOT NULL, worker VARCHAR NOT NULL, expires_at TIMESTAMP NOT NULL
    );
    CREATE TABLE IF NOT EXISTS runs_forms (task_id BIGINT NOT NULL, form JSON NOT NULL);
    CREATE TABLE IF NOT EXISTS embedding_runs (embedding_id BIGINT NOT NULL, runs BIGINT NOT NULL);
    """,
    """
    CREATE TABLE IF NOT EXISTS operator_costs (
        device VARCHAR NOT NULL, operator VARCHAR NOT NULL, nanoseconds DOUBLE NOT NULL, versions VARCHAR NOT NULL,
        measured_at TIMESTAMP NOT NULL
    );
    CREATE TABLE IF NOT EXISTS class_costs (
        class_id UUID NOT NULL, device VARCHAR NOT NULL, name VARCHAR NOT NULL, nanoseconds DOUBLE NOT NULL,
        relative DOUBLE NOT NULL
    );
    CREATE TABLE IF NOT EXISTS class_precision (
        class_id UUID NOT NULL, float16_overflows BOOLEAN NOT NULL, float16_loses_digits BOOLEAN NOT NULL,
        bfloat16_overflows BOOLEAN NOT NULL, bfloat16_loses_digits BOOLEAN NOT NULL
    );
    """,
    # Short runs have losses of held-out examples now: those of before are computed anew.
    """
    DELETE FROM embedding_rows WHERE embedding_id IN (SELECT embedding_id FROM embedding_runs);
    DELETE FROM embeddings WHERE embedding_id IN (SELECT embedding_id FROM embedding_runs);
    DELETE FROM embedding_runs;
    DELETE FROM runs;
    DELETE FROM runs_aside;
    DELETE FROM runs_claims;
    DELETE FROM runs_forms;
    """,
)


# Databases that this process has found whole: to look takes half a millisecond, a quarter of a short transaction.
_whole: set[tuple[str, int, str]] = set()


def current_version() -> int:
    """The schema version that this aqx reads and writes."""
    return len(MIGRATIONS) + 1


@functools.cache
def _schema_sql() -> str:
    return Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")


def create_schema(con: duckdb.DuckDBPyConnection) -> None:
    """Make the tables in the empty database that `con` uses, and sign it with the version and an identity."""
    con.execute(_schema_sql())
    signature = {
        "schema_version": str(current_version()),
        "database_id": str(uuid.uuid4()),
        "created_at": clock.now().isoformat(timespec="seconds"),
    }
    con.executemany("INSERT INTO meta VALUES (?, ?)", list(signature.items()))
    Moment(con).write_down()


def read_signature(con: duckdb.DuckDBPyConnection, path: str) -> tuple[int, str]:
    """Read (schema version, database id); both never change but for a migration.

    Raises:
        StoreError: the file belongs to another program, or to a newer aqx, or lacks a table or a column.
    """
    try:
        meta = dict(con.execute("SELECT key, value FROM meta").fetchall())  # a condition on the key takes longer
        version, identity = int(meta["schema_version"]), meta["database_id"]
    except (duckdb.ProgrammingError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is a DuckDB database, but not one of aqx; it was left as it is") from error
    if version > current_version():
        raise StoreError(
            f"{path} was written by a newer aqx (schema version {version}, this aqx knows {current_version()}); "
            "upgrade aqx, e.g. `pip install -U aqx`"
        )
    if version < 1:
        raise StoreError(f"{path} has schema version {version}, which no aqx has written; {LEFT_AS_IT_WAS}")
    if (path, version, identity) not in _whole:
        if missing := lacking(con, version):
            raise StoreError(f"{path}: {', '.join(missing)} missing from its tables; {LEFT_AS_IT_WAS}")
        _whole.add((path, version, identity))
    return version, identity


def lacking(con: duckdb.DuckDBPyConnection, version: int) -> list[str]:
    """What a database of this version has and that of `con` has not: tables, and columns as "table.column"."""
    there = set(
        con.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'aqx' "
            "UNION ALL SELECT sequence_name, '' FROM duckdb_sequences() WHERE database_name = 'aqx'"
        ).fetchall()
    )
    tables = {table for table, _ in there}
    wanted = _columns_of(version, MIGRATIONS)
    gone = [table for table in wanted if table not in tables]
    return gone + [f"{t}.{c}" for t, columns in wanted.items() if t in tables for c in columns if (t, c) not in there]


@functools.cache
def _columns_of(version: int, migrations: Sequence[str]) -> dict[str, list[str]]:
    """The columns of each table of a version, as schema.sql lists them; views and sequences have none."""
    script = re.sub("--.*", "", _schema_sql())
    since = " ".join(migrations[version - 1 :])
    made_since = set(re.findall(r"CREATE (?:TABLE|VIEW|SEQUENCE) (?:IF NOT EXISTS )?(\w+)", since))
    added_since = set(re.findall(r"ALTER TABLE (\w+) ADD COLUMN (?:IF NOT EXISTS )?(\w+)", since))
    found: dict[str, list[str]] = {}
    for kind, name, body in re.findall(r"CREATE (TABLE|VIEW|SEQUENCE) (\w+)(.*?);", script, re.S):
        if name not in made_since:
            body = re.sub(r"PRIMARY KEY \(.*?\)", "", body) if kind == "TABLE" else ""
            columns = re.findall(r"[(,]\s*(\w+) [A-Z]", body)
            found[name] = [column for column in columns if (name, column) not in added_since]
    return found


def is_truncated(con: duckdb.DuckDBPyConnection, size: int) -> bool:
    """Whether data lie beyond the end of the file, which has `size` bytes.

    DuckDB notices that only when it reads there, and would write to the file before that.
    """
    (block_size, total_blocks) = con.execute(
        "SELECT block_size, total_blocks FROM pragma_database_size() WHERE database_name = 'aqx'"
    ).fetchall()[0]
    if size >= block_size * total_blocks:
        return False
    # Blocks at the end may be free and were never written; what counts are those that hold a column.
    tables = con.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'aqx'").fetchall()
    blocks = " UNION ALL ".join(["SELECT max(block_id) AS last FROM pragma_storage_info(?)"] * len(tables))
    ((last,),) = con.execute(f"SELECT max(last) FROM ({blocks})", [table for (table,) in tables]).fetchall()
    return last is not None and size < block_size * (last + 1)


def migrate(con: duckdb.DuckDBPyConnection, version: int) -> None:
    """Bring the database that `con` uses forward from `version`, inside the caller's transaction."""
    for script in MIGRATIONS[version - 1 :]:
        con.execute(script)
    con.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", [str(current_version())])
