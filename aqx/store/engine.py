"""`Engine`: an empty DuckDB instance that opens one file, for a moment at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from aqx.errors import StoreError
from aqx.stopping import let_through
from aqx.store import schema
from aqx.store.driver import duckdb
from aqx.store.trouble import LEFT_AS_IT_WAS, OUR_MISTAKES, explain
from aqx.store.undo import BLOCK, Undo

# Measured on 400,000 rows of FLOAT[256]: row groups of 16k take 2.7 s of CPU and 366 MB, the default of 120k 3.0 s and
# 419 MB. The storage version is pinned so that a later DuckDB writes what this one reads.
_ATTACH = "ROW_GROUP_SIZE 16384, STORAGE_VERSION 'v2.0.0'"
# Measured on the same rows, in 8 transactions: with ALP compression, which saves nothing on outputs, 2.9 s, without it
# 2.2 s. In 16 transactions, tidying up (joining row groups that are not full) takes 1.1 of 3.3 s, and 5 of 11.6 s where
# the rows are FLOAT[1000].
_COMPRESSION = "alp,alprd,chimp,patas,rle"
_BULK = {"max_vacuum_tasks": 0, "write_buffer_row_group_count": 1}
# Folding what was committed into the file is half of a short transaction. While others wait for the lock, it stays in
# the write-ahead log, as safe as there, until nobody waits or the log has so many bytes (read back in 1.4 ms).
_LOG_BYTES = 8192
_FOREIGN_SECONDS = 0.05
_IN_USE = "Conflicting lock"


class Engine:
    """DuckDB for one file.

    Starting an instance takes ten times as long as attaching a file to it, so it is kept, empty.

    Args:
        path: the file.
        undo: what puts right a checkpoint that was cut off.
    """

    def __init__(self, path: str, undo: Undo):
        self.path: str = path
        self._undo = undo
        self._instance: duckdb.DuckDBPyConnection | None = None
        self._folding = True

    def log_bytes(self) -> int:
        """How much the write-ahead log holds."""
        try:
            return os.stat(self.path + ".wal").st_size
        except OSError:
            return 0

    @contextlib.contextmanager
    def attached(
        self, write: bool, patience: float | int, others_wait: Callable[[], bool] = lambda: False
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open the file; its tables are there to use until the block ends.

        Args:
            write: whether to write.
            patience: seconds to wait for programs that see no lock file of ours.
            others_wait: whether another process wants the file: then bringing the log into it may be left to that.

        Raises:
            StoreError: the file has gone, is in use, or cannot be read or written.
        """
        # ATTACH would make a new file in the place of one that has gone.
        if not os.path.exists(self.path):
            raise StoreError(f"{self.path} has gone: it was moved or deleted while in use")
        con = self._empty().cursor()
        try:
            if write:
                self._restore()
            self._attach(con, write, time.monotonic() + patience)
            yield con
        except OUR_MISTAKES:
            raise
        except duckdb.Error as error:
            if not write and self._undo.is_due():
                raise StoreError(
                    f"{self.path} was being written when its process was killed; whoever may write it puts it right "
                    "by opening it, e.g. with aqx summary"
                ) from error
            raise explain(self.path, error) from error
        finally:
            self._detach(con, write, others_wait)

    def _restore(self) -> None:
        try:
            self._undo.restore()
        except OSError as error:
            raise explain(self.path, error) from error

    def _attach(self, con: duckdb.DuckDBPyConnection, write: bool, deadline: float) -> None:
        """Attach the file, once no program that sees no lock file of ours has it open."""
        mode = _ATTACH if write else "READ_ONLY"
        while True:
            try:
                con.execute(f"ATTACH {_quoted(self.path)} AS aqx (TYPE duckdb, {mode}); USE aqx")
                return
            except duckdb.IOException as error:
                if _IN_USE not in str(error) or time.monotonic() >= deadline:
                    raise
            with let_through():
                time.sleep(_FOREIGN_SECONDS)

    @contextlib.contextmanager
    def bulk(self, on: bool) -> Iterator[None]:
        """Write many rows in the block: group by group, and nothing that is stored is tidied up."""
        settings = _BULK if on else {}
        for name, value in settings.items():
            self._empty().execute(f"SET {name} = {value}")
        try:
            yield
        finally:
            if self._instance:  # a new one starts with the defaults
                for name in settings:
                    self._instance.execute(f"RESET {name}")

    def _detach(self, con: duckdb.DuckDBPyConnection, write: bool, others_wait: Callable[[], bool]) -> None:
        try:
            con.close()
            if self._instance:
                with contextlib.ExitStack() as stack:
                    if write and (size := self.log_bytes()):
                        waits = size < _LOG_BYTES and others_wait()
                        self._checkpoint(not waits and self._keeps(stack))
                    self._instance.execute("DETACH DATABASE IF EXISTS aqx")
        except duckdb.Error:
            # What was committed is safe in the write-ahead log even where folding it into the file has failed (a full
            # disk), so this is no failure of the transaction; but the instance may no longer be trusted.
            self._drop_instance(con)

    def _keeps(self, stack: contextlib.ExitStack) -> bool:
        """Copy what a checkpoint is about to write over; whether that could be done."""
        blocks = self._empty().execute("SELECT block_id FROM pragma_metadata_info('aqx')").fetchall()
        try:
            stack.enter_context(self._undo.kept([block for (block,) in blocks]))
        except OSError:
            return False
        return True

    def _checkpoint(self, on: bool) -> None:
        """Set whether DETACH brings the log into the file."""
        if on is not self._folding and self._instance:
            self._instance.execute(f"PRAGMA {'enable' if on else 'disable'}_checkpoint_on_shutdown")
            self._folding = on

    def _empty(self) -> duckdb.DuckDBPyConnection:
        if not self._instance:
            self._instance, self._folding = _start(self.path), True
        return self._instance

    def _drop_instance(self, con: duckdb.DuckDBPyConnection) -> None:
        instance, self._instance = self._instance, None
        for each in (con, instance):
            with contextlib.suppress(duckdb.Error):
                if each is not None:
                    each.close()

    def look(self) -> None:
        """Refuse a file that is not ours, without touching anything.

        Raises:
            StoreError: it is not a database of aqx.
        """
        try:
            with open(self.path, "rb") as file:
                if file.read(12)[8:] != b"DUCK":
                    raise StoreError(f"{self.path} is not a database of aqx; {LEFT_AS_IT_WAS}")
        except OSError as error:
            raise explain(self.path, error) from error
        con = self._empty().cursor()
        try:
            con.execute(f"ATTACH {_quoted(self.path)} AS aqx (TYPE duckdb, READ_ONLY); USE aqx")
            schema.read_signature(con, self.path)
        except duckdb.Error as error:
            if _IN_USE not in str(error):
                raise explain(self.path, error) from error
        finally:
            self._detach(con, False, lambda: False)

    def create(self) -> None:
        """Build the tables under another name and move the finished file into place: no half of it is ever seen."""
        draft = self.path + ".new"
        leavings = (draft, draft + ".wal", draft + ".wal.checkpoint")
        _remove(*leavings)  # of a process that was killed here
        try:
            with contextlib.closing(_start(draft)) as con:
                con.execute(f"ATTACH {_quoted(draft)} AS aqx ({_ATTACH}); USE aqx; BEGIN")
                schema.create_schema(con)
                con.execute("COMMIT; USE memory; DETACH aqx")
            os.replace(draft, self.path)
        except (duckdb.Error, OSError) as error:
            _remove(*leavings, self.path + ".lock")
            raise explain(self.path, error) from error


def _start(file: str) -> duckdb.DuckDBPyConnection:
    """An empty instance that can reach `file` and nothing else: what a foreign file holds must not read other files."""
    con = duckdb.connect(
        ":memory:",
        config={
            # The caller's thread alone: a second makes inserting a million rows no faster, would idle beside JAX's own
            # between transactions, and lets a forked child crash when it ends.
            "threads": 1,
            # None but by DETACH: what a checkpoint writes over is copied first.
            "checkpoint_threshold": "1TB",
            "default_block_size": BLOCK,
            "async_threads": 0,
            "temp_directory": file + ".tmp",
            "disabled_compression_methods": _COMPRESSION,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
        },
    )
    paths = ", ".join(_quoted(file + suffix) for suffix in ("", ".wal", ".wal.checkpoint", ".wal.recovery"))
    con.execute(f"SET allowed_paths = [{paths}]; SET enable_external_access = false")
    return con


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.remove(path)
