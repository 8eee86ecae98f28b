"""Act-Bench: tables of what every function of a space gives on a task, and searches replayed on them."""

from aqx.benchmark.act_bench import ActBenchFile, read_act_bench
from aqx.benchmark.aquasurf import AquasurfFile, read_aquasurf
from aqx.benchmark.build import BuildReport, build_table
from aqx.benchmark.importing import ImportReport, import_results
from aqx.benchmark.table import ResultTable, load_table, save_table

__all__ = [
    "ActBenchFile",
    "AquasurfFile",
    "BuildReport",
    "ImportReport",
    "ResultTable",
    "build_table",
    "import_results",
    "load_table",
    "read_act_bench",
    "read_aquasurf",
    "save_table",
]
