"""Act-Bench: tables of what every function of a space gives on a task, and searches replayed on them."""

from aqx.benchmark.replay import Curves, replay
from aqx.benchmark.table import ResultTable, load_table, save_table

__all__ = ["Curves", "ResultTable", "load_table", "replay", "save_table"]
