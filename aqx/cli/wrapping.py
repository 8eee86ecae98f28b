"""Lines as wide as the terminal: words stay whole, names of functions break after their commas, paths after slashes."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence

_PIPE = 200  # columns of a pipe or a file, which have no width to wrap at
_LEAST, _MOST = 12, 24  # columns that a column of broken words needs at least, at most
_GAP = 3  # columns between two of a table; one less are at its edges
_BREAKS = re.compile(r"(?<=[,(/])(?=.)")


def screen_width() -> int:
    """Return how many columns results have."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE


def longest_word(text: str) -> int:
    """Return the length of the longest word."""
    return max(map(len, text.split()), default=0)


def broken(text: str, width: int) -> str:
    """Break words that are longer than a width: after commas, opening brackets and slashes, else only if they must.

    Example:
        >>> broken("see mul(tanh(x),bessel_i1e(x))", 16).splitlines()
        ['see mul(tanh(x),', 'bessel_i1e(x))']
    """
    return " ".join(_broken_word(word, width) if len(word) > width else word for word in text.split(" "))


def _broken_word(word: str, width: int) -> str:
    lines = [""]
    for piece in _BREAKS.split(word):
        while len(piece) > width:
            lines.append(piece[:width])
            piece = piece[width:]
        if len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(filter(None, lines))


def fitted(
    columns: dict[str, list[str]], width: int, drop: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]] | None:
    """Fit the columns of a table, each a list of texts, into a width.

    Those of `drop` go, the first first, until all words have room; then the column with the longest words breaks them.

    Returns:
        The columns that are left, and which went; None where words would have to be broken elsewhere.
    """
    left, gone = dict(columns), list[str]()
    needed = _needed(left)
    for heading in drop:
        if sum(needed.values()) + _GAP * len(needed) <= width:
            break
        if left.pop(heading, None):
            gone.append(heading)
            needed = _needed(left)
    if sum(needed.values()) + _GAP * len(needed) <= width:
        return left, gone
    widest = max(needed, key=lambda name: needed[name])
    room = width - _GAP * len(needed) - sum(needed.values()) + needed[widest]
    pieces = max(len(piece) for text in left[widest] for word in text.split() for piece in _BREAKS.split(word))
    if room < max(_LEAST, min(pieces, _MOST)):
        return None
    left[widest] = [broken(text, room) for text in left[widest]]
    return left, gone


def _needed(columns: dict[str, list[str]]) -> dict[str, int]:
    return {name: max(map(longest_word, some)) for name, some in columns.items()}


def hanging(line: str, indent: int) -> str:
    """Wrap a line at the terminal's width, below the first line's text; a pipe gets it whole.

    Example:
        >>> hanging("  flags  finite, affine", 9)
        '  flags  finite, affine'
    """
    width = screen_width()
    if len(line) <= width or not sys.stdout.isatty():
        return line
    lines, rest = [line[:indent].rstrip()], line[indent:]
    filled = False  # whether the last line has text
    for word in broken(rest, width - indent).replace("\n", " \0").split(" "):
        glued, word = word.startswith("\0"), word.removeprefix("\0")
        if not word:
            continue
        if filled and (glued or len(lines[-1]) + 1 + len(word) > width):
            lines.append(" " * indent + word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if filled else f"{lines[-1]:<{indent}}{word}"
        filled = True
    return "\n".join(lines)
