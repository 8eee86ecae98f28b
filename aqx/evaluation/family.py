"""Functions in bulk: families numbered by index, and batches whose arguments are shared."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from aqx.constants import is_number
from aqx.errors import InputError
from aqx.operators import KINDS, operator_table
from aqx.tree import INPUTS, WILDCARD, Tree, parse_schema

# Functions of a shape are numbered by an axis for each argument, and NumPy's arrays have at most 64 axes.
MAX_ARGUMENTS = 32
_KEPT = 1 << 15  # functions of a family whose values are kept while others take them as arguments

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Batch:
    """K functions of one shape; every distinct argument stands once, however many functions take it.

    Attributes:
        operators: the names that opcodes stand for; none for a leaf.
        opcodes: the root operator of each function [K].
        args: for each argument, the batch of distinct functions, and which of them each function takes [K].
        numbers: what K leaves are that are constants [K]; None for the leaves `x` and `y`, and for operators.
        second: whether the leaves are `y`.
        memo: what was computed of a batch that is an argument in many others; None where nothing is kept.
    """

    operators: tuple[str, ...]
    opcodes: Int[np.ndarray, " K"]
    args: tuple[tuple[Batch, Int[np.ndarray, " K"]], ...] = ()
    memo: dict[Hashable, Any] | None = None
    numbers: Float[np.ndarray, " K"] | None = None
    second: bool = False

    def __len__(self) -> int:
        return len(self.opcodes)

    @classmethod
    def of_trees(cls, trees: Sequence[Tree]) -> Batch:
        """Make the batch of trees that have one shape.

        Example:
            >>> import aqx
            >>> from aqx.evaluation import Batch
            >>> batch = Batch.of_trees([aqx.parse("add(exp(x),x)"), aqx.parse("mul(exp(x),x)")])
            >>> batch.operators, batch.opcodes.tolist(), len(batch.args[0][0])
            (('add', 'mul'), [0, 1], 1)

        Raises:
            InputError: an operator has more than 32 arguments.
        """
        _check_arguments(trees[0])
        if not trees[0].args:
            return cls._of_leaves([tree.name for tree in trees])
        operators = tuple(sorted({tree.name for tree in trees}))
        opcode_of = {name: opcode for opcode, name in enumerate(operators)}
        args = []
        for at in range(len(trees[0].args)):
            distinct = {str(tree.args[at]): tree.args[at] for tree in trees}
            row_of = {name: row for row, name in enumerate(distinct)}
            rows = np.array([row_of[str(tree.args[at])] for tree in trees], np.int64)
            args.append((cls.of_trees(list(distinct.values())), rows))
        return cls(operators, np.array([opcode_of[tree.name] for tree in trees], np.int64), tuple(args))

    @classmethod
    def _of_leaves(cls, names: Sequence[str]) -> Batch:
        """The batch of leaves that are all `x`, all `y`, or all constants."""
        numbers = np.array([float(name) for name in names]) if is_number(names[0]) else None
        return cls((), np.zeros(len(names), np.int64), numbers=numbers, second=names[0] == INPUTS[1])

    @functools.cached_property
    def inputs(self) -> int:
        """How many arrays the functions take."""
        return max((arg.inputs for arg, _ in self.args), default=1 + self.second)

    @property
    def operators_used(self) -> set[str]:
        """The operators that occur in some function."""
        return set(self.operators).union(*(arg.operators_used for arg, _ in self.args))

    def take(self, rows: Int[np.ndarray, " R"]) -> Batch:
        """Return the batch of some of these functions, without arguments that none of them takes and nothing keeps."""
        args = []
        for arg, taken in self.args:
            if arg.memo is not None:
                args.append((arg, taken[rows]))
            else:
                needed, renumbered = np.unique(taken[rows], return_inverse=True)
                args.append((arg.take(needed), renumbered))
        numbers = None if self.numbers is None else self.numbers[rows]
        return Batch(self.operators, self.opcodes[rows], tuple(args), numbers=numbers, second=self.second)

    def kept(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what the memo has under a key, after computing it where it must be."""
        if self.memo is None:
            return compute()
        key = key, operator_table()
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]


@dataclass(frozen=True)
class Family:
    """All functions of one schema over a list of operators, numbered with the root operator as the first digit.

    The index of a function is ((root · n₁) + i₁) · n₂ + i₂ …, where iₖ < nₖ is the index of its k-th argument. The
    operators at a node are numbered alphabetically, and so are constants, so that the order of indices is the order of
    names.

    Attributes:
        schema: a tree in which kinds may stand for operators, and "c" for constants.
        operators: the names that kinds stand for.
        constants: the texts of the numbers that "c" stands for.

    Example:
        >>> from aqx.evaluation import Family
        >>> from aqx.tree import parse_schema
        >>> family = Family(parse_schema("unary(unary(x))"), ("tanh", "abs"))
        >>> family.size, family.names(range(1, 3))
        (4, ['abs(tanh(x))', 'tanh(abs(x))'])
    """

    schema: Tree
    operators: tuple[str, ...]
    constants: tuple[str, ...] = ()

    @functools.cached_property
    def choices(self) -> tuple[str, ...]:
        """The operators that may stand at the root; empty for a leaf."""
        if not self.schema.args:
            return ()
        if self.schema.name not in KINDS:
            return (self.schema.name,)
        table = operator_table().by_name
        return tuple(sorted(name for name in self.operators if table[name].kind == self.schema.name))

    @functools.cached_property
    def leaves(self) -> tuple[str, ...]:
        """What may stand at a family that is a leaf; empty for one that is not."""
        if self.schema.args:
            return ()
        return tuple(sorted(self.constants)) if self.schema.name == WILDCARD else (self.schema.name,)

    @functools.cached_property
    def args(self) -> tuple[Family, ...]:
        """The families of the root's arguments."""
        return tuple(Family(arg, self.operators, self.constants) for arg in self.schema.args)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """The radices of the index: the number of root operators, then the size of each argument's family."""
        _check_arguments(self.schema)
        return (len(self.choices), *(arg.size for arg in self.args)) if self.schema.args else (len(self.leaves),)

    @functools.cached_property
    def size(self) -> int:
        """The number of functions."""
        return math.prod(self.shape)

    @functools.cached_property
    def operators_used(self) -> tuple[str, ...]:
        """The operators that occur in some function of the family, alphabetically."""
        return tuple(sorted(set(self.choices).union(*(arg.operators_used for arg in self.args))))

    @functools.cached_property
    def key(self) -> tuple[str, str]:
        """The schema, and the constants and operators as text: what a database calls this family."""
        constants = sorted(self.constants) if WILDCARD in self.schema.leaves else ()
        return str(self.schema), ",".join((*constants, *self.operators_used))

    @classmethod
    def of_key(cls, schema: str, listed: str) -> Family:
        """Return the family that a database calls so."""
        names = [name for name in listed.split(",") if name]
        return cls(
            parse_schema(schema),
            tuple(name for name in names if not is_number(name)),
            tuple(name for name in names if is_number(name)),
        )

    def overlaps(self, other: Family) -> bool:
        """Whether some function belongs to both families."""
        if not self.schema.args or not other.schema.args:
            return not set(self.leaves).isdisjoint(other.leaves)
        return (
            len(self.args) == len(other.args)
            and not set(self.choices).isdisjoint(other.choices)
            and all(mine.overlaps(theirs) for mine, theirs in zip(self.args, other.args, strict=True))
        )

    def batch(self, indices: Int[np.ndarray, " K"]) -> Batch:
        """Return the functions with these indices."""
        if not self.schema.args:
            numbers = np.array([float(leaf) for leaf in self.leaves if is_number(leaf)])
            return Batch(
                (),
                np.zeros(len(indices), np.int64),
                numbers=numbers[indices] if len(numbers) else None,
                second=self.schema.name == INPUTS[1],
            )
        root, *digits = np.unravel_index(indices, self.shape)
        args = []
        for arg, digit in zip(self.args, digits, strict=True):
            if arg.size <= min(len(indices), _KEPT):
                args.append((arg._whole, digit))
            else:
                needed, rows = np.unique(digit, return_inverse=True)
                args.append((arg.batch(needed), rows))
        return Batch(self.choices, root, tuple(args))

    @functools.cached_property
    def _whole(self) -> Batch:
        """All functions, as an argument of many others."""
        return dataclasses.replace(self.batch(np.arange(self.size)), memo={})

    def names(self, indices: Sequence[int] | Int[np.ndarray, " K"]) -> list[str]:
        """Return the names of the functions with these indices."""
        if not self.schema.args:
            return [self.leaves[index] for index in indices]
        root, *digits = np.unravel_index(np.asarray(indices, np.int64), self.shape)
        columns = []
        for arg, digit in zip(self.args, digits, strict=True):
            needed, rows = np.unique(digit, return_inverse=True)
            known = arg.names(needed)
            columns.append([known[row] for row in rows.tolist()])
        heads = [f"{name}(" for name in self.choices]
        if len(columns) == 1:
            return [f"{heads[op]}{arg})" for op, arg in zip(root.tolist(), columns[0], strict=True)]
        return [f"{heads[op]}{','.join(args)})" for op, *args in zip(root.tolist(), *columns, strict=True)]

    def name(self, index: int) -> str:
        """Return the name of the function with this index."""
        if not self.schema.args:
            return self.leaves[index]
        names = []
        for arg in reversed(self.args):
            index, digit = divmod(index, arg.size)
            names.append(arg.name(digit))
        return f"{self.choices[index]}({','.join(reversed(names))})"

    def first_at_least(self, name: str, low: int, high: int) -> int:
        """Return the first index in [low, high] whose name is not before `name` in the alphabet; `high` if none is."""
        return bisect.bisect_left(range(high), name, lo=low, key=self.name)


def batches_of(trees: Sequence[Tree]) -> Iterator[tuple[list[int], Batch]]:
    """Yield the functions of each shape together, after where they stand."""
    by_shape: dict[str, list[int]] = {}
    for at, tree in enumerate(trees):
        by_shape.setdefault(tree.shape, []).append(at)
    for rows in by_shape.values():
        yield rows, Batch.of_trees([trees[at] for at in rows])


def _check_arguments(tree: Tree) -> None:
    if len(tree.args) > MAX_ARGUMENTS:
        raise InputError(
            f"{tree.name} is evaluated with at most {MAX_ARGUMENTS} arguments, found {len(tree.args):,}; nest several"
        )
