"""The published Act-Bench files: one JSON object, each of its members a function and its results; read as a stream."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from aqx.benchmark.table import ResultTable
from aqx.errors import InputError, StoreError

# What the files call a metric → its column.
METRICS = {
    "Train Accuracy": "train_acc",
    "Validation Accuracy": "val_acc",
    "Train Loss": "train_loss",
    "Validation Loss": "val_loss",
    "Test Accuracy": "test_acc",
    "Test Loss": "test_loss",
    "Runtime (s)": "runtime",
}
_EQUIVALENT = "Equivalent Activation Functions"
_CHUNK = 1 << 20  # bytes
# A member is decoded as a whole: this bounds the memory whatever the file holds. A published one, with the distribution
# of some 10,000 bins, has a few hundred kB.
_MOST = 32 << 20  # characters
_BEYOND_SPACE = re.compile(r"[^ \t\r\n]")
_TAIL = 32  # characters at the end in which an error may only mean that the rest of a token has not been read yet


@dataclass(frozen=True)
class ActBenchFile:
    """What an Act-Bench file holds.

    Attributes:
        table: a row per function, in the file's order.
        equivalents: how many other names the file lists as equal to these functions.
    """

    table: ResultTable
    equivalents: int


def read_act_bench(
    path: str | os.PathLike[str], progress: Callable[[int, int, str], None] | None = None
) -> ActBenchFile:
    r"""Read an Act-Bench file, one function in memory at a time.

    Of the numbers, `NaN`, `Infinity` and `-Infinity` stand for themselves, also in quotes; what is null, missing or no
    number is nan. Of a list its last number counts: the end of a history, or the last of several trainings. Where a
    function stands twice, the later one counts. Names that the file lists as equivalent are only counted: equal
    functions have one class in aqx, whatever their name.

    Args:
        path: the file.
        progress: called as progress(megabytes read, megabytes in all, note).

    Returns:
        The table, and what the file says besides.

    Raises:
        InputError: the file does not exist, or is no such file; the message says at which byte, after how many
            functions.
        StoreError: it cannot be read.

    Example:
        >>> import tempfile, pathlib
        >>> from aqx.benchmark import read_act_bench
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = pathlib.Path(folder.name, "act-bench.json")
        >>> _ = path.write_text('{"relu(x)": {"Validation Accuracy": 0.9, "Validation Loss": NaN}}')
        >>> table = read_act_bench(path).table
        >>> table.names, table.metrics["val_acc"].tolist(), table.metrics["val_loss"].tolist()
        (('relu(x)',), [0.9], [nan])
    """
    if not os.path.isfile(path):
        raise InputError(f"file={str(path)!r} does not exist, or is no file")
    row_of: dict[str, int] = {}
    columns = {column: array("d") for column in METRICS.values()}
    equivalents = array("q")
    seen = set()
    try:
        with open(path, "rb") as file:
            for name, member in _Members(file, str(path), progress):
                row = row_of.setdefault(name, len(row_of))
                if row == len(equivalents):
                    equivalents.append(0)
                    for values in columns.values():
                        values.append(math.nan)
                for key, column in METRICS.items():
                    columns[column][row] = _number(member.get(key))
                seen.update(METRICS.keys() & member.keys())
                equivalents[row] = _count(member.get(_EQUIVALENT))
    except OSError as error:
        raise StoreError(f"file={str(path)!r} cannot be read: {error.strerror or error}") from error
    if not seen:
        held = f"{len(row_of)} members, none with a number such as 'Validation Accuracy'" if row_of else "no functions"
        raise InputError(f"file={str(path)!r} is no Act-Bench file: it holds {held}")
    metrics = {METRICS[key]: np.array(columns[METRICS[key]]) for key in METRICS if key in seen}
    names = tuple(row_of)
    table = ResultTable(names, np.zeros(len(names), np.int64), metrics, (None,) * len(names))
    return ActBenchFile(table, sum(equivalents))


def _number(value: Any) -> float:
    while isinstance(value, list):
        value = value[-1] if value else None
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _count(equivalent: Any) -> int:
    """How many names there are in a list, an object, or a string."""
    return len(equivalent) if isinstance(equivalent, (list, dict)) else int(isinstance(equivalent, str))


class _Members:
    """The members of the one JSON object in a file, as (name, object); the file is decoded member by member."""

    def __init__(self, file: BinaryIO, path: str, progress: Callable[[int, int, str], None] | None):
        self.file, self.path, self.progress = file, path, progress
        self.total = os.fstat(file.fileno()).st_size
        self.utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        # Integers as floats: one of 5,000 digits is infinite then, and no error.
        self.json = json.JSONDecoder(parse_int=float, strict=False)
        self.buffer, self.at, self.ended = "", 0, False
        self.read = self.passed = self.functions = 0  # bytes read, bytes no longer in the buffer, members so far

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        self.expect("{", "is no JSON object")
        if self.peek() == "}":
            self.at += 1
        else:
            while True:
                name = self.value('"', "expected a function's name in quotes")
                self.expect(":", "expected ':' after the name")
                member = self.value("{", f"the results of {name[:60]!r} are no object")
                # Halves of surrogate pairs, which no file can hold, become question marks.
                yield name.encode("utf-8", "replace").decode(), member
                self.functions += 1
                if self.expect(",}", "expected ',' or '}' after a function") == "}":
                    break
        if self.peek():
            raise self.error("something follows the end of the object")

    def peek(self) -> str:
        """The next character that is no white space, at which the reader stands then; empty at the end of the file."""
        while not (following := _BEYOND_SPACE.search(self.buffer, self.at)):
            self.at = len(self.buffer)
            if not self.more():
                return ""
        self.at = following.start()
        return following[0]

    def expect(self, characters: str, reason: str) -> str:
        """Step over the next character, one of those expected."""
        found = self.peek()
        if not found or found not in characters:
            raise self.error(reason if found or self.read == 0 else "the file ends too early")
        self.at += 1
        return found

    def value(self, start: str, reason: str) -> Any:
        """Decode a string or an object, which tell themselves where they end."""
        if self.peek() != start:
            raise self.error(reason if self.peek() else "the file ends too early")
        while True:
            try:
                value, self.at = self.json.raw_decode(self.buffer, self.at)
                return value
            except json.JSONDecodeError as error:
                whole = error.pos < len(self.buffer) - _TAIL and not error.msg.startswith("Unterminated string")
                if whole or not self.more():
                    reason = "the file ends too early" if self.ended and not whole else f"broken JSON ({error.msg})"
                    raise self.error(reason, error.pos) from None
            except RecursionError:
                raise self.error("nested too deeply") from None

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        left = len(self.buffer) - self.at
        if left > _MOST:
            raise self.error(f"one function takes more than {_MOST >> 20} MB")
        if self.ended:
            return False
        # What is left over of a failed decoding is doubled, so that all attempts cost no more than twice the last one.
        data = self.file.read(max(_CHUNK, left))
        self.ended = not data
        try:
            text = self.utf8.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            raise InputError(
                f"file={self.path!r} is no Act-Bench file: not UTF-8 near byte {self.read + error.start:,}, after "
                f"{self.functions:,} functions"
            ) from None
        self.passed += len(self.buffer[: self.at].encode("utf-8", "surrogatepass"))
        self.buffer, self.at = self.buffer[self.at :] + text, 0
        self.read += len(data)
        if self.progress and data:
            done, total = (1 + (size >> 20) for size in (self.read, max(self.total, self.read)))
            self.progress(done, total, f"MB; {self.functions:,} functions")
        return not self.ended

    def error(self, reason: str, at: int | None = None) -> InputError:
        byte = self.passed + len(self.buffer[: self.at if at is None else at].encode("utf-8", "surrogatepass"))
        return InputError(
            f"file={self.path!r} is no Act-Bench file: {reason}, at byte {byte:,}, after {self.functions:,} functions"
        )
