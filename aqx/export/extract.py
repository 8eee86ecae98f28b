"""Take the helper functions that a source needs out of a library of them: plain Python files, read as text.

For JAX the library is aqx.numerics itself, so that an exported function computes exactly what aqx does.
"""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from dataclasses import dataclass
from functools import cache
from importlib import resources

from aqx.export import coefficients


@dataclass(frozen=True)
class Helper:
    """A statement of a library: its text, the names it defines or belongs to, and the names it uses."""

    text: str
    names: frozenset[str]
    uses: frozenset[str]
    is_function: bool


@dataclass(frozen=True)
class Library:
    """The statements of some files, and the import statement of each imported name."""

    helpers: tuple[Helper, ...]
    imports: dict[str, str]

    def needed(self, code: str) -> tuple[dict[str, str], list[Helper]]:
        """Return the imports and the helpers that a piece of code needs, in the library's order."""
        wanted = _names(ast.parse(code))
        chosen: set[Helper] = set()
        while more := {helper for helper in self.helpers if helper.names & wanted} - chosen:
            chosen |= more
            wanted = wanted.union(*(helper.uses for helper in more))
        imports = {name: line for name, line in self.imports.items() if name in wanted}
        if chosen and "annotations" in self.imports:
            imports["annotations"] = self.imports["annotations"]
        return imports, [helper for helper in self.helpers if helper in chosen]


@cache
def library(*files: str) -> Library:
    """Read files of the package, such as `export/library/for_torch.py`.

    Public names get an underscore. Where that name is taken already, the public function only wraps the private one,
    and is left out.
    """
    sources = [resources.files("aqx").joinpath(file).read_text("utf-8") for file in files]
    defined = {name for source in sources for node in ast.parse(source).body for name in _defined(node)}
    public = frozenset(name for name in defined if not name.startswith("_"))
    wrappers = {name for name in public if f"_{name}" in defined}
    helpers: list[Helper] = []
    imports: dict[str, str] = {}
    for source in sources:
        lines = source.splitlines()
        end = 0
        for node in ast.parse(source).body:
            start, end = end, node.end_lineno or 0
            names = _defined(node)
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports |= _imported(node)
            elif names and not wrappers.intersection(names):
                text = _underscored("\n".join(lines[start:end]).strip("\n"), public)
                uses = frozenset(_names(ast.parse(text)))
                kept = frozenset(f"_{name}" if name in public else name for name in names)
                helpers.append(Helper(_with_coefficients(text), kept, uses, isinstance(node, ast.FunctionDef)))
    return Library(tuple(helpers), imports)


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines; a rule such as `@f.defjvp def _(…)` belongs to f."""
    if isinstance(node, ast.FunctionDef):
        return [node.name] if node.name != "_" else [root for item in node.decorator_list for root in _owners(item)]
    if isinstance(node, ast.Assign):
        return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return []


def _owners(decorator: ast.expr) -> list[str]:
    methods = [node for node in ast.walk(decorator) if isinstance(node, ast.Attribute) and node.attr == "defjvp"]
    return [method.value.id for method in methods if isinstance(method.value, ast.Name)]


def _names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aqx"):
        return {}
    origin = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
    return {
        alias.asname or alias.name: f"{origin}import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
        for alias in node.names
    }


def _underscored(source: str, names: frozenset[str]) -> str:
    """Put an underscore before names, wherever they are not attributes of something else."""
    lines = source.splitlines(keepends=True)
    before = ""
    places = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string in names and before != ".":
            places.append(token.start)
        before = token.string
    for row, column in reversed(places):
        lines[row - 1] = f"{lines[row - 1][:column]}_{lines[row - 1][column:]}"
    return "".join(lines)


def _with_coefficients(text: str) -> str:
    """Write the numbers in the place of `[*NAME]`."""

    def numbers(match: re.Match[str]) -> str:
        indent = match[1]
        words = ", ".join(map(repr, getattr(coefficients, match[3])))
        listed = textwrap.fill(words, 118, initial_indent=indent + "    ", subsequent_indent=indent + "    ")
        return f"{indent}{match[2]}[\n{listed},\n{indent}]"

    return re.sub(r"^( *)(.*)\[\*(\w+)\]$", numbers, text, flags=re.M)
