"""Who holds a claim, and how it is kept while the work goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from aqx.errors import AqxError

Claim = TypeVar("Claim")
_log = logging.getLogger("aqx")


def worker_name() -> str:
    """Return who claims, for people to read: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.path.basename(sys.argv[0] or 'python')}"


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
