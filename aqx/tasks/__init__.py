"""Tasks: the contract between aqx and a user's model and data, and the built-in ones."""

from aqx.tasks.check import CheckReport, check_task, guard
from aqx.tasks.loading import builtin_tasks, load_task
from aqx.tasks.model import apply_model, build_model
from aqx.tasks.task import Task

__all__ = ["CheckReport", "Task", "apply_model", "build_model", "builtin_tasks", "check_task", "guard", "load_task"]
