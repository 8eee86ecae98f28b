"""Fashion-MNIST as published: four compressed files of bytes, of which nothing is trusted."""

from __future__ import annotations

import gzip
import os
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from aqx.errors import TaskError

VARIABLE = "AQX_FASHION"
PACKAGE, PACKAGE_FOLDER = "dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")  # of Debian
ROWS = {"train": 60_000, "t10k": 10_000}
FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ROWS for kind in ("images-idx3", "labels-idx1"))
SIDE, CLASSES = 28, 10

Images = tuple[
    UInt8[np.ndarray, "N 28 28 1"], Int32[np.ndarray, " N"], UInt8[np.ndarray, "W 28 28 1"], Int32[np.ndarray, " W"]
]


def find_fashion(folder: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the four files, without reading them.

    Args:
        folder: where they lie; default AQX_FASHION, or where Debian's package puts them.

    Raises:
        TaskError: they do not lie there.
    """
    named = folder if folder is not None else os.environ.get(VARIABLE)
    if not named and all((PACKAGE_FOLDER / name).is_file() for name in FILES):
        return PACKAGE_FOLDER
    get = f"get {', '.join(FILES)} from the page of Fashion-MNIST"
    if not named:
        raise TaskError(
            f"Fashion-MNIST does not come with aqx: {get}, and name their folder in the environment variable "
            f"{VARIABLE}, or install Debian's package {PACKAGE}"
        )
    place = Path(named).expanduser().absolute()
    missing = [name for name in FILES if not (place / name).is_file()]
    if missing:
        what = f"folder {place} lacks {missing[0]}" if place.is_dir() else f"folder {place} does not exist"
        raise TaskError(f"{what}; {get}")
    return place


@cache
def read_fashion(folder: Path) -> Images:
    """Return images [N, 28, 28, 1] as bytes and classes from 0, of the training and of the test rows.

    Raises:
        TaskError: a file is damaged, or not what was published.
    """
    found: list[np.ndarray] = []
    for part, rows in ROWS.items():
        images = _numbers(folder / f"{part}-images-idx3-ubyte.gz", (rows, SIDE, SIDE))
        classes = _numbers(folder / f"{part}-labels-idx1-ubyte.gz", (rows,))
        if classes.max() >= CLASSES:
            raise TaskError(f"{folder / f'{part}-labels-idx1-ubyte.gz'} has a class {classes.max()}; get it again")
        found += [images[..., None], classes.astype(np.int32)]
    for array in found:
        array.flags.writeable = False
    return tuple(found)  # type: ignore[return-value]


def _numbers(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """The bytes of an IDX file of a known shape: a head of big-endian integers, then the numbers."""
    head = np.array([0x800 + len(shape), *shape], ">i4").tobytes()
    size = len(head) + int(np.prod(shape))
    try:
        with gzip.open(path) as file:
            content = file.read(size + 1)  # no more than that, however far a hostile file unpacks
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path} cannot be read ({error}); get it again") from error
    if len(content) != size or not content.startswith(head):
        raise TaskError(f"{path} is not the published file of {shape[0]:,} rows; get it again")
    return np.frombuffer(content, np.uint8, offset=len(head)).reshape(shape).copy()
