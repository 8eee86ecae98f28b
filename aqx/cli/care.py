"""Commands that look after things: is all well, and the Tab key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.screen import plain, progress_shown, say, show_json, show_result
from aqx.cli.wrapping import hanging
from aqx.text import clipped, printable

if TYPE_CHECKING:
    from aqx.doctor import Diagnosis
    from aqx.store.health import FileHealth

# Where each shell looks for completions by itself.
_PLACES = {
    "bash": "~/.local/share/bash-completion/completions/aqx",
    "zsh": "~/.zfunc/_aqx  (with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc)",
    "fish": "~/.config/fish/completions/aqx.fish",
}


@main.command(
    needs="nothing.",
    examples=["aqx doctor", "aqx doctor found.duckdb --task train.py:task", "aqx doctor found.duckdb --quick --json"],
)
@click.argument("db", required=False, shell_complete=options.complete_files)
@click.option(
    "--task", metavar="T", help="Also try a task, its training left out.", shell_complete=options.complete_tasks
)
@click.option("--quick", is_flag=True, help="Leave out what takes JAX: the devices, and a task.")
@options.quiet
@options.as_json
@click.pass_context
def doctor(ctx: click.Context, db: str | None, task: str | None, quick: bool, quiet: bool, as_json: bool) -> None:
    """Look whether all is well, and say what to do if not.

    That is versions, devices, memory and disk; a database file, of which every byte in use is read; and a task. Nothing
    is changed. The exit code is 0 where all is well, and 1 where a problem was found.
    """
    from aqx.doctor import diagnose

    if quick and task:
        raise click.UsageError("--quick leaves out what takes JAX, as --task does", ctx)
    with progress_shown("doctor", quiet) as progress:
        seen = diagnose(db, task, progress, quick=quick)
    if as_json:
        show_json({"healthy": seen.healthy, **plain(seen)})
    else:
        for line in [*_machine(seen), *(_file(seen.file) if seen.file else [])]:
            say(hanging(printable(clipped(line, 2000)), 11))
        for line in _verdict(seen):
            say(hanging(printable(clipped(line, 2000)), 0))
    ctx.exit(0 if seen.healthy else 1)


def _machine(seen: Diagnosis) -> list[str]:
    versions = [f"{name} {version or 'MISSING'}" for name, version in seen.versions.items()]
    extras = [f"{name} ({'lacks ' + ', '.join(lacks) if lacks else 'there'})" for name, lacks in seen.extras.items()]
    memory = "unknown" if seen.memory_bytes is None else f"{seen.memory_bytes / 2**30:.1f} GiB free"
    disk = "unknown" if seen.disk_bytes is None else f"{seen.disk_bytes / 2**30:.1f} GiB free"
    return [
        *_lines("versions", versions, 4),
        *_lines("extras", extras, 1),
        *_lines("devices", ["not looked at"] if seen.devices is None else seen.devices or ["none"], 1),
        *_lines("NVIDIA", seen.gpus, 1),
        *_lines("traced", [seen.traced] if seen.traced else [], 1),
        *_lines("cores", [str(seen.cores), *(f"{name}={value}" for name, value in seen.settings.items())], 4),
        *_lines("memory", [memory], 1),
        *_lines("disk", [disk], 1),
        *_lines("compiled", [f"kept in {seen.compiled}" if seen.compiled else "not kept"], 1),
        *_lines("task", [seen.task] if seen.task else [], 1),
    ]


def _file(file: FileHealth) -> list[str]:
    version = "" if file.schema_version is None else f", schema version {file.schema_version}"
    return [
        *_lines("file", [f"{file.path}, {file.bytes / 2**20:.1f} MiB{version}"], 1),
        *_lines("holds", [f"{count:,} {what}" for what, count in file.counts.items()], 6),
        *_lines("tasks", file.tasks, 6),
        *_lines("in use by", file.holders, 1),
    ]


def _verdict(seen: Diagnosis) -> list[str]:
    lines = [f"note: {note}" for note in seen.notes] + [f"problem: {problem}" for problem in seen.problems]
    return [*lines, "all is well" if seen.healthy else f"{len(seen.problems)} problem(s) found"]


def _lines(label: str, values: list[str], in_a_row: int) -> list[str]:
    """Values under one label, so many in a line."""
    rows = [", ".join(values[i : i + in_a_row]) for i in range(0, len(values), in_a_row)]
    return [f"{label if not i else '':<10} {row}" for i, row in enumerate(rows)]


@main.command(
    needs="a database.",
    examples=["aqx backup found.duckdb copy.duckdb", "aqx backup found.duckdb /mnt/copies/found.duckdb --force"],
)
@options.db
@click.argument("file", shell_complete=options.complete_files)
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@options.quiet
@options.as_json
def backup(db: str, file: str, force: bool, quiet: bool, as_json: bool) -> None:
    """Copy a database, also while workers write to it.

    A plain copy of a file that somebody writes to is damaged. This one waits for its turn, and is read in whole before
    it takes its place.
    """
    from aqx.store.backup import back_up

    with progress_shown("backup", quiet) as progress:
        path = back_up(db, file, force=force, progress=progress)
    size = path.stat().st_size
    show_result({"path": path, "bytes": size}, f"{path}: {size / 2**20:.1f} MiB", as_json)


@main.command(
    needs="nothing but the shell.",
    examples=[f"aqx completion {shell} > {place.split()[0]}" for shell, place in _PLACES.items()],
)
@click.argument("shell", type=click.Choice(list(_PLACES)))
def completion(shell: str) -> None:
    """Print what has the Tab key complete commands.

    And options, tasks, presets and files. On stderr it says where to put it.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, shell
    click.echo(kind.source_template % kind(main, {}, "aqx", "_AQX_COMPLETE").source_vars())
    click.echo(f"to have it in every {shell}, save it: aqx completion {shell} > {_PLACES[shell]}", err=True)
