"""A task as a database knows it, where its code is elsewhere: in a notebook, or in a file that is not at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aqx.errors import TaskError
from aqx.tasks.task import Task


def without_code(name: str, identity: Mapping[str, Any], baselines: Sequence[str]) -> Task:
    """Return a task to look at, to claim and to tell with; whatever needs its code says that it is not here.

    Args:
        name: the task's name.
        identity: as `Task.identity` returned it.
        baselines: names of the functions to compare with.

    Example:
        >>> from aqx.tasks.stored import without_code
        >>> identity = {"name": "mine", "objective": "r2", "direction": "maximize", "seed": 0}
        >>> task = without_code("mine", identity, ["relu(x)"])
        >>> task.objective, task.train
        ('r2', None)
        >>> task.batch()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        aqx.errors.TaskError: the code of task 'mine' is not here, only what the database holds of it; ...
    """

    def missing(*_: Any, **__: Any) -> Any:
        raise TaskError(
            f"the code of task {name!r} is not here, only what the database holds of it; give --task FILE.py:NAME"
        )

    return Task(
        name,
        missing,
        batch=missing,
        loss=missing,
        objective=identity["objective"],
        direction=identity["direction"],
        baselines=baselines,
        seed=identity["seed"],
        learnable=identity.get("learnable"),
    )
