"""All candidates: what the surrogate sees and expects of them, what became of them, and whether it was right."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, UInt64

from aqx import surrogate
from aqx.candidates import Candidates, of_database
from aqx.evaluation.class_ids import find_rows
from aqx.machine import cache_folder, version_of
from aqx.search import Ledger
from aqx.store import functions
from aqx.surrogate import PRESETS
from aqx.surrogate.embeddings import Progress
from aqx.surrogate.prediction import mean_by_row
from aqx.tasks.builtin.data import cached_arrays

FOLDS = 10
_KEPT_MAPS = 20  # in the user's cache, of at most 8 bytes a candidate
FEWEST = 12  # results, below which nothing is said of the surrogate


@dataclass(frozen=True, eq=False)
class Calibration:
    """R results and their predictions, each by a surrogate that did not see it.

    Attributes:
        rows: of the candidates [R].
        observed: mean result of each [R].
        predicted: by the results of nine tenths of the others [R].
        correlation: Spearman's, of the ranks of both; nan where one of them is constant.
    """

    rows: Int[np.ndarray, " R"]
    observed: Float[np.ndarray, " R"]
    predicted: Float[np.ndarray, " R"]
    correlation: float


@dataclass(frozen=True, eq=False)
class Survey:
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


def survey(results: Ledger) -> Survey:
    """Predict the result of every candidate by the results of the others; stores nothing.

    The study's own surrogate predicts. The default one does where that only draws, is no preset of this aqx, or is not
    known; and on its coordinates the map is drawn, which all have.
    """
    task_id, settings, default = results.task_id, results.settings, PRESETS[surrogate.DEFAULT]
    own = PRESETS.get(settings.surrogate, default) if settings else default
    preset = default if own.model is None else own
    shapes = of_database(results.db, task_id, default, 0, keep=False)
    coordinates = shapes.coordinates
    if settings and preset is not default:
        coordinates = _rows_of(shapes.ids, of_database(results.db, task_id, preset, settings.seed, keep=False))
    searched = results.searched
    rows = shapes.rows_of(trial.class_id or "0" * 32 for trial in searched)
    ended = np.array([trial.status.is_finished for trial in searched], bool) & (rows >= 0)
    values = np.array([np.nan if t.objective is None else t.objective for t in searched], float)
    names = functions.class_names(results.db, shapes.class_ids(np.arange(len(shapes))))
    order = np.argsort(np.array(names, np.str_)) if names else np.empty(0, np.int64)
    coordinates = coordinates[order]
    rows = np.where(rows >= 0, np.argsort(order)[rows], -1) if len(shapes) else rows
    known = rows[ended], results.sign * values[ended]
    mean, _ = surrogate.predict(coordinates, *known, np.arange(len(shapes)), preset=preset)
    return Survey(
        [names[i] for i in order],
        shapes.coordinates[order, : default.outputs_alone],
        results.sign * mean,
        rows,
        cross_validate(coordinates, rows[ended], values[ended], results.sign, preset=preset),
    )


def _rows_of(ids: UInt64[np.ndarray, "C 2"], table: Candidates) -> Float32[np.ndarray, "C K"]:
    """The coordinates of some classes; nan for one that was not there yet."""
    at = find_rows(table.ids, ids)
    coordinates = np.full((len(ids), table.coordinates.shape[1]), np.nan, np.float32)
    coordinates[at >= 0] = table.coordinates[at[at >= 0]]
    return coordinates


def places_of(found: Survey, progress: Progress | None = None) -> Float32[np.ndarray, "C 2"]:
    """Return the map of the candidates, from the user's cache where it was drawn before: UMAP takes many seconds.

    Args:
        found: the candidates.
        progress: called as progress(done, total, note).
    """
    rows = np.ascontiguousarray(found.coordinates, np.float32)
    drawn_by = f"{rows.shape} umap-learn {version_of('umap-learn')}"
    name = hashlib.sha256(rows.tobytes() + drawn_by.encode()).hexdigest()[:32]
    places = cached_arrays(f"maps/{name}", lambda: {"places": surrogate.draw_map(rows, progress=progress)})["places"]
    with contextlib.suppress(OSError):
        maps = sorted((cache_folder() / "maps").glob("*.npz"), key=lambda file: file.stat().st_mtime)
        for old in maps[:-_KEPT_MAPS]:
            old.unlink()
    return places


def cross_validate(
    coordinates: Float[np.ndarray, "C K"],
    rows: Int[np.ndarray, " N"],
    values: Float[np.ndarray, " N"],
    sign: int,
    seed: int = 0,
    preset: Any = surrogate.DEFAULT,
) -> Calibration | None:
    """Predict each result by those of other folds; None where there are fewer than 12 results.

    Args:
        coordinates: of all candidates.
        rows: of the candidates with a result; one may come several times.
        values: their results; nan for failed ones, from which the surrogate learns too.
        sign: 1 where higher is better, else -1.
        seed: of the folds and of the surrogate.
        preset: the surrogate.
    """
    candidates, means = mean_by_row(rows, values)
    has_result = np.isfinite(means)
    if has_result.sum() < FEWEST:
        return None
    fold = np.random.default_rng(seed).permutation(len(candidates)) % FOLDS
    predicted = np.full(len(candidates), np.nan)
    for k in range(FOLDS):
        known, asked = fold != k, (fold == k) & has_result
        if asked.any():
            mean, _ = surrogate.predict(
                coordinates, candidates[known], sign * means[known], candidates[asked], preset=preset, seed=seed
            )
            predicted[asked] = sign * mean
    told = np.isfinite(predicted) & has_result
    return Calibration(candidates[told], means[told], predicted[told], _spearman(means[told], predicted[told]))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.asarray(spearmanr(a, b))[0])
