"""How much a database knows of candidates: by it whoever read them sees whether that is still current."""

from __future__ import annotations

from typing import NamedTuple

import duckdb


class FeatureCounts(NamedTuple):
    """How many features a database has for a task.

    None is ever removed or changed, so what depends on features alone stays true as long as their numbers do.

    Attributes:
        classes: all of them.
        spectra: valid ones.
        invalid: classes whose spectrum is invalid.
    """

    classes: int
    spectra: int
    invalid: int = 0


def count_features(con: duckdb.DuckDBPyConnection, task_id: int) -> FeatureCounts:
    """Count features, inside the caller's transaction."""
    (counts,) = con.execute(
        "SELECT (SELECT count(*) FROM class_info), count(*) FILTER (status = 'valid'), "
        "count(*) FILTER (status <> 'valid') FROM spectra WHERE task_id = ?",
        [task_id],
    ).fetchall()
    return FeatureCounts(*counts)
