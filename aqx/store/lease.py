"""Who holds a claim, and how it is kept while the work goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from aqx.errors import AqxError
from aqx.store import clock
from aqx.store.lock import is_running

Claim = TypeVar("Claim")
_log = logging.getLogger("aqx")


def worker_name() -> str:
    """Return who claims, for people to read: host and process."""
    return f"{os.uname().nodename}:{os.getpid()}:{os.path.basename(sys.argv[0] or 'python')}"


def this_process() -> str:
    """Return what tells this process from all others: its machine, its number, and when it began."""
    _, began = _looked_up(os.getpid())
    return f"{clock.machine()} {_numbers()} {os.getpid()} {began}"


def is_gone(process: str) -> bool:
    """Return whether a process, from `this_process`, has ended for sure: it ran here, and does not any more."""
    where, _, number = process.rpartition(" ")[0].rpartition(" ")
    if where != f"{clock.machine()} {_numbers()}":
        return False
    if not is_running(int(number)):
        return True
    state, began = _looked_up(int(number))
    then = process.rpartition(" ")[2]
    return state in ("Z", "X") or bool(began and then and began != then)  # another one may have its number since


def _numbers() -> str:
    """What gives processes their numbers: those of one container mean nothing in another."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _looked_up(pid: int) -> tuple[str, str]:
    """The state of a process and when it began, by the machine's count; "" where the system does not tell."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return words[0], words[19]
    except (OSError, IndexError):
        return "", ""


@contextlib.contextmanager
def kept_alive(claims: Iterable[Claim], renew: Callable[[Claim], object], seconds: float | int) -> Iterator[None]:
    """Renew claims every so many seconds in a background thread; what `claims` yields may change meanwhile."""
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(seconds):
            for claim in list(claims):
                try:
                    renew(claim)
                except AqxError as error:  # the next beat may get through; a late result is accepted anyway
                    _log.warning("aqx: heartbeat of %s: %s", claim, error)

    thread = threading.Thread(target=beat, daemon=True, name="aqx-heartbeat")
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
