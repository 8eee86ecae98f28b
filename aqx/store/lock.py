"""`Lock`: a lock file between processes and threads, first come first served; readers share it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading
import time

# Linux wakes who has waited longest first (since 5.0), but lets readers pass a writer that waits. So everybody first
# takes their turn, a lock on the file's first byte, and keeps it while they wait for the file; whether anybody waits can
# then be seen. Elsewhere (macOS) such a lock is not apart from the file's, and there are no turns.
_HAS_TURNS = hasattr(fcntl, "F_OFD_SETLKW")


# DuckDB opens a file once in a process, so its threads do not even read beside each other.
_of_threads: dict[str, threading.Lock] = {}
os.register_at_fork(after_in_child=_of_threads.clear)


class Hold:
    """A lock file that is held, until `release`."""

    def __init__(self, fd: int, of_threads: threading.Lock):
        self._fd = fd
        self._of_threads = of_threads

    def others_wait(self) -> bool:
        """Return whether anybody waits for the lock; never, where that cannot be seen."""
        if not _take_turn(self._fd, wait=False):
            return True
        _end_turn(self._fd)
        return False

    def release(self) -> None:
        """Let the next in."""
        os.close(self._fd)
        self._of_threads.release()


class Lock:
    """A lock file; a lock that a dead process held is no lock.

    Args:
        path: of the file, made where there is none, and never removed.
    """

    def __init__(self, path: str):
        self.path: str = path

    def acquire(self, shared: bool, timeout: float) -> Hold:
        """Take the lock, in the order of asking.

        Args:
            shared: whether others may hold it meanwhile who share it too.
            timeout: seconds to wait.

        Raises:
            TimeoutError: it was not to be had so long.
            OSError: the file cannot be made or opened.
        """
        deadline = time.monotonic() + timeout
        of_threads = _of_threads.setdefault(self.path, threading.Lock())
        if not of_threads.acquire(timeout=timeout):
            raise TimeoutError
        try:
            return Hold(self._locked(fcntl.LOCK_SH if shared else fcntl.LOCK_EX, deadline), of_threads)
        except BaseException:
            of_threads.release()
            raise

    def _locked(self, kind: int, deadline: float) -> int:
        while True:
            fd = self._opened(kind)
            if not _try(fd, kind):
                _Waiting(fd, kind).end(deadline - time.monotonic())
            if self._is_current(fd):
                return fd
            os.close(fd)

    def _opened(self, kind: int) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if kind is fcntl.LOCK_EX or not os.path.exists(self.path):
                raise
            with contextlib.suppress(OSError):
                return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            raise error from None

    def _is_current(self, fd: int) -> bool:
        """Whether the file is still the one that whoever comes next opens."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
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

    def end(self, timeout: float) -> None:
        """Return once the lock is held; the file is closed, at once or later, where this raises."""
        try:
            if self._ended.wait(max(0.0, timeout)):
                return
            raise TimeoutError
        except BaseException:
            with self._guard:
                self._given_up = True
                if self._ended.is_set():
                    os.close(self._fd)
            raise


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
    try:
        _set_turn(fd, fcntl.F_WRLCK, wait)
    except OSError as error:
        return error.errno == errno.EBADF  # who may only read the file waits beside the queue
    return True


def _end_turn(fd: int) -> None:
    _set_turn(fd, fcntl.F_UNLCK, wait=False)


def _set_turn(fd: int, kind: int, wait: bool) -> None:
    if _HAS_TURNS:
        first_byte = struct.pack("hhqqi", kind, os.SEEK_SET, 0, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, first_byte)
