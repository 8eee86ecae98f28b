"""What this process may use of the machine: cores, memory, a cache folder; and which packages are installed."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(system: str = "/proc/meminfo", group: str = "/sys/fs/cgroup") -> int | None:
    """Return how many bytes this process may still use, a container's limit included; None where nobody tells.

    Args:
        system: Linux's account of the memory.
        group: the folder of this process's control group.
    """
    limits: list[int] = []
    try:
        match = re.search(r"^MemAvailable:\s*(\d+) kB", Path(system).read_text(), re.M)
        limits += [int(match[1]) * 1024] if match else []
    except OSError:
        pass
    try:
        most, used = (Path(group, name).read_text().strip() for name in ("memory.max", "memory.current"))
        # What is cached counts as used there, but makes room when it is needed.
        cached = re.search(r"^inactive_file (\d+)", Path(group, "memory.stat").read_text(), re.M)
        if most != "max":
            limits.append(max(int(most) - int(used) + (int(cached[1]) if cached else 0), 0))
    except (OSError, ValueError):
        pass
    return min(limits, default=None)


def cache_folder() -> Path:
    """Return the user's cache folder: $AQX_CACHE, or aqx in $XDG_CACHE_HOME, or ~/.cache/aqx."""
    if "AQX_CACHE" in os.environ:
        return Path(os.environ["AQX_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "aqx"


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None for one that is not, as aqx run from a checkout."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
