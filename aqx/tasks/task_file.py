"""Python files that hold tasks: imported once per content, whatever process asks."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from aqx.errors import TaskError, one_line
from aqx.stopping import is_stop


@dataclass(frozen=True)
class TaskFile:
    """An imported task file, and the tasks that were asked of it."""

    path: str
    digest: str
    module: ModuleType
    tasks: dict[str, Any] = field(default_factory=dict)


loaded_files: dict[str, TaskFile] = {}
loading: AbstractContextManager[Any] = threading.RLock()  # held while a file is imported, so that it is once


def load_file(path: str, digest: str | None = None) -> TaskFile:
    """Import a file, or return it as it was imported when its content was the same.

    Raises:
        TaskError: it cannot be read or imported, or its content is not that of `digest`.
    """
    try:
        source = Path(path).read_bytes()
    except FileNotFoundError:
        raise TaskError(f"task file {path} does not exist") from None
    except OSError as error:
        raise TaskError(f"task file {path} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(source).hexdigest()
    if digest is not None and found != digest:
        raise TaskError(f"task file {path} has changed since this work was started; start it again")
    if path not in loaded_files or loaded_files[path].digest != found:
        loaded_files[path] = TaskFile(path, found, _import_file(path, source))
    return loaded_files[path]


def _import_file(path: str, source: bytes) -> ModuleType:
    # The name is a function of the path, so that whatever the file defines is found again in a worker process.
    name = f"_aqx_task_{Path(path).stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = path
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with siblings_importable(os.path.dirname(path)):
            exec(compile(source, path, "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        if is_stop(error):
            raise
        raise TaskError(f"task file {path} raised {one_line(error)}{line_of(error, path)}") from error
    return module


@contextmanager
def siblings_importable(folder: str) -> Iterator[None]:
    """Put a task file's folder first on the import path, as `python file.py` would."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        # At the end of the path it shadows nothing, and imports inside the file's functions still find their modules.
        if folder not in sys.path:
            sys.path.append(folder)


def line_of(error: BaseException, path: str) -> str:
    """Say at which line of a file an error arose."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f" (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" (line {lines[-1]})" if lines else ""
