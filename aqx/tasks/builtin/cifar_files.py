"""CIFAR-10 and CIFAR-100 as published: python and binary archives, packed or unpacked, and nothing trusted.

Source: Krizhevsky, A. (2009). Learning Multiple Layers of Features from Tiny Images. Technical report, University of
Toronto; the four archives of its web page, and the formats described there.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from aqx.errors import InputError, TaskError, one_line
from aqx.tasks.builtin.cifar_pickle import read_batch

VARIABLE = "AQX_CIFAR"
PIXELS = 3 * 32 * 32
TRAIN, TEST = {10: [f"data_batch_{i}" for i in range(1, 6)], 100: ["train"]}, {10: "test_batch", 100: "test"}
# Images in each file, by classes: (training, test).
ROWS = {10: (10_000, 10_000), 100: (50_000, 10_000)}
LARGEST = 2**28  # bytes of one file; the largest published one has 156 million


class Images(NamedTuple):
    """Images and classes of the 50,000 training and the 10,000 test rows."""

    x: UInt8[np.ndarray, "N 32 32 3"]
    y: Int32[np.ndarray, " N"]
    x_test: UInt8[np.ndarray, "W 32 32 3"]
    y_test: Int32[np.ndarray, " W"]


def load_cifar(folder: str | os.PathLike[str] | None = None, classes: int = 10) -> Images:
    """Read CIFAR-10 or CIFAR-100, once per process.

    Args:
        folder: where the published archives lie (cifar-10-python.tar.gz, cifar-10-binary.tar.gz, cifar-100-…), or their
            unpacked folders; default the environment variable AQX_CIFAR.
        classes: 10 or 100; of CIFAR-100 the fine classes.

    Returns:
        Images as bytes [N, 32, 32, 3], channels red, green and blue, and classes from 0. They cannot be written to.

    Raises:
        TaskError: there are no such data, or they are not whole, or not what was published.
        InputError: `classes` is neither.
    """
    return _read_once(find_cifar(folder, classes))


@dataclass(frozen=True)
class Source:
    """An archive, or the folder that comes out of it, and its format."""

    path: Path
    inside: str
    classes: int
    binary: bool


def find_cifar(folder: str | os.PathLike[str] | None, classes: int) -> Source:
    """Return where the data are, without reading them; arguments and errors are those of `load_cifar`."""
    if classes not in ROWS:
        raise InputError(f"classes={classes!r} is not a CIFAR; give 10 or 100")
    formats = {
        f"cifar-{classes}-python.tar.gz": ("cifar-10-batches-py" if classes == 10 else "cifar-100-python", False),
        f"cifar-{classes}-binary.tar.gz": ("cifar-10-batches-bin" if classes == 10 else "cifar-100-binary", True),
    }
    get = f"get {' or '.join(formats)} from the CIFAR page of the University of Toronto"
    named = folder if folder is not None else os.environ.get(VARIABLE)
    if not named:
        raise TaskError(
            f"CIFAR-{classes} does not come with aqx: {get}, and name its folder in the environment variable {VARIABLE}"
        )
    place = Path(named).expanduser().absolute()
    # Unpacked first, as reading an archive takes seconds in every process.
    for inside, binary in formats.values():
        for path in (place / inside, place):
            if path.name == inside and path.is_dir():
                return Source(path, inside, classes, binary)
    for archive, (inside, binary) in formats.items():
        if (place / archive).is_file():
            return Source(place / archive, inside, classes, binary)
    what = f"folder {place} holds no CIFAR-{classes}" if place.is_dir() else f"CIFAR folder {place} does not exist"
    raise TaskError(f"{what}: {get} into it; unpacked as {' or '.join(i for i, _ in formats.values())} it will do too")


@cache
def _read_once(source: Source) -> Images:
    return read_cifar(source)


def read_cifar(source: Source) -> Images:
    """Read the data without keeping them; returns and raises what `load_cifar` does."""
    classes = source.classes
    suffix = ".bin" if source.binary else ""
    names = [f"{name}{suffix}" for name in (*TRAIN[classes], TEST[classes])]
    files = _unpacked(source, names) if source.path.is_dir() else _packed(source, names)
    decode = _decode_binary if source.binary else _decode_pickle
    parts = []
    for name in names:
        rows = ROWS[classes][name == names[-1]]
        pixels, labels = decode(files[name], classes, rows, f"{name} in {source.path}")
        parts.append((pixels.reshape(rows, 3, 32, 32).transpose(0, 2, 3, 1), labels))
    train, (x_test, y_test) = parts[:-1], parts[-1]
    x, y = (np.concatenate(part) for part in zip(*train, strict=True))
    arrays = [np.ascontiguousarray(array) for array in (x, y, x_test, y_test)]
    for array in arrays:
        array.setflags(write=False)
    return Images(*arrays)


def _unpacked(source: Source, names: Iterable[str]) -> dict[str, bytes]:
    files = {}
    for name in names:
        try:
            files[name] = (source.path / name).read_bytes()
        except FileNotFoundError:
            raise TaskError(f"{source.path} lacks {name}; unpack the archive again") from None
        except OSError as error:
            raise TaskError(f"{source.path / name} cannot be read: {error.strerror}") from error
    return files


def _packed(source: Source, names: list[str]) -> dict[str, bytes]:
    """Contents of the files so called; nothing is unpacked to a disk, and links are not followed."""
    wanted = {f"{source.inside}/{name}": name for name in names}
    files = {}
    try:
        with tarfile.open(source.path, "r:gz") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                if name is None or not member.isreg():
                    continue
                if member.size > LARGEST:
                    raise TaskError(f"{name} in {source.path} has {member.size:,} bytes, which no CIFAR file has")
                content = archive.extractfile(member)
                files[name] = content.read() if content is not None else b""
    except TaskError:
        raise
    except Exception as error:  # tarfile, gzip and zlib each have their own for a damaged file
        raise TaskError(f"{source.path} is damaged or not whole ({one_line(error)}); download it again") from error
    if missing := [name for name in names if name not in files]:
        raise TaskError(f"{source.path} lacks {source.inside}/{missing[0]}; download it again")
    return files


def _decode_binary(
    content: bytes, classes: int, rows: int, what: str
) -> tuple[UInt8[np.ndarray, "N 3072"], Int32[np.ndarray, " N"]]:
    """Records of one byte for the class (of CIFAR-100 two, coarse and fine) and the pixels."""
    before = 1 if classes == 10 else 2
    if len(content) != rows * (before + PIXELS):
        raise TaskError(f"{what} has {len(content):,} bytes, not {rows * (before + PIXELS):,}; download it again")
    records = np.frombuffer(content, np.uint8).reshape(rows, before + PIXELS)
    return records[:, before:], _labels(records[:, before - 1], classes, what)


def _decode_pickle(
    content: bytes, classes: int, rows: int, what: str
) -> tuple[UInt8[np.ndarray, "N 3072"], Int32[np.ndarray, " N"]]:
    """A dict of Python 2 with bytes as keys: an array `data` [N, 3072] and a list `labels` or `fine_labels`."""
    try:
        batch = read_batch(content)
    except Exception as error:  # a damaged pickle can raise anything
        raise TaskError(f"{what} is no CIFAR batch ({one_line(error)}); download it again") from error
    name = "labels" if classes == 10 else "fine_labels"
    pixels, labels = batch.get("data"), batch.get(name)
    if not isinstance(pixels, np.ndarray) or pixels.shape != (rows, PIXELS):
        got = f"of shape {pixels.shape}" if isinstance(pixels, np.ndarray) else f"a {type(pixels).__name__}"
        raise TaskError(f"{what}: data must be bytes of shape ({rows}, {PIXELS}) and are {got}; download it again")
    if not isinstance(labels, list) or len(labels) != rows or not all(type(label) is int for label in labels):
        raise TaskError(f"{what}: {name} must be a list of {rows} integers; download it again")
    if not 0 <= min(labels) <= max(labels) < classes:
        raise TaskError(f"{what}: {name} has a class outside 0 … {classes - 1}; download it again")
    return pixels, np.array(labels, np.int32)


def _labels(labels: np.ndarray, classes: int, what: str) -> Int32[np.ndarray, " N"]:
    if labels.max() >= classes:
        raise TaskError(f"{what} has class {labels.max()} outside 0 … {classes - 1}; is it CIFAR-{classes}?")
    return labels.astype(np.int32)
