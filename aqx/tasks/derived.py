"""`both_ways`: a task's training of one function from that of many, or of many from that of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from aqx.activation import Activation, stack
from aqx.population import members, unstack

Function = Callable[..., Any]


def both_ways(train: Function | None, train_many: Function | None) -> tuple[Function | None, Function | None]:
    """Return both trainings, of which one may be missing; what was derived before is derived anew.

    A copy of a task that gets another `train` would otherwise keep the `train_many` of the first.
    """
    train, train_many = (each.train if isinstance(each, Learnably) else each for each in (train, train_many))
    own, many = (None if isinstance(each, (Alone, OneByOne)) else each for each in (train, train_many))
    return own or (many and Alone(many)), many or (own and OneByOne(own))


@dataclass(frozen=True)
class Alone:
    """`train(act, seed)` as a population of one."""

    train_many: Function

    def __post_init__(self) -> None:
        object.__setattr__(self, "__module__", getattr(self.train_many, "__module__", __name__))

    def __call__(self, act: Activation, seed: int) -> dict[str, float]:
        return {
            name: np.asarray(values)[0].item()
            for name, values in self.train_many(stack([act]), np.array([seed])).items()
        }


@dataclass(frozen=True)
class OneByOne:
    """`train_many(acts, seeds)` as a loop: metrics that are numbers [K], nan where a training did not return one."""

    train: Function

    def __post_init__(self) -> None:
        object.__setattr__(self, "__module__", getattr(self.train, "__module__", __name__))

    def __call__(self, acts: Activation, seeds: Any) -> dict[str, np.ndarray]:
        found = [self.train(unstack(acts, row), seed) for row, seed in enumerate(members(acts, seeds))]
        names = dict.fromkeys(name for metrics in found for name, value in metrics.items() if _is_number(value))
        return {name: np.array([float(metrics.get(name, np.nan)) for metrics in found]) for name in names}


@dataclass(frozen=True)
class Learnably:
    """A training, of one function or of many, whose functions learn their constants."""

    train: Function
    per: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "__module__", getattr(self.train, "__module__", __name__))

    def __call__(self, act: Activation, seed: Any) -> Any:
        from aqx.linen import Learning  # brings Flax, slow to import

        return self.train(Learning.of(act, self.per), seed)


def _is_number(value: Any) -> bool:
    return np.ndim(value) == 0 and not isinstance(value, str) and value is not None
