"""What asks a program to stop, Ctrl-C and SIGTERM, told apart from all else that code may raise."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

TERMINATED = 128 + signal.SIGTERM
# Schedulers send the last ones ahead of time; who handles them may well raise an exception to get out.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Terminated(SystemExit):
    """SIGTERM has arrived; where nobody catches it, the program ends with 143."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


_asked: BaseException | None = None  # what the signal raised that has arrived in a `stoppable` block


def is_stop(error: BaseException) -> bool:
    """Return whether an exception ends the program's work, and is no failure of the code that it came out of.

    `KeyboardInterrupt` is, and what a handler of SIGTERM raised; `sys.exit` in somebody's training is not. Where a
    signal has arrived, every error is: libraries turn the exception of a handler into one of their own (DuckDB a
    KeyboardInterrupt into "RuntimeError: Query interrupted").

    Example:
        >>> is_stop(KeyboardInterrupt()), is_stop(SystemExit(0))
        (True, False)
    """
    return _asked is not None or isinstance(error, KeyboardInterrupt | Terminated)


def stop_if_asked() -> None:
    """Raise what a signal has raised before in this `stoppable` block, and somebody's code has swallowed."""
    if _asked is not None:
        raise _asked


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Have SIGTERM raise `Terminated` in the block, and note which signals ask to stop.

    A handler that the program has set is called all the same, and decides: what it raises is what ends the block. An
    error that a signal became on its way is turned back into what the handler raised. Outside of the main thread, where
    Python delivers no signals, nothing is changed.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread() or isinstance(_handler(signal.SIGTERM), _Noting):
        yield
        return
    before = {number: _handler(number) for number in _SIGNALS}
    for number, handler in before.items():
        if callable(handler) or (number is signal.SIGTERM and handler is signal.SIG_DFL):
            signal.signal(number, _Noting(handler if callable(handler) else _terminate))
    try:
        yield
    except BaseException as error:
        if _asked is None or error is _asked:
            raise
        raise _asked from error
    finally:
        for number, handler in before.items():
            if isinstance(_handler(number), _Noting):
                signal.signal(number, handler)
        _asked = None


class _Noting:
    """A handler that notes what the one before it raises."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]):
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        global _asked
        if number == signal.SIGTERM and _asked is not None:
            return  # a second one must not interrupt the giving back
        try:
            self._handler(number, frame)
        except BaseException as error:
            _asked = error
            raise


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _handler(number: int) -> Any:
    return signal.getsignal(number)
