"""Whether descriptors of a task mean something: what `check_task` refuses is refused before any is stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from aqx.activation import activation
from aqx.errors import TaskError
from aqx.numerics.settings import own_settings
from aqx.spectra.descriptor import Descriptor
from aqx.spectra.devices import on_cpu
from aqx.spectra.digest import digest_of
from aqx.spectra.subject import Subject
from aqx.store.kinds import SPECTRA
from aqx.tasks import apply_model, guard
from aqx.tasks.check import check_finite, check_loss
from aqx.tasks.inputs import rectified


class Unacceptable(TaskError):
    """The batch or the loss of a task is wrong, so that a search by its spectra would be misled."""


@own_settings()
def accept(subject: Subject) -> dict[str, Any]:
    """Check the loss of the untrained model with ReLU (ReGLU), as `check_task` does; return the subject's digest.

    Raises:
        Unacceptable: the loss is not one number per example, depends on the others, or is not finite.
    """
    act, n = activation(rectified(subject.inputs)), subject.probe.examples
    # Compiled as one: operator by operator the usual losses are two dozen programs.
    task = replace(subject.task, loss=jax.jit(subject.task.loss))

    @jax.jit
    def forward(state: Any, x: Any) -> Any:
        return apply_model(task, *subject.model(act, state), x)

    with on_cpu():
        outputs = guard("the model", lambda: forward(subject.state, subject.x))
        try:
            check_finite(check_loss(task, outputs, subject.y, n))
        except TaskError as error:
            raise Unacceptable(str(error)) from error
        return guard("loss", lambda: digest_of(task, subject.state, subject.x, subject.y, outputs))


def same_batch(subject: Subject) -> bool:
    """Whether the task's batch is the same when it is drawn once more."""
    again = jax.tree.leaves(guard("batch", subject.task.batch))
    first = jax.tree.leaves((subject.x, subject.y))
    return len(again) == len(first) and all(
        np.array_equal(np.asarray(a, b.dtype), b) for a, b in zip(again, map(np.asarray, first), strict=True)
    )


@own_settings()
def refuse_if_all_baselines_break(subject: Subject, descriptor: Descriptor[Any]) -> None:
    """Compute the descriptor of the task's baselines until one is valid.

    Raises:
        TaskError: none is; the line says why the first is not. Of spectra it is an `Unacceptable` one.
    """
    program = jax.jit(descriptor.program(subject, True))
    reasons: list[str] = []
    for name in subject.task.baselines:
        act = activation(name)
        if act.inputs != subject.inputs:
            continue
        with on_cpu():
            arrays = guard(name, lambda act=act: program(act, {}, subject.state, subject.x, subject.y))
        (reason,) = descriptor.gather(subject, [np.asarray(array)[None] for array in arrays], {}).reasons()
        if reason is None:
            return
        reasons.append(reason)
    if reasons:
        # A search goes on without short runs, whose rates may not suit the model.
        kind = Unacceptable if descriptor.kind is SPECTRA else TaskError
        raise kind(
            f"every baseline of task {subject.task.name!r} breaks its model, {subject.task.baselines[0]}: {reasons[0]}"
            f"; check the labels and the scale of x (aqx task check); no {descriptor.one} was stored"
        )
