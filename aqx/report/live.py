"""A page that follows a search while it runs: served on this machine alone, it asks for what is new."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np

from aqx.errors import InputError, StoreError
from aqx.machine import version_of
from aqx.report.curves import curves_of_best
from aqx.report.html import plotly_source, render
from aqx.report.overview import Overview, best_so_far, look_over, random_search
from aqx.report.payload import as_json, describe_page
from aqx.report.survey import survey
from aqx.search import Ledger, load_results
from aqx.search.ledger import only_task
from aqx.search.verdict import stored_verdict
from aqx.store import Database, functions
from aqx.store.trials import count_trials

SECONDS = 2.0  # from one question of the page to the next
SURVEYED_SECONDS = 30.0  # the surrogate predicts all candidates again at most so often
_WAITING = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="2"><title>aqx watch</title>'
    "<p>Nothing has been trained in this database yet; this page waits for the first trial."
)


class Live:
    """What a page that follows a search shows, as it is whenever somebody asks.

    Args:
        db: the database.
        task: the task's name; None for the only one with trials.
        seconds: how often the page asks.
    """

    def __init__(self, db: Database, task: str | None, seconds: float = SECONDS):
        self.db: Database = db
        self.task: str | None = task
        self.seconds: float = seconds
        self._lock = threading.Lock()
        self._overview: Overview | None = None
        self._revision = ""
        self._surveyed = 0.0

    def page(self) -> str:
        """Return the whole page; before there is a task, one that waits."""
        with self._lock:
            overview = self._look()
            if overview is None:
                return _WAITING
            return render(overview, plotly_source(), live=self.seconds, revision=self._revision)

    def news(self, since: str) -> str:
        """Return `{"revision": …, "page": …}` as JSON; without a page where nothing has happened since."""
        with self._lock:
            overview = self._look()
            if overview is None or since == self._revision:
                return json.dumps({"revision": self._revision, "page": None})
            page = describe_page(overview, version_of("aqx") or "") | {"live": self.seconds, "revision": self._revision}
            return f'{{"revision": {json.dumps(self._revision)}, "page": {as_json(page)}}}'

    def _look(self) -> Overview | None:
        """Look at the database, and draw up anew what depends on what is new in it."""
        task = self.task or only_task(self.db)
        if task is None:
            return None
        results = load_results(self.db, task)
        counts = count_trials(self.db, results.task_id)
        revision = f"{results.task_id} " + " ".join(f"{status} {count}" for status, count in counts.items())
        if self._overview is None:
            self._overview, self._surveyed = look_over(results), time.monotonic()
        elif revision != self._revision:
            self._overview = self._renewed(self._overview, results)
        self._revision = revision
        return self._overview

    def _renewed(self, before: Overview, results: Ledger) -> Overview:
        found, places = before.survey, before.places
        if time.monotonic() > self._surveyed + SURVEYED_SECONDS:
            latest = survey(results)
            if latest.names == found.names:  # else candidates came, whose places the page does not have
                found, self._surveyed = latest, time.monotonic()
        found = replace(found, rows=_rows(before, results))
        course, confirmation = best_so_far(results), stored_verdict(results)
        random = random_search(found, len(course.trials), results.sign)
        return Overview(results, course, random, found, places, curves_of_best(results, confirmation), confirmation)


def _rows(before: Overview, results: Ledger) -> np.ndarray:
    """The candidates of the trials of the search; -1 for a function that is none [T]."""
    known = {
        trial.class_id: row for trial, row in zip(before.results.searched, before.survey.rows.tolist(), strict=True)
    }
    missing = {str(trial.class_id) for trial in results.searched if trial.class_id and trial.class_id not in known}
    row_of = {name: row for row, name in enumerate(before.survey.names)}
    for class_id in missing:
        with contextlib.suppress(KeyError):  # a baseline need not have been enumerated
            (name,) = functions.class_names(results.db, [class_id])
            known[class_id] = row_of.get(name, -1)
    return np.array([known.get(trial.class_id, -1) for trial in results.searched], np.int64)


def server(live: Live, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """Return a server of the page, bound to a port of an address; its `serve_forever` serves.

    Args:
        live: what it serves.
        host: the address; by default no other machine reaches it.
        port: 0 for any that is free.

    Raises:
        InputError: the address or the port cannot be used.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlparse(self.path)
            if not _is_ours(self.headers.get("Host", ""), host):
                self._answer(403, "text/plain", "this page is served to this machine alone")
            elif asked.path == "/":
                self._tell("text/html", live.page)
            elif asked.path == "/data.json":
                since = parse_qs(asked.query).get("since", [""])[0]
                self._tell("application/json", lambda: live.news(since))
            else:
                self._answer(404, "text/plain", "there is nothing of this name")

        def _tell(self, kind: str, text: Callable[[], str]) -> None:
            try:
                self._answer(200, kind, text())
            except (InputError, StoreError) as error:  # such as a database that is locked for long
                self._answer(503, "text/plain", str(error))

        def _answer(self, code: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing of requests."""

    ThreadingHTTPServer.daemon_threads = True
    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} of {host!r} cannot be used: {error}; give another --port or --host") from error


def _is_ours(asked: str, host: str) -> bool:
    """Whether a request means this machine: another site's page may have its own name resolve to it."""
    name = urlparse(f"//{asked}").hostname or ""
    return name in ("127.0.0.1", "localhost", "::1", host) or host not in ("127.0.0.1", "localhost", "::1")
