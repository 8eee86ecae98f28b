"""Curves over evaluations, one per policy, each with its interval: to PNG, SVG or PDF."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from aqx.errors import InputError, UnsupportedError
from aqx.machine import install_command
from aqx.text import clipped, printable
from aqx.writing import check_place, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")
# Okabe & Ito's colours, which people who confuse red and green can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True, eq=False)
class Panel:
    """One plot of curves over the evaluations 1 … E.

    Attributes:
        label: what the vertical axis shows.
        curves: by name the middle, the lower and the upper end of an interval [3, E].
        log: whether the axis is logarithmic; where None, if the values are positive and span two orders or more.
        reference: height and name of a horizontal line.
        first: the evaluation from which on the curves must fit in; earlier ones may be off by any amount.
    """

    label: str
    curves: Mapping[str, Float[np.ndarray, "3 E"]]
    log: bool | None = None
    reference: tuple[float, str] | None = None
    first: int = 1


def check_plot(path: str | os.PathLike[str]) -> None:
    """Say at once, before anything is computed, why no plot can be written to a path.

    Raises:
        InputError: the path has another ending than .png, .svg or .pdf.
        StoreError: its folder does not exist, or may not be written.
        UnsupportedError: matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise InputError(f"plot={str(path)!r} must end in one of {', '.join(ENDINGS)}")
    check_place(path, "plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError(f"plots need matplotlib, which is not installed: {install_command('report')}")


def draw_panels(path: str | os.PathLike[str], panels: Sequence[Panel], title: str = "") -> None:
    """Draw panels side by side and write them to a file, whose ending says in which format.

    Args:
        path: the file.
        panels: what to draw, from left to right.
        title: of the whole figure.

    Raises:
        InputError: the path has another ending than .png, .svg or .pdf.
        StoreError: the path cannot be written.
        UnsupportedError: matplotlib is not installed.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (name, (middle, low, high)) in enumerate(panel.curves.items()):
            evaluations = np.arange(1, len(middle) + 1)
            colour, line = COLOURS[number % len(COLOURS)], _LINES[number % len(_LINES)]
            axes.plot(evaluations, middle, line, color=colour, label=as_label(name))
            axes.fill_between(evaluations, low, high, color=colour, alpha=0.18, linewidth=0)
        low, high = _extent(panel)
        log = panel.log if panel.log is not None else 0 < 100 * low <= high
        if panel.reference:
            axes.axhline(
                panel.reference[0], color="0.35", linewidth=0.8, linestyle=":", label=as_label(panel.reference[1])
            )
        if log and low > 0:
            axes.set_yscale("log")
            axes.set_ylim(low / 1.15, high * 1.15)
        else:
            margin = 0.05 * (high - low) or 0.5
            axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("evaluations")
        axes.set_ylabel(as_label(panel.label))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    if title:
        figure.suptitle(as_label(title))
    save(figure, path)


def as_label(text: str) -> str:
    """Return text that matplotlib writes as it is, or its start.

    What stands between two dollars would be a formula, and a legend leaves out what begins with an underscore.
    """
    shown = clipped(printable(text), 60).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a path that `check_plot` has found fit.

    Raises:
        StoreError: the path cannot be written.
    """
    with replacing(path, "plot") as draft:
        figure.savefig(draft, dpi=200, format=Path(path).suffix[1:].lower())


def _extent(panel: Panel) -> tuple[float, float]:
    """The lowest and highest finite value that must be seen."""
    parts = [curve[:, panel.first - 1 :].ravel() for curve in panel.curves.values()]
    values = np.concatenate([*parts, [panel.reference[0]] if panel.reference else []])
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
