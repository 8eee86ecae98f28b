"""`Objective`: the metric that a search improves, and which of two results is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from aqx.errors import InputError


@runtime_checkable
class HasObjective(Protocol):
    """Whatever carries a result."""

    @property
    def objective(self) -> float | None:
        """The result; None without one."""
        ...


Judged = TypeVar("Judged", bound=HasObjective)


@dataclass(frozen=True)
class Objective:
    """A metric and its direction.

    Attributes:
        metric: its name among the metrics of a training.
        direction: "maximize" or "minimize".

    Raises:
        InputError: another direction.

    Example:
        >>> Objective("val_loss", "minimize").sign
        -1
    """

    metric: str
    direction: str

    def __post_init__(self) -> None:
        if self.direction not in ("maximize", "minimize"):
            raise InputError(f"direction={self.direction!r} is unknown; give 'maximize' or 'minimize'")

    def __str__(self) -> str:
        return self.metric

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.direction == "maximize" else -1

    def of(self, metrics: Mapping[str, Any]) -> float:
        """Return the objective among a training's metrics.

        Raises:
            InputError: it is missing or not a number.

        Example:
            >>> Objective("val_acc", "maximize").of({"val_acc": 0.5, "loss": 1.0})
            0.5
        """
        if self.metric not in metrics:
            raise InputError(f"{self.metric} is missing from the metrics ({', '.join(metrics) or 'none'}); report it")
        try:
            return float(metrics[self.metric])
        except (TypeError, ValueError):
            raise InputError(f"{self.metric}={metrics[self.metric]!r} is not a number; report one") from None

    def best(self, results: Iterable[Judged]) -> Judged | None:
        """Return the best of some results, the first of equal ones; None where there is none."""
        return max(results, key=lambda result: self.sign * (result.objective or 0), default=None)
