"""`Undo`: the blocks that DuckDB is about to write over, kept so that one written by half can be put back.

A checkpoint writes to free places of the file, and at last a header that points there: who is killed before that leaves
what was. Blocks of metadata are the exception. New parts are written into a block that holds old ones, all of it under
one checksum: who is killed in the midst of that leaves a block that no checksum fits, and DuckDB opens the file no
more. So these blocks are first copied into the lock file, with the header that they belong to. As long as the file has
that header, the copies are what it should hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence

# How a file of DuckDB's is made: its headers, then blocks.
_HEADERS = 3 * 4096
BLOCK = 262144
_PLACE = 4096  # of the copies in the lock file, whose beginning says who holds it
_HEAD = struct.Struct("<8sIQ")  # a name, the checksum of what follows, and how many blocks that is
_NAME = b"aqx undo"
_synchronise = getattr(os, "fdatasync", os.fsync)  # macOS has the latter alone


class Undo:
    """Copies of a database's blocks of metadata, for whoever holds its lock.

    Args:
        path: the database.
        lock: its lock file, where the copies lie.
    """

    def __init__(self, path: str, lock: str):
        self.path: str = path
        self.lock: str = lock

    @contextlib.contextmanager
    def kept(self, blocks: Sequence[int]) -> Iterator[None]:
        """Copy these blocks of the file, which is checkpointed in the `with`.

        Raises:
            OSError: they cannot be copied.
        """
        # The file is closed last: who closes a file loses the locks that DuckDB has on it in this process.
        with _opened(self.path, os.O_RDONLY) as file:
            copies = [os.pread(file, BLOCK, _start(block)) for block in blocks]
            rest = b"".join([struct.pack(f"<{len(blocks)}q", *blocks), os.pread(file, _HEADERS, 0), *copies])
            with _opened(self.lock, os.O_RDWR) as kept:
                _write(kept, _HEAD.pack(_NAME, zlib.crc32(rest), len(blocks)) + rest, _PLACE)
                _synchronise(kept)
            yield

    def restore(self) -> None:
        """Put back what a killed process has written over, if there is such a thing.

        Raises:
            OSError: the file cannot be written.
        """
        if damaged := self._damaged():
            # The lock is DuckDB's: a program that is not aqx may have the file, and is told of where it is opened.
            with _opened(self.path, os.O_RDWR) as file, contextlib.suppress(BlockingIOError):
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for block, copy in damaged.items():
                    _write(file, copy, _start(block))
                os.fsync(file)

    def is_due(self) -> bool:
        """Return whether `restore` would put something back."""
        return bool(self._damaged())

    def _damaged(self) -> dict[int, bytes]:
        """The copies that are not what the file holds, by block."""
        try:
            with _opened(self.path, os.O_RDONLY) as file, _opened(self.lock, os.O_RDONLY) as kept:
                copies = _read(kept, os.pread(file, _HEADERS, 0))
                return {block: copy for block, copy in copies.items() if copy != os.pread(file, BLOCK, _start(block))}
        except OSError:  # no lock file, or none of this user's
            return {}


def _read(kept: int, header: bytes) -> dict[int, bytes]:
    """The copies that belong to this header, if they are whole."""
    name, checksum, count = _HEAD.unpack(os.pread(kept, _HEAD.size, _PLACE).ljust(_HEAD.size))
    place, size = _PLACE + _HEAD.size, 8 * count + _HEADERS + BLOCK * count
    if name != _NAME or place + size > os.fstat(kept).st_size:
        return {}
    if os.pread(kept, _HEADERS, place + 8 * count) != header:
        return {}
    rest = os.pread(kept, size, place)
    if zlib.crc32(rest) != checksum:
        return {}
    starts = range(8 * count + _HEADERS, size, BLOCK)
    blocks = struct.unpack_from(f"<{count}q", rest)
    return {block: rest[start : start + BLOCK] for block, start in zip(blocks, starts, strict=True)}


def _write(fd: int, data: bytes, place: int) -> None:
    """Write all of it; a call of the system may write less."""
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], place + written)


def _start(block: int) -> int:
    return _HEADERS + BLOCK * block


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
