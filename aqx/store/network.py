"""Recognise a network file system, on which several machines must not share a database."""

from __future__ import annotations

import functools
import logging
import os

_NETWORK = {
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.ceph",
    "fuse.cvmfs2",
    "fuse.gcsfuse",
    "fuse.glusterfs",
    "fuse.juicefs",
    "fuse.s3fs",
    "fuse.sshfs",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
}
_log = logging.getLogger("aqx")


def network_file_system(path: str, mounts: str = "/proc/self/mounts") -> str | None:
    """Return the kind of network file system that a file lies on, or None: a local one, or it cannot be known here.

    Args:
        path: an absolute path, symbolic links resolved.
        mounts: the table of mounts, as Linux writes it.
    """
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as table:
            rows = [line.split(" ") for line in table]
    except OSError:
        return None
    found, kind = "", ""
    for _, point, this, *_ in (row for row in rows if len(row) > 3):
        point = _unescaped(point)
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):  # a later mount hides an earlier one
            found, kind = point, this
    return kind if kind in _NETWORK else None


@functools.cache
def warn_of_network(path: str) -> None:
    """Warn, once per file and process, where a database lies on a network file system."""
    if kind := network_file_system(path):
        _log.warning(
            "aqx: %s lies on a network file system (%s), where locks may not hold between machines; let one machine "
            "alone open it (study.search(executor=…) carries trainings to others), or move it to a local disk, e.g. %s",
            path,
            kind,
            os.path.join(os.environ.get("TMPDIR", "/tmp"), os.path.basename(path)),
        )


def _unescaped(point: str) -> str:
    """A mount point as it is: in the table blanks, tabs, line ends and backslashes are written in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
