"""Rows, processes and users for the tests of the store."""

from __future__ import annotations

import contextlib
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import filelock
import pytest

import aqx
from aqx.errors import StoreError
from aqx.store import Database

# The store needs nothing of aqx but the errors, and these processes are many: a bare package spares them JAX.
BARE = f"""
import sys, types
sys.modules["aqx"] = types.ModuleType("aqx")
sys.modules["aqx"].__path__ = {list(aqx.__path__)}
"""


def value_of(db: Database, key: str) -> str | None:
    with db.read() as con:
        row = con.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchone()
    return row[0] if row else None


def number(con: duckdb.DuckDBPyConnection, query: str) -> int:
    row = con.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def put(db: Database, key: str, value: str) -> None:
    with db.transaction() as con:
        con.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])


def one_line(error: pytest.ExceptionInfo[StoreError], *words: str) -> None:
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@contextlib.contextmanager
def start_python(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`; it does not outlive the block."""
    with subprocess.Popen(
        [sys.executable, "-c", BARE + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_python(
    code: str, *arguments: str, user: int | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `code` to its end, as another user where one is given; what is imported before needs no permissions."""
    load = "import os, aqx.store.schema; aqx.store.schema._schema_sql()\n"
    drop = f"{load}os.setgroups([]); os.setgid({user}); os.setuid({user})\n" if user is not None else ""
    done = subprocess.run([sys.executable, "-c", BARE + drop + code, *arguments], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Make a folder readable for everyone and writable for no one, and open the way that leads to it.

    One at a time on a machine: the way is shared with other tests' folders, and closed again.
    """
    with filelock.FileLock(Path(tempfile.gettempdir()) / "aqx-tests-as-nobody.lock"):
        opened: list[tuple[Path, int]] = []
        for parent in (folder, *folder.parents):
            mode = stat.S_IMODE(parent.stat().st_mode)
            if mode & 0o005 != 0o005 or parent == folder:
                opened.append((parent, mode))
                parent.chmod(0o555 if parent == folder else mode | 0o005)
        try:
            yield
        finally:
            for parent, mode in opened:
                parent.chmod(mode)
