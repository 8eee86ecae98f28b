"""How often a training that gave no result is tried again: the one place that decides it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aqx.errors import InputError
from aqx.store.trial_rows import AnyTrial, since_retry

GIVEN_UP = 10  # trainings in a row that were lost: then it is not the functions that are at fault


@dataclass(frozen=True)
class RetryPolicy:
    """How many more times a function is trained whose training gave no result.

    Attributes:
        lost: after its process died or was not heard of within the lease.
        failed: after it raised an exception or gave no finite objective.

    Raises:
        InputError: a number that is negative or none.

    Example:
        >>> RetryPolicy().lost, RetryPolicy().failed
        (1, 0)
    """

    lost: int = 1
    failed: int = 0

    def __post_init__(self) -> None:
        for argument in ("lost", "failed"):
            value = getattr(self, argument)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f"{argument}={value!r} is not a number of retries; give an integer from 0")

    def settles(self, same: Sequence[AnyTrial]) -> bool:
        """Return whether trials of one function leave nothing to claim: it runs, has a result, or was tried enough."""
        counts = Counter(trial.status for trial in since_retry(same))
        return (
            any(trial.status == "running" for trial in same)
            or counts["done"] + counts["pruned"] > 0
            or counts["failed"] > self.failed
            or counts["stale"] > self.lost
        )
