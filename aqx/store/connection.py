"""`Database`: one DuckDB file, opened for one short transaction at a time under an inter-process lock."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import duckdb

from aqx.errors import StoreError
from aqx.store import pending, schema
from aqx.store.lock import Hold, Lock
from aqx.store.trouble import LEFT_AS_IT_WAS, OUR_MISTAKES, check_name, check_path, explain, warn_of_network

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
_RESULTS_WAIT = 10  # times as long as others; then they are left for later
_FOREIGN_SECONDS = 0.05
_IN_USE = "Conflicting lock"

T = TypeVar("T")
_log = logging.getLogger("aqx")


class Database:
    """A database file; nothing is held open between two transactions.

    DuckDB lets one process at a time have a file open, so every transaction takes the lock file `<path>.lock`, attaches
    the file, and detaches it before the lock is released. A lock left by a dead process is no lock. What this
    object keeps is an empty DuckDB instance: starting one takes ten times as long as attaching a file to it.

    All that aqx knows of how to reach a database is in this class: `transaction` and `read` yield a connection in which
    `aqx`'s tables are there to use. A database behind a server of DuckDB's would be another class of these two methods.

    Args:
        path: the file.
        create: whether to make the file where there is none.
        timeout: seconds to wait for other processes' transactions.
        bring_forward: whether a database of an earlier schema is brought to this one; else it may only be looked at.

    Raises:
        StoreError: the file does not exist (and `create` is false), is not a database of aqx, is damaged, comes from a
            newer aqx, cannot be written, or stays locked longer than `timeout`. What is stored stays as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     db = Database(folder + "/search.duckdb", create=True)
        ...     with db.read() as con:
        ...         con.execute("SELECT count(*) FROM functions").fetchone()
        (0,)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        timeout: float | int = 60.0,
        bring_forward: bool = True,
    ):
        check_name(path)
        # The real path: whoever comes through a symbolic link must meet the same lock.
        self.path: Path = Path(os.path.realpath(path))
        self.timeout = timeout
        self._file = str(self.path)
        self._lock = Lock(self._file + ".lock", self._file)
        self._bring_forward = bring_forward
        self.identity: str = ""
        self._instance: duckdb.DuckDBPyConnection | None = None
        self._folding = True
        self._process = os.getpid()
        self._open = threading.local()
        check_path(self._file, create)
        warn_of_network(self._file)
        if self.path.exists() and not os.path.exists(self._lock.path):
            self._look()
        if create and not self.path.exists():
            with self._locked(write=True):
                self._create()
        with self._locked(write=False) as write, self._attached(write) as con:
            version, self.identity = schema.read_signature(con, self._file)
            if schema.is_truncated(con, self.path.stat().st_size):
                raise StoreError(f"{self._file} is truncated; {LEFT_AS_IT_WAS}")
        if bring_forward and version < schema.current_version():
            self._migrate()
        if bring_forward and pending.waiting(self.path) and self._may_write():
            with self.transaction():
                pass
        for note in pending.notes(self.path, older_than=timeout):
            _log.warning("aqx: %s", note)

    def __repr__(self) -> str:
        return f"Database({self._file!r})"

    @contextlib.contextmanager
    def transaction(self, bulk: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection whose statements are committed together when the block ends, or not at all when it raises.

        Other processes wait meanwhile: compute before, not inside. The connection ends with the block, so fetch inside.
        `bulk` is for inserting many rows: they are written group by group, and what is stored is not tidied up.

        Raises:
            StoreError: the file cannot be locked, opened or written; nothing of the block is stored.
        """
        with self._locked(write=True), self._writing(bulk) as con:
            yield con

    def hand_in(
        self, note: pending.Note, then: Callable[[duckdb.DuckDBPyConnection], T] | None = None
    ) -> tuple[pending.Answers, T | None]:
        """Store results, by a transaction of this process or along with another one's, whichever comes first.

        While they cannot be stored they lie in a file beside the database, and come into it with any later transaction.

        Args:
            note: the results.
            then: what is to be read in the same transaction.

        Returns:
            The trials as they are stored, with errors for those that could not be; and what was read, or None where
            another process has stored them.

        Raises:
            StoreError: they could not be stored for ten times as long as others wait, and are kept for later.
        """
        try:
            patience = _RESULTS_WAIT * self.timeout
            with self._held(True, patience, prepare=note.write, unless=lambda: note.is_answered):
                if note.is_answered:
                    return note.take_answer(), None
                with self._writing(leave=note, patience=patience) as con:
                    answers = note.store(con)
                    read = then(con) if then else None
                if note.is_written:
                    note.discard()
                return answers, read
        except StoreError as error:
            if note.is_answered:
                return note.take_answer(), None
            raise self._kept(note, error) from error

    def _kept(self, note: pending.Note, error: StoreError) -> StoreError:
        with contextlib.suppress(OSError):
            note.leave()
        whose = f"the results of trials {', '.join(map(str, sorted(note.endings)))}"
        if not note.is_written:
            return StoreError(f"{error}; {whose} could not be kept either")
        return StoreError(
            f"{error}; {whose} are kept in {note.path.parent} and come into the database when it is next opened"
        )

    @contextlib.contextmanager
    def _writing(
        self, bulk: bool = False, leave: pending.Note | None = None, patience: float | int | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A transaction under the lock, which takes in what waits beside the database, but for one note."""
        with self._bulk(bulk), self._attached(True, patience) as con:
            self._check_signature(con)
            with self._begun(con):
                taken = pending.take_in(con, self.path, self.identity, leave)
                with self._shared(con):
                    yield con
            pending.settle(taken, self.path)

    @contextlib.contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that reads; it works in a folder where this user may not write.

        Inside a transaction or another read of the same thread it shares that one's connection, and sees its moment.

        Raises:
            StoreError: the file cannot be locked or opened.
        """
        if outer := getattr(self._open, "connection", None):
            yield outer
            return
        with self._locked(write=False) as write, self._attached(write) as con:
            self._check_signature(con)
            with self._begun(con), self._shared(con):
                yield con

    @contextlib.contextmanager
    def _shared(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        self._open.connection = con
        try:
            yield
        finally:
            self._open.connection = None

    def _locked(self, write: bool) -> contextlib.AbstractContextManager[bool]:
        return self._held(write, self.timeout)

    @contextlib.contextmanager
    def _held(
        self,
        write: bool,
        patience: float | int,
        prepare: Callable[[], None] | None = None,
        unless: Callable[[], bool] | None = None,
    ) -> Iterator[bool]:
        """Hold the lock, or not where `unless` says so; yields whether the file may be written."""
        if self._process != os.getpid():
            # What a forked child inherits, an open transaction above all, is its parent's.
            raise StoreError(f"{self._file} was opened before this process was forked; open it anew in the child")
        if self._hold:
            raise StoreError(f"a transaction on {self._file} is already open in this thread; end it before the next")
        try:
            self._open.hold, write = self._acquire(write, patience, prepare, unless)
            yield write
        finally:
            hold, self._open.hold = self._hold, None
            if hold:
                hold.release()

    @property
    def _hold(self) -> Hold | None:
        return getattr(self._open, "hold", None)

    def _acquire(
        self,
        write: bool,
        patience: float | int,
        prepare: Callable[[], None] | None,
        unless: Callable[[], bool] | None,
    ) -> tuple[Hold | None, bool]:
        deadline = time.monotonic() + patience
        try:
            while True:
                # What others have left in the log is brought into the file by whoever comes, to look or to write.
                write = write or self._folds()
                hold = self._lock.acquire(not write, max(0.0, deadline - time.monotonic()), prepare, unless)
                if hold is None or write or not self._folds():
                    return hold, write
                hold.release()
        except TimeoutError as error:
            who = f" ({holder})" if (holder := self._lock.holder()) else ""
            raise StoreError(
                f"{self._file} stayed locked by another process{who} for {patience:g} s; wait for it, or end it"
            ) from error
        except OSError as error:
            if write or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise explain(self._file, error) from error
            # Where no lock file can be made this user writes nothing either, and DuckDB itself keeps readers and
            # another user's writer apart.
            return None, False

    def _folds(self) -> bool:
        """Whether there is something in the log that this user may bring into the file."""
        if not (self._bring_forward and self._log_bytes()):
            return False
        return self._may_write()

    def _may_write(self) -> bool:
        return os.access(self._file, os.W_OK) and os.access(self.path.parent, os.W_OK)

    def _log_bytes(self) -> int:
        """How much the write-ahead log holds."""
        try:
            return os.stat(self._file + ".wal").st_size
        except OSError:
            return 0

    @contextlib.contextmanager
    def _attached(self, write: bool, patience: float | int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        # ATTACH would make a new file in the place of one that has gone.
        if not self.path.exists():
            raise StoreError(f"{self._file} has gone: it was moved or deleted while in use")
        con = self._empty_instance().cursor()
        try:
            self._attach(con, write, time.monotonic() + (patience or self.timeout))
            yield con
        except OUR_MISTAKES:
            raise
        except duckdb.Error as error:
            raise explain(self._file, error) from error
        finally:
            self._detach(con, write)

    def _attach(self, con: duckdb.DuckDBPyConnection, write: bool, deadline: float) -> None:
        """Attach the file, once no program that sees no lock file of ours has it open."""
        mode = _ATTACH if write else "READ_ONLY"
        while True:
            try:
                con.execute(f"ATTACH {_quoted(self._file)} AS aqx (TYPE duckdb, {mode}); USE aqx")
                return
            except duckdb.IOException as error:
                if _IN_USE not in str(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(_FOREIGN_SECONDS)

    @contextlib.contextmanager
    def _bulk(self, on: bool) -> Iterator[None]:
        settings = _BULK if on else {}
        for name, value in settings.items():
            self._empty_instance().execute(f"SET {name} = {value}")
        try:
            yield
        finally:
            if self._instance:  # a new one starts with the defaults
                for name in settings:
                    self._instance.execute(f"RESET {name}")

    def _detach(self, con: duckdb.DuckDBPyConnection, write: bool) -> None:
        try:
            con.close()
            if self._instance:
                if write:
                    self._checkpoint(not (self._log_bytes() < _LOG_BYTES and self._others_wait()))
                self._instance.execute("DETACH DATABASE IF EXISTS aqx")
        except duckdb.Error:
            # What was committed is safe in the write-ahead log even where folding it into the file has failed (a full
            # disk), so this is no failure of the transaction; but the instance may no longer be trusted.
            self._drop_instance(con)

    def _checkpoint(self, on: bool) -> None:
        """Set whether DETACH brings the log into the file."""
        if on is not self._folding and self._instance:
            self._instance.execute(f"PRAGMA {'enable' if on else 'disable'}_checkpoint_on_shutdown")
            self._folding = on

    def _others_wait(self) -> bool:
        return self._hold is not None and self._hold.others_wait()

    def _empty_instance(self) -> duckdb.DuckDBPyConnection:
        if not self._instance:
            self._instance, self._folding = _start(self._file), True
        return self._instance

    def _drop_instance(self, con: duckdb.DuckDBPyConnection) -> None:
        instance, self._instance = self._instance, None
        for each in (con, instance):
            with contextlib.suppress(duckdb.Error):
                if each is not None:
                    each.close()

    def _check_signature(self, con: duckdb.DuckDBPyConnection) -> None:
        _, identity = schema.read_signature(con, self._file)
        if identity != self.identity:
            raise StoreError(f"{self._file} was replaced by another database while in use; open it anew")

    @contextlib.contextmanager
    def _begun(self, con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        con.execute("BEGIN")
        try:
            yield
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                con.execute("ROLLBACK")
            raise
        con.execute("COMMIT")

    def _look(self) -> None:
        """Refuse a file that is not ours before a lock is made beside it."""
        try:
            with open(self._file, "rb") as file:
                if file.read(12)[8:] != b"DUCK":
                    raise StoreError(f"{self._file} is not a database of aqx; {LEFT_AS_IT_WAS}")
        except OSError as error:
            raise explain(self._file, error) from error
        con = self._empty_instance().cursor()
        try:
            con.execute(f"ATTACH {_quoted(self._file)} AS aqx (TYPE duckdb, READ_ONLY); USE aqx")
            schema.read_signature(con, self._file)
        except duckdb.Error as error:
            if _IN_USE not in str(error):
                raise explain(self._file, error) from error
        finally:
            self._detach(con, write=False)

    def _create(self) -> None:
        """Build the tables under another name and move the finished file into place: no half of it is ever seen."""
        if self.path.exists():
            return
        draft = self._file + ".new"
        leavings = (draft, draft + ".wal", draft + ".wal.checkpoint")
        _remove(*leavings)  # of a process that was killed here
        try:
            with contextlib.closing(_start(draft)) as con:
                con.execute(f"ATTACH {_quoted(draft)} AS aqx ({_ATTACH}); USE aqx; BEGIN")
                schema.create_schema(con)
                con.execute("COMMIT; USE memory; DETACH aqx")
            os.replace(draft, self._file)
        except (duckdb.Error, OSError) as error:
            _remove(*leavings, self._file + ".lock")
            raise explain(self._file, error) from error

    def _migrate(self) -> None:
        with self._locked(write=True), self._attached(write=True) as con, self._begun(con):
            version, _ = schema.read_signature(con, self._file)
            schema.migrate(con, version)


def _start(file: str) -> duckdb.DuckDBPyConnection:
    """An empty instance that can reach `file` and nothing else: what a foreign file holds must not read other files."""
    con = duckdb.connect(
        ":memory:",
        config={
            # The caller's thread alone: a second makes inserting a million rows no faster, would idle beside JAX's own
            # between transactions, and lets a forked child crash when it ends.
            "threads": 1,
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
