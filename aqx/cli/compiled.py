"""Compiled programs outlive a command: a second run starts in seconds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path

_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_OTHERS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": 2**30,  # bytes; the oldest go first
    # The many small programs before the large one add up to seconds.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
}


def keep_compiled_programs() -> None:
    """Have JAX keep what it compiles in the user's cache folder, unless the user has set JAX's own cache.

    The settings go to the environment too, where worker processes find them.
    """
    if _FOLDER in os.environ or os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in ("0", "false"):
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aqx" / f"compiled-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, or a full disk: nothing is kept
        return
    for name, value in {_FOLDER: str(folder), **_OTHERS}.items():
        os.environ[name] = str(value)
        if jax := sys.modules.get("jax"):  # else it reads the environment when it is imported
            jax.config.update(name.lower(), value)


def _processor() -> str:
    """Which instructions this machine has: a program of another processor might use some that are missing here."""
    text = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        text += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(text.encode()).hexdigest()[:12]
