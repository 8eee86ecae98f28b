"""Every error that aqx raises on purpose: one root, and kinds that are also the builtin a caller expects."""

from __future__ import annotations

import traceback

from aqx.stopping import is_stop

_TRACEBACK_LENGTH = 4000
_LINE_LENGTH = 1000  # a message may hold a whole array


class AqxError(Exception):
    """The root of all errors aqx raises on purpose; its message is written for the user."""


class InputError(AqxError, ValueError):
    """An argument has a value that aqx cannot use; the message names it, what arrived and what to do."""


class IndexOutOfRange(InputError, IndexError):
    """A space has no function at this index."""


class ParseError(InputError):
    """A function's name or a schema does not parse.

    Attributes:
        position: index of the offending character in the text, from 0.
    """

    def __init__(self, message: str, position: int = 0):
        super().__init__(message)
        self.position: int = position

    def __reduce__(self) -> tuple[type[ParseError], tuple[str, int]]:
        return type(self), (str(self), self.position)


class WrongInputsError(InputError, TypeError):
    """A function of two inputs was called with one, or the reverse."""


class UnsupportedError(AqxError, TypeError):
    """The request is meaningful, but this model, layer or object cannot serve it."""


class TaskError(InputError):
    """A task cannot be loaded, or does not keep its contract."""


class StoreError(AqxError, OSError):
    """The database, or another file, cannot be opened, read or written; what is stored stays as it was."""


class OutputError(StoreError, InputError):
    """A file for the user cannot be written: by its path, or because the disk is full."""


class Exhausted(AqxError, LookupError):
    """No candidate is left to suggest."""


def one_line(error: BaseException) -> str:
    r"""Return an exception as one line: its kind and the first line of its message, or why it has none.

    Example:
        >>> one_line(ValueError("3 rows\nbut 2 labels"))
        'ValueError: 3 rows'
    """
    kind = type(error).__name__
    try:
        lines = str(error).strip().splitlines()
    except BaseException as another:  # of whoever wrote `__str__`
        if is_stop(another):
            raise
        return f"{kind}, whose message cannot be had ({type(another).__name__})"
    return f"{kind}: {lines[0]}"[:_LINE_LENGTH] if lines else kind


def traceback_of(error: BaseException) -> str:
    """Return the end of an exception's traceback."""
    try:
        return "".join(traceback.format_exception(error))[-_TRACEBACK_LENGTH:]
    except BaseException as another:  # an exception may have any attributes
        if is_stop(another):
            raise
        return one_line(error)
