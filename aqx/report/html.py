"""The report of a search: one HTML file that holds all it needs, for any browser, without a network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from aqx.errors import UnsupportedError
from aqx.export import javascript_operators
from aqx.machine import version_of
from aqx.report.overview import Overview, look_over
from aqx.report.payload import as_json, describe_page, pack_candidates
from aqx.search import load_results
from aqx.search.ledger import only_task
from aqx.store import Database
from aqx.writing import replacing

_SCRIPTS = ("base.js", "functions.js", "charts.js", "tables.js", "map.js", "start.js")


def write_report(
    db: str | os.PathLike[str] | Database,
    path: str | os.PathLike[str],
    task: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write the report of a search: one self-contained HTML file; the database stays as it is.

    Args:
        db: the database.
        path: the file, replaced if it exists.
        task: the task's name; may be left out where the database holds only one, or trials of only one.
        progress: called as progress(done, total, note).

    Returns:
        The file.

    Raises:
        InputError: the database holds no such task.
        StoreError: the database cannot be read, or the file not written.
        UnsupportedError: plotly is not installed.

    Example:
        >>> import aqx, tempfile
        >>> from aqx.report import write_report
        >>> folder = tempfile.mkdtemp()
        >>> study = aqx.Study(folder + "/search.duckdb", "mnist1d")
        >>> _ = study.add("relu(x)", val_acc=0.61)
        >>> write_report(folder + "/search.duckdb", folder + "/report.html").name
        'report.html'
    """
    plotly = plotly_source()
    with replacing(path) as draft:
        draft.write_text(render(look_over(load_results(db, task or only_task(db)), progress), plotly), "utf-8")
    return Path(path)


def render(overview: Overview, plotly: str, **more: Any) -> str:
    """Return the page that shows an overview.

    Args:
        overview: of the search.
        plotly: the source of plotly.js.
        **more: further entries of the page's data, such as how often it asks for news.
    """
    page = describe_page(overview, version_of("aqx") or "") | more
    shown = {
        "title": _escaped(page["title"]),
        "style": _part("page.css"),
        "data": as_json(page),
        "plotly": plotly,
        "connect": "; connect-src 'self'" if page.get("live") else "",
        "script": "\n".join(map(_part, _SCRIPTS)).replace("{{operators}}", javascript_operators()),
        **pack_candidates(overview),
    }
    # In one pass: what is put in may itself hold such marks.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: shown[mark[1]], _part("page.html"))


def plotly_source() -> str:
    """Return the source of plotly.js."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UnsupportedError("reports need plotly, which is not installed: pip install plotly") from error
    return get_plotlyjs()


_plotly = plotly_source


def _part(name: str) -> str:
    return (files("aqx.report") / "page" / name).read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
