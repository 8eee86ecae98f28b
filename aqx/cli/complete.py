"""What the Tab key offers. It must be there at once, so nothing that imports JAX is imported for it."""

from __future__ import annotations

import ast
import contextlib
import glob
import os
import re
from pathlib import Path

from click import Context, Parameter
from click.shell_completion import CompletionItem

_PACKAGE = Path(__file__).parent.parent


def files(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete the name of a file."""
    return [CompletionItem(incomplete, type="file")]


def tasks(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the built-in tasks, and those in Python files; else have the shell complete a file's name."""
    found = [name for name in built_in_tasks() if name.startswith(incomplete)]
    path = incomplete.partition(".py:")[0] + ".py" if ".py:" in incomplete else incomplete
    for file in sorted(glob.glob(glob.escape(path) + "*")):
        if file.endswith(".py") and os.path.isfile(file):
            found += [reference for reference in _tasks_in(file) if reference.startswith(incomplete)]
    return [CompletionItem(name) for name in found] or files(ctx, parameter, incomplete)


def presets(ctx: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the surrogates' presets."""
    return [CompletionItem(name) for name in preset_names() if name.startswith(incomplete)]


def built_in_tasks() -> list[str]:
    """Read the names of the built-in tasks from the table's source, as to import it takes a second."""
    return re.findall(r'^    "([\w-]+)": "aqx\.tasks\.', (_PACKAGE / "tasks" / "loading.py").read_text(), re.M)


def preset_names() -> list[str]:
    """Read the names of the presets from the table's source, as to import it takes a second."""
    return re.findall(r'\bPreset\(\s*"(\w+)"', (_PACKAGE / "surrogate" / "presets.py").read_text())


def _tasks_in(file: str) -> list[str]:
    """References to what a file assigns a `Task(…)` to; the file alone where nothing is seen to be one."""
    names: list[str] = []
    with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        for node in ast.parse(Path(file).read_bytes()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                made = ast.unparse(node.value.func).rpartition(".")[2]
                names += [at.id for at in node.targets if isinstance(at, ast.Name) and made == "Task"]
    return [f"{file}:{name}" for name in names] or [file]
