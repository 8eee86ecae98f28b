"""`replacing`: a file is written beside its place and moved there, so that a full disk or a kill leaves the old one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from aqx.errors import AqxError, OutputError

# A draft, and what a database keeps beside it.
_DRAFT = re.compile(r"(\.aqx-[0-9a-f]{16}\.tmp)(\..*)?")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], argument: str = "path") -> Iterator[Path]:
    """Yield a draft's path; when the block ends, the draft takes the place of the file, and is gone when it raises.

    The draft lies in the file's folder, so that it shows at once whether that may be written; drafts that killed
    processes left there are removed. A file that exists keeps its permissions, and a symbolic link leads to the new
    file. What is no file (`/dev/stdout`, a named pipe) is written itself.

    Args:
        path: of the file.
        argument: what the error calls it.

    Raises:
        OutputError: the file cannot be written; what was there before still is.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(folder + "/found.txt") as draft:
        ...         _ = draft.write_text("mul(x,tanh(x))")
        ...     pathlib.Path(folder, "found.txt").read_text()
        'mul(x,tanh(x))'
    """
    try:
        before = _look_at(path, argument)
        if before is not None and not stat.S_ISREG(before.st_mode):
            yield Path(path)
            return
        place = os.path.realpath(path)
        _remove_strays(os.path.dirname(place))
        with _draft(os.path.dirname(place)) as (draft, fd):
            yield Path(draft)
            os.fsync(fd)  # else a power failure could leave the new name with nothing in it
            if before is not None:
                os.fchmod(fd, stat.S_IMODE(before.st_mode))
                with contextlib.suppress(OSError):
                    os.fchown(fd, before.st_uid, before.st_gid)
            os.replace(draft, place)
    except AqxError:
        raise
    except OSError as error:
        raise OutputError(f"{argument}={str(path)!r} cannot be written: {error.strerror or error}") from error


def check_place(path: str | os.PathLike[str], argument: str = "path") -> None:
    """Say at once, before anything is computed, why no file can be written to a path.

    Raises:
        OutputError: it is a folder, or in a folder that does not exist or may not be written, or no name of a file.
    """
    with contextlib.suppress(_OnlyLooked), replacing(path, argument):
        raise _OnlyLooked


_GIVE = "give a file in a folder that exists"


class _OnlyLooked(Exception):
    pass


def _look_at(path: str | os.PathLike[str], argument: str) -> os.stat_result | None:
    """What is at the path now; None where nothing is."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        found = None
    except ValueError as error:  # a null character, half of a surrogate pair
        raise OutputError(
            f"{argument}={str(path)[:60]!r} cannot be the name of a file; give another ({error})"
        ) from error
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise OutputError(f"{argument}={str(path)!r} cannot be written: it is a folder (Is a directory); {_GIVE}")
    if found is None and not os.path.isdir(folder := os.path.dirname(os.path.realpath(path))):
        raise OutputError(
            f"{argument}={str(path)!r} cannot be written: {folder} is not a folder (No such file); {_GIVE}"
        )
    return found


@contextlib.contextmanager
def _draft(folder: str) -> Iterator[tuple[str, int]]:
    """A new file that this process holds locked, and its descriptor; if it is still there at the end, it goes."""
    while True:
        draft = os.path.join(folder, f".aqx-{secrets.token_hex(8)}.tmp")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.path.exists(draft):
            break
        os.close(fd)  # taken for a stray before it was locked
    try:
        yield draft, fd
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        os.close(fd)


def _remove_strays(folder: str) -> None:
    """Remove the drafts of processes that are dead: nobody holds them locked."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if found := _DRAFT.fullmatch(name):
                with contextlib.suppress(OSError), _is_stray(os.path.join(folder, found[1])) as stray:
                    if stray:
                        os.unlink(os.path.join(folder, name))


@contextlib.contextmanager
def _is_stray(draft: str) -> Iterator[bool]:
    """Whether nobody holds a draft locked; nobody can until the block ends."""
    try:
        fd = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        stray = True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stray = False
        yield stray
    finally:
        os.close(fd)
