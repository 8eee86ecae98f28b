"""The command `aqx` itself: its commands in the order in which one uses them, errors as one line, and a cache."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from aqx.cli.interruption import INTERRUPTED, interruptible
from aqx.cli.screen import say
from aqx.errors import AqxError, ParseError
from aqx.machine import cache_folder
from aqx.stopping import is_stop
from aqx.text import clipped, printable

# Every command has its place here; a test holds it.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Prepare what to search in": ("task", "enumerate", "describe", "eigs", "cost", "import"),
    "Search": ("search", "confirm", "claim", "tell"),
    "Look": ("summary", "top", "suggest", "trials", "show", "watch", "plot"),
    "Take it with you": ("export", "report"),
    "Take care": ("doctor", "backup", "retry", "reset", "completion"),
    "Compare ways to search": ("bench",),
}

_MESSAGE = 3000  # characters of an error
# What a machine may run out of: open files, processes, memory.
_USED_UP = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_OTHERS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": -1,  # none: see `_forget_the_oldest`
    # The many small programs before the large one add up to seconds.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
}
_KEPT_BYTES = 2**30
_DAY = 24 * 3600.0


class Command(click.Command):
    """A command whose help says what it needs first, and shows how it is used.

    Args:
        needs: what must be there before.
        examples: whole command lines.
        **settings: as click takes them.
    """

    def __init__(self, *args: Any, needs: str = "", examples: Sequence[str] = (), **settings: Any):
        super().__init__(*args, **settings)
        self.needs, self.examples = needs, tuple(examples)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the description, and what the command needs."""
        super().format_help_text(ctx, formatter)
        if self.needs:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(f"Needs {self.needs}")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        if self.examples:
            with formatter.section("Example" if len(self.examples) == 1 else "Examples"):
                for example in self.examples:  # lines to copy, so they are never wrapped
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
        super().format_epilog(ctx, formatter)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type


class Aqx(Group):
    """The whole command.

    The one place where an error becomes a line on stderr and an exit code; a bug keeps its traceback.
    """

    group_class = Group

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command and exit.

        The code is 0, 1 (something is not healthy), 2 (it cannot be done), 3 (not all is done), 130 (interrupted)
        or 143 (terminated).
        """
        _write_whatever_the_encoding()
        code = 0
        try:
            with interruptible():
                code = super().main(*args, **{**kwargs, "prog_name": "aqx", "standalone_mode": False}) or 0
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
            help_line = f" (see {command} --help)" if command else ""
            _fail(" ".join(error.format_message().split()) + help_line, 2)
        except AqxError as error:
            # A caret stands under the place in what does not parse; else whatever is quoted makes no lines.
            _fail(str(error) if isinstance(error, ParseError) else printable(str(error)), 2)
        except OSError as error:
            if error.errno not in _USED_UP:
                raise
            _fail(f"this machine gives no more ({error.strerror}); run fewer workers, or raise its limits (ulimit)", 2)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; of Ctrl-C click would make an empty line first, and of `sys.exit(0)` a success."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None
        except SystemExit as error:
            if is_stop(error):
                raise
            # No command of aqx's own does that.
            message = f"the task's code called sys.exit({error.code!r}); let it raise an error, or return"
            raise click.ClickException(message) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands section by section."""
        named = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in named)
        width = max(map(len, self.commands)) + 2
        for heading, names in {**SECTIONS, "More": others}.items():
            commands = [self.commands[name] for name in names if name in self.commands]
            rows = [(str(c.name).ljust(width - 2), c.get_short_help_str(formatter.width - width - 4)) for c in commands]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def _write_whatever_the_encoding() -> None:
    """A character that a terminal or a file cannot hold becomes a question mark, and no traceback."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure and sys.stdout.errors == "strict":
        reconfigure(errors="replace")


def _fail(message: str, code: int) -> None:
    say(clipped(f"error: {message}", _MESSAGE), error=True)
    sys.exit(code)


def keep_compiled_programs() -> None:
    """Have JAX keep what it compiles in the user's cache folder, unless the user has set JAX's own cache.

    The settings go to the environment too, where worker processes find them.
    """
    if _FOLDER in os.environ or os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in ("0", "false"):
        return
    folder = cache_folder() / f"compiled-{_processor()}"
    if folder.parts[0] == "~":  # no home: nothing is kept
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # nor on a full disk
        return
    _forget_the_oldest(folder)
    for name, value in {_FOLDER: str(folder), **_OTHERS}.items():
        os.environ[name] = str(value)
        if jax := sys.modules.get("jax"):  # else it reads the environment when it is imported
            jax.config.update(name.lower(), value)


def _forget_the_oldest(folder: Path) -> None:
    """Once a day, delete the oldest programs while all together take more than `_KEPT_BYTES`.

    JAX's own limit on the folder reads all of it, under a lock, for every program that it adds: where there are 5,000
    that takes longer (a second each) than to compile most of them.
    """
    looked, now = folder / "looked", time.time()
    with contextlib.suppress(OSError):  # another process may be at it
        if looked.exists() and now - looked.stat().st_mtime < _DAY:
            return
        looked.touch()
        files = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(folder))
        excess = sum(size for _, size, _ in files) - _KEPT_BYTES
        for _, size, path in files:
            if excess <= 0:
                break
            os.unlink(path)
            excess -= size


def _processor() -> str:
    """Which instructions this machine has: a program of another processor might use some that are missing here."""
    text = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        text += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]


@click.group(cls=Aqx, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="aqx")
def main() -> None:
    """Find better activation functions for your own Flax model and data.

    \b
    The whole way, on a built-in task (yours is path/to/file.py:name):
      aqx task check mnist1d                              does the task keep its promises?
      aqx enumerate found.duckdb --space act_bench        write 5,103 candidates
      aqx eigs found.duckdb --task mnist1d                describe them by the untrained model
      aqx search found.duckdb --task mnist1d --budget 60  train what looks best, and learn from it
      aqx confirm found.duckdb --task mnist1d             does the winner really win?
      aqx top found.duckdb --task mnist1d                 what was found
      aqx show found.duckdb "mul(x,tanh(x))"              one of them: formula, scores, curve
      aqx export "mul(x,tanh(x))" --to flax-linen         its source, for where you train
      aqx report found.duckdb -o report.html              all of it, to look at

    Interrupt any of them and run the same again: it goes on from there. Progress goes to stderr, results to stdout;
    --json prints them for machines, --quiet shows no progress.
    """  # noqa: D301  (click wants the \b itself)
    keep_compiled_programs()
