"""Search: ask what to train, tell what came of it, and confirm the winner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aqx.lazy import on_demand

if TYPE_CHECKING:
    from aqx.search.comparison import Compared, LearningComparison
    from aqx.search.ledger import Ledger, Ranking, Record, load_results
    from aqx.search.queue import RetryPolicy, Suggestion
    from aqx.search.study import Callback, Study
    from aqx.search.summary import FunctionReport, Summary, describe, summarize
    from aqx.search.trial import Pruned, Trial
    from aqx.search.verdict import Confirmation, Confirmed

__all__ = [
    "Callback",
    "Compared",
    "Confirmation",
    "Confirmed",
    "FunctionReport",
    "LearningComparison",
    "Ledger",
    "Pruned",
    "Ranking",
    "Record",
    "RetryPolicy",
    "Study",
    "Suggestion",
    "Summary",
    "Trial",
    "describe",
    "load_results",
    "summarize",
]

on_demand(
    __name__,
    {
        "aqx.search.comparison": ("Compared", "LearningComparison"),
        "aqx.search.ledger": ("Ledger", "Ranking", "Record", "load_results"),
        "aqx.search.queue": ("RetryPolicy", "Suggestion"),
        "aqx.search.study": ("Callback", "Study"),
        "aqx.search.summary": ("FunctionReport", "Summary", "describe", "summarize"),
        "aqx.search.trial": ("Pruned", "Trial"),
        "aqx.search.verdict": ("Confirmation", "Confirmed"),
    },
)
