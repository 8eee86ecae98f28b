"""Tasks: whose spectra and trials are whose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aqx.errors import InputError, StoreError
from aqx.store import clock
from aqx.store.connection import Database
from aqx.store.driver import duckdb
from aqx.store.encoding import differences
from aqx.store.kinds import SPECTRA, Kind
from aqx.store.moment import Moment
from aqx.store.trial_rows import count_states, next_id

# Every table whose rows belong to one task; the task's own row goes last.
_OF_A_TASK = (
    "spectra_claims",
    "spectra",
    "runs_claims",
    "runs",
    "runs_forms",
    "subjects",
    "embeddings",
    "studies",
    "trials",
    "tasks",
)
_OPTIONS = ("fisher", "sharing", "quantiles", "runs")
_COLUMNS = "task_id, name, identity, spectra_form, created_at"


@dataclass(frozen=True)
class TaskRow:
    """A stored task."""

    task_id: int
    name: str
    identity: dict[str, Any]
    spectra_form: dict[str, Any] | None
    created_at: datetime


def register_task(db: Database, name: str, identity: Mapping[str, str | int | float]) -> int:
    """Return the id of the task of this name, which is stored if it is new.

    Args:
        db: the database.
        name: the task's name.
        identity: what must agree for stored spectra and trials to belong to the task, e.g. objective, direction, seed.

    Returns:
        The task's id, from 1.

    Raises:
        StoreError: the name is taken by a task with another identity; the message says what differs.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     db = Database(folder + "/search.duckdb", create=True)
        ...     [register_task(db, name, {"objective": "val_acc"}) for name in ("digits", "letters", "digits")]
        [1, 2, 1]
    """
    text = _json(identity, "identity")
    with db.transaction() as con:
        stored = con.execute("SELECT task_id, identity FROM tasks WHERE name = ?", [name]).fetchall()
        if not stored:
            task_id = _last_id(con) + 1
            con.execute("INSERT INTO tasks VALUES (?, ?, ?, NULL, ?)", [task_id, name, text, clock.now()])
            return task_id
    ((task_id, known),) = stored
    _check_same(db, name, json.loads(known), json.loads(text))
    return task_id


def check_identity(db: Database, task: TaskRow, identity: Mapping[str, str | int | float]) -> None:
    """Compare a stored task with the one that somebody has.

    Raises:
        StoreError: they differ; the message says in what.
    """
    _check_same(db, task.name, task.identity, json.loads(_json(identity, "identity")))


def _check_same(db: Database, name: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if different := differences(dict(stored), dict(given)):
        raise StoreError(
            f"task {name!r} in {db.path} differs from the one given in {different}; "
            "give the changed task another name, or use another database"
        )


def tasks_with_trials(db: Database) -> list[str]:
    """The names of the tasks that have trials, in the order of their ids; those to compare with do not count."""
    with db.read() as con:
        rows = con.execute(
            "SELECT name FROM tasks WHERE task_id IN (SELECT task_id FROM trials WHERE purpose <> 'compare') "
            "ORDER BY task_id"
        ).fetchall()
    return [name for (name,) in rows]


def read_notes(db: Database, task_id: int) -> dict[str, Any]:
    """What is known of a task beside its identity: its baselines, where its code is, which versions count as one."""
    with db.read() as con:
        found = con.execute("SELECT value FROM meta WHERE key = ?", [_notes(task_id)]).fetchall()
    return json.loads(found[0][0]) if found else {}


def write_notes(db: Database, task_id: int, **notes: Any) -> None:
    """Store such things of a task; what is not named stays, and where nothing changes nothing is written."""
    with db.read():
        known = read_notes(db, task_id)
    if all(known.get(key) == value for key, value in notes.items()):
        return
    with db.transaction() as con:
        text = _json({**read_notes(db, task_id), **notes}, "notes")
        con.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [_notes(task_id), text])


def _notes(task_id: int) -> str:
    return f"task {task_id}"


def remove_task(db: Database, name: str, *, with_results: bool = False) -> dict[str, int]:
    """Delete a task and what is stored of it, for good; functions and their outputs stay.

    Args:
        db: the database.
        name: the task's name.
        with_results: also where it has trials that are done or pruned.

    Returns:
        How many spectra and trials went with it.

    Raises:
        InputError: there is no such task, it has results and `with_results` is false, or a training of it runs.
    """
    with db.transaction() as con:
        task_id = get_task(db, name).task_id
        counts = count_states(con, "task_id = $task", Moment(con), task=task_id)
        if running := counts.get("running", 0):
            raise InputError(f"task {name!r} has {running:,} running trials; remove it once they have ended")
        if (results := counts.get("done", 0) + counts.get("pruned", 0)) and not with_results:
            raise InputError(f"task {name!r} has {results:,} results, which would be deleted with it")
        ours = "(SELECT subject_id FROM subjects WHERE task_id = $task)"
        rows = "(SELECT embedding_id FROM embeddings WHERE task_id = $task)"
        con.execute("INSERT OR REPLACE INTO meta VALUES ('last_trial_id', ?)", [str(next_id(con) - 1)])
        last = _last_id(con)
        con.execute("INSERT OR REPLACE INTO meta VALUES ('last_task_id', ?)", [str(last)])
        removed: dict[str, int] = {}
        for table, condition in (
            ("spectra_aside", f"subject_id IN {ours}"),
            ("runs_aside", f"subject_id IN {ours}"),
            ("embedding_rows", f"embedding_id IN {rows}"),
            ("embedding_runs", f"embedding_id IN {rows}"),
            *((each, "task_id = $task") for each in _OF_A_TASK),
        ):
            found = con.execute(f"DELETE FROM {table} WHERE {condition}", {"task": task_id}).fetchall()
            removed[table] = found[0][0]
        con.execute("DELETE FROM meta WHERE key = ?", [_notes(task_id)])
    return {
        "spectra": removed["spectra"] + removed["spectra_aside"],
        "trials": removed["trials"],
    }


def _last_id(con: duckdb.DuckDBPyConnection) -> int:
    """The highest number that a task has or had: none is used twice, as a study of a removed task may still be open."""
    ((last, removed),) = con.execute(
        "SELECT (SELECT max(task_id) FROM tasks), (SELECT value FROM meta WHERE key = 'last_task_id')"
    ).fetchall()
    return max(last or 0, int(removed or 0))


def find_task(db: Database, name: str) -> TaskRow | None:
    """The task of this name, or None."""
    return next((task for task in list_tasks(db) if task.name == name), None)


def get_task(db: Database, name: str) -> TaskRow:
    """The task of this name.

    Raises:
        InputError: there is none.
    """
    tasks = {task.name: task for task in list_tasks(db)}
    if name not in tasks:
        raise InputError(f"task {name!r} is not in {db.path}; it has {', '.join(tasks) or 'none'}")
    return tasks[name]


def list_tasks(db: Database) -> list[TaskRow]:
    """All tasks, in the order of their ids."""
    with db.read() as con:
        rows = con.execute(f"SELECT {_COLUMNS} FROM tasks ORDER BY task_id").fetchall()
    return [_task(*row) for row in rows]


def spectra_form(db: Database, task_id: int, kind: Kind = SPECTRA) -> dict[str, Any] | None:
    """How the spectra of a task, or its short runs, were computed, or None before any were."""
    with db.read() as con:
        _by_id(db, task_id)
        return read_form(con, task_id, kind)


def set_spectra_form(db: Database, task_id: int, form: Mapping[str, Any], kind: Kind = SPECTRA) -> None:
    """Fix how the spectra of a task are computed, once; the same form again is welcome.

    Args:
        db: the database.
        task_id: from `register_task`.
        form: layers, shares, quantiles, fisher, sharing, … : anything that JSON can hold.
        kind: of the descriptors.

    Raises:
        StoreError: the task has spectra of another form; the message says what differs.
    """
    _json(form, "form")
    with db.transaction() as con:
        check_form(db, con, task_id, form, kind=kind)
        store_form(con, task_id, form, kind)


def check_form(
    db: Database,
    con: duckdb.DuckDBPyConnection,
    task_id: int,
    form: Mapping[str, Any],
    only_options: bool = False,
    kind: Kind = SPECTRA,
) -> None:
    """Compare with the stored form of the descriptors, if there is one; `only_options` only what a user may choose.

    Raises:
        StoreError: they differ.
    """
    task = _by_id(db, task_id)
    stored, given = read_form(con, task_id, kind), json.loads(_json(form, "form"))
    if stored is None:
        return
    if only_options:
        stored, given = ({name: each.get(name) for name in _OPTIONS} for each in (stored, given))
    if different := differences(stored, given):
        raise StoreError(
            f"the {kind.noun} of task {task.name!r} in {db.path} have another form: {different}; "
            "ask for the stored form, give the task another name, use another database, "
            f"or delete them: aqx reset {kind.option}"
        )


def read_form(con: duckdb.DuckDBPyConnection, task_id: int, kind: Kind) -> dict[str, Any] | None:
    """Read how the descriptors of a task were computed, None before any were, inside the caller's transaction."""
    query = (
        "SELECT spectra_form FROM tasks WHERE task_id = ?"
        if kind is SPECTRA
        else f"SELECT form FROM {kind.table}_forms WHERE task_id = ?"
    )
    found = con.execute(query, [task_id]).fetchall()
    return json.loads(found[0][0]) if found and found[0][0] else None


def store_form(
    con: duckdb.DuckDBPyConnection, task_id: int, form: Mapping[str, Any] | None, kind: Kind = SPECTRA
) -> None:
    """Store the form of the descriptors, or forget it (None), inside the caller's transaction."""
    text = None if form is None else _json(form, "form")
    if kind is SPECTRA:
        con.execute("UPDATE tasks SET spectra_form = ? WHERE task_id = ?", [text, task_id])
        return
    con.execute(f"DELETE FROM {kind.table}_forms WHERE task_id = ?", [task_id])
    if text is not None:
        con.execute(f"INSERT INTO {kind.table}_forms VALUES (?, ?)", [task_id, text])


def _by_id(db: Database, task_id: int) -> TaskRow:
    task = next((task for task in list_tasks(db) if task.task_id == task_id), None)
    if task is None:
        raise InputError(f"task_id {task_id} is not in {db.path}; register the task first")
    return task


def _task(task_id: int, name: str, identity: str, form: str | None, created_at: datetime) -> TaskRow:
    return TaskRow(task_id, name, json.loads(identity), json.loads(form) if form else None, created_at)


def _json(mapping: Mapping[str, Any], argument: str) -> str:
    try:
        return json.dumps(dict(mapping), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{argument} must hold what JSON can hold: {error}") from error
