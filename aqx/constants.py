"""Numbers in the names of functions: `mul(0.5,x)` holds one; read strictly, written in one way."""

from __future__ import annotations

import functools
import math
import re
import struct
from typing import Any

from aqx.errors import InputError

MAX_DIGITS = 64  # characters of a number: float32 needs 9 digits, and people write a few more
# What a number is in a text that somebody wrote, and where one stands in a name that aqx wrote.
LITERAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
WRITTEN = re.compile(r"(?<![^(,])-?[0-9][^(),]*")


@functools.lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """Return the one text of a number: the shortest that reads as the same float32, as Python writes it.

    Two numbers that are one in float32 are one constant, as networks are trained in it; where float64 is computed in,
    the constant is what its text says there.

    Args:
        text: a decimal number, such as `.5` or `1e-3`.

    Raises:
        InputError: it is no finite decimal number, too long, or beyond what float32 holds.

    Example:
        >>> from aqx.constants import canonical
        >>> [canonical(text) for text in ("2", "0.100000001", "-.5e1")]
        ['2.0', '0.1', '-5.0']
    """
    if len(text) > MAX_DIGITS:
        raise InputError(f"a number of {len(text):,} characters is longer than the {MAX_DIGITS} allowed")
    if not LITERAL.fullmatch(text):
        raise InputError(f"{text!r} is not a decimal number; write it as 0.5, -2 or 1e-3")
    number = float(text)
    single = to_float32(number)
    if not math.isfinite(single):
        raise InputError(f"{text} is larger than the largest float32, 3.4e38")
    if not single and re.search("[1-9]", text.lower().partition("e")[0]):
        raise InputError(f"{text} is smaller than the smallest float32, 1.4e-45")
    digits = (f"{single:.{count}g}" for count in range(1, 10))
    return repr(float(next(each for each in digits if to_float32(float(each)) == single)))


def to_float32(number: float) -> float:
    """Return the float32 nearest to a number, infinite where there is none.

    Example:
        >>> from aqx.constants import to_float32
        >>> to_float32(0.1), to_float32(-1e39)
        (0.10000000149011612, -inf)
    """
    try:
        return struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        return math.copysign(math.inf, number)


def text_of(number: Any) -> str:
    """Return the canonical text of a number that somebody gave, of Python's or NumPy's types.

    Raises:
        InputError: it is no number, not finite, or beyond what float32 holds.

    Example:
        >>> from aqx.constants import text_of
        >>> text_of(2), text_of(1.702)
        ('2.0', '1.702')
    """
    try:
        given = float(number)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"constant {number!r} is not a number; give one such as 0.5") from None
    if not math.isfinite(given):
        raise InputError(f"constant {number!r} is not finite; give a number such as 0.5")
    return canonical(repr(given))


def is_number(name: str) -> bool:
    """Whether the name of a leaf is a number's, in the form that aqx writes."""
    return bool(WRITTEN.fullmatch(name))


def numbers_of(name: str) -> tuple[float, ...]:
    """Return the numbers in a function's name as aqx writes it, from left to right.

    Example:
        >>> from aqx.constants import numbers_of
        >>> numbers_of("max(mul(0.5,x),log1p_abs(-2.0))")
        (0.5, -2.0)
    """
    return tuple(float(canonical(text.strip())) for text in WRITTEN.findall(name))
