"""Search: ask what to train, tell what came of it, and confirm the winner."""

from aqx.search.confirmation import Confirmation, Confirmed
from aqx.search.results import Results, load_results
from aqx.search.retry import RetryPolicy
from aqx.search.study import Callback, Study
from aqx.search.summary import FunctionReport, Summary, describe, summarize
from aqx.search.trial import Pruned, Ranking, Record, Suggestion, Trial

__all__ = [
    "Callback",
    "Confirmation",
    "Confirmed",
    "FunctionReport",
    "Pruned",
    "Ranking",
    "Record",
    "Results",
    "RetryPolicy",
    "Study",
    "Suggestion",
    "Summary",
    "Trial",
    "describe",
    "load_results",
    "summarize",
]
