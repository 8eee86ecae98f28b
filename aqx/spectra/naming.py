"""From stored names to activations: many in little time, and with no operator in their table that none of them has."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from aqx.activation import Activation, activation
from aqx.constants import WRITTEN, numbers_of
from aqx.operators import OperatorTable, operator_table
from aqx.tree import WILDCARD, Tree, parse_schema

_OPERATOR = re.compile(r"[^(),]+(?=\()")


@functools.lru_cache(maxsize=16)
def _part(table: OperatorTable, names: frozenset[str]) -> OperatorTable:
    """The table of some operators: the very same each time, as programs are compiled for the one or the other."""
    return OperatorTable(tuple(op for op in table.operators if op.name in names))


class Namer:
    """Makes activations of names that are stored, and so in their canonical form.

    Compiling a traced activation takes time for each operator that it might be: with the 27 unary ones of the paper's
    space instead of all 43, a small MLP's spectra compile in 0.73 of the time on a CPU. Reading a name through `parse`
    takes 90 µs, a GPU computes the spectrum of a small MLP in 25.

    Args:
        operators: names of the operators that occur; others in a name are found too, in the table of all.
    """

    def __init__(self, operators: Iterable[str]):
        self._table = _part(operator_table(), frozenset(operators))
        self._opcodes = {name: np.int32(code) for name, code in self._table.opcodes.items()}
        self._kinds: dict[str, str] = {name: op.kind for name, op in self._table.by_name.items()}
        self._schemas: dict[str, Tree] = {}

    def __call__(self, names: Sequence[str]) -> list[Activation]:
        """The activations of these names, in their order."""
        return [self._activation(name) for name in names]

    def _activation(self, name: str) -> Activation:
        operators = _OPERATOR.findall(name)
        try:
            shape = _OPERATOR.sub(lambda match: self._kinds[match[0]], name)
            opcodes = tuple([self._opcodes[operator] for operator in operators])
            shape = WRITTEN.sub(WILDCARD, shape)
        except KeyError:
            return activation(name)
        if shape not in self._schemas:
            self._schemas[shape] = parse_schema(shape)
        return Activation(self._schemas[shape], self._table, opcodes, (), numbers_of(name))
