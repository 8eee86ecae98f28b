"""The single figures of a search for papers, as PNG, SVG or PDF."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aqx.errors import InputError
from aqx.report.curves import PLANE, POINTS, FunctionMap, curves_of_best, maps_of_best
from aqx.report.overview import best_so_far, random_search
from aqx.report.panels import COLOURS, as_label, check_plot, save
from aqx.report.payload import spread_out, timeline
from aqx.report.survey import places_of, survey
from aqx.search import Ledger, load_results
from aqx.search.ledger import only_task
from aqx.search.verdict import stored_verdict
from aqx.simplify import simplest
from aqx.store import Database

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Progress = Callable[[int, int, str], None] | None
_TONES = {"better": COLOURS[2], "worse": COLOURS[1], "failed": COLOURS[1]}
_STATUS = {"done": COLOURS[0], "failed": COLOURS[1], "pruned": COLOURS[4], "stale": COLOURS[4], "running": "0.6"}


def write_figure(
    db: str | os.PathLike[str] | Database,
    figure: str,
    path: str | os.PathLike[str],
    task: str | None = None,
    progress: Progress = None,
) -> Path:
    """Write one figure of a search; the file's ending says in which format.

    Args:
        db: the database.
        figure: "progress", "verdict", "functions", "map", "calibration" or "timeline".
        path: the file, ending in .png, .svg or .pdf.
        task: the task's name; may be left out where the database holds only one, or trials of only one.
        progress: called as progress(done, total, note) while candidates are placed on the map.

    Returns:
        The file.

    Raises:
        InputError: there is no such figure or task, or what it shows is not there yet.
        StoreError: the database cannot be read, or the file not written.
        UnsupportedError: matplotlib is not installed.
    """
    if figure not in FIGURES:
        raise InputError(f"figure={figure!r} is none; give one of {', '.join(FIGURES)}")
    check_plot(path)
    save(FIGURES[figure](load_results(db, task or only_task(db)), progress), path)
    return Path(path)


def _progress(results: Ledger, progress: Progress) -> Figure:
    course = best_so_far(results)
    if not course.trials:
        raise InputError("figure 'progress' needs results of a search, and there are none yet; aqx search first")
    figure, axes = _axes(5.6, 3.6)
    evaluations = np.arange(1, len(course.trials) + 1)
    random = random_search(survey(results), len(course.trials), results.sign)
    axes.plot(evaluations, course.values, "o", markersize=3, color=COLOURS[0], alpha=0.5, label="trials")
    axes.step(evaluations, course.best, where="post", color=COLOURS[0], label="best so far")
    if len(random):
        axes.plot(evaluations, random, "--", color="0.4", label="random search, as expected")
    if course.baselines:
        name = max(course.baselines, key=lambda key: results.sign * course.baselines[key])
        axes.axhline(course.baselines[name], color=COLOURS[1], linewidth=1, label=f"best baseline: {name}")
    told = np.concatenate([course.best, random, list(course.baselines.values())])
    low, high = np.nanmin(told), np.nanmax(told)
    margin = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("evaluations")
    axes.set_ylabel(as_label(results.objective))
    axes.legend(frameon=False, fontsize=8)
    return figure


def _verdict(results: Ledger, progress: Progress) -> Figure:
    confirmation = stored_verdict(results)
    if confirmation is None:
        raise InputError("figure 'verdict' needs functions retrained on fresh seeds; aqx confirm first")
    rows = [row for row in confirmation.rows if row.verdict != "reference" and np.isfinite(row.difference)][::-1]
    figure, axes = _axes(5.6, 0.9 + 0.26 * len(rows))
    for height, row in enumerate(rows):
        colour = "0.55" if row.is_baseline else _TONES.get(row.verdict, COLOURS[0])
        mark: dict[str, Any] = {"fmt": "o", "markersize": 4, "mfc": "white"} if row.is_baseline else {"fmt": "D"}
        ends = np.nan_to_num([row.difference - row.difference_low, row.difference_high - row.difference])
        axes.errorbar(row.difference, height, xerr=ends[:, None], color=colour, capsize=2.5, **mark)
    axes.axvline(0, color="0.3", linewidth=0.8)
    for row in rows:
        if row.name == confirmation.best_baseline:
            axes.axvline(row.difference, color="0.55", linewidth=0.9, linestyle="--")
            axes.text(row.difference, len(rows) - 0.5, as_label(f" best baseline, {row.name}"), fontsize=7, color="0.4")
    axes.set_yticks(range(len(rows)), [as_label(simplest(row.name)) for row in rows], fontsize=8)
    axes.set_xlabel(as_label(f"{confirmation.metric}, difference to {confirmation.reference}, 95 % intervals"))
    return figure


def _functions(results: Ledger, progress: Progress) -> Figure:
    confirmation = stored_verdict(results)
    maps = maps_of_best(results, confirmation)
    figure, (left, right) = _axes(9.0, 3.8, columns=2, below=2.4 if maps else 0.0)
    for number, one in enumerate(curves_of_best(results, confirmation)):
        found = one.kind == "found"
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)] if found else "0.45",
            "linestyle": "-" if found else ("--", ":", "-.")[number % 3],
            "linewidth": 1.8 if found else 1.1,
        }
        left.plot(POINTS, one.values, label=one.name, **style)
        right.plot(POINTS, one.slopes, **style)
    for axes, label, least, most in ((left, "f(x)", -3, 5), (right, "f′(x)", -2, 2.5)):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, least), min(high, most))
        axes.set_xlabel("x")
        axes.set_ylabel(label)
    left.legend(frameon=False, fontsize=7.5)
    if maps:
        _draw_maps(figure.subfigs[1], maps)
    return figure


def _draw_maps(figure: SubFigure, maps: Sequence[FunctionMap]) -> None:
    """Functions of two inputs side by side, each in colours of its own range."""
    for axes, one in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        finite = one.values[np.isfinite(one.values)]
        low, high = np.quantile(finite, (0.02, 0.98)) if len(finite) else (0.0, 1.0)
        ends = (PLANE[0], PLANE[-1]) * 2
        shown = axes.imshow(one.values, origin="lower", extent=ends, cmap="viridis", vmin=low, vmax=high)
        axes.set_title(as_label(simplest(one.name)), fontsize=7.5)
        axes.set_xlabel("x")
        axes.set_ylabel("y")
        figure.colorbar(shown, ax=axes, shrink=0.7)


def _map(results: Ledger, progress: Progress) -> Figure:
    found = survey(results)
    if not found.names:
        raise InputError("figure 'map' needs candidates, and the database has none; aqx enumerate first")
    places = spread_out(places_of(found, progress))
    row_of = {trial.class_id: row for trial, row in zip(results.searched, found.rows.tolist(), strict=True)}
    means = {row_of[ranking.class_id]: ranking.objective for ranking in results.ranking}
    scores = {row: mean for row, mean in means.items() if row >= 0}
    figure, axes = _axes(5.4, 4.8)
    rows = np.array(sorted(scores, key=lambda row: results.sign * scores[row]), np.int64)
    size = float(np.clip(6000 / len(places), 0.15, 4))
    known = np.isfinite(found.predicted)
    low, high = np.nanquantile([*scores.values()] or [0.0, 1.0], (0.1, 1.0) if results.sign > 0 else (0.0, 0.9))
    style: dict[str, Any] = {
        "cmap": "viridis" if results.sign > 0 else "viridis_r", "vmin": low, "vmax": high, "linewidths": 0
    }  # fmt: skip
    axes.scatter(*places[~known].T, s=size, color="0.75", linewidths=0, rasterized=True)
    shown = axes.scatter(*places[known].T, s=size, c=found.predicted[known], rasterized=True, **style)
    if len(rows):
        style |= {"edgecolors": "black", "linewidths": 0.6}
        shown = axes.scatter(*places[rows].T, s=26, c=[scores[row] for row in rows.tolist()], **style)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(False)
    figure.colorbar(shown, ax=axes, label=as_label(results.objective), shrink=0.8)
    return figure


def _calibration(results: Ledger, progress: Progress) -> Figure:
    found = survey(results).calibration
    if found is None:
        raise InputError("figure 'calibration' needs a dozen results; aqx search first")
    figure, axes = _axes(4.2, 4.0)
    ends = np.nanquantile(np.concatenate([found.observed, found.predicted]), (0.02, 1.0))
    axes.plot(ends, ends, ":", color="0.4", linewidth=1)
    axes.plot(found.predicted, found.observed, "o", markersize=3.5, color=COLOURS[0], alpha=0.7)
    axes.set_xlabel(as_label(f"predicted {results.objective}"))
    axes.set_ylabel(as_label(f"observed {results.objective}"))
    axes.set_title(f"rank correlation {found.correlation:.2f}", fontsize=9)
    return figure


def _timeline(results: Ledger, progress: Progress) -> Figure:
    shown = timeline(results.trials)
    if not shown["bars"]:
        raise InputError("figure 'timeline' needs trials that a worker trained; aqx search first")
    first = min(bar["start"] for bar in shown["bars"])
    figure, axes = _axes(6.4, 1.2 + 0.28 * len(shown["lanes"]))
    for status in dict.fromkeys(bar["status"] for bar in shown["bars"]):
        bars = [bar for bar in shown["bars"] if bar["status"] == status]
        minutes = [(bar["start"] - first) / 60 for bar in bars], [(bar["end"] - bar["start"]) / 60 for bar in bars]
        axes.barh(
            [bar["lane"] for bar in bars], minutes[1], left=minutes[0], height=0.7, label=status,
            color=_STATUS.get(status, "0.6"), edgecolor="white", linewidth=0.3,
        )  # fmt: skip
    axes.set_yticks(range(len(shown["lanes"])), map(as_label, shown["lanes"]), fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xlabel("minutes")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _axes(width: float, height: float, columns: int = 1, below: float = 0.0) -> tuple[Figure, Any]:
    """A figure with axes side by side, and room below them as a part of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height + below), layout="constrained")
    if below:
        figure.subfigures(2, 1, height_ratios=(height, below))
    place = figure.subfigs[0] if below else figure
    axes: list[Axes] = list(place.subplots(1, columns, squeeze=False)[0])
    for each in axes:
        each.grid(alpha=0.25, linewidth=0.6)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes[0] if columns == 1 else axes


FIGURES: dict[str, Callable[[Ledger, Progress], Figure]] = {
    "progress": _progress,
    "verdict": _verdict,
    "functions": _functions,
    "map": _map,
    "calibration": _calibration,
    "timeline": _timeline,
}
