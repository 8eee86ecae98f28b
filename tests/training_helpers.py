"""Task files whose training leaves a mark outside the database, and kills its own process where it is told to."""

from __future__ import annotations

from pathlib import Path

from aqx.tasks import Task, load_task

SOURCE = """
import os, signal, time
import toy
from aqx.tasks import Task, losses

FOLDER = {folder!r}


def train(act, seed):
    name = act.name
    with open(FOLDER + "/trained.log", "a") as log:
        log.write(f"{{os.getpid()}} {{name}}\\n")
    if name in {always!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    if name in {once!r} and not os.path.exists(FOLDER + "/killed"):
        open(FOLDER + "/killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return {{"val_acc": float(len(name)), "pid": os.getpid()}}


task = Task("deadly", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, baselines={baselines!r})
"""


def deadly_task(
    folder: Path, always: tuple[str, ...] = (), once: tuple[str, ...] = (), baselines: tuple[str, ...] = ("relu(x)",)
) -> Task:
    """A task whose training of a function kills its process, always or the first time."""
    file = folder / "deadly.py"
    file.write_text(SOURCE.format(folder=str(folder), always=always, once=once, baselines=baselines))
    return load_task(f"{file}:task")


def trained(folder: Path) -> list[str]:
    """The functions in the order in which their trainings began."""
    log = folder / "trained.log"
    return [line.split(" ", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []
