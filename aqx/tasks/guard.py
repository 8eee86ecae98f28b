"""`guard`: whatever a user's function raises becomes one line that names it, and the place in the user's file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aqx.errors import TaskError, UnsupportedError, one_line
from aqx.stopping import is_stop

_OURS = str(Path(__file__).parents[1]) + os.sep


def guard(what: str, call: Callable[[], Any], hint: str = "") -> Any:
    """Return what the user's code returns; whatever it raises becomes one line that names the function.

    Args:
        what: the name of the function.
        call: calls it.
        hint: what to do about it, added to the line.

    Raises:
        TaskError: the code raised; the line says what, and where in the user's file.
    """
    try:
        return call()
    except (TaskError, UnsupportedError):
        raise
    except BaseException as error:  # `sys.exit` too
        if is_stop(error):
            raise
        raise TaskError(f"{what} raised {one_line(error)}{_place(error)}{hint}") from error


def _place(error: BaseException) -> str:
    """Where in the user's own file: the innermost frame that is neither in an installed package nor in aqx."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if "site-packages" not in path and not path.startswith(("<", _OURS)):
            place = f" ({path}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place
