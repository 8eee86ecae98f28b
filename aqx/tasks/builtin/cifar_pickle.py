"""The pickles of CIFAR's python archives, read without running anything that they name.

A pickle calls whatever its author wrote, so that loading one from a stranger is running the stranger's program. A batch
of CIFAR needs five names. Stand-ins of our own answer to them; every other name is refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np


def read_batch(content: bytes) -> dict[str, Any]:
    """Read a pickled dict of numbers, text, lists and arrays of bytes, as Python 2 wrote it.

    Args:
        content: the pickle.

    Returns:
        The dict, its keys as text and its arrays as NumPy arrays of uint8.

    Raises:
        pickle.UnpicklingError: it is not a dict, or it names something else.
        Exception: whatever a damaged pickle leads to.

    Example:
        >>> from aqx.tasks.builtin.cifar_pickle import read_batch
        >>> import pickle
        >>> read_batch(pickle.dumps({b"labels": [6, 9]}, protocol=2))
        {'labels': [6, 9]}
        >>> read_batch(pickle.dumps({b"labels": print}, protocol=2))
        Traceback (most recent call last):
        _pickle.UnpicklingError: it names __builtin__.print, which no CIFAR batch does
    """
    batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(batch, dict):
        raise pickle.UnpicklingError(f"it holds no dict but a {type(batch).__name__}")
    keys = (key.decode("latin1") if isinstance(key, bytes) else str(key) for key in batch)
    values = (value.pixels if isinstance(value, _Array) else value for value in batch.values())
    return dict(zip(keys, values, strict=True))


# Each has a __setstate__, also where it only refuses: pickle's own way to set a state writes any attribute of whatever
# the stream holds, and these classes are among that.
class _Array:
    """Stands in for `numpy.core.multiarray._reconstruct(ndarray, (0,), b"b")`, whose state brings shape and bytes."""

    def __init__(self, *_: object):
        self.pixels: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _DType) or dtype.code not in ("u1", b"u1") or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array of something else than bytes")
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _DType:
    """Stands in for `numpy.dtype("u1", …)`."""

    def __init__(self, code: object, *_: object):
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


class _Encoded:
    """Stands in for `_codecs.encode(text, "latin1")`, the way in which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it uses the codec {encoding!r}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets a state of bytes")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Encoded,
}


class _Unpickler(pickle.Unpickler):
    """Knows the stand-ins alone."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR batch does")
        return stand_in
