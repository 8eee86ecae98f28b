"""Act-Bench: tables of what every function of a space gives on a task, and searches replayed on them."""

from aqx.benchmark.table import ResultTable, load_table, save_table

__all__ = ["ResultTable", "load_table", "save_table"]
