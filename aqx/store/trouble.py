"""What a failing disk, driver or lock means to the user: one line that says what to do."""

from __future__ import annotations

import errno
import os

import duckdb

from aqx.errors import StoreError

# Mistakes in a statement or its values are ours, not the machine's: they keep their own type and traceback.
OUR_MISTAKES = (
    duckdb.ProgrammingError,
    duckdb.DataError,
    duckdb.IntegrityError,
    duckdb.InterruptException,
    duckdb.ResourceInUseException,
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
    ("Permission denied", "{path} or its folder may not be written by this user; change the permissions or copy it"),
    ("Is a directory", "{path} is a folder; give the path of a database file"),
    ("No such file", "{path} does not exist, or its folder does not"),
    ("serialized with a newer", "{path} was written by a newer DuckDB; upgrade duckdb, e.g. `pip install -U duckdb`"),
)


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
    if os.path.isdir(path):
        raise StoreError(f"{path} is a folder; give the path of a database file")
    if not os.path.isdir(folder):
        raise StoreError(f"{path} cannot be used: there is no folder {folder}")
    if not create and not os.path.exists(path):
        raise StoreError(
            f"{path} does not exist; make it with `aqx enumerate {path} --space act_bench` "
            "or aqx.store.Database(path, create=True)"
        )


def _first_line(text: str, length: int = 200) -> str:
    line = text.strip().split("\n")[0]
    return line if len(line) <= length else line[: length - 1] + "…"
