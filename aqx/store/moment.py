"""`Moment`: what time it is on the clocks by which claims are timed. No wall clock has a say in whether one has lapsed.

Each machine has a steady clock (`aqx.store.clock`), and a claim lapses by the one of the machine that made or renewed
it last. Whoever is on that machine reads it. All others go by what they have seen pass. Every claim and every renewal
writes down what its clock shows, as *reached*. An observer that has first seen a value of it at S, by its own clock,
knows at T that the other clock shows at least

    reached + (T - S),

as long as `reached` has not changed: it was that late when it was written, which was before S. Thus

- a claim that is renewed in time is never taken for lapsed, whatever any wall clock does: the bound is never ahead of
  the clock itself while that runs, and when it stops (a machine that is paused) the next renewal there changes
  `reached`, and the bound starts anew from it;
- a claim of a machine that is gone lapses: nobody changes `reached` any more, and the bound grows as time passes for an
  observer, at the latest one lease after the first of them has looked.

What was seen is stored, so that processes of a moment (`aqx claim`) and machines that were restarted since go on from
what others have seen: another observer's sighting is worth as much, up to what that one's clock has reached.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from aqx.store import clock
from aqx.store.driver import duckdb

_SKEW = timedelta(minutes=1)  # clocks that differ by more are worth a word
_told: set[str] = set()
_log = logging.getLogger("aqx")


class Moment:
    """The clocks of a database, as one transaction sees them.

    Attributes:
        clock: the name of this machine's.
        now: what it shows.

    Args:
        con: the transaction's connection.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection):
        self._con = con
        self.clock: str = clock.name()
        known = con.execute("SELECT epoch FROM clocks WHERE clock = ?", [self.clock]).fetchall()
        self._is_known = bool(known)
        self.now: datetime = clock.shown(known[0][0]) if known else clock.now()
        self._times: dict[str | None, datetime] = {None: self.now, self.clock: self.now}
        self._seen: dict[str, tuple[datetime, datetime]] = {}  # what is to be written down: reached, and the bound

    def time_on(self, other: str | None) -> datetime:
        """Return what a clock shows, or shows at least; of one that is not known (None), it is ours."""
        if other not in self._times:
            self._times[other] = self._bound(str(other))
        return self._times[other]

    def has_lapsed(self, expires_at: datetime | None, by: str | None) -> bool:
        """Return whether a time on a clock has passed for sure."""
        return expires_at is not None and expires_at < self.time_on(by)

    def _bound(self, other: str) -> datetime:
        found = self._con.execute("SELECT reached FROM clocks WHERE clock = ?", [other]).fetchall()
        if not found:
            return self.now
        ((reached,),) = found
        bounds, is_new = [reached], True
        for observer, seen_at, at_least, until in self._con.execute(
            "SELECT observer, seen_at, at_least, observing.reached FROM sightings "
            "JOIN clocks AS observing ON observing.clock = observer "
            "WHERE sightings.clock = ? AND sightings.reached = ?",
            [other, reached],
        ).fetchall():
            is_new = is_new and observer != self.clock
            bounds.append(at_least + ((self.now if observer == self.clock else until) - seen_at))
        if is_new:
            self._seen[other] = reached, max(bounds)
        return max(bounds)

    @property
    def is_news(self) -> bool:
        """Whether something was seen that nobody on this machine has seen before: write it down."""
        return bool(self._seen)

    def write_down(self) -> None:
        """Store what this machine's clock shows, and what was seen of others, inside the caller's transaction."""
        if self._is_known:
            self._con.execute("UPDATE clocks SET reached = ? WHERE clock = ?", [self.now, self.clock])
        else:
            self._con.execute("INSERT INTO clocks VALUES (?, ?, ?)", [self.clock, clock.begin(), self.now])
            self._is_known = True
        for other, (reached, at_least) in self._seen.items():
            before = self._con.execute(
                "DELETE FROM sightings WHERE observer = ? AND clock = ? RETURNING seen_at", [self.clock, other]
            ).fetchall()
            self._con.execute(
                "INSERT INTO sightings VALUES (?, ?, ?, ?, ?, ?)",
                [self.clock, other, reached, self.now, at_least, self._ahead(reached, before)],
            )
        if self._seen or self.clock not in _told:
            self._tell()
        self._seen.clear()

    def _tell(self) -> None:
        for line in self.skews():
            if line not in _told:
                _log.warning("aqx: %s", line)
                _told.add(line)
        _told.add(self.clock)

    def _ahead(self, reached: datetime, before: list[tuple[datetime]]) -> float:
        """By how many seconds a clock is ahead of ours, at least; negative where it is behind.

        It showed `reached` before now, and after the time at which something else was seen of it.
        """
        if reached > self.now:
            return (reached - self.now).total_seconds()
        if before and reached < before[0][0]:
            return (reached - before[0][0]).total_seconds()
        return 0.0

    def skews(self) -> list[str]:
        """Return which clocks differ from this process's by more than a minute, a line each."""
        return [
            f"{whose} is {abs(round(seconds / 60)):,} min {'ahead of' if seconds > 0 else 'behind'} this process's: "
            "times are shown as each has them, and no claim depends on that"
            for whose, seconds in self._differences()
            if abs(seconds) > _SKEW.total_seconds()
        ]

    def _differences(self) -> Iterator[tuple[str, float]]:
        yield "the clock by which this machine's times are stored", (self.now - clock.now()).total_seconds()
        for other, ahead in self._con.execute(
            "SELECT clock, ahead FROM sightings WHERE observer = ? ORDER BY clock", [self.clock]
        ).fetchall():
            host = other.partition("@")[2].rpartition("/")[0]
            yield f"the clock of {host or 'another machine'}", ahead
