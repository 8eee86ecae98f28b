"""aqx finds better activation functions for your own Flax model and data."""

from aqx import fisher
from aqx.activation import Activation, activation, stack
from aqx.errors import AqxError, Exhausted, InputError, ParseError, StoreError, TaskError, UnsupportedError
from aqx.operators import register
from aqx.search import Pruned, RetryPolicy, Study
from aqx.space import Space
from aqx.tasks import Task, load_task, losses
from aqx.tree import Tree, parse

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
