"""Measure the report of a large database: how long it takes to write, how large it is, and how soon it is drawn.

scripts/bench_report [DATABASE] [--task NAME] [--repeat 3]

Without a database, one with the paper's 1,023,516 functions is made, and a hundred results that are random numbers. It
is opened in a headless Chromium, in a window as wide as a desk's and in one of a phone; drawn means all of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import aqx
from aqx.enumeration import enumerate_space
from aqx.report import write_report
from aqx.store import Database

SIZES = {"wide": (1400, 900), "phone": (390, 844)}


def paper_database(folder: Path) -> Path:
    """Make a database with the paper's space and a hundred results that mean nothing."""
    path = folder / "paper.duckdb"
    enumerate_space(Database(path, create=True), aqx.Space.paper())
    study = aqx.Study(path, "mnist1d")
    rng = np.random.default_rng(0)
    for tree in aqx.Space.paper().sample(100, seed=0):
        study.add(str(tree), val_acc=float(rng.normal(0.55, 0.03)))
    return path


def seconds_until_drawn(page_file: Path, repeat: int) -> dict[str, float]:
    """Open the file in both windows and return the median seconds until everything is drawn."""
    browser_file = os.environ.get("AQX_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    times: dict[str, list[float]] = {name: [] for name in SIZES}
    from playwright.sync_api import sync_playwright  # not before: --help needs nothing

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        for name, (width, height) in [item for item in SIZES.items() for _ in range(repeat)]:
            page = browser.new_page(viewport={"width": width, "height": height})
            started = time.perf_counter()
            page.goto(page_file.as_uri())
            page.wait_for_selector("html[data-ready=yes]")
            times[name].append(time.perf_counter() - started)
            page.close()
        browser.close()
    return {name: statistics.median(some) for name, some in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?")
    parser.add_argument("--task")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        database = Path(args.database) if args.database else paper_database(Path(name))
        started = time.perf_counter()
        written = write_report(database, Path(name) / "report.html", args.task)
        taken = time.perf_counter() - started
        drawn = seconds_until_drawn(written, args.repeat)
        print(f"written in {taken:.1f} s: {written.stat().st_size / 1e6:.1f} MB")
        print("drawn in " + ", ".join(f"{seconds:.2f} s ({which})" for which, seconds in drawn.items()))


if __name__ == "__main__":
    main()
