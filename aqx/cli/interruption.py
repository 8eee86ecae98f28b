"""Ctrl-C and SIGTERM end a command at any moment: in good order where that is soon done, else without it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from aqx.stopping import TERMINATED, asked, let_go, stoppable

GRACE_SECONDS = 5.0  # beyond that the main thread is in something long, such as a compilation
_INSISTED_SECONDS = 1.0  # Ctrl-C that comes again so much later is meant
_LET_GO_SECONDS = 3.0
INTERRUPTED = 128 + signal.SIGINT
_SAID = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}
_ending = threading.Lock()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the program out of the block, with one line, after what the block has to tidy up.

    Python calls the handlers of signals in its main thread alone, between two of its steps. Another thread hears of the
    signal at once: where the main thread has not ended the program in `GRACE_SECONDS`, or Ctrl-C is pressed again, it
    does, and what is claimed is given back all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ears, heard = os.pipe()
    os.set_blocking(heard, False)
    before = signal.set_wakeup_fd(heard, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ears,), daemon=True, name="aqx-stop").start()
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = map(_unless_asked, hooks)
    try:
        with stoppable(once=True):
            try:
                yield
            except BaseException:
                if (reason := asked()) is not None:
                    end(INTERRUPTED if isinstance(reason, KeyboardInterrupt) else TERMINATED)
                raise
    finally:
        sys.unraisablehook, threading.excepthook = hooks
        signal.set_wakeup_fd(before)
        os.close(heard)  # which ends the other thread
        # Whatever there was to do is done: from here on Ctrl-C could only make the end a crash.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def end(code: int) -> NoReturn:
    """Say in one line that the command was stopped, and end the program.

    At once: threads that still compute something, and what JAX tears down under them, can crash an orderly exit.
    """
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # the other thread is at it
    gc.collect()  # the semaphores of worker processes go with their pool
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a progress bar hides
    line = f"{shown}{_SAID[code]}; what is stored stays, and the same command goes on from there\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(code)


def _listen(ears: int) -> None:
    """Read the numbers of signals as they arrive, until the pipe is closed."""
    deadline, code, first = None, INTERRUPTED, 0.0
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([ears], [], [], left)[0]:
            break
        if not (number := os.read(ears, 1)):
            os.close(ears)
            return
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        now = time.monotonic()
        if deadline is None:
            deadline, first = now + GRACE_SECONDS, now
            code = INTERRUPTED if number[0] == signal.SIGINT else TERMINATED
        elif number[0] == signal.SIGINT and now > first + _INSISTED_SECONDS:
            break
    last = threading.Thread(target=let_go, daemon=True)
    last.start()
    last.join(_LET_GO_SECONDS)
    end(code)


def _unless_asked(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """What breaks while the program is being stopped is of no interest."""

    def quiet(arguments: Any) -> None:
        if asked() is None:
            hook(arguments)

    return quiet
