"""Whether the operators of somebody's own still mean what they did when a database was filled."""

from __future__ import annotations

import functools

from aqx.errors import StoreError
from aqx.operators import Operator, own_operators
from aqx.store import Database
from aqx.store.functions import another_operator, operators_of


def check_meanings(db: Database) -> None:
    """Compare the registered operators with those of their names that the database was filled with.

    Only operators of somebody's own can have changed; without one nothing is read or computed.

    Raises:
        StoreError: one computes something else.
    """
    own = {operator.name: operator for operator in own_operators()}
    known = operators_of(db) if own else {}
    changed = sorted(name for name, op in own.items() if name in known and _behaviour(op) != known[name])
    if changed:
        raise StoreError(another_operator(db, changed[0]))


@functools.lru_cache(maxsize=256)
def _behaviour(operator: Operator) -> str:
    from aqx.evaluation import operator_behaviours  # brings JAX

    return operator_behaviours([operator.name])[operator.name]
