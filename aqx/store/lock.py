"""`Lock`: a lock file between processes and threads, first come first served; readers share it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from aqx.stopping import let_through

# Linux wakes who has waited longest first (since 5.0), but lets readers pass a writer that waits. So everybody first
# takes their turn, a lock on the file's first byte, and keeps it while they wait for the file; then it can be seen
# whether anybody waits. Elsewhere (macOS) such a lock is not apart from the file's, and there are no turns.
_HAS_TURNS = hasattr(fcntl, "F_OFD_SETLKW")
_TURN, _WORK, _PLACES = 0, 1, 16  # which byte is for turns, which for `one_at_a_time`, the first of `few_at_a_time`
_SIGNED = 512  # bytes at the file's beginning that say who holds it alone; `Undo` has its own
_LOOK_SECONDS = 0.02
_TELL_SECONDS = 5.0
_log = logging.getLogger("aqx")


# DuckDB opens a file once in a process, so its threads do not even read beside each other.
_of_threads: dict[str, threading.Lock] = {}
os.register_at_fork(after_in_child=_of_threads.clear)


class Hold:
    """A lock file that is held, until `release`."""

    def __init__(self, fd: int, of_threads: threading.Lock, shared: bool):
        self._fd = fd
        self._of_threads = of_threads
        self._alone = not shared
        self._sign(f"{os.getpid()} {datetime.now().isoformat(' ', 'seconds')} {os.uname().nodename}")

    def others_wait(self) -> bool:
        """Return whether anybody waits for the lock; never, where that cannot be seen."""
        if not _take_turn(self._fd, wait=False):
            return True
        _end_turn(self._fd)
        return False

    def release(self) -> None:
        """Let the next in."""
        self._sign("")
        os.close(self._fd)
        self._of_threads.release()

    def _sign(self, text: str) -> None:
        """Say who holds the lock alone, for who waits in vain."""
        if self._alone:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, text.encode()[:_SIGNED].ljust(_SIGNED), 0)


class Lock:
    """A lock file; a lock that a dead process held is no lock.

    Args:
        path: of the file, made where there is none, and never removed.
        guards: the file that it is for: whoever may write that may lock it.
    """

    def __init__(self, path: str, guards: str):
        self.path: str = path
        self.guards: str = guards

    def acquire(
        self,
        shared: bool,
        timeout: float | int,
        prepare: Callable[[], None] | None = None,
        unless: Callable[[], bool] | None = None,
    ) -> Hold | None:
        """Take the lock, in the order of asking.

        Args:
            shared: whether others may hold it meanwhile who share it too.
            timeout: seconds to wait.
            prepare: called once where it must be waited for.
            unless: asked while waiting; once it says yes, the lock is not wanted any more, and None is returned.

        Raises:
            TimeoutError: it was not to be had so long.
            OSError: the file cannot be made or opened.
        """
        deadline = time.monotonic() + timeout
        of_threads = _of_threads.setdefault(self.path, threading.Lock())
        if not of_threads.acquire(blocking=False):
            if prepare:
                prepare()
            while not of_threads.acquire(timeout=min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    raise TimeoutError
                with let_through():
                    pass
            prepare = None
        fd = None
        try:
            fd = self._locked(fcntl.LOCK_SH if shared else fcntl.LOCK_EX, deadline, prepare, unless)
        finally:
            if fd is None:
                of_threads.release()
        return None if fd is None else Hold(fd, of_threads, shared)

    def one_at_a_time(self, patience: float | int) -> contextlib.AbstractContextManager[bool]:
        """Let no two processes into such a block together, as far as the system allows; the lock itself stays free.

        It is for work whose result the next one finds stored, and is spared; so whoever has waited long goes on too.

        Args:
            patience: seconds to wait.

        Returns:
            A block that yields whether nobody was inside.
        """
        return self._room(range(_WORK, _WORK + 1), patience)

    def few_at_a_time(self, count: int, patience: float | int) -> contextlib.AbstractContextManager[bool]:
        """Let no more than so many processes into such a block together, as `one_at_a_time` lets one."""
        return self._room(range(_PLACES, _PLACES + count), patience)

    @contextlib.contextmanager
    def _room(self, places: range, patience: float | int) -> Iterator[bool]:
        fd, at_once = None, True
        try:
            with contextlib.suppress(OSError):  # who may not write there stores nothing either
                fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            deadline = time.monotonic() + patience
            while fd is not None and not any(_set_place(fd, place, fcntl.F_WRLCK, wait=False) for place in places):
                at_once = False
                if time.monotonic() >= deadline:
                    break
                time.sleep(_LOOK_SECONDS)
            yield at_once
        finally:
            if fd is not None:
                os.close(fd)

    def holder(self) -> str:
        """Return who holds the lock alone, for people: process, host, since when; "" where it is not known."""
        try:
            with open(self.path, "rb") as file:
                number, day, hour, host = file.read(_SIGNED).decode().rstrip().split(" ", 3)
            pid = int(number)
        except (OSError, ValueError):
            return ""
        here = host == os.uname().nodename
        if here and not is_running(pid):
            return ""
        return f"process {pid} on {host}{' (stopped)' if here and _is_stopped(pid) else ''}, since {day} {hour}"

    def _locked(
        self, kind: int, deadline: float, prepare: Callable[[], None] | None, unless: Callable[[], bool] | None
    ) -> int | None:
        while True:
            fd = self._opened(kind)
            if not _try(fd, kind):
                if time.monotonic() >= deadline and not unless:
                    os.close(fd)
                    raise TimeoutError
                waiting = _Waiting(fd, kind)
                if prepare:
                    waiting.guarded(prepare)
                    prepare = None
                if not waiting.end(deadline, unless, lambda: _log.warning("aqx: waiting for %s", self._for_people())):
                    return None
            if self._is_current(fd):
                return fd
            os.close(fd)

    def _for_people(self) -> str:
        return f"{self.guards}, which {self.holder() or 'another process'} has locked"

    def _opened(self, kind: int) -> int:
        try:
            with contextlib.suppress(FileNotFoundError):
                return os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            if kind is fcntl.LOCK_EX or not os.path.exists(self.path):
                raise
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            like = os.stat(self.guards)
            if like.st_gid != os.fstat(fd).st_gid:
                os.fchown(fd, -1, like.st_gid)
            os.fchmod(fd, like.st_mode & 0o666)
        return fd

    def _is_current(self, fd: int) -> bool:
        """Whether the file is still the one that whoever comes next opens."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False


def is_running(pid: int) -> bool:
    """Return whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _is_stopped(pid: int) -> bool:
    """Whether it was told to pause, where the system tells (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


class _Waiting:
    """One wait for a lock, in a thread: the system's own wait has no limit, and is not interrupted."""

    def __init__(self, fd: int, kind: int):
        self._fd, self._kind = fd, kind
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._given_up = False
        threading.Thread(target=self._wait, name="aqx-lock", daemon=True).start()

    def _wait(self) -> None:
        _take_turn(self._fd, wait=True)
        fcntl.flock(self._fd, self._kind)
        _end_turn(self._fd)
        with self._guard:
            self._ended.set()
            if self._given_up:
                os.close(self._fd)

    def guarded(self, action: Callable[[], None]) -> None:
        """Do something meanwhile; where it raises, the lock is not wanted any more."""
        try:
            action()
        except BaseException:
            self._give_up()
            raise

    def end(self, deadline: float, unless: Callable[[], bool] | None, tell: Callable[[], None]) -> bool:
        """Return True once the lock is held, or False once it is not wanted any more; signals may interrupt this.

        The file is closed, at once or later, unless the lock is held.
        """
        began, told = time.monotonic(), False
        try:
            while not self._waited(min(_LOOK_SECONDS if unless else 1.0, max(0.0, deadline - time.monotonic()))):
                if unless and unless():
                    self._give_up()
                    return False
                if time.monotonic() >= deadline:
                    raise TimeoutError
                if not told and time.monotonic() - began > _TELL_SECONDS:
                    tell()
                    told = True
            return True
        except BaseException:
            self._give_up()
            raise

    def _waited(self, seconds: float) -> bool:
        with let_through():
            return self._ended.wait(seconds)

    def _give_up(self) -> None:
        with self._guard:
            self._given_up = True
            if self._ended.is_set():
                os.close(self._fd)


def _try(fd: int, kind: int) -> bool:
    if not _take_turn(fd, wait=False):
        return False
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        _end_turn(fd)


def _take_turn(fd: int, wait: bool) -> bool:
    return _set_place(fd, _TURN, fcntl.F_WRLCK, wait)


def _end_turn(fd: int) -> None:
    _set_place(fd, _TURN, fcntl.F_UNLCK, wait=False)


def _set_place(fd: int, place: int, kind: int, wait: bool) -> bool:
    """Lock or free one byte of the file; whether that was to be had."""
    if _HAS_TURNS:
        byte = struct.pack("hhqqi", kind, os.SEEK_SET, place, 1, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, byte)
        except OSError as error:
            return error.errno == errno.EBADF  # who may only read the file waits beside the queue
    return True
