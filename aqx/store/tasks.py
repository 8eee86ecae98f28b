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

_OPTIONS = ("fisher", "sharing", "quantiles")
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
            ((task_id,),) = con.execute("SELECT coalesce(max(task_id), 0) + 1 FROM tasks").fetchall()
            con.execute("INSERT INTO tasks VALUES (?, ?, ?, NULL, ?)", [task_id, name, text, clock.now()])
            return task_id
    ((task_id, known),) = stored
    if different := differences(json.loads(known), json.loads(text)):
        raise StoreError(
            f"task {name!r} in {db.path} differs from the one given in {different}; "
            "give the changed task another name, or use another database"
        )
    return task_id


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


def spectra_form(db: Database, task_id: int) -> dict[str, Any] | None:
    """How the spectra of a task were computed, or None before any were."""
    return _by_id(db, task_id).spectra_form


def set_spectra_form(db: Database, task_id: int, form: Mapping[str, Any]) -> None:
    """Fix how the spectra of a task are computed, once; the same form again is welcome.

    Args:
        db: the database.
        task_id: from `register_task`.
        form: layers, shares, quantiles, fisher, sharing, … : anything that JSON can hold.

    Raises:
        StoreError: the task has spectra of another form; the message says what differs.
    """
    _json(form, "form")
    with db.transaction() as con:
        check_form(db, con, task_id, form)
        store_form(con, task_id, form)


def check_form(
    db: Database, con: duckdb.DuckDBPyConnection, task_id: int, form: Mapping[str, Any], only_options: bool = False
) -> None:
    """Compare with the stored form of the spectra, if there is one; `only_options` only what a user may choose of it.

    Raises:
        StoreError: they differ.
    """
    task = _by_id(db, task_id)
    stored, given = task.spectra_form, json.loads(_json(form, "form"))
    if stored is None:
        return
    if only_options:
        stored, given = ({name: each.get(name) for name in _OPTIONS} for each in (stored, given))
    if different := differences(stored, given):
        raise StoreError(
            f"the spectra of task {task.name!r} in {db.path} have another form: {different}; "
            "ask for the stored form, give the task another name, use another database, "
            "or delete them: aqx reset --spectra"
        )


def store_form(con: duckdb.DuckDBPyConnection, task_id: int, form: Mapping[str, Any]) -> None:
    """Store the form of the spectra, inside the caller's transaction."""
    con.execute("UPDATE tasks SET spectra_form = ? WHERE task_id = ?", [_json(form, "form"), task_id])


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
