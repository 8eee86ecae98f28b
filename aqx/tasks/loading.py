"""Where tasks come from: built-in names, a user's Python file, and the way to a worker process and back."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from aqx.errors import TaskError
from aqx.tasks.task import FileReference, Task, one_line

BUILT_IN = {
    "digits": "aqx.tasks.digits",
    "digits-cnn": "aqx.tasks.digits_cnn",
    "digits-vit": "aqx.tasks.digits_vit",
    "mnist1d": "aqx.tasks.mnist1d",
    "mnist1d-cnn": "aqx.tasks.mnist1d_cnn",
    "sine": "aqx.tasks.sine",
}
# Tasks on data that the user downloads: modules whose `built_in(name)` returns them, or says where to put the data.
ON_DOWNLOADS = {
    f"cifar{classes}-{model}": "aqx.tasks.cifar"
    for classes in (10, 100)
    for model in ("all-cnn-c", "resnet56", "mobilevit", "vit")
}


def builtin_tasks(*, downloads: bool = False) -> tuple[str, ...]:
    """Return the names of the built-in tasks that bring their data.

    Args:
        downloads: also those whose data the user has to download.
    """
    return (*BUILT_IN, *(ON_DOWNLOADS if downloads else ()))


def load_task(reference: str) -> Task:
    """Load a task by reference: "path/to/file.py:name", or the name of a built-in one.

    What the file binds to the name is a `Task`, or a function without arguments that returns one. While the file is
    imported its folder comes first on the import path, as with `python file.py`. A file is imported once per process,
    and again when its content has changed.

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
    if reference in BUILT_IN:
        return importlib.import_module(BUILT_IN[reference]).task
    if reference in ON_DOWNLOADS:
        return importlib.import_module(ON_DOWNLOADS[reference]).built_in(reference)
    path, _, name = reference.rpartition(":")
    if not path.endswith(".py"):
        path = reference if reference.endswith(".py") else ""
        hint = f"add the task's name, as in {path}:task" if path else f"give FILE.py:NAME or one of {_known(reference)}"
        raise TaskError(f"task={reference!r} is not a task; {hint}")
    with _lock:
        return _task_in(_load_file(os.path.abspath(os.path.expanduser(path))), name)


def reduce_task(task: Task) -> tuple[Callable[..., Task], tuple[str, ...]]:
    """Return how to pickle a task: by its file, or by a module that binds it.

    Raises:
        TaskError: neither holds this task.
    """
    reference = task.reference or _find_file(task)
    if reference is not None:
        return restore_from_file, (reference.path, reference.name, reference.digest)
    modules = [(name, module) for name, module in list(sys.modules.items()) if name not in ("__main__", "__mp_main__")]
    for module_name, module in modules:
        for name in _names_of(task, module):
            return restore_from_module, (module_name, name)
    raise TaskError(
        f"task {task.name!r} cannot be sent to another process, as no module or file holds it; "
        "bind it to a name at the top of a file, and load it with load_task('file.py:name')"
    )


def restore_from_file(path: str, name: str, digest: str) -> Task:
    """Unpickle a task of a file, which must not have changed since it was pickled."""
    with _lock:
        file = _load_file(path, digest)
        return _task_in(file, name)


def restore_from_module(module: str, name: str) -> Task:
    """Unpickle a task of an importable module."""
    try:
        task = getattr(importlib.import_module(module), name, None)
    except Exception as error:
        raise TaskError(f"task {name!r} cannot be loaded: importing {module} raised {one_line(error)}") from error
    if not isinstance(task, Task):
        raise TaskError(f"task {name!r} cannot be loaded: module {module} does not hold it under that name")
    return task


@dataclass(frozen=True)
class _File:
    """An imported task file, and the tasks that were asked of it."""

    path: str
    digest: str
    module: ModuleType
    tasks: dict[str, Task] = field(default_factory=dict)


_files: dict[str, _File] = {}
_lock = threading.RLock()


def _load_file(path: str, digest: str | None = None) -> _File:
    try:
        source = Path(path).read_bytes()
    except FileNotFoundError:
        raise TaskError(f"task file {path} does not exist") from None
    except OSError as error:
        raise TaskError(f"task file {path} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(source).hexdigest()
    if digest is not None and found != digest:
        raise TaskError(f"task file {path} has changed since this work was started; start it again")
    if path not in _files or _files[path].digest != found:
        _files[path] = _File(path, found, _import(path, source))
    return _files[path]


def _import(path: str, source: bytes) -> ModuleType:
    # The name is a function of the path, so that whatever the file defines is found again in a worker process.
    name = f"_aqx_task_{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = path
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with _siblings_importable(os.path.dirname(path)):
            exec(compile(source, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise TaskError(f"task file {path} raised {one_line(error)}{_line_of(error, path)}") from error
    return module


@contextmanager
def _siblings_importable(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        # At the end of the path it shadows nothing, and imports inside the file's functions still find their modules.
        if folder not in sys.path:
            sys.path.append(folder)


def _task_in(file: _File, name: str) -> Task:
    if name in file.tasks:
        return file.tasks[name]
    found = getattr(file.module, name, None) if name else None
    if found is None:
        held = [key for key, value in vars(file.module).items() if isinstance(value, Task)]
        has = f"it has {', '.join(held)}" if held else "it binds no Task at its top level"
        raise TaskError(f"task file {file.path} has no {name!r}; {has}")
    if inspect.isfunction(found):
        found = _call(found, file, name)
    elif not isinstance(found, Task):
        raise TaskError(f"{name!r} in task file {file.path} is of type {type(found).__name__}, not an aqx.Task")
    if found.reference is None:
        object.__setattr__(found, "reference", FileReference(file.path, name, file.digest))
    file.tasks[name] = found
    return found


def _call(function: Callable[[], Any], file: _File, name: str) -> Task:
    if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in _parameters(function)):
        raise TaskError(f"{name!r} in task file {file.path} needs arguments; give a Task, or a function without any")
    what = f"{name}() in task file {file.path}"
    try:
        with _siblings_importable(os.path.dirname(file.path)):
            task = function()
    except (Exception, SystemExit) as error:
        raise TaskError(f"{what} raised {one_line(error)}{_line_of(error, file.path)}") from error
    if not isinstance(task, Task):
        raise TaskError(f"{what} returned a value of type {type(task).__name__}, not an aqx.Task")
    return task


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _line_of(error: BaseException, path: str) -> str:
    if isinstance(error, SyntaxError) and error.filename == path:
        return f" (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" (line {lines[-1]})" if lines else ""


def _find_file(task: Task) -> FileReference | None:
    """The file of a task nobody asked for by name: bound in a loaded task file, or in the script that is running."""
    for file in _files.values():
        for name in _names_of(task, file.module):
            return FileReference(file.path, name, file.digest)
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) and (names := _names_of(task, main)):
        path = os.path.abspath(str(main.__file__))
        return FileReference(path, names[0], hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return None


def _names_of(task: Task, module: Any) -> list[str]:
    return [name for name, value in list(getattr(module, "__dict__", {}).items()) if value is task]


def _known(reference: str) -> str:
    names = builtin_tasks(downloads=True)
    near = difflib.get_close_matches(reference, names, n=1)
    return ", ".join(names) + (f"; did you mean {near[0]}?" if near else "")
