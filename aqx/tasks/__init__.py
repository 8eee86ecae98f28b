"""Tasks: the contract between aqx and a user's model and data, and the built-in ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aqx.lazy import on_demand

if TYPE_CHECKING:
    from aqx import losses
    from aqx.tasks.check import CheckReport, check_task
    from aqx.tasks.guard import guard
    from aqx.tasks.loading import builtin_tasks, load_task
    from aqx.tasks.model import apply_model, build_model
    from aqx.tasks.task import Task

__all__ = [
    "CheckReport",
    "Task",
    "apply_model",
    "build_model",
    "builtin_tasks",
    "check_task",
    "guard",
    "load_task",
    "losses",
]

on_demand(
    __name__,
    {
        "aqx": ("losses",),  # task files often say `from aqx.tasks import Task, losses`
        "aqx.tasks.check": ("CheckReport", "check_task"),
        "aqx.tasks.guard": ("guard",),
        "aqx.tasks.loading": ("builtin_tasks", "load_task"),
        "aqx.tasks.model": ("apply_model", "build_model"),
        "aqx.tasks.task": ("Task",),
    },
)
