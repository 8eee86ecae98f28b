"""From a task to a model and its outputs, the same way for Flax Linen and NNX."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from aqx.errors import TaskError
from aqx.tasks.guard import guard
from aqx.tasks.recorder import InitRecorder
from aqx.tasks.task import Task


def build_model(task: Task, act: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """Build the task's model with an activation, and initialise it with the task's seed.

    A Linen model is initialised by the task's own `init`; else by `model.init(key, x)`, or, where the task brings its
    own `apply`, by the same calls of the model that `apply` makes; so extra inputs and flags need not be told twice.

    Args:
        task: the task.
        act: the activation; it may be traced.
        x: a batch of inputs, as `task.batch()` returns it.

    Returns:
        (model, variables); variables are None for an NNX model, which holds its own.

    Raises:
        TaskError: `build_model` returns no Flax module, or it cannot be initialised.
    """
    from flax import linen, nnx  # slow to import, and not needed before there is a model

    model, key = new_model(task, act), jax.random.key(task.seed)
    if isinstance(model, nnx.Module):
        if task.init is not None:
            raise TaskError("init is for Flax Linen; build_model returned an NNX module, which brings its own weights")
        return model, None
    if not isinstance(model, linen.Module):
        raise TaskError(f"build_model must return a Flax Linen or NNX module, but it returned {type(model).__name__}")
    if task.init is not None:
        return model, _variables_of(guard("init", lambda: task.init(model, key, x)))  # type: ignore[misc]
    if task.apply is None:
        # One program, in place of one for each operation: those of a small MLP compile for seconds.
        return model, jax.jit(lambda key, x: model.init(key, x))(key, x)
    recorder = InitRecorder(model, key)
    hint = "; while the model is initialised apply gets no variables: where it needs them, give Task(init=…)"
    guard("apply", lambda: task.apply(recorder, {}, x), hint)  # type: ignore[misc]
    if not recorder.variables:
        raise TaskError("apply never calls model.apply; it must return outputs of the model it is given")
    return model, recorder.variables


def _variables_of(given: Any) -> dict[str, Any]:
    """What a user's `init` returned, as variables of Flax Linen."""
    from flax.core import FrozenDict, unfreeze

    if not isinstance(given, dict | FrozenDict) or not given or not all(isinstance(name, str) for name in given):
        raise TaskError(
            'init must return the variables of the model, a dict such as {"params": …}, '
            f"but it returned {f'{list(given)[:3]}' if isinstance(given, dict) else type(given).__name__}"
        )
    return unfreeze(given)


def losses_of(task: Task, outputs: Any, y: Any) -> Any:
    """Return what the task's loss gives for a batch; one number of a joint loss stands at each of its N examples."""
    values = task.loss(outputs, y)
    if task.joint_loss and jnp.shape(values) == ():
        return jnp.broadcast_to(values, jnp.shape(jax.tree.leaves(outputs)[0])[:1])
    return values


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
