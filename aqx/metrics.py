"""Metrics of a training: numbers, text and lists by name, and as the JSON text that is stored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from aqx.errors import InputError
from aqx.text import clipped

REASON_LENGTH = 1_000_000
# JSON has no such numbers, and other readers refuse the NaN that some writers emit. DuckDB casts these strings:
# `(metrics->>'loss')::DOUBLE` is nan, inf or -inf.
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode_metrics(metrics: Mapping[Any, Any]) -> str:
    r"""Write metrics as one JSON object.

    Numbers that JSON lacks become the strings "nan", "inf" and "-inf"; a string that reads like one of them gets an
    apostrophe in front.

    Args:
        metrics: keys are strings; values are numbers, strings, booleans, None, or lists and arrays of such.

    Raises:
        InputError: a key or a value of another type.

    Example:
        >>> encode_metrics({"val_acc": 0.5, "loss": float("inf"), "note": "inf"})
        '{"val_acc": 0.5, "loss": "inf", "note": "\'inf"}'
    """
    if odd := [key for key in metrics if not isinstance(key, str)]:
        raise InputError(f"metrics must have strings as keys, but got {odd[0]!r} of type {type(odd[0]).__name__}")
    return clean_text(json.dumps({key: _encode(key, value) for key, value in metrics.items()}, ensure_ascii=False))


def decode_metrics(text: str) -> dict[str, Any]:
    r"""Read what `encode_metrics` wrote; arrays come back as lists.

    Example:
        >>> decode_metrics('{"loss": "nan", "note": "\'nan"}')
        {'loss': nan, 'note': 'nan'}
    """
    return {} if text == "{}" else {key: _decode(value) for key, value in json.loads(text).items()}


def plain_metrics(metrics: Mapping[Any, Any]) -> dict[str, Any]:
    """Metrics as they come back from the database: plain numbers, text and lists.

    Raises:
        InputError: a key or a value that cannot be stored.

    Example:
        >>> import numpy as np
        >>> plain_metrics({"val_acc": np.float32(0.5), "curve": np.arange(3)})
        {'val_acc': 0.5, 'curve': [0, 1, 2]}
    """
    return decode_metrics(encode_metrics(metrics))


def _encode(key: str, value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy's and JAX's arrays and scalars
        value = value.tolist()
    match value:
        case bool() | int() | None:
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return "'" + value if value.lstrip("'") in _NON_FINITE else value
        case list() | tuple():
            return [_encode(key, item) for item in value]
        case _:
            raise InputError(
                f"metric {key[:60]!r} must be a number, string, boolean, None or a list of such, but got "
                f"{type(value).__name__}"
            )


def _decode(value: Any) -> Any:
    match value:
        case str() if value in _NON_FINITE:
            return _NON_FINITE[value]
        case str() if value.startswith("'") and value.lstrip("'") in _NON_FINITE:
            return value[1:]
        case list():
            return [_decode(item) for item in value]
        case _:
            return value


def clean_reason(text: str) -> str:
    """A reason as it can be stored: the first million characters of one that holds, say, a whole array."""
    return clean_text(clipped(text, REASON_LENGTH))


def clean_text(text: str) -> str:
    """Text as it can be stored: halves of surrogate pairs, which UTF-8 lacks, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
