"""aqx finds better activation functions for your own Flax model and data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aqx import losses
from aqx.activation import Activation, activation, stack
from aqx.errors import AqxError, Exhausted, InputError, ParseError, StoreError, TaskError, UnsupportedError
from aqx.operators import register
from aqx.search import Pruned, RetryPolicy, Study
from aqx.space import Space
from aqx.tasks import Task, load_task
from aqx.tree import Tree, parse

if TYPE_CHECKING:
    from aqx import fisher

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
    "load_task",
    "losses",
    "parse",
    "register",
    "stack",
]


def __getattr__(name: str) -> Any:
    # Flax takes as long to import as all the rest but JAX, and who only wants a function does not need it.
    if name == "fisher":
        import importlib

        return importlib.import_module("aqx.fisher")
    raise AttributeError(f"module 'aqx' has no attribute {name!r}")
