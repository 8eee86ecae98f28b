"""What one takes along: the report of a search, its figures, and a found function as source of a framework."""

from __future__ import annotations

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.options import open_results
from aqx.cli.screen import progress_shown, say, show_result
from aqx.writing import replacing

# Not from aqx.report and aqx.export, as `aqx --help` is quick. Tests hold them equal.
FIGURES = ("progress", "verdict", "functions", "map", "calibration", "timeline")
TARGETS = ("jax", "flax-linen", "flax-nnx", "torch", "keras", "numpy", "latex")
_task = click.option(
    "--task", metavar="T", help="As in other commands; needed where several tasks of the database have trials."
)
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
    shell_complete=options.complete_files,
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
        path = write_report(db, out, task and open_results(db, task).task.name, progress)
    size = path.stat().st_size
    show_result({"path": path, "bytes": size}, f"{path}: {size / 1e6:.1f} MB", as_json)


@main.command(needs="a database.", examples=["aqx watch found.duckdb", "aqx watch found.duckdb --port 8765"])
@options.db
@_task
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address; another than this one is open to others."
)
@click.option("--port", type=options.Whole(0, 65535), metavar="P", default=0, help="Default any that is free.")
@options.every
def watch(db: str, task: str | None, host: str, port: int, every: float) -> None:
    """Serve the report as a page that follows a search.

    Open the address that it prints; the page asks for what is new, while a search or a confirmation runs or not. No
    other machine reaches it, unless --host says so. Ctrl-C ends it.
    """
    from aqx.report.live import Live, server
    from aqx.store import Database

    live = Live(Database(db), task and open_results(db, task).task.name, every)
    with server(live, host, port) as served:
        address, number = served.server_address[:2]
        say(f"http://{address}:{number}/  (Ctrl-C ends it)")
        served.serve_forever(poll_interval=0.2)


@main.command(needs=_NEEDS, examples=["aqx plot found.duckdb verdict -o verdict.pdf"])
@options.db
@click.argument("figure", type=click.Choice(FIGURES))
@click.option(
    "-o",
    "--out",
    required=True,
    metavar="FILE",
    help="The file: .png, .svg or .pdf.",
    shell_complete=options.complete_files,
)
@_task
@options.quiet
@options.as_json
def plot(db: str, figure: str, out: str, task: str | None, quiet: bool, as_json: bool) -> None:
    """Write one figure, as PNG, SVG or PDF."""
    from aqx.report import write_figure

    with progress_shown("plot", quiet) as progress:
        path = write_figure(db, figure, out, task and open_results(db, task).task.name, progress)
    show_result({"path": path}, str(path), as_json)


@main.command(
    needs="only the function's name.",
    examples=['aqx export "max(relu(x),tanh(x))" --to torch --name MaxReluTanh -o activation.py'],
)
@click.argument("function", metavar="FN")
@click.option("--to", required=True, type=click.Choice(TARGETS), help="The framework, or latex for the formula.")
@click.option("--name", metavar="NAME", help="Of the function or class; default activation or Activation.")
@click.option(
    "-o", "--out", metavar="FILE", help="Write to this file; default print.", shell_complete=options.complete_files
)
def export(function: str, to: str, name: str | None, out: str | None) -> None:
    """Write a function as source of a framework.

    It imports nothing but the framework, and its values and gradients are those of aqx.
    """
    from aqx.export import source
    from aqx.simplify import full_name

    function = full_name(function)
    text = source(function, to, name)
    if out is None:
        click.echo(text, nl=False)
        return
    with replacing(out, "--out") as draft:
        draft.write_text(text, "utf-8")
    say(f"{function} written to {out}")
