"""The command `aqx`: options, progress and tables around the Python API; it decides nothing itself."""

from aqx.cli import bench
from aqx.cli.commands import main

__all__ = ["bench", "main"]
