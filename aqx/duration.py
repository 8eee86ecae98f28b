"""How long something may take, as people write it: 90s, 30m, 2h."""

from __future__ import annotations

import math
import re
from typing import Any

from aqx.errors import InputError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """Return the seconds that a text stands for: a number of them, or one with a unit.

    Raises:
        InputError: it is no such text, or no time above 0.

    Example:
        >>> seconds_of("90"), seconds_of("30m"), seconds_of("1.5h")
        (90.0, 1800.0, 5400.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?([smhd]?)", text.strip(), re.ASCII)
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{text[:60]!r} is not a time above 0; give seconds, or e.g. 90s, 30m or 2h")
    return seconds


def written(seconds: float | int) -> str:
    """Write seconds as `seconds_of` reads them, to three digits.

    Example:
        >>> written(1800), written(45), written(5500)
        ('30m', '45s', '91.7m')
    """
    unit = next((unit for unit in ("d", "h", "m") if seconds >= (2 if unit != "m" else 1.5) * _UNITS[unit]), "s")
    count = seconds / _UNITS[unit]
    return f"{count:.0f}{unit}" if count >= 100 else f"{count:.3g}{unit}"


def checked_limit(time_limit: Any) -> float | None:
    """Return a limit in seconds; None is none.

    Raises:
        InputError: it is no number of seconds above 0.
    """
    if time_limit is None:
        return None
    if isinstance(time_limit, bool) or not isinstance(time_limit, int | float) or not 0 < time_limit < math.inf:
        raise InputError(f"time_limit={time_limit!r} is not a time; give seconds above 0, or None for no limit")
    return float(time_limit)
