"""A copy of a database that others work on: of one moment, tried before it takes its place."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from aqx.errors import InputError, StoreError
from aqx.store import pending, schema
from aqx.store.connection import Database
from aqx.store.health import Progress, check_file
from aqx.writing import replacing

# What DuckDB may keep beside a file: what was committed is then in both together.
_BESIDE = (".wal", ".wal.checkpoint", ".wal.recovery")


def back_up(
    db: str | os.PathLike[str],
    copy: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
    timeout: float | int = 60.0,
) -> Path:
    """Copy a database while others may work on it; they wait while its bytes are copied, not while the copy is tried.

    The copy is one file, with all that was committed before, and the results that waited for the lock. It is opened and
    read in whole, as `check_file` does, before it takes its place: a damaged database replaces no good copy.

    Args:
        db: the database.
        copy: the file to write.
        force: whether it may take the place of a file.
        progress: called as progress(done, total, note).
        timeout: seconds to wait for other processes' transactions.

    Returns:
        The copy's path.

    Raises:
        InputError: the copy's path is the database's own, or there is a file and `force` is false.
        StoreError: the database cannot be read, or is damaged, or the copy cannot be written.

    Example:
        >>> import tempfile
        >>> from aqx.store import Database
        >>> from aqx.store.backup import back_up
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Database(folder + "/search.duckdb", create=True)
        ...     back_up(folder + "/search.duckdb", folder + "/copy.duckdb").name
        'copy.duckdb'
    """
    # An older schema is copied as it is: people copy before they upgrade.
    source = Database(db, timeout=timeout, bring_forward=False)
    with source.read() as con:
        version, _ = schema.read_signature(con, str(source.path))
    if version == schema.current_version() and pending.waiting(source.path):
        Database(db, timeout=timeout)  # takes in the results that wait beside it
    with replacing(copy, "copy") as draft:
        _check_target(source.path, Path(os.path.realpath(copy)), force)
        try:
            with source.read():  # nobody writes meanwhile, so that the bytes are those of one moment
                for ending in _BESIDE:
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(f"{source.path}{ending}", f"{draft}{ending}")
                # Last: who closes a file loses the locks that DuckDB has on it in this process.
                shutil.copyfile(source.path, draft)
                shutil.copymode(source.path, draft)
            _fold(draft)
            if problems := check_file(draft, progress).problems:
                said = problems[0].replace(str(draft), "the copy")
                raise StoreError(f"{source.path} is not healthy, so copy={str(copy)!r} was not written: {said}")
        finally:
            for ending in (*_BESIDE, ".lock"):
                Path(f"{draft}{ending}").unlink(missing_ok=True)
    return Path(copy)


def _check_target(source: Path, copy: Path, force: bool) -> None:
    own = str(copy) in {f"{source}{ending}" for ending in ("", *_BESIDE, ".lock")}
    if own or copy.exists() and (not copy.is_file() or copy.samefile(source)):
        raise InputError(f"copy={str(copy)!r} is the database's own file, or none; give another")
    if copy.exists() and not force:
        raise InputError(f"copy={str(copy)!r} is there already; give another file, or --force to replace it")
    if os.path.exists(f"{copy}.wal"):
        raise InputError(
            f"copy={str(copy)!r} has a write-ahead log beside it: somebody writes to a database there, or was killed "
            "at it; give another file, or open that database once (aqx summary) and try again"
        )


def _fold(draft: Path) -> None:
    """Bring the log into the copy, which takes its place as one file."""
    if os.path.exists(f"{draft}.wal"):
        with Database(draft, bring_forward=False).transaction() as con:
            con.execute("SELECT 1")
