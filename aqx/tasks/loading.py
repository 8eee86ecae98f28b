"""Where tasks come from: built-in names, a user's Python file, and the way to a worker process and back."""

from __future__ import annotations

import difflib
import importlib
import os
from dataclasses import replace
from typing import Literal

from aqx.errors import TaskError
from aqx.tasks.task import FileReference, NamedReference, Task, find_file, refer_to, task_in
from aqx.tasks.task_file import load_file, loading

BUILT_IN = {
    "digits": "aqx.tasks.builtin.digits",
    "digits-cnn": "aqx.tasks.builtin.digits_cnn",
    "digits-vit": "aqx.tasks.builtin.digits_vit",
    "mnist1d": "aqx.tasks.builtin.mnist1d",
    "mnist1d-cnn": "aqx.tasks.builtin.mnist1d_cnn",
    "sine": "aqx.tasks.builtin.sine",
}
# Tasks on data that the user downloads: modules whose `built_in(name)` returns them, or says where to put the data.
ON_DOWNLOADS = {
    f"cifar{classes}-{model}": "aqx.tasks.builtin.cifar"
    for classes in (10, 100)
    for model in ("all-cnn-c", "resnet56", "mobilevit", "vit")
}

# Tasks on files of this machine: modules whose `built_in(name)` returns them. Their own name says which data it is.
ON_FILES = {
    "text": "aqx.tasks.builtin.text",
    "fashion-cnn": "aqx.tasks.builtin.fashion",
    "fashion-resnet": "aqx.tasks.builtin.fashion",
}


# What behind a task's reference makes it another one: constants learnt, a set per layer or per channel, or none.
_LEARNABLE: dict[str, Literal["layer", "channel"] | None] = {"layer": "layer", "channel": "channel", "plain": None}


def builtin_tasks(*, downloads: bool = False, files: bool = False) -> tuple[str, ...]:
    """Return the names of the built-in tasks that bring their data.

    Args:
        downloads: also those whose data the user has to download.
        files: also those on files of this machine, as `text` on the source of Python's own library.
    """
    return (*BUILT_IN, *(ON_DOWNLOADS if downloads else ()), *(ON_FILES if files else ()))


def load_task(reference: str) -> Task:
    """Load a task by reference: "path/to/file.py:name", or the name of a built-in one.

    What the file binds to the name is a `Task`, or a function without arguments that returns one. While the file is
    imported its folder comes first on the import path, as with `python file.py`. A file is imported once per process,
    and again when its content has changed.

    A "+layer" or "+channel" behind it makes the same task, of that name, with constants that are learnt; "+plain" makes
    one that learns them the same without.

    Args:
        reference: the file and the name in it, or a built-in task's name.

    Returns:
        The task; it can be pickled, as the file's path, the name and a digest of the content.

    Raises:
        TaskError: the file does not exist, raises on import, lacks the name, or holds no task there; or the data of a
            built-in task are not there.

    Example:
        >>> from aqx.tasks import load_task
        >>> load_task("mnist1d").objective
        'val_acc'
    """
    plain, per = _parted(reference)
    if per is not None:
        task = load_task(plain)
        other = replace(task, name=f"{task.name}+{per}", learnable=_LEARNABLE[per])
        path, colon, name = plain.rpartition(":")
        anywhere = f"{os.path.abspath(os.path.expanduser(path))}:{name}" if colon else plain
        return refer_to(other, NamedReference(load_task, f"{anywhere}+{per}"))
    if reference in BUILT_IN:
        # By its name: a user's file that binds it, and may be gone tomorrow, would else be taken for its place.
        return refer_to(importlib.import_module(BUILT_IN[reference]).task, NamedReference(load_task, reference))
    if module := (ON_DOWNLOADS | ON_FILES).get(reference):
        return importlib.import_module(module).built_in(reference)
    path, _, name = reference.rpartition(":")
    if not path.endswith(".py"):
        path = reference if reference.endswith(".py") else ""
        hint = f"add the task's name, as in {path}:task" if path else f"give FILE.py:NAME or one of {_known(reference)}"
        raise TaskError(f"task={reference!r} is not a task; {hint}")
    with loading:
        return task_in(load_file(os.path.abspath(os.path.expanduser(path))), name)


def as_task(task: Task | str) -> Task:
    """Return a task that was given as such or by reference, as `load_task` takes it.

    Raises:
        TaskError: it is neither, or `load_task` raises it.

    Example:
        >>> as_task("mnist1d") is as_task(as_task("mnist1d"))
        True
    """
    if isinstance(task, str):
        return load_task(task)
    if not isinstance(task, Task):
        raise TaskError(f"task is of type {type(task).__name__}; give an aqx.Task, or the reference of one as a text")
    return task


def is_built_in(reference: str) -> bool:
    """Return whether a reference is a built-in task's, or that of one with its constants learnt.

    Example:
        >>> is_built_in("text"), is_built_in("sine+layer"), is_built_in("task.py:task+layer")
        (True, True, False)
    """
    return _parted(reference)[0] in builtin_tasks(downloads=True, files=True)


def without_learning(task: Task) -> Task:
    """Return the task that trains alike but keeps the constants of its functions.

    For `load_task("T+layer")` that is T; for a task that learns by itself, `Task(learnable="layer")`, another one whose
    name ends in "+plain".

    Raises:
        TaskError: the task learns none.

    Example:
        >>> without_learning(load_task("sine+layer")).name
        'sine'
    """
    if task.learnable is None:
        raise TaskError(
            f"task {task.name!r} learns no constants; give --task {task.name}+layer, or Task(learnable='layer')"
        )
    reference = task.reference or find_file(task)
    if isinstance(reference, NamedReference) and (plain := _parted(reference.name))[1] == task.learnable:
        return load_task(plain[0])
    if isinstance(reference, FileReference):
        return load_task(f"{reference.path}:{reference.name}+plain")
    return replace(task, name=f"{task.name}+plain", learnable=None)


def _parted(reference: str) -> tuple[str, str | None]:
    """The reference of a task without what makes it another one, and that."""
    plain, _, per = reference.rpartition("+")
    return (plain, per) if plain and per in _LEARNABLE else (reference, None)


def _known(reference: str) -> str:
    names = builtin_tasks(downloads=True, files=True)
    near = difflib.get_close_matches(reference, names, n=1)
    return ", ".join(names) + (f"; did you mean {near[0]}?" if near else "")
