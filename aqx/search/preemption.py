"""SIGTERM, which schedulers send before they take a machine away, ends a block so that its claims are given back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def sigterm_ends_block() -> Iterator[None]:
    """Have SIGTERM raise SystemExit in the block, as soon as the operation that runs there returns.

    A handler that the program has set stays in force, and so does everything outside of the main thread, where Python
    delivers no signals.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the giving back
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
