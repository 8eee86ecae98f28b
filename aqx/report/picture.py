"""A function as a notebook shows it: its name, its formula and its curve."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import numpy as np

from aqx.export.formula import formula
from aqx.tree import parse

_LEFT, _WIDTH, _HEIGHT = 4.0, 260, 130  # of x; of the curve, in pixels
_CELLS = 26  # along a side of a map
_LEAST, _MOST = -3.0, 5.0  # of f(x), beyond which nothing is drawn


def picture(name: str, function: Callable[[Any], Any]) -> str:
    """Return HTML with a function's name, formula and curve on [-4, 4]; of one of two inputs a map of the plane.

    Args:
        name: as aqx writes it.
        function: what it computes.

    Example:
        >>> import numpy as np
        >>> from aqx.report.picture import picture
        >>> "<polyline" in picture("relu(x)", lambda x: np.maximum(x, 0))
        True
    """
    if parse(name).inputs == 2:
        said = f"<code>{html.escape(name)}</code> &nbsp; f(x, y) = {html.escape(formula(name))}"
        return f"<div>{said}<br>{_plane(function)}</div>"
    x = np.linspace(-_LEFT, _LEFT, 201, dtype=np.float32)
    y = np.asarray(function(x), float)
    seen = y[np.isfinite(y) & (y >= _LEAST) & (y <= _MOST)]
    low, high = (min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)) if len(seen) else (-1.0, 1.0)
    margin = 0.08 * max(high - low, 1e-6)
    low, high = low - margin, high + margin
    across = (x + _LEFT) / (2 * _LEFT) * _WIDTH
    down = (high - y) / (high - low) * _HEIGHT
    zero, middle = high / (high - low) * _HEIGHT, _WIDTH / 2
    lines = "".join(
        f'<polyline fill="none" stroke="#2a78b5" stroke-width="2" points="{points}"/>'
        for points in _pieces(across, down)
    )
    axes = f'<path d="M0 {zero:.1f}H{_WIDTH}M{middle} 0V{_HEIGHT}" stroke="#999" stroke-width="0.7"/>'
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    said = f"<code>{html.escape(name)}</code> &nbsp; f(x) = {html.escape(formula(name))}"
    return f'<div>{said}<br><svg xmlns="http://www.w3.org/2000/svg" {size}>{axes}{lines}</svg></div>'


def _plane(function: Callable[..., Any]) -> str:
    """Values over [-4, 4]² as squares: blue where they are negative, red where they are positive."""
    at = (np.arange(_CELLS) + 0.5) / _CELLS * 2 * _LEFT - _LEFT
    values = np.asarray(function(at.astype(np.float32), at[:, None].astype(np.float32)), float)
    finite = np.abs(values[np.isfinite(values)])
    largest = max(float(np.quantile(finite, 0.95)), 1e-6) if len(finite) else 1.0
    side = _HEIGHT / _CELLS
    cells = []
    for row, column in np.ndindex(values.shape):
        value = values[_CELLS - 1 - row, column]
        if np.isfinite(value):
            colour, opacity = "#c0392b" if value > 0 else "#2a78b5", min(abs(value) / largest, 1)
            place = f'x="{column * side:.1f}" y="{row * side:.1f}" width="{side:.1f}" height="{side:.1f}"'
            cells.append(f'<rect {place} fill="{colour}" fill-opacity="{opacity:.2f}"/>')
    size = f'width="{_HEIGHT}" height="{_HEIGHT}" viewBox="0 0 {_HEIGHT} {_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(cells)}</svg>'


def _pieces(across: np.ndarray, down: np.ndarray) -> list[str]:
    """The parts of a curve that are inside the picture."""
    inside = np.isfinite(down) & (down >= 0) & (down <= _HEIGHT)
    ends = np.flatnonzero(np.diff(inside.astype(int))) + 1
    parts = zip(np.split(across, ends), np.split(down, ends), np.split(inside, ends), strict=True)
    return [
        " ".join(f"{a:.1f},{d:.1f}" for a, d in zip(part, height, strict=True))
        for part, height, there in parts
        if len(there) > 1 and there[0]
    ]
