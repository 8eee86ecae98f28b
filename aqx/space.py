"""`Space`: functions described by schemas; index ⇄ tree is computed, so that size costs nothing."""

from __future__ import annotations

import math
import operator
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, overload

from aqx.constants import canonical, text_of
from aqx.errors import IndexOutOfRange, InputError
from aqx.operators import KINDS, SETS, Kind, operator_names, operator_table
from aqx.tree import WILDCARD, Tree, parse, parse_schema

_KEPT = 20_000  # functions of a schema whose trees are kept


@dataclass(frozen=True, init=False, repr=False)
class Space:
    """All functions of some schemas, in a fixed order, made one at a time.

    In a schema the kinds unary, binary and n-ary stand where any operator of that kind may; operators stand for
    themselves. The functions of a schema are numbered in mixed radix, the root's operator as the most significant
    digit, then the arguments from left to right: index = ((root · n₁) + i₁) · n₂ + i₂ …, where iₖ < nₖ is the index of
    the k-th argument in its own schema; a wildcard's digits follow the order of `operators`. Schemas follow each other.
    A function of two schemas counts twice in `size`, and `index` gives its first place.

    Args:
        schemas: one schema, or several.
        operators: the name of a set ("paper", "aquasurf", "extended"), or a list of operator names.
        constants: the numbers that the wildcard c may stand for; in order, as its digits are.

    Attributes:
        schemas: the schemas, as trees.
        operators: the names that wildcards may stand for.
        constants: the texts of the numbers that c may stand for.

    Raises:
        ParseError: a schema does not parse.
        InputError: there is no schema, an operator is unknown, a constant is no finite number, or a wildcard has
            nothing to stand for.

    Example:
        >>> import aqx
        >>> space = aqx.Space(["unary(unary(x))", "binary(unary(x),unary(x))"])
        >>> len(space)
        5832
        >>> space[-1], space.index("min(softsign(x),swish(x))")
        (Tree('min(hard_sigmoid(x),hard_sigmoid(x))'), 5801)
        >>> aqx.Space("max(x,mul(c,x))", constants=(0.25, 0.5))[:]
        [Tree('max(x,mul(0.25,x))'), Tree('max(x,mul(0.5,x))')]
    """

    schemas: tuple[Tree, ...]
    operators: tuple[str, ...]
    constants: tuple[str, ...]

    def __init__(
        self,
        schemas: str | Tree | Iterable[str | Tree],
        operators: str | Iterable[str] = "paper",
        constants: Iterable[Any] = (),
    ):
        listed = (schemas,) if isinstance(schemas, str | Tree) else tuple(schemas)
        if not listed:
            raise InputError("schemas is empty; give at least one, such as 'unary(unary(x))'")
        parsed = tuple(map(parse_schema, listed))
        object.__setattr__(self, "schemas", parsed)
        object.__setattr__(self, "operators", operator_names(operators))
        object.__setattr__(self, "constants", _texts(constants))
        for schema in parsed:
            if WILDCARD in schema.leaves and not self.constants:
                raise InputError(f"constants is empty, but schema '{schema}' needs one for c; give some, as (0.5, 2)")
            for node in schema.nodes:
                if node.name in KINDS and not self.choices[node.name]:
                    raise InputError(f"operators has no {node.name} operator, but schema '{schema}' needs one")

    @classmethod
    def paper(cls) -> Space:
        """Return the 1,023,516 functions of Bingham & Miikkulainen (NeurIPS 2023)."""
        return cls(
            (
                "unary(unary(unary(unary(x))))",
                "unary(binary(unary(x),unary(x)))",
                "binary(unary(unary(x)),unary(x))",
                "binary(unary(x),unary(unary(x)))",
                "n-ary(unary(x),unary(x),unary(x))",
            )
        )

    @classmethod
    def act_bench(cls) -> Space:
        """Return the 5,103 functions binary(unary(x),unary(x)) from which the paper's benchmark tables are drawn."""
        return cls("binary(unary(x),unary(x))")

    @classmethod
    def gated(cls, operators: str | Iterable[str] = "paper") -> Space:
        """Return functions of the two inputs of a gated unit: 5,832 of the paper's operators.

        They are binary(unary(x),unary(y)) and mul(unary(unary(x)),y), among them GLU, ReGLU, GEGLU and SwiGLU.

        Args:
            operators: as of a space.

        Example:
            >>> import aqx
            >>> space = aqx.Space.gated()
            >>> len(space), "mul(swish(x),identity(y))" in space
            (5832, True)
        """
        return cls(("binary(unary(x),unary(y))", "mul(unary(unary(x)),y)"), operators)

    @classmethod
    def preset(cls, name: str) -> Space:
        """Return the space of this name: "paper", "act_bench" or "gated".

        Raises:
            InputError: there is none.
        """
        presets = {"paper": cls.paper, "act_bench": cls.act_bench, "gated": cls.gated}
        if name not in presets:
            raise InputError(f"space={name!r} is none; give {' or '.join(presets)}, or an aqx.Space")
        return presets[name]()

    @cached_property
    def choices(self) -> Mapping[Kind, tuple[str, ...]]:
        """The operators that each kind's wildcard may stand for, in the order of their digits."""
        known = operator_table().by_name
        return MappingProxyType({kind: tuple(n for n in self.operators if known[n].kind == kind) for kind in KINDS})

    @cached_property
    def _counts(self) -> dict[str, int]:
        """What `_count` has found for the schemas and their arguments."""
        return {}

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of functions of each schema."""
        return tuple(map(self._count, self.schemas))

    @cached_property
    def size(self) -> int:
        """The number of functions, exact however large."""
        return sum(self.sizes)

    def __len__(self) -> int:
        if self.size > sys.maxsize:
            raise OverflowError(f"len() cannot hold this space's {self.size} functions; use space.size")
        return self.size

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree | list[Tree]:
        """Return the function at an index (from the end if negative), or the list of those of a slice.

        Raises:
            IndexOutOfRange: there is no such index.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(self.size)[index]]
        position = operator.index(index)
        if not -self.size <= position < self.size:
            raise IndexOutOfRange(f"index {position} is out of range for a space of {self.size} functions")
        position %= self.size
        for schema, size in zip(self.schemas, self.sizes, strict=True):
            if position < size:
                return self._tree(schema, position)
            position -= size
        raise AssertionError("unreachable: the sizes add up to the size")

    def __iter__(self) -> Iterator[Tree]:
        for schema in self.schemas:
            yield from self._trees(schema)

    def index(self, tree: str | Tree) -> int:
        """Return the first index of a function; `space[space.index(tree)] == tree`.

        Raises:
            ParseError: the name does not parse.
            InputError: the function is not in this space.
        """
        found = self._find(parse(tree))
        if found is None:
            raise InputError(f"tree={str(tree)!r} is not in this space")
        return found

    def __contains__(self, tree: object) -> bool:
        return isinstance(tree, str | Tree) and self._find(parse(tree)) is not None

    def sample(self, n: int, seed: int) -> list[Tree]:
        """Draw n distinct functions, all equally likely; the whole space, shuffled, when it has no more than n.

        Args:
            n: how many, at least 0.
            seed: the same seed draws the same functions.

        Returns:
            The functions, in random order.

        Raises:
            InputError: n is negative.
        """
        n = operator.index(n)
        if n < 0:
            raise InputError(f"n={n} is negative; give how many functions to draw")
        drawn: list[Tree] = []
        for index in _shuffled(self.size, random.Random(operator.index(seed))):
            if len(drawn) >= n:
                break
            tree = self[index]
            # Of a function that overlapping schemas share, only the first place counts.
            if len(self.schemas) == 1 or self._find(tree) == index:
                drawn.append(tree)
        return drawn

    def __repr__(self) -> str:
        name = next((name for name, names in SETS.items() if names == self.operators), None)
        schemas = ", ".join(repr(str(schema)) for schema in self.schemas)
        constants = f", constants=({', '.join(self.constants)},)" if self.constants else ""
        return f"Space([{schemas}], operators={repr(name) if name else list(self.operators)}{constants})"

    def __reduce__(self) -> tuple[type[Space], tuple[tuple[str, ...], ...]]:
        constants = (self.constants,) if self.constants else ()
        return type(self), (tuple(map(str, self.schemas)), self.operators, *constants)

    def _names(self, node: Tree) -> tuple[str, ...]:
        if node.name == WILDCARD:
            return self.constants
        return self.choices[node.name] if node.name in KINDS else (node.name,)  # type: ignore[index]

    def _count(self, schema: Tree) -> int:
        if str(schema) not in self._counts:
            self._counts[str(schema)] = len(self._names(schema)) * math.prod(map(self._count, schema.args))
        return self._counts[str(schema)]

    @cached_property
    def _made(self) -> dict[tuple[str, int], Tree]:
        """Trees of small schemas, which stand in many functions: by the schema's text and the index."""
        return {}

    def _tree(self, schema: Tree, index: int) -> Tree:
        """Decode an index; the last argument's digits are the least significant."""
        key = str(schema), index
        if key in self._made:
            return self._made[key]
        args = []
        for arg in reversed(schema.args):
            index, digit = divmod(index, self._count(arg))
            args.append(self._tree(arg, digit))
        tree = Tree(self._names(schema)[index], tuple(reversed(args)))
        if self._count(schema) <= _KEPT:
            self._made[key] = tree
        return tree

    def _trees(self, schema: Tree) -> Iterator[Tree]:
        """All trees of a schema in the order of their indices, neighbours sharing their first arguments."""
        return (Tree(name, args) for name in self._names(schema) for args in self._arguments(schema.args))

    def _arguments(self, schemas: tuple[Tree, ...]) -> Iterator[tuple[Tree, ...]]:
        if not schemas:
            yield ()
            return
        for first in self._trees(schemas[0]):
            for rest in self._arguments(schemas[1:]):
                yield (first, *rest)

    def _find(self, tree: Tree) -> int | None:
        """The first index of a tree, or None."""
        start = 0
        for schema, size in zip(self.schemas, self.sizes, strict=True):
            index = self._index(schema, tree)
            if index is not None:
                return start + index
            start += size
        return None

    def _index(self, schema: Tree, tree: Tree) -> int | None:
        names = self._names(schema)
        if tree.name not in names or len(tree.args) != len(schema.args):
            return None
        index = names.index(tree.name)
        for arg_schema, arg in zip(schema.args, tree.args, strict=True):
            digit = self._index(arg_schema, arg)
            if digit is None:
                return None
            index = index * self._count(arg_schema) + digit
        return index


def _texts(constants: Any) -> tuple[str, ...]:
    """The canonical texts of numbers, each once."""
    if isinstance(constants, str) or not isinstance(constants, Iterable):
        raise InputError(f"constants={constants!r} is not a list of numbers; give one such as (0.25, 0.5, 2)")
    try:
        return tuple(dict.fromkeys(canonical(each) if isinstance(each, str) else text_of(each) for each in constants))
    except InputError as error:
        raise InputError(f"constants: {error}") from None


def _shuffled(size: int, generator: random.Random) -> Iterator[int]:
    """The numbers below size in random order, drawn one at a time: Fisher–Yates that keeps only what it has swapped."""
    swapped: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        pick = generator.randrange(last + 1)
        yield swapped.get(pick, pick)
        swapped[pick] = swapped.pop(last, last)
