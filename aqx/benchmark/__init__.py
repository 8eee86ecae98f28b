"""Act-Bench: tables of what every function of a space gives on a task, and searches replayed on them."""

from aqx.benchmark.landscape import Landscape, landscape_of
from aqx.benchmark.replay import Curves, replay
from aqx.benchmark.scores import Estimate, ReplayScore, mean_interval, median_interval, replay_policies, score
from aqx.benchmark.table import ResultTable, load_table, save_table

__all__ = [
    "Curves",
    "Estimate",
    "Landscape",
    "ReplayScore",
    "ResultTable",
    "landscape_of",
    "load_table",
    "mean_interval",
    "median_interval",
    "replay",
    "replay_policies",
    "save_table",
    "score",
]
