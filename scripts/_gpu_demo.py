"""Stage `demo` of scripts/bench_gpu: the commands of scripts/demo, each in a process, with an empty program cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _gpu import Row

ROOT = Path(__file__).parents[1]


def main(small: bool) -> Iterator[Row]:
    """Enumerate, describe, search and confirm; the winner must be one that the confirmation found at least as good."""
    with tempfile.TemporaryDirectory() as folder:
        space = ["--schema", "unary(x)"] if small else ["--space", "act_bench"]
        budget, top, seeds = ("2", "1", "2") if small else ("60", "5", "5")
        task = ["--task", "mnist1d"]
        commands = {
            "enumerate": space,
            "eigs": [*task, *(["--limit", "4"] if small else [])],
            "search": [*task, "--budget", budget, *(["--spectra", "0"] if small else [])],
            "confirm": [*task, "--top", top, "--seeds", seeds],
        }
        total, printed = 0.0, ""
        for command, arguments in commands.items():
            started = time.perf_counter()
            printed = run([command, f"{folder}/demo.duckdb", *arguments, "--json", "--quiet"], folder)
            took = time.perf_counter() - started
            total += took
            yield Row(f"aqx {command}", {"s": took})
        rows: list[dict[str, Any]] = json.loads(printed)
        found = {row["function"] if "function" in row else row["name"]: row for row in rows}
        assert "relu(x)" in found and len(found) > int(top), f"no verdict: {printed[:200]}"
        yield Row("scripts/demo's commands, mnist1d", {"s": total, "best": next(iter(found))})


def run(arguments: list[str], cache: str) -> str:
    """Run a command of aqx as a user would, and return what it prints."""
    # This process has asked for the device, so it must leave memory to the command.
    environment = os.environ | {"XDG_CACHE_HOME": cache, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment["PYTHONPATH"] = f"{ROOT}:{environment.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "aqx", *arguments]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
