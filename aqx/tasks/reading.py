"""What a task file says to who only reads it: to run it takes JAX, Flax and the data."""

from __future__ import annotations

import ast
import contextlib
import os
from pathlib import Path

# As `Task` has them where the file does not say.
_DEFAULTS: dict[str, str | int] = {"objective": "val_acc", "direction": "maximize", "seed": 0}
_HOMES = ("aqx", "aqx.tasks", "aqx.tasks.task")


def tasks_in_source(path: str) -> list[str]:
    """Return the names that a file assigns a `Task(…)` to at its top level; none of a file that cannot be read."""
    return [name for name, call in _assignments(_parsed(path)) if ast.unparse(call.func).rpartition(".")[2] == "Task"]


def identity_in_source(reference: str) -> dict[str, str | int | float] | None:
    r"""Return the identity of the task `path/to/file.py:name`, as far as the file's text alone tells it.

    Returns:
        What `Task.identity()` would be; None where that takes running the file: the name is not bound once, to a call
        of aqx's own `Task` with constants, or the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "train.py")
        >>> _ = path.write_text("import aqx\ntask = aqx.Task('mine', build, batch, loss, objective='r2')")
        >>> identity_in_source(f"{path}:task")
        {'name': 'mine', 'objective': 'r2', 'direction': 'maximize', 'seed': 0}
    """
    path, _, name = reference.rpartition(":")
    module = _parsed(path)
    bound = [node for node in ast.walk(module) if _binds(node, name)]
    call = dict(_assignments(module)).get(name)
    if call is None or len(bound) != 1 or not _is_task(call.func, module):
        return None
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    if None in arguments or any(isinstance(argument, ast.Starred) for argument in call.args) or len(call.args) > 6:
        return None
    if call.args:
        arguments["name"] = call.args[0]
    identity: dict[str, str | int | float] = {}
    for key in ("name", *_DEFAULTS):
        given = arguments.get(key)
        value = _DEFAULTS.get(key) if given is None else given.value if isinstance(given, ast.Constant) else None
        if not isinstance(value, str | int) or type(value) is not type(_DEFAULTS.get(key, "")):
            return None
        identity[key] = value
    return identity


def _parsed(path: str) -> ast.Module:
    with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.parse(Path(os.path.expanduser(path)).read_bytes())
    return ast.Module([], [])


def _assignments(module: ast.Module) -> list[tuple[str, ast.Call]]:
    """The names that are assigned the result of a call, and that call."""
    found = []
    for node in module.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if isinstance(call := getattr(node, "value", None), ast.Call):
            found += [(target.id, call) for target in targets if isinstance(target, ast.Name)]
    return found


def _binds(node: ast.AST, name: str) -> bool:
    """Whether a node gives the name a meaning: an assignment, a definition or an import."""
    if isinstance(node, ast.Name):
        return node.id == name and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.alias):
        return (node.asname or node.name.partition(".")[0]) in (name, "*")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name


def _is_task(called: ast.expr, module: ast.Module) -> bool:
    """Whether what is called is aqx's own `Task`."""
    written = ast.unparse(called)
    meant = [node for node in ast.walk(module) if _binds(node, written.partition(".")[0])]
    if written == "Task":
        sources = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and not node.level]
        ours = {alias for node in sources if node.module in _HOMES for alias in node.names if alias.name == "Task"}
    else:
        whole = [node for node in ast.walk(module) if isinstance(node, ast.Import) and written == "aqx.Task"]
        ours = {alias for node in whole for alias in node.names if alias.asname is None}
    return bool(meant) and ours.issuperset(meant)
