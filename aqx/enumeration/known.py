"""Which classes are stored already, and under which names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt64

from aqx.evaluation.class_ids import class_keys, lookup
from aqx.store import functions as store
from aqx.store.connection import Database


class KnownClasses:
    """The classes of a database as one process knows them: those it found there, and those it has added since.

    Another process may add more meanwhile, so the store looks again before it inserts. Kept in sorted arrays, which
    take a tenth of the memory of a dict.
    """

    def __init__(self, db: Database):
        ids, sizes, names = store.known_classes(db)
        self._keys = self._settled = class_keys(np.empty((0, 2), np.uint64))
        self._sizes = np.empty(0, sizes.dtype)
        self._names = np.array([], np.dtypes.StringDType())
        self._insert(class_keys(ids), sizes, names)

    def __len__(self) -> int:
        return len(self._keys) + len(self._settled)

    def worth_storing(self, ids: UInt64[np.ndarray, "K 2"], size: int, names: Sequence[str]) -> Bool[np.ndarray, " K"]:
        """Tell which functions belong to a class that is not known, or are simpler than what represents it."""
        keys = class_keys(ids)
        named, at = lookup(self._keys, keys)
        worth = ~named & ~lookup(self._settled, keys)[0]
        for row in np.flatnonzero(named).tolist():
            worth[row] = (size, names[row]) < (int(self._sizes[at[row]]), str(self._names[at[row]]))
        return worth

    def add(self, ids: UInt64[np.ndarray, "K 2"], size: int, names: Sequence[str], settled: bool) -> None:
        """Note which functions were found worth storing; settled if nothing simpler can come later."""
        keys = class_keys(ids)
        named, at = lookup(self._keys, keys)
        for row in np.flatnonzero(named).tolist():
            self._sizes[at[row]], self._names[at[row]] = size, names[row]
        if settled:
            keys = np.sort(keys[~named])
            self._settled = np.insert(self._settled, np.searchsorted(self._settled, keys), keys)
        else:
            rows = np.flatnonzero(~named)
            self._insert(keys[rows], np.full(len(rows), size, self._sizes.dtype), [names[row] for row in rows.tolist()])

    def _insert(self, keys: np.ndarray, sizes: np.ndarray, names: Sequence[str]) -> None:
        keys = np.concatenate([self._keys, keys])
        order = np.argsort(keys)
        self._keys = keys[order]
        self._sizes = np.concatenate([self._sizes, sizes])[order]
        self._names = np.concatenate([self._names, np.array(names, self._names.dtype)])[order]
