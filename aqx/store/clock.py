"""What time it is: in one process, and on the steady clock that all processes of a machine share.

Wall clocks jump and differ from host to host, so no claim is timed by one. A machine counts the seconds that it has
been running (CLOCK_MONOTONIC), the same for all of its processes, which nobody can set. Shown as a date, that count is
what a database times claims by; see `aqx.store.moment`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

_RUNNING = time.CLOCK_MONOTONIC
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", _RUNNING)  # counts on while the machine sleeps (Linux)

_anchor: tuple[str, datetime] | None = None  # the clock, and when it began by this process
_offsets: dict[datetime, timedelta] = {}  # from `now` to what a clock shows, by when that began


def now() -> datetime:
    """This process's clock: UTC without a zone, as the wall clock was when first asked, and from then on steady."""
    global _anchor
    here = name()
    if _anchor is None or _anchor[0] != here:
        _anchor = here, wall() - steady()
    return _anchor[1] + steady()


def wall() -> datetime:
    """The system's clock, as somebody has set it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def steady() -> timedelta:
    """How long this machine has been running, the time that it slept left out."""
    return timedelta(microseconds=time.clock_gettime_ns(_RUNNING) // 1000)


def name() -> str:
    """The name of the steady clock of this machine: another one after a restart, and after each sleep.

    What others have been at before a sleep of the machine is judged as what happens on another one is: the time was
    theirs as little as ours.
    """
    slept = time.clock_gettime_ns(_SINCE_BOOT) - time.clock_gettime_ns(_RUNNING)
    return f"{machine()}/{round(slept / 1e9)}"


@functools.cache
def machine() -> str:
    """The name of this machine since it was started; of this process alone where the system does not tell (macOS)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(uuid.uuid4())
    with contextlib.suppress(OSError):  # in a namespace of time the count is another one
        boot += os.readlink("/proc/self/ns/time").removeprefix("time:")
    return f"{boot}@{os.uname().nodename}"  # copies of a virtual machine have one boot


def begin() -> datetime:
    """When the steady clock of this machine began, for who is the first to ask."""
    epoch = now() - steady()
    _offsets[epoch] = timedelta(0)
    return epoch


def shown(epoch: datetime) -> datetime:
    """What the steady clock of this machine shows, if it began at `epoch`.

    The difference to `now` is taken once, as both are steady, so that a test may move that.
    """
    if epoch not in _offsets:
        _offsets[epoch] = epoch + steady() - now()
    return now() + _offsets[epoch]
