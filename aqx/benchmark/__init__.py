"""Act-Bench: tables of what every function of a space gives on a task, and searches replayed on them."""

from aqx.benchmark.act_bench import ActBenchFile, read_act_bench
from aqx.benchmark.aquasurf import AquasurfFile, read_aquasurf
from aqx.benchmark.build import BuildReport, build_table
from aqx.benchmark.importing import ImportReport, import_results
from aqx.benchmark.landscape import Landscape, landscape_of
from aqx.benchmark.replay import Curves, replay
from aqx.benchmark.scores import Estimate, ReplayScore, mean_interval, median_interval, replay_policies, score
from aqx.benchmark.table import ResultTable, load_table, save_table

__all__ = [
    "ActBenchFile",
    "AquasurfFile",
    "BuildReport",
    "Curves",
    "Estimate",
    "ImportReport",
    "Landscape",
    "ReplayScore",
    "ResultTable",
    "build_table",
    "import_results",
    "landscape_of",
    "load_table",
    "mean_interval",
    "median_interval",
    "read_act_bench",
    "read_aquasurf",
    "replay",
    "replay_policies",
    "save_table",
    "score",
]
