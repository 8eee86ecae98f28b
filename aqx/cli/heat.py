"""A function of two inputs in the terminal: the plane in characters, darker where the value is higher."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_SHADES, _ASCII = " ░▒▓█", " .:-=+*#%@"
_LABEL = 6  # characters of an ordinate's label
_SHOWN = (0.02, 0.98)  # quantiles of the values, between which shades differ


def draw_heat(
    x: Float[np.ndarray, " C"], y: Float[np.ndarray, " R"], values: Float[np.ndarray, "R C"], *, unicode: bool = True
) -> str:
    """Draw values over the plane with their range below; what is not finite is a question mark.

    Args:
        x: ascending abscissas, a character each [C].
        y: ascending ordinates, a line each; the highest comes first [R].
        values: at (x, y), a row for each ordinate [R, C].
        unicode: draw with blocks; else with ASCII alone.

    Example:
        >>> import numpy as np
        >>> x, y = np.linspace(-4, 4, 9), np.linspace(-4, 4, 3)
        >>> print(draw_heat(x, y, np.maximum(x, 0) * y[:, None], unicode=False))
             4 |=====*#%@
             0 |=========
            -4 |=====-:.
                -4      4
        f(x, y) from -13.9 (' ') to 13.9 ('@')
    """
    shades = _SHADES if unicode else _ASCII
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = np.quantile(finite, _SHOWN).tolist() if len(finite) else (0.0, 0.0)
    with np.errstate(all="ignore"):
        share = np.clip((values.astype(np.float64) - low) / (high - low if high > low else 1.0), 0, 1)
    lines = []
    for ordinate, row, there in zip(y[::-1], share[::-1], np.isfinite(values)[::-1], strict=True):
        drawn = "".join(
            shades[round(float(each) * (len(shades) - 1))] if ok else "?" for each, ok in zip(row, there, strict=True)
        )
        label = f"{ordinate:g}" if ordinate in (y[0], 0, y[-1]) else ""
        lines.append(f"{label:>{_LABEL}} {'│' if unicode else '|'}{drawn}".rstrip())
    first, last = f"{x[0]:g}", f"{x[-1]:g}"
    lines.append(f"{'':{_LABEL + 2}}{first}{last:>{max(len(x) - len(first), 1)}}")
    lines.append(f"f(x, y) from {low:.3g} ({shades[0]!r}) to {high:.3g} ({shades[-1]!r})")
    return "\n".join(lines)
