"""A page that follows a search: served to this machine alone, in a real browser beside a running search."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import chromium
from cli_helpers import aqx_command, check_error
from playwright.sync_api import Page, sync_playwright
from toy import candidates, make_task, train

import aqx
from aqx.report.live import Live, server
from aqx.store import Database

pytestmark = pytest.mark.usefixtures("quick_to_compile", "quick_map")
OPERATORS = ["relu", "tanh", "square", "sigmoid", "arctan", "add", "mul"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return candidates(tmp_path / "found.duckdb", ["binary(unary(x),unary(x))"], OPERATORS)


@pytest.fixture
def address(path: Path) -> Iterator[str]:
    with server(Live(Database(path), None, seconds=0.3)) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield "http://{}:{}".format(*served.server_address[:2])
        served.shutdown()
        thread.join()


def ask(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode()


def test_it_waits_then_tells_what_is_new_alone(path: Path, address: str):
    assert "waits for the first trial" in ask(address + "/")
    study = aqx.Study(path, make_task())
    study.add("tanh(x)", val_acc=0.5)
    first = json.loads(ask(address + "/data.json?since="))
    assert [trial["name"] for trial in first["page"]["trials"]] == ["tanh(x)"]
    assert json.loads(ask(f"{address}/data.json?since={first['revision'].replace(' ', '%20')}"))["page"] is None
    study.search(budget=2, spectra=0)
    second = json.loads(ask(address + "/data.json?since=" + first["revision"].replace(" ", "%20")))
    assert len(second["page"]["trials"]) == 4 and second["revision"] != first["revision"]
    rows = {trial["name"]: trial["row"] for trial in second["page"]["trials"] if trial["purpose"] == "search"}
    fresh = json.loads(ask(address + "/data.json?since="))["page"]
    assert rows == {trial["name"]: trial["row"] for trial in fresh["trials"] if trial["purpose"] == "search"}
    assert all(row >= 0 for row in rows.values())


def test_it_is_served_to_this_machine_alone(address: str):
    host, port = address.removeprefix("http://").split(":")
    assert host == "127.0.0.1"
    for name, code in ((f"127.0.0.1:{port}", 200), (f"localhost:{port}", 200), ("evil.example", 403)):
        connection = http.client.HTTPConnection(host, int(port))
        connection.request("GET", "/data.json", headers={"Host": name})
        assert connection.getresponse().status == code
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", "/../etc/passwd")
    assert connection.getresponse().status == 404


def test_mistakes_are_one_line(path: Path, address: str, tmp_path: Path):
    check_error(aqx_command("watch", tmp_path / "absent.duckdb"), "does not exist")
    check_error(aqx_command("watch", path, "--port", address.rpartition(":")[2]), "cannot be used", "--port")
    check_error(aqx_command("watch", path, "--port", "70000"), "70000")


def until(page: Page, expression: str) -> None:
    """Wait until an expression holds in the page."""
    for _ in range(1200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never: {expression}")


def test_a_browser_follows_a_search_that_runs(tmp_path: Path):
    """`aqx watch` as a process, Chromium, and a search whose trainings wait for the page to have seen the last one."""
    executable = chromium()
    # So few that their map is quickly drawn: the process does not know of `quick_map`.
    path = candidates(tmp_path / "few.duckdb", ["unary(x)"], ["relu", "tanh", "square", "sigmoid", "arctan", "erf"])
    study = aqx.Study(path, make_task())
    study.add("tanh(x)", val_acc=0.5)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "aqx", "watch", str(path), "--every", "0.3"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert watching.stdout is not None and watching.stderr is not None
    try:
        address = re.match(r"http://127\.0\.0\.1:\d+/", watching.stdout.readline())[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(120_000)
            trouble: list[str] = []
            page.on("pageerror", lambda error: trouble.append(str(error)))
            page.goto(address)
            page.wait_for_selector("html[data-ready=yes]")
            seen: list[int] = []
            done = "report.trials.filter(t => t.status === 'done').length"

            def look(act, seed):
                seen.append(len(study.records(status="done")))
                until(page, f"{done} >= {seen[-1]}")
                return train(act, seed)

            aqx.Study(path, make_task(train=look)).search(budget=3, spectra=0)
            until(page, f"{done} === 5")
            assert seen == [1, 2, 3, 4]
            until(page, "document.querySelectorAll('#trials tbody tr').length === 5")
            assert page.locator("#trials-count").inner_text() == "5 of 5"
            watching.send_signal(signal.SIGINT)
            assert watching.wait(60) == 130
            page.wait_for_selector("html[data-live=ended]")
            assert not trouble and "has ended" in page.locator("#subtitle").inner_text()
            browser.close()
    finally:
        watching.kill()
        told = watching.communicate()[1]
    assert "Traceback" not in told
