"""Text as bytes for the language models: any UTF-8 file or folder of files, or the source of Python's own library."""

from __future__ import annotations

import os
import platform
import sysconfig
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from aqx.errors import TaskError

STANDARD_LIBRARY_BYTES = 2_000_000  # more of it trains a small model no better, and takes time to read
_PIECE = 1 << 14  # bytes that stay together; every tenth piece validates, every tenth tests


class Corpus(NamedTuple):
    """Training, validation and test bytes; a pytree, so that it travels through `jax.jit`."""

    train: UInt8[np.ndarray, " N"]
    val: UInt8[np.ndarray, " V"]
    test: UInt8[np.ndarray, " U"]


def library_version() -> str:
    """Return the version of Python, by which its library is known."""
    return platform.python_version()


@cache
def read_corpus(path: str | None, least: int) -> Corpus:
    """Read text and divide it: of ten pieces of 16 KiB (or a twentieth) one validates and one tests.

    Args:
        path: a file, a folder whose files are read in the order of their paths, or None for the standard library.
        least: bytes that each part needs.

    Raises:
        TaskError: there is no such file, it is not UTF-8, or too short.
    """
    text = _standard_library() if path is None else _read(Path(path).expanduser())
    size = max(1, min(_PIECE, -(-len(text) // 20)))
    everything = np.frombuffer(text, np.uint8)
    kind = np.arange(len(text)) // size % 10
    parts = Corpus(everything[kind < 8], everything[kind == 8], everything[kind == 9])
    if min(map(len, parts)) < least:
        raise TaskError(
            f"path={path!r} has {len(text):,} bytes of text, too few for a context: parts for validation and test need "
            f"{least:,} each, a tenth of the whole; give a longer text, or a smaller context"
        )
    return parts


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file() and not _is_hidden(each, path))
            texts = [text for file in files if _is_text(text := file.read_bytes())]
            if not texts:
                raise TaskError(f"path={str(path)!r} is a folder without a UTF-8 file; give one with text")
            return b"\n".join(texts)
        text = path.read_bytes()
    except OSError as error:
        raise TaskError(
            f"path={str(path)!r} cannot be read: {error.strerror or error}; give a file or folder"
        ) from error
    if not _is_text(text):
        raise TaskError(f"path={str(path)!r} is not UTF-8 text; give a text file, or a folder of some")
    return text


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _standard_library() -> bytes:
    """The modules at the top of Python's library, in the order of their names, as far as they are read."""
    folder = sysconfig.get_paths()["stdlib"]
    texts, size = [], 0
    for name in sorted(name for name in os.listdir(folder) if name.endswith(".py")):
        text = Path(folder, name).read_bytes()
        if size < STANDARD_LIBRARY_BYTES and _is_text(text):
            texts.append(text)
            size += len(text)
    if not texts:
        raise TaskError(
            f"{folder} holds no source of Python's library; set AQX_TEXT to a text file, or a folder of some"
        )
    return b"\n".join(texts)[:STANDARD_LIBRARY_BYTES]
