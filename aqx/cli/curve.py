"""A small curve in the terminal.

By hand: the plotting libraries for terminals keep one global figure and are larger than what they would replace here,
which is to set dots of braille characters, 2 in a row and 4 in a column of each.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

# Bits of the dots of a braille character, row by row.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_BRAILLE = 0x2800
_LABEL = 8  # characters of an ordinate's label
_OUTLIERS = (0.05, 0.1, 0.15, 0.2, 0.25)  # of the points at either end, where a curve leaves what shows the rest


def draw_curve(
    x: Float[np.ndarray, " P"],
    y: Float[np.ndarray, " P"],
    derivative: Float[np.ndarray, " P"] | None = None,
    *,
    width: int = 60,
    height: int = 12,
    braille: bool = True,
) -> str:
    """Draw a curve, and its derivative as points, with labelled axes; what is not finite is left out.

    Args:
        x: ascending abscissas [P].
        y: the values [P].
        derivative: of the function at x [P].
        width: characters from the first to the last abscissa.
        height: lines from the highest to the lowest ordinate.
        braille: draw with braille characters; else with ASCII alone, at a quarter of the height's and half the width's
            resolution.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-4, 4, 101)
        >>> print(draw_curve(x, np.maximum(x, 0), width=21, height=5, braille=False))
               4 +          |        **
                 |          |      ***
                 |          |   ****
                 |          | ***
               0 +*************--------
                  -4        0         4
    """
    low, high = _range(np.concatenate([y] if derivative is None else [y, derivative]))
    fine = (4 * height, 2 * width) if braille else (height, width)
    canvas = _axes(x, low, high, width, height, braille)
    if derivative is not None:
        canvas[_dots(x, derivative, low, high, (height, width), joined=False)] = "·" if braille else "."
    if braille:
        bits = _dots(x, y, low, high, fine).reshape(height, 4, width, 2)
        codes = _BRAILLE + (bits * _DOTS[None, :, None, :]).sum(axis=(1, 3))
        drawn = codes > _BRAILLE
        canvas[drawn] = [chr(code) for code in codes[drawn]]
    else:
        canvas[_dots(x, y, low, high, fine)] = "*"
    return "\n".join([*_labelled(canvas, low, high, braille), _abscissas(x, width)])


def _range(values: Float[np.ndarray, " V"]) -> tuple[float, float]:
    """The ordinates to show: all, but where some at the ends lie far beyond the others."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return -1.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    for share in _OUTLIERS:
        inner_low, inner_high = np.quantile(finite, [share, 1 - share]).tolist()
        if not high - low > 4 * (inner_high - inner_low) > 0:
            break
        low, high = inner_low, inner_high
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # constant, or nearly so
        margin = max(1.0, abs(low) / 4)
        low, high = low - margin, high + margin
    return low, high


def _dots(
    x: Float[np.ndarray, " P"],
    y: Float[np.ndarray, " P"],
    low: float,
    high: float,
    shape: tuple[int, int],
    joined: bool = True,
) -> Bool[np.ndarray, "rows columns"]:
    """Where the curve passes on a grid whose first row is the highest; neighbours in a column are joined by dots."""
    rows, columns = shape
    at = np.linspace(x[0], x[-1], columns)
    nearest = np.abs(x[None, :] - at[:, None]).argmin(axis=1)
    with np.errstate(all="ignore"):
        heights = (high - y[nearest].astype(np.float64)) / (high - low) * (rows - 1)
    grid = np.zeros(shape, bool)
    before = math.nan
    for column, row in enumerate(heights.tolist()):
        if math.isfinite(row) and -0.5 <= row <= rows - 0.5:
            # A steep piece is a line; a jump, or what comes back from infinity, is none.
            start = before if joined and abs(before - row) <= rows / 2 else row
            first, last = sorted((min(max(round(start), 0), rows - 1), min(max(round(row), 0), rows - 1)))
            grid[first : last + 1, column] = True
        before = row
    return grid


def _axes(x: Float[np.ndarray, " P"], low: float, high: float, width: int, height: int, braille: bool) -> np.ndarray:
    """A canvas of characters with the lines x = 0 and y = 0, as far as they are in sight."""
    canvas = np.full((height, width), " ", dtype="<U1")
    if x[0] <= 0 <= x[-1]:
        canvas[:, _column(x, 0.0, width)] = "│" if braille else "|"
    if low <= 0 <= high:
        canvas[_row(low, high, height)] = "─" if braille else "-"
    return canvas


def _column(x: Float[np.ndarray, " P"], value: float, width: int) -> int:
    return round((value - float(x[0])) / float(x[-1] - x[0]) * (width - 1))


def _row(low: float, high: float, height: int) -> int:
    return round(high / (high - low) * (height - 1))


def _labelled(canvas: np.ndarray, low: float, high: float, braille: bool) -> list[str]:
    """The lines of the canvas with the highest and the lowest ordinate, and 0 where it is in sight, before them."""
    labels = {0: high, len(canvas) - 1: low}
    if low <= 0 <= high:
        labels[_row(low, high, len(canvas))] = 0.0
    ticks = {row: f"{value:.3g}" for row, value in labels.items()}
    edge, tick = ("│", "┤") if braille else ("|", "+")
    return [
        f"{ticks.get(row, ''):>{_LABEL}} {tick if row in ticks else edge}{''.join(line)}".rstrip()
        for row, line in enumerate(canvas)
    ]


def _abscissas(x: Float[np.ndarray, " P"], width: int) -> str:
    """The line of labels below: the first abscissa, 0 where it is in sight, and the last one."""
    line = [" "] * width
    for value in (float(x[0]), *([0.0] if x[0] < 0 < x[-1] else []), float(x[-1])):
        text = f"{value:g}"
        start = min(_column(x, value, width), width - len(text))
        line[start : start + len(text)] = text
    return f"{'':{_LABEL + 2}}{''.join(line)}".rstrip()
