"""Which functions a model takes: of one input, as `act(x)`, or of two, as a gated unit's `act(x, y)`."""

from __future__ import annotations

from typing import Any

import jax

from aqx.activation import Activation, activation
from aqx.errors import WrongInputsError
from aqx.stopping import is_stop
from aqx.tasks.model import apply_model, build_model
from aqx.tasks.task import Task

# Any finite functions will do.
_STAND_INS = {1: "tanh(x)", 2: "mul(tanh(x),y)"}
_RECTIFIED = {1: "relu(x)", 2: "mul(relu(x),y)"}


def stand_in(inputs: int = 1) -> Activation:
    """Return a function of so many inputs to trace a model with, where any will do."""
    return activation(_STAND_INS[inputs])


def rectified(inputs: int) -> str:
    """Return the function of so many inputs with which every model should have a finite loss: relu(x), or ReGLU."""
    return _RECTIFIED[inputs]


def not_applicable(task: Task, inputs: int, x: Any) -> str | None:
    """Return why functions of so many inputs are not applicable to a task's model, or None if they are.

    A model that calls its activation with one array takes none of two inputs, and the reverse; one that asks
    `act.inputs`, as that of the built-in task `text`, takes both. What else goes wrong is no reason.

    Args:
        task: the task.
        inputs: 1 or 2.
        x: inputs of its batch.

    Example:
        >>> from aqx.tasks import load_task
        >>> from aqx.tasks.inputs import not_applicable
        >>> task = load_task("sine")
        >>> x, _ = task.batch()
        >>> not_applicable(task, 1, x), not_applicable(task, 2, x)
        (None, "not applicable: the model of task 'sine' calls its activation with one input, not with two")
    """
    try:
        model, variables = build_model(task, stand_in(inputs), x)
        jax.eval_shape(lambda: apply_model(task, model, variables, x))
    except BaseException as error:  # whatever a model raises
        if is_stop(error):
            raise
        if is_wrong_call(error):
            others = ("two inputs, not with one", "one input, not with two")[inputs - 1]
            return f"not applicable: the model of task {task.name!r} calls its activation with {others}"
    return None


def is_wrong_call(error: BaseException | None) -> bool:
    """Return whether it was raised as an activation was called with another number of inputs than it takes."""
    while error is not None:
        if isinstance(error, WrongInputsError):
            return True
        error = error.__cause__ or error.__context__
    return False
