"""Text of unknown origin, made fit to be shown: a stored name or reason is whatever somebody wrote."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    r"""Return text as one line that no terminal obeys.

    White space becomes blanks; control characters (escape sequences begin with one), marks that turn the direction of
    writing, and halves of surrogate pairs become `\N{REPLACEMENT CHARACTER}`.

    Example:
        >>> printable("loss\x1b[31m is\nnan")
        'loss�[31m is nan'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else " " if c in "\t\n\r\v\f" or unicodedata.category(c) == "Zs" else "�" for c in text
    )


def clipped(text: str, most: int) -> str:
    """Return text of at most so many characters; what is cut off leaves a `…`.

    Example:
        >>> clipped("out of memory", 7)
        'out of…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"
