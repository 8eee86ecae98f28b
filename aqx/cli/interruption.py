"""Ctrl-C and SIGTERM end a command at any moment: in good order where that is soon done, else without it."""

from __future__ import annotations

import atexit
import contextlib
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
_AGAIN_SECONDS = 0.02
INTERRUPTED = 128 + signal.SIGINT
_SAID = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}
_ending = threading.Lock()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the program out of the block, with one line, after what the block has to tidy up.

    Python calls the handlers of signals in its main thread alone, between two of its steps. Another thread hears of the
    signal at once: it sends it again while the main thread is at something that must not be torn. Where that has not
    ended the program in `GRACE_SECONDS`, or Ctrl-C is pressed again, the other thread does, and gives back what is
    claimed all the same.
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
    if util := sys.modules.get("multiprocessing.util"):  # the semaphores of worker processes
        last = threading.Thread(target=getattr(util, "_run_finalizers", int), args=(0,), daemon=True)
        last.start()
        last.join(1.0)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a progress bar hides
    line = f"{shown}{_SAID[code]}; what is stored stays, and the same command goes on from there\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(code)


def _listen(ears: int) -> None:
    """Read the numbers of signals as they arrive, until the pipe is closed."""
    number, first, ours = 0, 0.0, 0
    while not number or time.monotonic() < first + GRACE_SECONDS:
        if not select.select([ears], [], [], _AGAIN_SECONDS if number else None)[0]:
            if asked() is None:
                ours += 1
                signal.raise_signal(number)
            continue
        if not (heard := os.read(ears, 1)):
            os.close(ears)
            return
        if number and heard[0] == number and ours:
            ours -= 1
        elif not number and heard[0] in (signal.SIGINT, signal.SIGTERM):
            number, first = heard[0], time.monotonic()
        elif number and heard[0] == signal.SIGINT and time.monotonic() > first + _INSISTED_SECONDS:
            break
    last = threading.Thread(target=let_go, daemon=True)
    last.start()
    last.join(_LET_GO_SECONDS)
    end(INTERRUPTED if number == signal.SIGINT else TERMINATED)


def _unless_asked(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """What breaks while the program is being stopped is of no interest."""

    def quiet(arguments: Any) -> None:
        if asked() is None:
            hook(arguments)

    return quiet
