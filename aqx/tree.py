"""`Tree`: an activation function as an immutable tree of operators; parse, print, size, shape."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cached_property

from aqx.errors import InputError, ParseError
from aqx.operators import KINDS, operator_table

MAX_DEPTH = 64
MAX_LENGTH = 10_000
_TOKEN = re.compile(r"\s*(n-ary|[A-Za-z_][A-Za-z0-9_]*|[(),])")


@dataclass(frozen=True)
class Tree:
    """A function of x: an operator's name and its argument trees; the leaf is `Tree("x")`.

    In a schema, the kinds "unary", "binary" and "n-ary" stand where any operator of that kind may.
    """

    name: str
    args: tuple[Tree, ...] = ()

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Tree({self._text!r})"

    @cached_property
    def _text(self) -> str:
        return f"{self.name}({','.join(map(str, self.args))})" if self.args else self.name

    @cached_property
    def size(self) -> int:
        """Number of operators in the tree; 0 for `x` alone."""
        return bool(self.args) + sum(arg.size for arg in self.args)

    @cached_property
    def nodes(self) -> tuple[Tree, ...]:
        """The operator nodes in preorder (leaves `x` left out)."""
        return ((self,) if self.args else ()) + tuple(node for arg in self.args for node in arg.nodes)

    @cached_property
    def shape(self) -> str:
        """The schema this tree belongs to, e.g. `binary(unary(x),unary(unary(x)))`."""
        if not self.args:
            return self.name
        kind = self.name if self.name in KINDS else operator_table().by_name[self.name].kind
        return f"{kind}({','.join(arg.shape for arg in self.args)})"


def parse(text: str | Tree) -> Tree:
    """Read a function's name, such as `max(relu(x), cosh(elu(x)))`, into a `Tree`.

    Grammar: function = "x" | operator "(" function {"," function} ")"; white space is free.

    Args:
        text: the name; a `Tree` is returned as it is. At most 10,000 characters and 64 levels.

    Returns:
        The tree; `str(tree)` is the name without spaces, and `parse(str(tree)) == tree`.

    Raises:
        ParseError: with the position, a caret under it and, for an unknown name, the nearest operators.

    Example:
        >>> import aqx
        >>> str(aqx.parse("max(relu(x), cosh(elu(x)))"))
        'max(relu(x),cosh(elu(x)))'
    """
    return text if isinstance(text, Tree) else _Parser(text, schema=False).parse()


def parse_schema(text: str | Tree) -> Tree:
    """Read a schema, such as `binary(unary(x),relu(x))`: a function in which kinds may stand for operators.

    Raises:
        ParseError: as `parse`, and for an unknown kind.
    """
    return text if isinstance(text, Tree) else _Parser(text, schema=True).parse()


class _Parser:
    def __init__(self, text: str, schema: bool):
        what = "schema" if schema else "function name"
        if not isinstance(text, str):
            raise InputError(f"{what} must be a string or a Tree, but got {type(text).__name__}")
        self.text, self.schema, self.what = text, schema, what
        self.position = 0
        if len(text) > MAX_LENGTH:
            raise self.error(f"{len(text):,} characters are more than the {MAX_LENGTH:,} allowed", 0)
        operators = operator_table().by_name
        self.kinds = {name: op.kind for name, op in operators.items()}
        if schema:
            self.kinds |= {kind: kind for kind in KINDS} | {"n_ary": "n-ary"}

    def parse(self) -> Tree:
        tree = self.function(depth=0)
        token, start = self.peek()
        if token:
            raise self.error(f"{token!r} is left over after the end", start)
        return tree

    def peek(self) -> tuple[str, int]:
        match = _TOKEN.match(self.text, self.position)
        if match:
            return match[1], match.start(1)
        rest = self.text[self.position :]
        start = self.position + len(rest) - len(rest.lstrip())
        if start < len(self.text):
            raise self.error(f"unexpected character {self.text[start]!r}", start)
        return "", start

    def take(self) -> tuple[str, int]:
        token, start = self.peek()
        self.position = start + len(token)
        return token, start

    def function(self, depth: int) -> Tree:
        name, start = self.take()
        if depth > MAX_DEPTH:
            raise self.error(f"nested deeper than the {MAX_DEPTH} levels allowed", start)
        if name == "x":
            return Tree("x")
        if not name or name in "(),":
            found = repr(name) if name else "the end"
            raise self.error(f"expected x or an operator, found {found}", start)
        if name not in self.kinds:
            near = difflib.get_close_matches(name, self.kinds, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise self.error(f"unknown operator {_clip(name)!r}{hint}", start)
        kind = self.kinds[name]
        token, at = self.take()
        if token != "(":
            raise self.error(f"expected '(' after {name}, found {repr(token) if token else 'the end'}", at)
        args = [self.function(depth + 1)]
        while True:
            token, at = self.take()
            if token == ")":
                break
            if token != ",":
                raise self.error(f"expected ',' or ')', found {repr(token) if token else 'the end'}", at)
            args.append(self.function(depth + 1))
        arity = {"unary": 1, "binary": 2}.get(kind)
        if arity is not None and len(args) != arity:
            plural = "argument" if arity == 1 else "arguments"
            raise self.error(f"{name} takes {arity} {plural}, found {len(args)}", start)
        return Tree("n-ary" if name == "n_ary" else name, tuple(args))

    def error(self, reason: str, position: int) -> ParseError:
        left = max(0, position - 40)
        window = self.text[left : position + 30].replace("\n", " ").replace("\t", " ")
        caret = " " * (position - left) + "^"
        summary = f"cannot parse {self.what} {_clip(self.text)!r}: {reason} (at position {position})"
        return ParseError(f"{summary}\n  {window}\n  {caret}", position)


def _clip(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
