"""`aqx report` and `aqx plot`: what was found, for people to look at."""

from __future__ import annotations

import click

from aqx.cli import complete, options
from aqx.cli.commands import main
from aqx.cli.screen import progress_shown, show_result

# Not from aqx.report, as `aqx --help` is quick. A test holds them equal.
FIGURES = ("progress", "verdict", "functions", "map", "calibration", "timeline")
_task = click.option("--task", metavar="NAME", help="The task's name; needed where the database holds several.")
_NEEDS = "a database in which something was trained: aqx search DB --task T."


@main.command(needs=_NEEDS, examples=["aqx report found.duckdb -o report.html"])
@options.db
@click.option(
    "-o",
    "--out",
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="The HTML file.",
    shell_complete=complete.files,
)
@_task
@options.quiet
@options.as_json
def report(db: str, out: str, task: str | None, quiet: bool, as_json: bool) -> None:
    """Write all of a search as one HTML file.

    It opens in any browser, without a network or a server: the best result so far, a map of all candidates, curves,
    verdicts, trials, failures, workers, and how to reproduce it. It needs no task file: what it shows is in the
    database, which stays as it is.
    """
    from aqx.report import write_report

    with progress_shown("report", quiet) as progress:
        path = write_report(db, out, task, progress)
    size = path.stat().st_size
    show_result({"path": path, "bytes": size}, f"{path}: {size / 1e6:.1f} MB", as_json)


@main.command(needs=_NEEDS, examples=["aqx plot found.duckdb verdict -o verdict.pdf"])
@options.db
@click.argument("figure", type=click.Choice(FIGURES))
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="FILE",
    help="The file: .png, .svg or .pdf.",
    shell_complete=complete.files,
)
@_task
@options.quiet
@options.as_json
def plot(db: str, figure: str, out: str, task: str | None, quiet: bool, as_json: bool) -> None:
    """Write one figure, as PNG, SVG or PDF."""
    from aqx.report import write_figure

    with progress_shown("plot", quiet) as progress:
        path = write_figure(db, figure, out, task, progress)
    show_result({"path": path}, str(path), as_json)
