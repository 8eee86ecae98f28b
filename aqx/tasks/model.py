"""From a task to a model and its outputs, the same way for Flax Linen and NNX."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from aqx.errors import TaskError
from aqx.tasks.task import Task


def build_model(task: Task, act: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """Build the task's model with an activation, and initialise it with the task's seed.

    A Linen model is initialised by `model.init(key, x)`, or, where the task brings its own `apply`, by the same call
    of the model that `apply` makes; so extra inputs and flags need not be told twice.

    Args:
        task: the task.
        act: the activation; it may be traced.
        x: a batch of inputs, as `task.batch()` returns it.

    Returns:
        (model, variables); variables are None for an NNX model, which holds its own.

    Raises:
        TaskError: `build_model` returns no Flax module.
    """
    from flax import linen, nnx  # slow to import, and not needed before there is a model

    model, key = new_model(task, act), jax.random.key(task.seed)
    if isinstance(model, nnx.Module):
        return model, None
    if not isinstance(model, linen.Module):
        raise TaskError(f"build_model must return a Flax Linen or NNX module, but it returned {type(model).__name__}")
    if task.apply is None:
        # One program, in place of one for each operation: those of a small MLP compile for seconds.
        return model, jax.jit(lambda key, x: model.init(key, x))(key, x)
    recorder = _InitRecorder(model, key)
    task.apply(recorder, {}, x)
    if recorder.variables is None:
        raise TaskError("apply never calls model.apply; it must return outputs of the model it is given")
    return model, recorder.variables


def apply_model(task: Task, model: Any, variables: Any, x: Any) -> Any:
    """Return the outputs [N, ...] of a model that `build_model` made, through the task's own `apply` if it has one.

    Args:
        task: the task.
        model: from `build_model`.
        variables: of the model; None for an NNX model.
        x: a batch of inputs.
    """
    if task.apply is not None:
        return task.apply(model, variables, x)
    return model(x) if variables is None else model.apply(variables, x)


def new_model(task: Task, act: Callable[[Any], Any]) -> Any:
    """The task's model with an activation: a Linen model without variables, an NNX model initialised with the seed.

    Args:
        task: the task.
        act: the activation; it may be traced.
    """
    build = task.build_model
    target = build.func if isinstance(build, partial) else build
    # The signature of an NNX class itself is that of its metaclass: (*args, **kwargs).
    function = partial(target.__init__, None) if inspect.isclass(target) else target
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C have none
        return build(act)
    from flax import nnx

    if "rngs" in parameters:
        return build(act, rngs=nnx.Rngs(jax.random.key(task.seed)))
    needed = [p for p in parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    if len(needed) > 1 and target is build:
        return build(act, nnx.Rngs(jax.random.key(task.seed)))
    return build(act)


class _InitRecorder:
    """Stands in for a Linen model: a call of `apply` initialises the model with those inputs, and keeps the result."""

    def __init__(self, model: Any, key: jax.Array):
        self._model, self._key = model, key
        self.variables: Any = None

    def apply(self, variables: Any, *args: Any, rngs: Any = None, mutable: Any = False, **kwargs: Any) -> Any:
        del variables
        keys = {**(rngs if isinstance(rngs, dict) else {}), "params": self._key}
        outputs, self.variables = self._model.init_with_output(keys, *args, **kwargs)
        changed = {name: value for name, value in self.variables.items() if name != "params"}
        return (outputs, changed) if mutable else outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
