"""All candidates: what the surrogate sees of them, what became of them, and what it expects of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from aqx import candidates as candidate_room
from aqx import surrogate
from aqx.report.calibration import Calibration, cross_validate
from aqx.search import Results
from aqx.store import functions
from aqx.store.trial_rows import ENDED


@dataclass(frozen=True, eq=False)
class Landscape:
    """C candidates, in the order of their names, and the T trials of the search on them.

    Attributes:
        names: the simplest name of each candidate's class [C].
        coordinates: what the surrogate sees of their outputs [C, K].
        predicted: the surrogate's mean of the result of each; nan where it cannot tell [C].
        rows: of each trial of the search; -1 for a function that is no candidate [T].
        calibration: whether predictions come true; None with too few results.
    """

    names: list[str]
    coordinates: Float32[np.ndarray, "C K"]
    predicted: Float[np.ndarray, " C"]
    rows: Int[np.ndarray, " T"]
    calibration: Calibration | None


def survey(results: Results) -> Landscape:
    """Predict the result of every candidate by the results of the others; stores nothing."""
    preset = surrogate.as_preset(surrogate.DEFAULT)
    table = candidate_room.load(results.db, results.task.task_id, preset, 0, keep=False)
    searched = results.searched
    rows = table.rows_of(trial.class_id or "0" * 32 for trial in searched)
    ended = np.array([trial.status in ENDED for trial in searched], bool) & (rows >= 0)
    values = np.array([np.nan if t.objective is None else t.objective for t in searched], float)
    names = functions.class_names(results.db, table.class_ids(np.arange(len(table))))
    order = np.argsort(np.array(names, np.str_)) if names else np.empty(0, np.int64)
    coordinates = table.coordinates[order]
    rows = np.where(rows >= 0, np.argsort(order)[rows], -1) if len(table) else rows
    mean, _ = surrogate.predict(coordinates, rows[ended], results.sign * values[ended], np.arange(len(table)))
    return Landscape(
        [names[i] for i in order],
        coordinates[:, : preset.outputs_alone],
        results.sign * mean,
        rows,
        cross_validate(coordinates, rows[ended], values[ended], results.sign),
    )
