"""The one place where the store asks what time it is, so that a test can move the clock."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """The caller's clock: UTC without a zone, as the database's TIMESTAMP columns hold it."""
    return datetime.now(UTC).replace(tzinfo=None)
