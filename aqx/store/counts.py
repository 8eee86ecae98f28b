"""How much a database knows of candidates: by it whoever read them sees whether that is still current."""

from __future__ import annotations

from typing import NamedTuple

from aqx.store.driver import duckdb


class FeatureCounts(NamedTuple):
    """How many features a database has for a task.

    Of one subject none is ever removed or changed, so what depends on features alone stays true as long as these do.

    Attributes:
        classes: all of them.
        spectra: valid ones.
        invalid: classes whose spectrum or short runs are invalid.
        subject: what the spectra are of; 0 where that is not known.
        runs: classes with valid short runs.
    """

    classes: int
    spectra: int
    invalid: int = 0
    subject: int = 0
    runs: int = 0


def count_features(con: duckdb.DuckDBPyConnection, task_id: int) -> FeatureCounts:
    """Count features, inside the caller's transaction."""
    (counts,) = con.execute(
        "SELECT (SELECT count(*) FROM class_info), count(*) FILTER (status = 'valid'), "
        "count(*) FILTER (status <> 'valid'), "
        "(SELECT coalesce(max(subject_id), 0) FROM subjects WHERE task_id = $task AND current) "
        "FROM spectra WHERE task_id = $task",
        {"task": task_id},
    ).fetchall()
    ((runs, broken),) = con.execute(
        "SELECT count(*) FILTER (status = 'valid'), count(*) FILTER (status <> 'valid') FROM runs WHERE task_id = ?",
        [task_id],
    ).fetchall()
    classes, spectra, invalid, subject = counts
    return FeatureCounts(classes, spectra, invalid + broken, subject, runs)
