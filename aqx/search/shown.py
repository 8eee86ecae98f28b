"""How a study shows itself: a bar while it works, tables in a notebook, its results as a data frame."""

from __future__ import annotations

import contextlib
import html
import importlib
import importlib.util
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqx.errors import InputError
from aqx.search.ledger import Ranking, Record
from aqx.search.verdict import Confirmation, Confirmed
from aqx.simplify import simplest
from aqx.store.trial_rows import Status

Progress = Callable[[int, int, str], None]
_COLUMNS = (
    "id", "name", "purpose", "status", "objective", "seed", "seconds", "worker", "version", "reason", "started_at",
    "finished_at",
)  # fmt: skip
_REDRAWN = 0.2  # seconds between two bars
_STYLE = "text-align:left;padding:2px 12px 2px 0;font-variant-numeric:tabular-nums"


@contextlib.contextmanager
def shown(progress: Progress | bool | None, label: str) -> Iterator[Progress | None]:
    """Yield what is called with progress: for True a bar, in a terminal and in a notebook alike."""
    if not progress:
        yield None
    elif progress is not True:
        yield progress
    elif _in_notebook():
        yield _notebook_bar(label)
    else:
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(), bars.TextColumn("{task.fields[note]}", markup=False),
        )  # fmt: skip
        with bars.Progress(*columns) as display:
            bar = display.add_task(label, total=None, note="")
            yield lambda done, total, note: display.update(bar, completed=done, total=total, note=note)


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this process."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"


def _notebook_bar(label: str) -> Progress:
    """A bar of the page's own: rich's asks for ipywidgets in a notebook, and shows warnings where they are missing."""
    display = importlib.import_module("IPython.display")
    began, drawn = time.monotonic(), -math.inf

    def page(done: int, total: int, note: str) -> Any:
        passed = f"{time.monotonic() - began:.0f} s"
        said = html.escape(f"{label}: {done:,} of {total:,}, {passed}" + (f", {note}" if note else ""))
        return display.HTML(f'<progress value="{done}" max="{max(total, 1)}"></progress> {said}')

    handle = display.display(page(0, 0, ""), display_id=True)

    def callback(done: int, total: int, note: str) -> None:
        nonlocal drawn
        if time.monotonic() - drawn >= _REDRAWN or done == total:
            drawn = time.monotonic()
            handle.update(page(done, total, note))

    return callback


def table_of(records: Sequence[Record]) -> Any:
    """Return trials as a pandas DataFrame, or where pandas is not installed as a dict of NumPy arrays [T]."""
    import numpy as np

    columns: dict[str, list[Any]] = {
        name: [str(value) if isinstance(value := getattr(record, name), str) else value for record in records]
        for name in _COLUMNS
    }
    metrics = dict.fromkeys(
        name for record in records for name, value in record.metrics.items() if isinstance(value, int | float)
    )
    for name in metrics:
        key = name if name not in columns else f"metric {name}"
        columns[key] = [_number(record.metrics.get(name)) for record in records]
    columns["objective"] = [_number(value) for value in columns["objective"]]
    if importlib.util.find_spec("pandas") is None:
        return {name: np.array(values) for name, values in columns.items()}
    return importlib.import_module("pandas").DataFrame(columns)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


@dataclass(frozen=True)
class Page:
    """A report; a notebook shows it in its place.

    Attributes:
        path: the HTML file.
        height: in a notebook, in pixels.
    """

    path: Path
    height: int = 700

    def _repr_html_(self) -> str:
        source = html.escape(self.path.read_text("utf-8"), quote=True)
        return f'<iframe srcdoc="{source}" width="100%" height="{self.height}" style="border:0"></iframe>'


def page_of(db: Any, task: str, path: Any, height: int, progress: Progress | None) -> Page:
    """Write the report of a study."""
    # Reports read studies, and stand above them; a study only passes on that one is wanted.
    report = importlib.import_module("aqx.report")
    path = Path(tempfile.mkdtemp(prefix="aqx-")) / "report.html" if path is None else Path(path)
    return Page(report.write_report(db, path, task, progress), height)


def study_html(title: str, best: Sequence[Ranking], records: Iterable[Record], objective: str) -> str:
    """Return how a study is shown: what became of its trials, and the best of them."""
    counts: dict[Status, int] = {}
    for record in records:
        counts[record.status] = counts.get(record.status, 0) + 1
    said = ", ".join(f"{count:,} {status}" for status, count in counts.items()) or "no trials yet"
    rows = [[_code(one.name), _formula(one.name), f"{one.objective:.4f}", f"{one.trials}"] for one in best]
    table = _table(["function", "f(x)", f"{objective}, optimistic", "trials"], rows) if rows else ""
    return f"<p><b>{html.escape(title)}</b>: {html.escape(said)}</p>{table}"


def confirmation_html(found: Confirmation) -> str:
    """Return how a verdict is shown: what was found in bold, with a mark."""
    heads = ["function", "f(x)", found.metric, f"difference to {found.reference}", "verdict"]
    best = found.best_baseline if found.best_baseline != found.reference else None
    heads += [f"difference to the best baseline, {best}", "verdict on that"] if best else []
    devices = list(dict.fromkeys(device for row in found.rows for device in row.costs))
    heads += [f"cost on {device}" for device in devices]
    rows = [_confirmed(row, best) + [_cost(row.costs.get(device)) for device in devices] for row in found.rows]
    note = "" if found.is_complete else f"<p>incomplete: {found.ended:,} of {found.wanted:,} trainings</p>"
    lacking = f"<p>lacking {found.metric}: {html.escape(', '.join(found.lacking))}</p>" if found.lacking else ""
    return _table(heads, rows) + note + lacking


def _confirmed(row: Confirmed, best: str | None) -> list[str]:
    name = _code(row.name) if row.is_baseline else f"<b>◆ {_code(row.name)}</b>"
    cells = [name, _formula(row.name), _interval(row.mean, row.low, row.high)]
    cells += [_interval(row.difference, row.difference_low, row.difference_high, "+"), row.verdict]
    if best:
        cells += [_interval(row.to_best, row.to_best_low, row.to_best_high, "+"), row.to_best_verdict]
    return cells


def _interval(mean: float, low: float, high: float, sign: str = "") -> str:
    return "" if mean != mean else f"{mean:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def _cost(relative: float | None) -> str:
    return "" if relative is None else f"{relative:.3g}"


def _code(name: str) -> str:
    return f"<code>{html.escape(simplest(name))}</code>"


def _formula(name: str) -> str:
    try:
        return html.escape(importlib.import_module("aqx.export").formula(simplest(name)))
    except InputError:  # of an operator that is not registered here
        return ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th style="{_STYLE}">{html.escape(text)}</th>' for text in heads)
    body = "".join("<tr>" + "".join(f'<td style="{_STYLE}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
