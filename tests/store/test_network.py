"""A database on a network file system is recognised, and the user told what to do."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from aqx.store import Database, trouble
from aqx.store.trouble import network_file_system

MOUNTS = """\
overlay / overlay rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /net nfs4 rw,vers=4.2 0 0
/dev/sda1 /net/scratch ext4 rw 0 0
tank@1:/fs /data/my\\040files lustre rw 0 0
alice@host:/ /net/alice/far fuse.sshfs rw 0 0
tmpfs /data/my\\040files/tmp tmpfs rw 0 0
garbage
"""


@pytest.fixture
def mounts(tmp_path: Path) -> str:
    file = tmp_path / "mounts"
    file.write_text(MOUNTS)
    return str(file)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/local/a.duckdb", None),
        ("/net/a.duckdb", "nfs4"),
        ("/net/scratch/a.duckdb", None),
        ("/net/scratchy/a.duckdb", "nfs4"),
        ("/net/alice/far/a.duckdb", "fuse.sshfs"),
        ("/data/my files/a.duckdb", "lustre"),
        ("/data/my files/tmp/a.duckdb", None),
        ("/network/a.duckdb", None),
    ],
)
def test_the_mount_that_holds_the_file_decides(path: str, kind: str | None, mounts: str):
    assert network_file_system(path, mounts) == kind


def test_where_there_is_no_table_of_mounts_nothing_is_said(tmp_path: Path):
    assert network_file_system("/net/a.duckdb", str(tmp_path / "none")) is None


def test_opening_such_a_database_warns_once(
    db_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(trouble, "network_file_system", lambda path: "nfs4")
    trouble.warn_of_network.cache_clear()
    with caplog.at_level(logging.WARNING, "aqx"):
        for _ in range(3):
            Database(db_path, create=True)
    (message,) = caplog.messages
    assert f"{db_path} lies on a network file system (nfs4)" in message and "executor" in message
    trouble.warn_of_network.cache_clear()
