"""`Tree`: an activation function as an immutable tree of operators; parse, print, size, shape."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from aqx.constants import canonical, is_number
from aqx.errors import InputError, ParseError
from aqx.operators import KINDS, Kind, operator_table

MAX_DEPTH = 64
MAX_LENGTH = 10_000
INPUTS = ("x", "y")
WILDCARD = "c"  # in a schema, where any constant may stand
LEAVES = (*INPUTS, WILDCARD)
# A number takes all that looks like one, so that 0x1 and 1_000 are refused as a whole.
_TOKEN = re.compile(r"\s*(n-ary|[^\W\d]\w*|[(),]|[+-]?(?:[0-9]|\.[0-9])(?:[eE][+-]|[\w.])*)")
_NUMBER = re.compile(r"[+-]?\.?[0-9]")


@dataclass(frozen=True, eq=False, repr=False)
class Tree:
    """A function of x, or of x and y: an operator's name and its argument trees; leaves are inputs and numbers.

    In a schema, the kinds "unary", "binary" and "n-ary" stand where any operator of that kind may, and "c" where any
    number may. Trees are equal when their texts are.

    Attributes:
        name: "x", "y", a number, an operator, a kind or "c"; a number's is the shortest text of its float32.
        args: the arguments; none for a leaf.

    Raises:
        InputError: the name is unknown, the arguments do not fit it, or the tree is too deep or too large.

    Example:
        >>> import aqx
        >>> aqx.Tree("relu", (aqx.Tree("x"),)) == aqx.parse("relu(x)")
        True
    """

    name: str
    args: tuple[Tree, ...] = ()

    def __post_init__(self) -> None:
        if not self.args and isinstance(self.name, str) and _NUMBER.match(self.name):
            object.__setattr__(self, "name", canonical(self.name))
        reason = _misfit(self.name, len(self.args))
        if reason:
            raise InputError(f"cannot make a Tree: {reason}")
        if not isinstance(self.args, tuple) or not all(isinstance(arg, Tree) for arg in self.args):
            raise InputError(f"cannot make a Tree: args must be a tuple of Tree, but got {_clip(repr(self.args))}")
        # Bounded here, so that nothing that walks a tree can run out of stack, or of memory where arguments are shared.
        if self.depth > MAX_DEPTH:
            raise InputError(f"cannot make a Tree: nested deeper than the {MAX_DEPTH} levels allowed")
        if len(self._text) > MAX_LENGTH:
            raise InputError(f"cannot make a Tree: its text is longer than the {MAX_LENGTH:,} characters allowed")

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Tree({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Tree) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[type[Tree], tuple[str, tuple[Tree, ...]]]:
        return Tree, (self.name, self.args)

    @cached_property
    def _text(self) -> str:
        return f"{self.name}({','.join(map(str, self.args))})" if self.args else self.name

    @cached_property
    def depth(self) -> int:
        """Number of operators on the longest path from the root to a leaf; 0 for `x` alone."""
        return 1 + max(arg.depth for arg in self.args) if self.args else 0

    @cached_property
    def size(self) -> int:
        """Number of operators in the tree; 0 for a leaf alone."""
        return bool(self.args) + sum(arg.size for arg in self.args)

    @cached_property
    def nodes(self) -> tuple[Tree, ...]:
        """The operator nodes in preorder (leaves left out)."""
        return ((self,) if self.args else ()) + tuple(node for arg in self.args for node in arg.nodes)

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The names of the leaves, from left to right."""
        return tuple(leaf for arg in self.args for leaf in arg.leaves) if self.args else (self.name,)

    @cached_property
    def constants(self) -> tuple[float, ...]:
        """The numbers among the leaves, from left to right."""
        return tuple(float(leaf) for leaf in self.leaves if is_number(leaf))

    @cached_property
    def inputs(self) -> int:
        """How many arrays the function takes: 2 where `y` stands in it, else 1."""
        return 2 if INPUTS[1] in self.leaves else 1

    @cached_property
    def is_function(self) -> bool:
        """Whether nothing is left open, as kinds and "c" in a schema are."""
        return WILDCARD not in self.leaves and not any(node.name in KINDS for node in self.nodes)

    @cached_property
    def shape(self) -> str:
        """The schema this tree belongs to, e.g. `binary(unary(x),binary(c,x))`."""
        if self.args:
            return f"{_kind(self.name)}({','.join(arg.shape for arg in self.args)})"
        return WILDCARD if is_number(self.name) else self.name


def parse(text: str | Tree) -> Tree:
    """Read a function's name, such as `max(relu(x), cosh(elu(x)))`, into a `Tree`.

    Grammar: function = "x" | "y" | number | operator "(" function {"," function} ")"; white space is free. A number is
    a finite decimal one, such as 0.5, -2 or 1e-3. y is a second input, and no function by itself.

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
    if isinstance(text, Tree) and text.is_function:
        return text
    return _Parser(str(text) if isinstance(text, Tree) else text, schema=False).parse()


def parse_schema(text: str | Tree) -> Tree:
    """Read a schema, such as `mul(c,unary(x))`: a function in which kinds and "c" may stand for operators and numbers.

    Args:
        text: the schema; a `Tree` is returned as it is. "n_ary" is read as "n-ary".

    Raises:
        ParseError: as `parse`, and for an unknown kind.

    Example:
        >>> from aqx.tree import parse_schema
        >>> parse_schema("n_ary(unary(x), relu(x))")
        Tree('n-ary(unary(x),relu(x))')
    """
    return text if isinstance(text, Tree) else _Parser(text, schema=True).parse()


def _kind(name: str) -> Kind | None:
    """The kind of an operator, a kind's own for a kind, None for what is neither."""
    if name in KINDS:
        return name
    operator = operator_table().by_name.get(name)
    return operator.kind if operator else None


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(_clip(name).lower(), known, n=3, cutoff=0.5)
    return f"unknown operator {_clip(name)!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _misfit(name: str, n_args: int) -> str | None:
    """Why an operator, kind or leaf of this name cannot have so many arguments, or None if it can."""
    if name in LEAVES or not n_args and isinstance(name, str) and is_number(name):
        return f"{name} takes no arguments, found {n_args}" if n_args else None
    kind = _kind(name)
    if kind is None:
        return _unknown(name, operator_table().by_name)
    arity = {"unary": "1 argument", "binary": "2 arguments", "n-ary": "1 argument or more"}[kind]
    fits = n_args >= 1 if kind == "n-ary" else str(n_args) == arity[0]
    return None if fits else f"{name} takes {arity}, found {n_args}"


class _Parser:
    def __init__(self, text: object, schema: bool):
        self.what = "schema" if schema else "function name"
        if not isinstance(text, str):
            raise InputError(f"{self.what} must be a string or a Tree, but got {type(text).__name__}")
        self.text, self.schema = text, schema
        self.position = 0
        if len(text) > MAX_LENGTH:
            raise self.error(f"{len(text):,} characters are more than the {MAX_LENGTH:,} allowed", 0)

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

    def take(self, *expected: str) -> str:
        """Step over the next token, one of those expected."""
        token, start = self.peek()
        if token not in expected:
            raise self.error(f"expected {' or '.join(map(repr, expected))}, found {_found(token)}", start)
        self.position = start + len(token)
        return token

    def function(self, depth: int) -> Tree:
        name, start = self.peek()
        if not name or name in "(),":
            raise self.error(f"expected x or an operator, found {_found(name)}", start)
        is_leaf = name in INPUTS or bool(_NUMBER.match(name))
        if depth > MAX_DEPTH or depth == MAX_DEPTH and not is_leaf and name != WILDCARD:
            raise self.error(f"nested deeper than the {MAX_DEPTH} levels allowed", start)
        self.position = start + len(name)
        if name == INPUTS[1] and not depth:
            raise self.error(f"{_unknown(name, ())}: it is the second input, and no function by itself", start)
        if is_leaf:
            return self.leaf(name, start)
        if name == WILDCARD:
            if self.schema:
                return Tree(name)
            raise self.error(f"{name} is any constant, which only a schema may hold; write a number, as 0.5", start)
        if self.schema and name == "n_ary":
            name = "n-ary"
        if name in KINDS and not self.schema:
            raise self.error(f"{name} is a kind of operator, which only a schema may name; name an operator", start)
        if name.lower() in ("nan", "inf", "infinity") and _kind(name) is None:
            raise self.error(f"{name} is not a finite number; write one such as 0.5", start)
        if _kind(name) is None:
            known = operator_table().by_name
            raise self.error(_unknown(name, (*KINDS, *known) if self.schema else known), start)
        self.take("(")
        args = [self.function(depth + 1)]
        while self.take(",", ")") == ",":
            args.append(self.function(depth + 1))
        reason = _misfit(name, len(args))
        if reason:
            raise self.error(reason, start)
        return Tree(name, tuple(args))

    def leaf(self, name: str, start: int) -> Tree:
        try:
            return Tree(name)
        except InputError as error:
            raise self.error(_clip(str(error), 120), start) from None

    def error(self, reason: str, position: int) -> ParseError:
        left = max(0, position - 40)
        window = "".join(c if c.isprintable() else " " for c in self.text[left : position + 30])
        caret = " " * (position - left) + "^"
        summary = f"cannot parse {self.what} {_clip(self.text)!r}: {reason} (at position {position})"
        return ParseError(f"{summary}\n  {window}\n  {caret}", position)


def _found(token: str) -> str:
    return repr(_clip(token)) if token else "the end"


def _clip(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
