"""Ids of classes: 128 bits, as pairs of halves in arrays and as text elsewhere; looked up, sorted and converted."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import numpy as np
from jaxtyping import Bool, Int, UInt64


def texts(ids: UInt64[np.ndarray, "R 2"]) -> list[str]:
    """Return ids as text."""
    return [str(UUID(int=hi << 64 | lo)) for hi, lo in ids.tolist()]


def halves(class_ids: Iterable[str]) -> UInt64[np.ndarray, "R 2"]:
    """Return ids, given as text, as pairs of 64-bit halves."""
    numbers = [UUID(class_id).int for class_id in class_ids]
    return np.array([(number >> 64, number & (2**64 - 1)) for number in numbers], np.uint64).reshape(-1, 2)


def find_rows(ids: UInt64[np.ndarray, "C 2"], wanted: UInt64[np.ndarray, "R 2"]) -> Int[np.ndarray, " R"]:
    """Return where ids stand among ascending ones; -1 for those that do not."""
    if not len(ids):
        return np.full(len(wanted), -1)
    last, at = len(ids) - 1, np.searchsorted(ids[:, 0], wanted[:, 0])
    while True:  # past those few that share the first half and have a smaller second
        here = ids[np.minimum(at, last)]
        behind = (at <= last) & (here[:, 0] == wanted[:, 0]) & (here[:, 1] < wanted[:, 1])
        if not behind.any():
            return np.where((at <= last) & (here == wanted).all(axis=1), at, -1)
        at = at + behind


def class_keys(ids: UInt64[np.ndarray, "K 2"]) -> np.ndarray:
    """Return class ids [K] that NumPy can sort."""
    return np.ascontiguousarray(ids).view("V16").ravel()


def lookup(among: np.ndarray, keys: np.ndarray) -> tuple[Bool[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """Tell which keys are there, and where."""
    at = np.searchsorted(among, keys)
    inside = at < len(among)
    at[~inside] = 0
    return (inside & (among[at] == keys)) if len(among) else inside, at
