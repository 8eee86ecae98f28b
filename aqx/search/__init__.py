"""Search: ask what to train, tell what came of it, and confirm the winner."""

from aqx.search.confirmation import Confirmation, Confirmed
from aqx.search.retry import RetryPolicy
from aqx.search.study import Study
from aqx.search.summary import FunctionReport, Summary, describe, summarize
from aqx.search.trial import Pruned, Ranking, Record, Suggestion, Trial

__all__ = [
    "Confirmation",
    "Confirmed",
    "FunctionReport",
    "Pruned",
    "Ranking",
    "Record",
    "RetryPolicy",
    "Study",
    "Suggestion",
    "Summary",
    "Trial",
    "describe",
    "summarize",
]
