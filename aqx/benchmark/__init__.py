"""Act-Bench: tables of what every function of a space gives on a task, and searches replayed on them."""

from aqx.benchmark.build import BuildReport, build_table
from aqx.benchmark.table import ResultTable, load_table, save_table

__all__ = ["BuildReport", "build_table", "ResultTable", "load_table", "save_table"]
