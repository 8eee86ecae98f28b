"""The command line, run in this process, and what it says of a mistake."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from aqx.cli import main


def aqx_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def check_error(result: Result, *words: str, lines: int = 1) -> None:
    """It ended with 2, in so many lines that hold the words, and printed nothing else."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    assert result.stderr.count("\n") == lines, result.stderr
    for word in words:
        assert word in result.stderr
