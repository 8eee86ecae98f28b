"""Whether the operators of somebody's own still mean what they did when a database was filled."""

from __future__ import annotations

import functools

from aqx import store
from aqx.errors import StoreError
from aqx.operators import SETS, Operator, operator_table
from aqx.store import Database


def check_meanings(db: Database) -> None:
    """Compare the registered operators with those of their names that the database was filled with.

    Only operators of somebody's own can have changed; without one nothing is read or computed.

    Raises:
        StoreError: one computes something else.
    """
    own = {op.name: op for op in operator_table().operators if op.name not in SETS["extended"]}
    known = store.functions.operators_of(db) if own else {}
    changed = sorted(name for name, op in own.items() if name in known and _behaviour(op) != known[name])
    if changed:
        raise StoreError(store.functions.another_operator(db, changed[0]))


@functools.lru_cache(maxsize=256)
def _behaviour(operator: Operator) -> str:
    from aqx.evaluation import operator_behaviours  # brings JAX

    return operator_behaviours([operator.name])[operator.name]
