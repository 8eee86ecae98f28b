"""aqx finds better activation functions for your own Flax model and data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aqx.errors import AqxError, Exhausted, InputError, ParseError, StoreError, TaskError, UnsupportedError
from aqx.lazy import on_demand
from aqx.learnable import is_constant, parametrised
from aqx.operators import register
from aqx.space import Space
from aqx.tree import Tree, parse

if TYPE_CHECKING:
    from aqx import fisher, losses
    from aqx.activation import Activation, activation, stack
    from aqx.population import population
    from aqx.search import Pruned, RetryPolicy, Study
    from aqx.tasks import Task, load_task

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "AqxError",
    "Exhausted",
    "InputError",
    "ParseError",
    "Pruned",
    "RetryPolicy",
    "Space",
    "StoreError",
    "Study",
    "Task",
    "TaskError",
    "Tree",
    "UnsupportedError",
    "activation",
    "fisher",
    "is_constant",
    "load_task",
    "losses",
    "parametrised",
    "parse",
    "population",
    "register",
    "stack",
]

on_demand(
    __name__,
    {
        "aqx.activation": ("Activation", "activation", "stack"),
        "aqx.population": ("population",),
        "aqx.search": ("Pruned", "RetryPolicy", "Study"),
        "aqx.tasks": ("Task", "load_task"),
    },
)
