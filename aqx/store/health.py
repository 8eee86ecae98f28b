"""Is a database file healthy? It is read in whole, under its lock, and never written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aqx.errors import StoreError
from aqx.store import pending, schema
from aqx.store.connection import Database
from aqx.store.driver import duckdb
from aqx.store.kinds import RUNS
from aqx.store.moment import Moment
from aqx.store.spectra import lapsed_claims
from aqx.store.trial_rows import Purpose, Status, by_training, select_brief, since_retry
from aqx.store.trouble import explain, network_file_system

Progress = Callable[[int, int, str], None]
LOCK_SECONDS = 10.0
_RESTORE = "restore the file from a copy, or start a new one"

# What must hold between the tables of the current schema: how many rows break it, and what that means.
_UNKNOWN_TASK = "SELECT count(*) FROM {table} ANTI JOIN tasks USING (task_id)"
_UNKNOWN_CLASS = "SELECT count(*) FROM {table} ANTI JOIN class_info USING (class_id)"
_UNKNOWN_EMBEDDING = "SELECT count(*) FROM embedding_runs ANTI JOIN embeddings USING (embedding_id)"
_RELATIONS: dict[str, str] = {
    "functions of no class": _UNKNOWN_CLASS.format(table="functions"),
    "names stored twice": "SELECT count(*) - count(DISTINCT name) FROM functions",
    "classes stored twice": "SELECT count(*) - count(DISTINCT class_id) FROM class_info",
    "classes whose own name is not among their functions": (
        "SELECT count(*) FROM class_info ANTI JOIN functions USING (name, class_id)"
    ),
    "finite classes without outputs": (
        "SELECT count(*) FROM (FROM class_info WHERE finite) ANTI JOIN class_outputs USING (class_id)"
    ),
    "outputs of classes that are not finite, or of none": (
        "SELECT count(*) FROM class_outputs ANTI JOIN (FROM class_info WHERE finite) USING (class_id)"
    ),
    "outputs stored twice": "SELECT count(*) - count(DISTINCT class_id) FROM class_outputs",
    "outputs that are not finite": (
        "SELECT count(*) FROM class_outputs WHERE NOT isfinite(list_sum(list_transform(outputs, lambda v: abs(v))))"
    ),
    "tasks of one name or number": ("SELECT 2 * count(*) - count(DISTINCT name) - count(DISTINCT task_id) FROM tasks"),
    "spectra of tasks that are not there": _UNKNOWN_TASK.format(table="spectra"),
    "spectra of classes that are not there": _UNKNOWN_CLASS.format(table="spectra"),
    "spectra stored twice": "SELECT count(*) - count(DISTINCT (task_id, class_id)) FROM spectra",
    "spectra of tasks with two subjects": ("SELECT count(*) - count(DISTINCT task_id) FROM subjects WHERE current"),
    "subjects of spectra of tasks that are not there": _UNKNOWN_TASK.format(table="subjects"),
    "spectra of tasks set aside for a subject that is not there": (
        "SELECT count(*) FROM spectra_aside ANTI JOIN subjects USING (subject_id)"
    ),
    "spectra that are neither valid, with finite features, nor invalid, with a reason": (
        "SELECT count(*) FROM spectra WHERE NOT coalesce("
        "(status = 'valid' AND isfinite(list_sum(list_transform(features, lambda v: abs(v))))) "
        "OR (status = 'invalid' AND reason IS NOT NULL), false)"
    ),
    "tasks whose spectra differ in length": (
        "SELECT count(*) FROM (SELECT task_id FROM spectra WHERE status = 'valid' "
        "GROUP BY task_id HAVING min(len(features)) < max(len(features)))"
    ),
    "trials of tasks that are not there": _UNKNOWN_TASK.format(table="trials"),
    "trials under another class than their function's": (
        "SELECT count(*) FROM trials JOIN functions USING (name) WHERE trials.class_id <> functions.class_id"
    ),
    "trials with one number": "SELECT count(*) - count(DISTINCT trial_id) FROM trials",
    "trials in a state that aqx does not know": (
        f"SELECT count(*) FROM trials WHERE status NOT IN {tuple(Status)} OR purpose NOT IN {tuple(Purpose)}"
    ),
    "trials that are done without a result": (
        "SELECT count(*) FROM trials WHERE status = 'done' AND NOT coalesce(isfinite(objective), false)"
    ),
    "embeddings of tasks that are not there": _UNKNOWN_TASK.format(table="embeddings"),
    "embeddings without rows": "SELECT count(*) FROM embeddings ANTI JOIN embedding_rows USING (embedding_id)",
    "rows of embeddings that are not there": (
        "SELECT count(*) FROM embedding_rows ANTI JOIN embeddings USING (embedding_id)"
    ),
    "rows of embeddings of classes that are not there": _UNKNOWN_CLASS.format(table="embedding_rows"),
}
# What holds of spectra holds of short runs.
_OF_RUNS: dict[str, str] = {
    what.replace("spectra", "short runs"): query.replace("spectra", "runs")
    for what, query in _RELATIONS.items()
    if "spectra" in what and "subjects" not in what
} | {"counts of short runs of embeddings that are not there": _UNKNOWN_EMBEDDING}
# What is no fault of the file, but worth knowing.
_NOTES: dict[str, str] = {
    "trials are of functions that were never enumerated": (
        "SELECT count(*) FROM trials ANTI JOIN class_info USING (class_id)"
    ),
}
_COUNTS: dict[str, str] = {
    "functions": "SELECT count(*) FROM functions",
    "classes": "SELECT count(*) FROM class_info",
    "spectra": "SELECT count(*) FROM spectra WHERE status = 'valid'",
    "trials": "SELECT count(*) FROM trials",
    "ended": f"SELECT count(*) FROM trials WHERE status IN {tuple(status for status in Status if status.is_finished)}",
    "embeddings": "SELECT count(*) FROM embeddings",
}


@dataclass
class FileHealth:
    """What was seen of a database file.

    Attributes:
        path: the file, symbolic links resolved.
        bytes: its size.
        schema_version: of its tables; None where it cannot be read.
        counts: how much of what it holds.
        tasks: names of its tasks.
        holders: processes that hold its lock or have it open, as "PID: command", where the system tells.
        file_system: the kind of network file system it lies on; None for a local one.
        log_bytes: size of a write-ahead log beside it, which the next transaction folds in.
        problems: what is wrong, a line each; none if it is healthy.
        notes: what is worth knowing, a line each.
    """

    path: str
    bytes: int = 0
    schema_version: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    holders: list[str] = field(default_factory=list)
    file_system: str | None = None
    log_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_file(
    path: str | os.PathLike[str], progress: Progress | None = None, lock_seconds: float | int = LOCK_SECONDS
) -> FileHealth:
    """Look at a database file: can all of it be read, and do its tables agree with each other?

    Every column is read, so that DuckDB compares the checksum of every block that holds something. Other processes wait
    meanwhile. The file stays as it is, byte for byte; what may appear beside it is its lock file.

    Args:
        path: the file.
        progress: called as progress(done, total, note).
        lock_seconds: how long to wait for other processes' transactions.

    Example:
        >>> import tempfile
        >>> from aqx.store import Database
        >>> from aqx.store.health import check_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Database(folder + "/search.duckdb", create=True)
        ...     check_file(folder + "/search.duckdb").problems
        []
    """
    health = FileHealth(os.path.realpath(path))
    with contextlib.suppress(OSError, ValueError):
        health.bytes = os.path.getsize(path)
        health.file_system = network_file_system(health.path)
        health.holders = _holders(health.path)
        health.log_bytes = os.path.getsize(health.path + ".wal")
    if health.file_system:
        health.notes.append(f"it lies on a network file system ({health.file_system}); let one machine alone open it")
    if health.log_bytes:
        health.notes.append("a process ended in the midst of writing, or is at it; the next transaction tidies up")
    health.notes += pending.notes(Path(health.path))
    try:
        db = Database(path, timeout=lock_seconds, bring_forward=False)
        with db.read() as con:
            _look(con, health, progress or (lambda *_: None))
    except StoreError as error:
        held = f" (held by {', '.join(health.holders)})" if health.holders else ""
        health.problems.append(f"{error}{held if 'lock' in str(error) or 'open in' in str(error) else ''}")
    except duckdb.Error as error:  # columns are not of the types that they should be
        health.problems.append(str(explain(health.path, error)))
    return health


def _look(con: duckdb.DuckDBPyConnection, health: FileHealth, progress: Progress) -> None:
    health.schema_version, _ = schema.read_signature(con, health.path)
    columns = _columns(con)
    current = health.schema_version == schema.current_version()
    steps = len(columns) + (len(_RELATIONS | _OF_RUNS) if current else 0)
    for done, (table, names) in enumerate(columns.items()):
        progress(done, steps, f"reading {table}")
        # A hash needs every value, and with it every block.
        con.execute(f"SELECT {', '.join(f'bit_xor(hash({_quoted(name)}))' for name in names)} FROM {_quoted(table)}")
        con.fetchall()
    if not current:
        health.notes.append(
            f"its schema is version {health.schema_version}, this aqx writes {schema.current_version()}: the next "
            "command brings it forward; what its tables hold was read, and not compared"
        )
        progress(steps, steps, "")
        return
    if lacking := schema.lacking(con, health.schema_version):
        health.problems.append(f"{', '.join(lacking)} missing from its tables; {_RESTORE}")
        return
    now = Moment(con)
    health.counts = {what: _number(con, query) for what, query in _COUNTS.items()}
    health.tasks = [name for (name,) in con.execute("SELECT name FROM tasks ORDER BY task_id").fetchall()]
    for done, (what, query) in enumerate((_RELATIONS | _OF_RUNS).items(), len(columns)):
        progress(done, steps, "comparing tables")
        if broken := _number(con, query):
            health.problems.append(f"{broken:,} {what}; {_RESTORE}")
    if stale := _stale(con, now):
        health.notes.append(
            f"{stale:,} trials are stale: their process fell silent, and nothing came of their functions since; "
            "a search or claim takes up what was not lost too often"
        )
    if lapsed := sum(number for *_, number in lapsed_claims(con, now)):
        health.notes.append(f"{lapsed:,} claims of spectra have lapsed: the next aqx eigs takes them up")
    if lapsed := sum(number for *_, number in lapsed_claims(con, now, RUNS)):
        health.notes.append(f"{lapsed:,} claims of short runs have lapsed: the next aqx describe takes them up")
    health.notes += [f"{n:,} {what}" for what, query in _NOTES.items() if (n := _number(con, query))]
    health.notes += now.skews()
    if health.counts["classes"] and not con.execute("SELECT 1 FROM meta WHERE key = 'points'").fetchall():
        health.problems.append(f"the points of its outputs are missing; {_RESTORE}")
    progress(steps, steps, "")


def _stale(con: duckdb.DuckDBPyConnection, now: Moment) -> int:
    """How many trainings were lost, and have neither ended nor been taken up or queued again since."""
    lost = 0
    known = f"task_id = $task AND status IN {tuple(Status)} AND purpose IN {tuple(Purpose)}"
    for (task,) in con.execute("SELECT task_id FROM tasks").fetchall():
        groups = by_training(select_brief(con, known, now, task=task))
        lost += sum({trial.status for trial in since_retry(group)} == {Status.STALE} for group in groups)
    return lost


def _columns(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """The columns of every table."""
    columns: dict[str, list[str]] = {}
    for table, column in con.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'aqx' "
        "AND table_name IN (SELECT table_name FROM duckdb_tables() WHERE database_name = 'aqx')"
    ).fetchall():
        columns.setdefault(table, []).append(column)
    return columns


def _number(con: duckdb.DuckDBPyConnection, query: str) -> int:
    ((number,),) = con.execute(query).fetchall()
    return number


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _holders(path: str) -> list[str]:
    """Which processes hold the lock of a database or have it open, where Linux tells: "PID: command"."""
    wanted = set()
    for file in (path, path + ".lock"):
        with contextlib.suppress(OSError):
            wanted.add(str(os.stat(file).st_ino))
    pids: dict[str, None] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # number: kind ADVISORY mode pid device:device:inode start end
            if "->" not in fields and len(fields) >= 6 and fields[5].rpartition(":")[2] in wanted:
                pids[fields[4]] = None
    return [f"{pid}: {_command(pid)}" for pid in pids if int(pid) != os.getpid()]


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    except OSError:
        return "a process that cannot be seen from here"
