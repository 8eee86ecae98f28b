"""`Database`: one DuckDB file, opened for one short transaction at a time under an inter-process lock."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from aqx.errors import StoreError
from aqx.stopping import held, let_through
from aqx.store import pending, schema
from aqx.store.driver import duckdb
from aqx.store.engine import Engine
from aqx.store.lock import Hold, Lock
from aqx.store.trouble import LEFT_AS_IT_WAS, check_name, check_path, explain, warn_of_network
from aqx.store.undo import Undo

_WORK_WAIT = 120.0
_RESULTS_WAIT = 10  # times as long as others; then they are left for later

T = TypeVar("T")
_log = logging.getLogger("aqx")


class Database:
    """A database file; nothing is held open between two transactions.

    DuckDB lets one process at a time have a file open, so every transaction takes the lock file `<path>.lock`, attaches
    the file, and detaches it before the lock is released. A lock left by a dead process is no lock.

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
        self._engine = Engine(self._file, Undo(self._file, self._lock.path))
        self._process = os.getpid()
        self._open = threading.local()
        check_path(self._file, create)
        warn_of_network(self._file)
        if self.path.exists() and not os.path.exists(self._lock.path):
            with held():
                self._engine.look()
        if create and not self.path.exists():
            with self._locked(write=True):
                if not self.path.exists():
                    self._engine.create()
        with self._locked(write=False) as write, self._attached(write) as con:
            version, self.identity = schema.read_signature(con, self._file)
            if schema.is_truncated(con, self.path.stat().st_size):
                raise StoreError(f"{self._file} is truncated; {LEFT_AS_IT_WAS}")
        if bring_forward:
            if version < schema.current_version():
                self._migrate()
            if pending.waiting(self.path) and self._may_write():
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
        with self._locked(write=True), self._writing(bulk) as con, let_through():
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

        def write_down() -> None:
            with contextlib.suppress(OSError):  # the lock may still come in time
                note.write()

        try:
            patience = _RESULTS_WAIT * self.timeout
            with self._held(True, patience, prepare=write_down, unless=lambda: note.is_answered):
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
        with self._engine.bulk(bulk), self._attached(True, patience) as con:
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
            with self._begun(con), self._shared(con), let_through():
                yield con

    def one_at_a_time(self) -> contextlib.AbstractContextManager[bool]:
        """Let no two processes into such a block together: for long work whose result the next one finds stored.

        It yields whether nobody was inside. Nothing is locked meanwhile; who has waited for two minutes goes on anyway.
        """
        return self._lock.one_at_a_time(_WORK_WAIT)

    def few_at_a_time(self, count: int) -> contextlib.AbstractContextManager[bool]:
        """Let no more than so many processes into such a block together, as `one_at_a_time` lets one.

        It yields whether there was room at once.
        """
        return self._lock.few_at_a_time(count, _WORK_WAIT)

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
        """Hold the lock, or not where `unless` says so; yields whether the file may be written.

        Signals wait until the block ends, but for what is in `let_through`.
        """
        if self._process != os.getpid():
            # What a forked child inherits, an open transaction above all, is its parent's.
            raise StoreError(f"{self._file} was opened before this process was forked; open it anew in the child")
        if self._hold:
            raise StoreError(f"a transaction on {self._file} is already open in this thread; end it before the next")
        with held():  # an interruption between two lines could leave the lock taken, or the file attached
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
        try:
            if not write and self._folds():
                self._fold()
            return self._lock.acquire(not write, patience, prepare, unless), write
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

    def _fold(self) -> None:
        """Bring the log into the file, if nobody has it: a log can be read from, too, and readers should not wait."""
        with contextlib.suppress(TimeoutError, OSError, StoreError):
            if hold := self._lock.acquire(False, 0):
                try:
                    with self._engine.attached(True, 0):
                        pass
                finally:
                    hold.release()

    def _folds(self) -> bool:
        """Whether there is something in the log that this user may bring into the file."""
        if not (self._bring_forward and self._engine.log_bytes()):
            return False
        return self._may_write()

    def _may_write(self) -> bool:
        return os.access(self._file, os.W_OK) and os.access(self.path.parent, os.W_OK)

    def _attached(
        self, write: bool, patience: float | int | None = None
    ) -> contextlib.AbstractContextManager[duckdb.DuckDBPyConnection]:
        return self._engine.attached(
            write, patience or self.timeout, lambda: bool(self._hold and self._hold.others_wait())
        )

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

    def _migrate(self) -> None:
        with self._locked(write=True), self._attached(write=True) as con, self._begun(con):
            version, _ = schema.read_signature(con, self._file)
            with let_through():
                schema.migrate(con, version)
