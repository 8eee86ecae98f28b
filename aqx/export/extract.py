"""Take the helper functions that a source needs out of a library of them: plain Python files, read as text.

For JAX the library is aqx.numerics itself, so that an exported function computes exactly what aqx does.
"""

from __future__ import annotations

import ast
import io
import pkgutil
import re
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from aqx.export import coefficients


@dataclass(frozen=True, eq=False)
class Helper:
    """A statement of a library, with the names it defines or belongs to, and the names it uses."""

    written: str
    replaced: Mapping[str, str]
    names: frozenset[str]
    uses: frozenset[str]
    is_function: bool

    @cached_property
    def text(self) -> str:
        """Its text in a source; made when it is needed, as to do so for a whole library takes longer than all else."""
        return _with_coefficients(_with_names(self.written, self.replaced))


@dataclass(frozen=True, eq=False)
class Library:
    """The statements of some files of the package; of these a source gets what it needs.

    Public names get an underscore. Where that name is taken already, the public function only wraps the private one,
    and is left out.

    Attributes:
        files: such as `export/library/for_keras.py`; what one defines takes the place of what one before it does.
        renamed: names, and what stands in their place.
        typed: whether functions keep their annotations.
    """

    files: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    typed: bool = True

    def needed(self, code: str) -> tuple[dict[str, str], list[Helper]]:
        """Return the imports and the helpers that a piece of code needs, in the library's order."""
        imported, helpers = self._read
        wanted = _names(ast.parse(code))
        chosen: set[Helper] = set()
        while more := {helper for helper in helpers if helper.names & wanted} - chosen:
            chosen |= more
            wanted = wanted.union(*(helper.uses for helper in more))
        imports = {name: line for name, line in imported.items() if name in wanted}
        if chosen and "annotations" in imported:
            imports["annotations"] = imported["annotations"]
        return imports, [helper for helper in helpers if helper in chosen]

    @cached_property
    def _read(self) -> tuple[dict[str, str], list[Helper]]:
        """The import statement of each imported name, and the helpers in order."""
        # importlib.resources would do too, but takes 20 ms to import, half of the time of an export.
        texts = [(pkgutil.get_data("aqx", file) or b"").decode("utf-8") for file in self.files]
        files = [(text.splitlines(), ast.parse(text).body) for text in texts]
        defined = {name for _, body in files for node in body for name in _defined(node)}
        private = {name: f"_{name}" for name in defined if not name.startswith("_")}
        replaced = {**self.renamed, **private}
        imports: dict[str, str] = {}
        helpers: dict[str, Helper] = {}
        for lines, body in files:
            end = 0
            for node in body:
                start, end = end, node.end_lineno or 0
                names = _defined(node)
                if isinstance(node, ast.Import | ast.ImportFrom):
                    imports |= _imported(node)
                elif names and not any(private.get(name) in defined for name in names):
                    text = _text(lines, start, node, self.typed)
                    uses = frozenset(replaced.get(name, name).partition(".")[0] for name in _names(node))
                    is_function = isinstance(node, ast.FunctionDef)
                    key = text if is_function and node.name == "_" else " ".join(names)
                    kept = frozenset(private.get(name, name) for name in names)
                    helpers[key] = Helper(text, replaced, kept, uses, is_function)
        return imports, list(helpers.values())


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


def _text(lines: list[str], start: int, node: ast.stmt, typed: bool) -> str:
    """The text of a statement, from a line on; a function may lose its annotations, in the syntax tree too."""
    head: list[str] = []
    if isinstance(node, ast.FunctionDef) and not typed:
        for argument in node.args.args:
            argument.annotation = None
        node.returns = None
        head = [*lines[start : node.lineno - 1], f"def {node.name}({ast.unparse(node.args)}):"]
        start = node.body[0].lineno - 1
    return "\n".join([*head, *lines[start : node.end_lineno]]).strip("\n")


def _with_names(source: str, names: Mapping[str, str]) -> str:
    """Put other names in the place of some, wherever they are not attributes of something else."""
    lines = source.splitlines(keepends=True)
    before = ""
    found: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string in names and before != ".":
            found.append(token)
        before = token.string
    for token in reversed(found):
        (row, start), (_, end) = token.start, token.end
        lines[row - 1] = lines[row - 1][:start] + names[token.string] + lines[row - 1][end:]
    return "".join(lines)


def _with_coefficients(text: str) -> str:
    """Write the numbers in the place of `[*NAME]`."""

    def numbers(match: re.Match[str]) -> str:
        indent = match[1]
        words = ", ".join(map(repr, getattr(coefficients, match[3])))
        listed = textwrap.fill(words, 118, initial_indent=indent + "    ", subsequent_indent=indent + "    ")
        return f"{indent}{match[2]}[\n{listed},\n{indent}]"

    return re.sub(r"^( *)(.*)\[\*(\w+)\]$", numbers, text, flags=re.M)
