"""What asks a program to stop, Ctrl-C and SIGTERM, told apart from all else that code may raise."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

TERMINATED = 128 + signal.SIGTERM
# Schedulers send the last ones ahead of time; who handles them may well raise an exception to get out.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_STORE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "store", "")
# What Python wraps around them makes a number of each handler, and takes 50 times as long.
_get, _set = inspect.unwrap(signal.getsignal), inspect.unwrap(signal.signal)


class Terminated(SystemExit):
    """SIGTERM has arrived; where nobody catches it, the program ends with 143."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


_asked: BaseException | None = None  # what the signal raised that has arrived in a `stoppable` block
_given_back: dict[object, Callable[[], object]] = {}  # see `when_let_go`


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


def asked() -> BaseException | None:
    """Return what a signal has raised in this `stoppable` block, or None."""
    return _asked


def stop_if_asked() -> None:
    """Raise what a signal has raised before in this `stoppable` block, and somebody's code has swallowed."""
    if _asked is not None:
        raise _asked


@contextlib.contextmanager
def when_let_go(give_back: Callable[[], object]) -> Iterator[None]:
    """Have `let_go` call a function while the block runs."""
    _given_back[key := object()] = give_back
    try:
        yield
    finally:
        del _given_back[key]


def let_go() -> None:
    """Give back all that is held, from any thread: for a program that is to end in the middle of something long."""
    for give_back in reversed(list(_given_back.values())):
        with contextlib.suppress(Exception):
            give_back()


@contextlib.contextmanager
def stoppable(once: bool = False) -> Iterator[None]:
    """Have SIGTERM raise `Terminated` in the block, and note which signals ask to stop.

    A handler that the program has set is called all the same, and decides: what it raises is what ends the block. An
    error that a signal became on its way is turned back into what the handler raised. Outside of the main thread, where
    Python delivers no signals, nothing is changed.

    Args:
        once: for who sends a signal again until it is `asked`: handlers are not called where their exception could tear
            something, and not after the first, not even for Ctrl-C: it must not interrupt the giving back.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread() or isinstance(_handler(signal.SIGTERM), _Noting):
        yield
        return
    before = {number: _handler(number) for number in _SIGNALS}
    for number, handler in before.items():
        if callable(handler) or (number is signal.SIGTERM and handler is signal.SIG_DFL):
            signal.signal(number, _Noting(handler if callable(handler) else _terminate, once))
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


class held(contextlib.AbstractContextManager[None]):
    """Put Ctrl-C and SIGTERM off until the block ends, or a `let_through` block inside: for what must not be torn.

    These are classes, as a signal can come between the lines of a generator, and then nobody ends it.
    """

    def __enter__(self) -> None:
        self._off = self._around = None
        if threading.current_thread() is not threading.main_thread():
            return
        if _off:
            self._around, self._passed, _off.passes = _off, _off.passes, False
        else:
            self._off = _PutOff()
            self._off.begin()

    def __exit__(self, *_: object) -> None:
        if self._off:
            self._off.end()
        elif self._around and self._passed:
            self._around.let_pass()


class let_through(contextlib.AbstractContextManager[None]):
    """Let a signal come that a `held` block around this one puts off; just one, so that there is time to tidy up."""

    def __enter__(self) -> None:
        self._around = _off if threading.current_thread() is threading.main_thread() else None
        if self._around:
            self._around.let_pass()

    def __exit__(self, *_: object) -> None:
        if self._around:
            self._around.passes = False


class _PutOff:
    """The handler of all signals while a `held` block runs; afterwards it calls the one that was there before."""

    def __init__(self) -> None:
        self.passes = False
        self._arrived: list[int] = []
        self._before = {number: handler for number in _SIGNALS if callable(handler := _get(number))}

    def begin(self) -> None:
        global _off
        for number in self._before:
            _set(number, self)
        _off = self

    def end(self) -> None:
        self._restore()
        self._deliver()

    def let_pass(self) -> None:
        self._deliver()
        self.passes = True

    def _deliver(self) -> None:
        """Call the handlers of what has arrived."""
        while self._arrived:
            # With the frame, as it would have come: in the store there may be a moment yet that must not be torn.
            self._forward(self._arrived.pop(0), inspect.currentframe())

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _off is not self:
            self._restore()
        elif not self.passes or (frame and frame.f_code.co_filename in _BOOKKEEPING):
            self._arrived.append(number)
            return
        self.passes, passed = False, self.passes
        self._forward(number, frame)
        self.passes = passed

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._before[signal.Signals(number)](number, frame)

    def _restore(self) -> None:
        global _off
        if _off is self:
            _off = None
        for number, handler in self._before.items():
            if _get(number) is self:
                _set(number, handler)


_off: _PutOff | None = None
# Where a signal would leave a context manager that has begun and is not ended.
_BOOKKEEPING = {__file__, contextlib.__file__, _STORE + "connection.py"}


class _Noting:
    """A handler that notes what the one before it raises."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any], once: bool):
        self._handler, self._once = handler, once

    def __call__(self, number: int, frame: FrameType | None) -> None:
        global _asked
        if _asked is not None and (self._once or number == signal.SIGTERM):
            return  # a second one must not interrupt the giving back
        if self._once and _is_delicate(frame):
            return
        try:
            self._handler(number, frame)
        except BaseException as error:
            _asked = error
            raise


def _is_delicate(frame: FrameType | None) -> bool:
    """Whether an exception that is raised here could become a crash, or leave something half done.

    Python's C++ libraries end the program where an import, a comparison or a hash that they call raises, and so does
    DuckDB a statement. Only the wait for the database's lock may be interrupted.
    """
    delicate = False
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith(_STORE):
            if file.endswith("lock.py") and name == "end":
                return False
            delicate = True
        delicate = delicate or name in ("__eq__", "__hash__", "__del__") or file == "<frozen importlib._bootstrap>"
        frame = frame.f_back
    return delicate


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _handler(number: int) -> Any:
    return signal.getsignal(number)
