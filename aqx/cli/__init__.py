"""The command `aqx`: options, progress and tables around the Python API; it decides nothing itself."""

from aqx.cli import bench, care, cost, prepare, report, searching, show, trials
from aqx.cli.commands import main

__all__ = ["bench", "care", "cost", "main", "prepare", "report", "searching", "show", "trials"]
