"""A file that aqx writes for the user is there in whole or as it was, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from aqx.benchmark.table import ResultTable, save_table
from aqx.errors import StoreError
from aqx.report.panels import save
from aqx.writing import check_place, replacing

TABLE = ResultTable(
    ("relu(x)",) * 9999, np.arange(9999), {"loss": np.random.default_rng(0).random(9999)}, (None,) * 9999
)


def _text(path: Path) -> None:
    with replacing(path) as draft:
        draft.write_text("new" * 9999)


def _figure(path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    save(figure, path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "any.txt": _text,
    "table.csv": lambda path: save_table(path, TABLE),
    "table.parquet": lambda path: save_table(path, TABLE),
    "figure.png": _figure,
    "figure.pdf": _figure,
}
each_writer = pytest.mark.parametrize("name", WRITERS)


@contextlib.contextmanager
def no_room(size: int = 4096) -> Iterator[None]:
    """No file grows beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@each_writer
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(b"old")
    with no_room(), pytest.raises(StoreError, match="cannot be written: File too large") as error:
        WRITERS[name](path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [name]
    WRITERS[name](path)
    assert path.stat().st_size > 4096 and os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("argument", ["path", "table"])
def test_where_nothing_can_be_written_is_named(tmp_path: Path, argument: str):
    for path in (tmp_path, tmp_path / "no" / "file", "null\0byte", "half\ud800", "/proc/version_of_mine"):
        with pytest.raises(StoreError, match=f"^{argument}=.* cannot be ") as error, replacing(path, argument):
            pass
        assert "\n" not in str(error.value)
        with pytest.raises(StoreError, match=f"^{argument}=.* cannot be "):
            check_place(path, argument)
    assert not os.listdir(tmp_path)


def test_a_place_is_looked_at_without_a_trace(tmp_path: Path):
    (tmp_path / "old").write_text("old")
    for name in ("new", "old"):
        check_place(tmp_path / name)
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "old"


KILLED = """
import os, signal, sys
from aqx.writing import replacing
with replacing(sys.argv[1]) as draft:
    draft.write_text("half of it")
    open(f"{draft}.wal", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_old_file_and_the_next_removes_its_draft(tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, path]).returncode == -signal.SIGKILL
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 3
    with replacing(tmp_path / "other.html") as draft:
        draft.write_text("new")
    assert sorted(os.listdir(tmp_path)) == ["other.html", "report.html"]


def test_drafts_of_the_living_and_files_of_others_stay(tmp_path: Path):
    others = [".aqx-notes.tmp", ".report.html.x", "aqx-0123456789abcdef.tmp", ".aqx-0123456789abcdef.html"]
    for name in others:
        (tmp_path / name).touch()
    with replacing(tmp_path / "outer") as outer:
        outer.write_text("outer")
        with replacing(tmp_path / "inner") as inner:
            inner.write_text("inner")
        assert outer.exists()
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "inner", "outer"])


def test_writers_at_the_same_time_do_not_take_each_others_drafts(tmp_path: Path):
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(200):
                with replacing(tmp_path / f"file{number % 2}") as draft:
                    draft.write_text(f"{number}" * 100)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(os.listdir(tmp_path)) == ["file0", "file1"]
    assert all(len(set((tmp_path / name).read_text())) == 1 for name in os.listdir(tmp_path))


def test_permissions_and_links_stay(tmp_path: Path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    umask = os.umask(0o027)
    try:
        for name in ("link", "new"):
            with replacing(tmp_path / name) as draft:
                draft.write_text("new")
    finally:
        os.umask(umask)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_what_is_no_file_is_written_itself(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = threading.Thread(target=lambda: got.append(pipe.read_text()))
    got: list[str] = []
    read.start()
    with replacing(pipe) as draft:
        draft.write_text("through")
    read.join()
    assert got == ["through"] and pipe.is_fifo()
    with pytest.raises(StoreError, match="No space left"), replacing("/dev/full") as draft:
        draft.write_text("nowhere")
