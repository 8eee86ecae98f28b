"""Where and with what a training ran: kept beside its result, so that a surprising one can be traced."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
import sys

from aqx.machine import version_of
from aqx.tasks import Task
from aqx.tasks.task import FileReference
from aqx.tasks.version import version_of_task

_PACKAGES = ("aqx", "jax", "flax", "optax", "numpy")


def environment(task: Task) -> dict[str, str]:
    """Return versions, device, host, the version of the task's code and, where git knows it, its `git describe`.

    Example:
        >>> from aqx.tasks import load_task
        >>> {"aqx", "jax", "device", "host"} <= set(environment(load_task("mnist1d")))
        True
    """
    found = dict(_of_process())
    if code := _git_describe(_folder(task)):
        found["code"] = code
    if (version := version_of_task(task)) is not None:
        found["version"] = version
    return found


@functools.cache
def _of_process() -> dict[str, str]:
    import jax

    found = {"python": platform.python_version(), "host": socket.gethostname(), "device": jax.devices()[0].device_kind}
    versions = {package: version_of(package) for package in _PACKAGES}
    return found | {package: version for package, version in versions.items() if version is not None}


def _folder(task: Task) -> str | None:
    if isinstance(task.reference, FileReference):
        return os.path.dirname(task.reference.path)
    module = sys.modules.get(getattr(task.train or task.build_model, "__module__", ""))
    file = getattr(module, "__file__", None)
    return os.path.dirname(os.path.abspath(file)) if file else None


@functools.cache
def _git_describe(folder: str | None) -> str | None:
    """As it was when this process first asked."""
    if folder is None:
        return None
    try:
        found = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty", "--tags"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
