"""The commands of `aqx bench`: tables of what functions give on a task."""

from __future__ import annotations

import click


@click.group()
def bench() -> None:
    """Work with tables of results: Act-Bench."""
