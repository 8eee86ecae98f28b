"""Arguments and options that several commands share."""

from __future__ import annotations

import click

db = click.argument("db")
task = click.option("--task", required=True, metavar="T", help="A built-in task, or path/to/file.py:name.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
workers = click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Trainings at a time.")
surrogate = click.option("--surrogate", metavar="PRESET", help="What predicts, e.g. ensemble or paper.")
seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the study.")
