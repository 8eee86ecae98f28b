"""What people see of a command: progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import click

from aqx.cli.wrapping import fitted, hanging, longest_word, screen_width
from aqx.text import clipped, printable

PLAIN_SECONDS = 5.0
_TIMED = 2  # steps after the first, before anything is said of how long the rest takes
_CELL = 500  # characters of a table's cell; --json has them all
Progress = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress_shown(label: str, quiet: bool) -> Iterator[Progress | None]:
    """Yield a callback progress(done, total, note): a bar on a terminal, else a line every few seconds.

    What the user's own code prints in the block goes to stderr.
    """
    with prints_to_stderr():
        if quiet:
            yield None
        elif sys.stderr.isatty():
            with _bar(label) as callback:
                yield callback
        else:
            yield plain_lines(label)


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Have what is printed in the block go to stderr, by worker processes too: stdout is for the command's result."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # one of the two is closed
            stdout = os.dup(1)
            stack.callback(os.close, stdout)
            os.dup2(2, 1)
            stack.callback(os.dup2, stdout, 1)
        yield


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    class Left(bars.TimeRemainingColumn):
        """Nothing before some steps are done: the first compiles."""

        def render(self, task: bars.Task) -> Text:
            begun = task.fields["begun"]
            return super().render(task) if task.finished or task.completed - begun > _TIMED else Text("-:--:--")

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(_rate(task.speed) if task.speed else "")

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        Rate(),
        Left(),
        bars.TextColumn("{task.fields[note]}", markup=False),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(label, total=None, note="", begun=0)
        first: int | None = None

        def callback(done: int, total: int, note: str = "") -> None:
            nonlocal first
            first = done if first is None else first
            progress.update(bar, completed=done, total=total, note=printable(note), begun=first)

        yield callback


def plain_lines(label: str) -> Progress:
    """Make a progress callback that prints a line at most every `PLAIN_SECONDS`, and one at the end."""
    started = shown = time.monotonic()
    first: int | None = None
    begun: tuple[int, float] | None = None

    def callback(done: int, total: int, note: str = "") -> None:
        nonlocal first, shown, begun
        now = time.monotonic()
        # What a resumed run finds done already says nothing about its pace.
        first = done if first is None else first
        if begun is None and done > first:  # which compiles, and so says nothing about what is left
            begun = done, now
        if now - shown < PLAIN_SECONDS and done < total:
            return
        shown = now
        rate = (done - first) / max(now - started, 1e-9)
        parts = [f"{label}: {done:,} of {total:,}"]
        if rate > 0:
            parts.append(_rate(rate))
            if done < total and begun is not None and done - begun[0] >= _TIMED and now > begun[1]:
                pace = (done - begun[0]) / (now - begun[1])
                parts.append(f"{duration((total - done) / pace)} left")
        say(", ".join([*parts, note] if note else parts), error=True)

    return callback


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"


def duration(seconds: float) -> str:
    """Write seconds as people say them, e.g. `2 min 5 s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def say(text: str, error: bool = False) -> None:
    """Print lines, on stderr if they are no result; what came from a database or a path does not drive the terminal."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=error)


def show_rows(
    rows: Iterable[Any], columns: Mapping[str, Callable[[Any], Any]], as_json: bool, drop: Sequence[str] = ()
) -> None:
    """Print records as a table, each column a heading and what it shows of a record; or the whole records as JSON.

    Where a terminal is too narrow, the columns of `drop` go, the first first; then names break after their commas; and
    where that is not enough, the records stand one below the other. No other word is broken.
    """
    if as_json:
        show_json(list(rows))
        return
    rows = list(rows)
    width = screen_width()
    texts = {heading: [printable(heading), *(cell(shown(row)) for row in rows)] for heading, shown in columns.items()}
    found = fitted(texts, width, drop)
    if found is None and sys.stdout.isatty():
        _show_upright(texts)
        return
    left, dropped = found or (texts, [])
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for some in left.values():
        # Words are kept whole; a pipe has room, and what has no end at all is folded.
        needed = max(map(longest_word, some))
        table.add_column(some[0], overflow="fold", min_width=needed if sys.stdout.isatty() else min(needed, width // 2))
    for cells in zip(*(some[1:] for some in left.values()), strict=True):
        table.add_row(*cells)
    Console(width=width, markup=False, highlight=False, emoji=False).print(table)
    if dropped:
        say(f"not shown, for want of width: {', '.join(dropped)}; --json has all", error=True)


def _show_upright(texts: Mapping[str, Sequence[str]]) -> None:
    """Print records one below the other, a line for each thing that is known of them."""
    indent = max(map(len, texts)) + 1
    for cells in zip(*(some[1:] for some in texts.values()), strict=True):
        known = zip(texts, cells, strict=True)
        say("\n".join(hanging(f"{heading:<{indent}}{text}", indent) for heading, text in known if text) + "\n")


def says_unicode() -> bool:
    """Whether stdout can hold any character."""
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(plain(value), indent=2))


def show_result(value: Any, text: str, as_json: bool) -> None:
    """Print a result as JSON, or what it says in words."""
    if as_json:
        show_json(value)
    else:
        say(text)


def columns_of(*names: str) -> dict[str, Callable[[Any], Any]]:
    """Return columns, as `show_rows` takes them, that show attributes of a record under their names.

    Functions are shown by their simplest equal name; --json has the one that is stored.
    """
    return {name: _simplest_of(name) if name in ("name", "best") else attrgetter(name) for name in names}


def _simplest_of(attribute: str) -> Callable[[Any], Any]:
    def shown(record: Any) -> Any:
        from aqx.simplify import simplest

        name = getattr(record, attribute)
        return name and simplest(name)

    return shown


def interval(mean: float, low: float, high: float, sign: str = "") -> str:
    """Write a mean and the ends of its interval, e.g. `0.6312 [0.6251, 0.6373]`; `sign="+"` writes plus signs too."""
    if math.isnan(mean):
        return ""
    if math.isnan(low):
        return f"{mean:{sign}.4f}"
    return f"{mean:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def cell(value: Any) -> str:
    """Write a value as a table shows it: four digits after the point, nothing for None, the start of a long text."""
    if value is None or value != value:  # nothing is known, such as of a prediction before there are results
        return ""
    return f"{value:.4f}" if isinstance(value, float) else printable(clipped(str(value), _CELL))


def plain(value: Any) -> Any:
    """Reduce to what JSON can hold: dataclasses as objects, and null for numbers it does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if callable(tolist := getattr(value, "tolist", None)):  # of NumPy
        return plain(tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, type(None))) else str(value)
