"""The version of a task's code: a digest of what its training depends on, as far as its source files tell."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import io
import os
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aqx.tasks.derived import Alone, Learnably, OneByOne
from aqx.tasks.task import FileReference, Task, find_file, names_of

_OURS = str(Path(__file__).parent.parent) + os.sep
_NO_CODE = ("name", "baselines", "time_limit", "version", "objective", "direction", "seed")
_PARTS = ("train", "train_many", "build_model", "batch", "loss", "apply", "init")


def version_of_task(task: Task) -> str | None:
    """Return `Task.version`, else a digest of the code that a training runs; None for a built-in task.

    The digest covers the task's own line and whatever it names, directly or through other top-level definitions of its
    file, and the files beside it that these import. Comments and blank lines do not count, nor does what only searches.

    Example:
        >>> from aqx.tasks import load_task
        >>> version_of_task(load_task("mnist1d")) is None
        True
    """
    if task.version is not None:
        return str(task.version)
    known = _digests.get(id(task))
    if known is None or known[0] is not task:
        known = _digests[id(task)] = task, _digest(task)
    return known[1]


_digests: dict[int, tuple[Task, str | None]] = {}


def _digest(task: Task) -> str | None:
    parts: list[str] = []
    wanted: dict[str, set[str]] = {}  # names by file
    reference = task.reference or find_file(task)
    if isinstance(reference, FileReference):
        wanted.setdefault(reference.path, set()).add(reference.name)
    for function in filter(None, (getattr(task, part) for part in _PARTS)):
        function = _unwrapped(function)
        file = _file_of(function)
        if file is None:
            parts += _source(function)
        elif not file.startswith(_OURS):
            bound = names_of(task, sys.modules[function.__module__])
            names = {function.__qualname__.split(".")[0], *_line_of(function), *bound}
            wanted.setdefault(file, set()).update(names)
    for file in sorted(wanted):
        parts += source_of(file, wanted[file])
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12] if parts else None


def _unwrapped(function: Any) -> Any:
    """What a user wrote, beneath what a function is wrapped in."""
    while True:
        if isinstance(function, Alone):
            function = function.train_many
        elif isinstance(function, OneByOne | Learnably):
            function = function.train
        elif type(function).__module__ == "aqx.population":
            function = function.fn
        elif isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function if inspect.isfunction(function) or inspect.isclass(function) else type(function)


def _file_of(function: Any) -> str | None:
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if file and os.path.isfile(file) else None


def _line_of(function: Any) -> list[str]:
    """The number of the line where a function is made, for one that has no name at the top of its file."""
    return [str(function.__code__.co_firstlineno)] if inspect.isfunction(function) else []


def _source(function: Any) -> list[str]:
    """The text of a function of a notebook or an interpreter, where Python has it."""
    try:
        return [_plain(_uncommented(inspect.getsource(function)))]
    except (OSError, TypeError):
        return []


def source_of(file: str, names: Iterable[str]) -> list[str]:
    """Return the top-level statements of a file that some names need, and the files beside it that these import.

    A name of digits stands for the statement at that line.
    """
    try:
        source = Path(file).read_text("utf-8", "replace")
        body = ast.parse(source).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    lines = _uncommented(source)
    by_name: dict[str, list[int]] = {}
    for number, statement in enumerate(body):
        for name in () if _only_when_run(statement) else _given(statement):
            by_name.setdefault(name, []).append(number)
    open_, needed = list(names), set[int]()
    while open_:
        name = open_.pop()
        found = _at_line(body, int(name)) if name.isdigit() else by_name.get(name, [])
        for number in found:
            if number not in needed:
                needed.add(number)
                open_ += _used(body[number])
    kept = [_text(body[number], source, lines) for number in sorted(needed)]
    seen = {os.path.abspath(file)}
    for number in sorted(needed):
        kept += _beside(os.path.dirname(os.path.abspath(file)), body[number], seen)
    return kept


def _text(statement: ast.stmt, source: str, lines: list[str]) -> str:
    """What a statement says; of a task, only what a training depends on."""
    if parts := _of_task(statement):
        return " ".join(" ".join((ast.get_source_segment(source, part) or "").split()) for part in parts)
    return _plain(lines[_first_line(statement) - 1 : statement.end_lineno])


def _of_task(statement: ast.stmt) -> list[ast.expr]:
    """The arguments of `… = Task(…)` that say how it is trained."""
    call = getattr(statement, "value", None)
    if not isinstance(call, ast.Call) or ast.unparse(call.func).rpartition(".")[2] != "Task":
        return []
    return [*call.args[1:], *(keyword.value for keyword in call.keywords if keyword.arg not in _NO_CODE)]


def _used(node: ast.AST) -> set[str]:
    """The names that a statement takes from elsewhere in its file."""
    if isinstance(node, ast.stmt) and (parts := _of_task(node)):
        return set().union(*map(_used, parts))
    if isinstance(node, ast.ClassDef):
        return set().union(*map(_used, [*node.body, *node.bases, *node.keywords, *node.decorator_list]))
    names = [each for each in ast.walk(node) if isinstance(each, ast.Name)]
    loaded = {each.id for each in names if isinstance(each.ctx, ast.Load)}
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return loaded
    shared = {name for each in ast.walk(node) if isinstance(each, ast.Global) for name in each.names}
    own = {each.id for each in names if not isinstance(each.ctx, ast.Load)}
    own |= {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
    defaults = set().union(*map(_used, [*node.args.defaults, *filter(None, node.args.kw_defaults)]))
    return (loaded - own) | shared | defaults | set().union(*map(_used, node.decorator_list))


def _only_when_run(statement: ast.stmt) -> bool:
    """Whether it is the part of a script that `if __name__ == "__main__"` guards."""
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test)
    )


def _first_line(statement: ast.stmt) -> int:
    return min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", ()))])


def _at_line(body: list[ast.stmt], line: int) -> list[int]:
    return [i for i, each in enumerate(body) if _first_line(each) <= line <= (each.end_lineno or each.lineno)]


def _given(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement gives a meaning to, or changes what they hold."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield from _root(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _root(node.value.func)  # e.g. settings.update(rate=0.1)
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def _root(node: ast.expr) -> Iterator[str]:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
        if isinstance(node, ast.Name):
            yield node.id


def _beside(folder: str, statement: ast.AST, seen: set[str]) -> list[str]:
    """The files of a folder that a statement imports, whole, and those that they import."""
    found: list[str] = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in modules:
            place = os.path.join(folder, *module.split("."))
            for file in (place + ".py", os.path.join(place, "__init__.py")):
                if os.path.isfile(file) and file not in seen and not file.startswith(_OURS):
                    seen.add(file)
                    text = Path(file).read_text("utf-8", "replace")
                    found.append(_plain(_uncommented(text)))
                    try:
                        found += _beside(folder, ast.parse(text), seen)
                    except (SyntaxError, ValueError, RecursionError, MemoryError):
                        continue
    return found


def _uncommented(source: str) -> list[str]:
    """The lines of a source, without comments."""
    lines = source.splitlines()
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    return lines


def _plain(lines: Iterable[str]) -> str:
    """Lines without spaces at their ends, and without blank ones."""
    return "\n".join(line.rstrip() for line in lines if line.strip())
