"""What a failing disk, driver, lock or network means to the user: one line that says what to do."""

from __future__ import annotations

import errno
import functools
import logging
import os

from aqx.errors import StoreError
from aqx.store.driver import duckdb

# Mistakes in a statement or its values are ours, not the machine's: they keep their own type and traceback.
OUR_MISTAKES = (
    duckdb.ProgrammingError,
    duckdb.DataError,
    duckdb.IntegrityError,
    duckdb.InterruptException,
)

LEFT_AS_IT_WAS = "it was left as it is: restore it from a copy, or start a new one under another path"
# Looked for in the driver's message, in this order.
_MEANINGS = (
    ("No space left", "no room left on the disk of {path}; nothing stored is lost: make room and run the same again"),
    ("Disk quota", "the disk quota for {path} is used up; nothing stored is lost: make room and run the same again"),
    ("not a valid DuckDB database", "{path} is not a database of aqx; " + LEFT_AS_IT_WAS),
    ("not read enough bytes", "{path} is truncated; " + LEFT_AS_IT_WAS),
    ("orrupt", "{path} is damaged ({detail}); " + LEFT_AS_IT_WAS),
    ("Conflicting lock", "{path} is open in another program, which is not aqx or sees no lock file; close it there"),
    ("Read-only file system", "{path} lies on a read-only file system; copy it to where you may write"),
    (
        "Unique file handle",
        "{path} is open in this process by another connection, such as a notebook's duckdb.connect; close that first",
    ),
    ("Permission denied", "{path} or its folder may not be written by this user; change the permissions or copy it"),
    ("Is a directory", "{path} is a folder; give the path of a database file"),
    ("No such file", "{path} does not exist, or its folder does not"),
    ("serialized with a newer", "{path} was written by a newer DuckDB; upgrade duckdb, e.g. `pip install -U duckdb`"),
)

# DuckDB reads what follows the one as options, and writes the other as a slash.
_UNUSABLE = {"?": "a question mark", "\\": "a backslash"}
# Network file systems, by the names that Linux gives them in its table of mounts.
_NETWORK = {
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.ceph",
    "fuse.cvmfs2",
    "fuse.gcsfuse",
    "fuse.glusterfs",
    "fuse.juicefs",
    "fuse.s3fs",
    "fuse.sshfs",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
}
_log = logging.getLogger("aqx")


def explain(path: str, error: Exception) -> StoreError:
    """Put an error of DuckDB or of the operating system into one line; raise the result `from` it."""
    text = str(error)
    detail = _first_line(text)
    for sign, meaning in _MEANINGS:
        if sign in text:
            return StoreError(meaning.format(path=path, detail=detail))
    return StoreError(f"{path} cannot be read or written: {detail}")


def check_name(path: str | os.PathLike[str]) -> None:
    """Refuse what no file can be called."""
    try:
        os.lstat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            raise StoreError(f"path={str(path)[:60]!r} cannot be the name of a file; give another") from error


def check_path(path: str, create: bool) -> None:
    """Refuse what can be seen to fail before any file is touched."""
    folder = os.path.dirname(path)
    if found := [what for sign, what in _UNUSABLE.items() if sign in path]:
        raise StoreError(f"{path!r} has {found[0]} in it, which DuckDB does not take in a path; name it otherwise")
    if path.encode("utf-8", "replace").decode() != path:
        raise StoreError(f"{path!r} is not UTF-8, and DuckDB takes no other path; name it otherwise")
    if os.path.isdir(path):
        raise StoreError(f"{path} is a folder; give the path of a database file")
    if not os.path.isdir(folder):
        raise StoreError(f"{path} cannot be used: there is no folder {folder}")
    if not create and not os.path.exists(path):
        raise StoreError(
            f"{path} does not exist; make it with `aqx enumerate {path} --space act_bench` "
            "or aqx.store.Database(path, create=True)"
        )


def network_file_system(path: str, mounts: str = "/proc/self/mounts") -> str | None:
    """Return the kind of network file system that a file lies on, or None: a local one, or it cannot be known here.

    Args:
        path: an absolute path, symbolic links resolved.
        mounts: the table of mounts, as Linux writes it.
    """
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as table:
            rows = [line.split(" ") for line in table]
    except OSError:
        return None
    found, kind = "", ""
    for _, point, this, *_ in (row for row in rows if len(row) > 3):
        point = _unescaped(point)
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):  # a later mount hides an earlier one
            found, kind = point, this
    return kind if kind in _NETWORK else None


@functools.cache
def warn_of_network(path: str) -> None:
    """Warn, once per file and process, where a database lies on a network file system."""
    if kind := network_file_system(path):
        _log.warning(
            "aqx: %s lies on a network file system (%s), where locks may not hold between machines; let one machine "
            "alone open it (study.search(executor=…) carries trainings to others), or move it to a local disk, e.g. %s",
            path,
            kind,
            os.path.join(os.environ.get("TMPDIR", "/tmp"), os.path.basename(path)),
        )


def _first_line(text: str, length: int = 200) -> str:
    line = text.strip().split("\n")[0]
    return line if len(line) <= length else line[: length - 1] + "…"


def _unescaped(point: str) -> str:
    """A mount point as it is: in the table blanks, tabs, line ends and backslashes are written in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
