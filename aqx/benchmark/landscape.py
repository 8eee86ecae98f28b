"""`Landscape`: a table of results as classes of equal functions with their features; what is missing is computed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from aqx import surrogate
from aqx.benchmark.table import ResultTable
from aqx.candidates import Described, class_ids, of_classes
from aqx.enumeration import enumerate_space
from aqx.errors import InputError, ParseError
from aqx.evaluation.class_ids import find_rows, halves, texts
from aqx.space import Space
from aqx.spectra import compute_runs, compute_spectra
from aqx.store import Database, functions
from aqx.store.features import StoredEmbedding, find_embedding, load_embedding, save_embedding
from aqx.store.tasks import register_task
from aqx.surrogate import PRESETS, Features, Preset
from aqx.tasks import Task
from aqx.tasks.loading import as_task
from aqx.tree import Tree, parse

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Landscape:
    """C classes of a table, what they gave and what a surrogate knows of them.

    Attributes:
        objective: the metric.
        direction: "maximize" or "minimize".
        class_ids: as text [C].
        features: of the classes, each under the simplest name that is known for it.
        values: results of each class over the seeds and names that it has in the table [C, S].
        present: which of them are trainings; False fills up the rows of classes that have fewer [C, S].
        usable: False where the task's model breaks with this class: as in a study, it is never suggested [C].
        left_out: how many functions of the table are not in it, by the reason.
        embeddings: of the presets that were asked for, by their name.
        baselines: rows of the task's baselines that are in the table and do not break the model [B].
    """

    objective: str
    direction: str
    class_ids: np.ndarray
    features: Features
    values: Float64[np.ndarray, "C S"]
    present: Bool[np.ndarray, "C S"]
    usable: Bool[np.ndarray, " C"]
    left_out: dict[str, int]
    embeddings: dict[str, Float[np.ndarray, "C _"]] = field(default_factory=dict)
    baselines: Int[np.ndarray, " B"] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.features)

    def __str__(self) -> str:
        verb = "maximized" if self.direction == "maximize" else "minimized"
        text = f"{len(self):,} classes with {self.present.sum():,} trainings; {self.objective} is {verb}"
        left_out = [f"{count:,} {reason}" for reason, count in self.left_out.items() if count]
        if left_out:
            text += f"; functions left out: {', '.join(left_out)}"
        broken = int((~self.usable).sum())
        return text + (f"; never suggested: {broken:,} classes that break the model" if broken else "")


def landscape_of(
    table: ResultTable,
    task: Task | str,
    *,
    objective: str | None = None,
    direction: str | None = None,
    presets: tuple[Preset, ...] = (),
    features: str | os.PathLike[str] | Database | None = None,
    runs: bool = True,
    progress: Progress | None = None,
) -> Landscape:
    """Gather a table's results by classes of equal functions, and compute the features that these classes lack.

    Args:
        table: results, of aqx or not.
        task: whose Fisher spectra describe the functions; nothing is trained.
        objective: the metric; default the task's.
        direction: "maximize" or "minimize"; default the task's for its own objective, otherwise "minimize" for a metric
            that is called a loss or an error.
        presets: whose embeddings are wanted too.
        features: a database that has features or gets them; default a temporary one.
        runs: compute short runs too, where one of the presets (default all) uses them.
        progress: called as progress(done, total, note).

    Returns:
        Values and features of each class, as `replay` takes them.

    Raises:
        InputError: the table has no such metric, or no function that can be used.
        TaskError: the task does not keep its contract.
        StoreError: the database cannot be used.
    """
    task = as_task(task)
    objective, direction = objective or task.objective, direction or _direction(task, objective or task.objective)
    if objective not in table.metrics:
        raise InputError(f"objective={objective!r} is not in the table; its metrics are {', '.join(table.metrics)}")
    names = {text: tree for text in dict.fromkeys(table.names) if (tree := _parsed(text)) is not None}
    with _database(features) as db:
        known = _classes(db, list(dict.fromkeys(names.values())), progress)
        wanted: dict[str, str] = {}  # class id → one of its names in the table
        reasons = Counter({"do not parse": len(set(table.names)) - len(names)})
        for tree in names.values():
            class_id, finite, constant = known[str(tree)]
            if finite and not constant:
                wanted.setdefault(class_id, str(tree))
            else:
                reasons["constant" if finite else "not finite"] += 1
        if not wanted:
            raise InputError(f"table has no function to search among: of {len(set(table.names))}, all are left out")
        task_id = register_task(db, task.name, task.identity())
        found = of_classes(db, task_id, wanted)
        if (found.usable & ~found.features.has_spectrum).any():
            compute_spectra(db, task, names=list(wanted.values()), progress=progress)
            found = of_classes(db, task_id, wanted)
        used = runs and any(preset.without_runs is not None for preset in presets or PRESETS.values())
        if used and (found.usable & ~found.features.has_runs).any():
            compute_runs(db, task, names=list(wanted.values()), progress=progress)
            found = of_classes(db, task_id, wanted)
        if not runs:
            found = replace(found, features=replace(found.features, runs=np.empty((0, 0))))
        baselines = [row_of_baseline for name in task.baselines if (row_of_baseline := _row(db, name, found)) >= 0]
        ids = texts(found.ids)
        row_of = {class_id: row for row, class_id in enumerate(ids)}
        coordinates = {
            preset.name: _embedding(db, task_id, preset, found, progress)
            for preset in presets
            if preset.model is not None
        }
    class_of = [row_of.get(known[str(names[text])][0], -1) if text in names else -1 for text in table.names]
    values, present = _by_class(np.array(class_of), table.metrics[objective], len(found))
    return Landscape(
        objective,
        direction,
        np.array(ids, object),
        found.features,
        values,
        present,
        found.usable,
        dict(reasons),
        coordinates,
        np.array(list(dict.fromkeys(baselines)), np.int64),
    )


def _row(db: Database, name: str, found: Described) -> int:
    """The row of a function that can be trained; -1 where it has none."""
    row = int(find_rows(found.ids, halves(class_ids(db, [parse(name)])))[0])
    return row if row >= 0 and found.usable[row] else -1


def _direction(task: Task, objective: str) -> str:
    if objective == task.objective:
        return task.direction
    return "minimize" if any(word in objective.lower() for word in ("loss", "err", "nll", "perplexity")) else "maximize"


def _parsed(text: str) -> Tree | None:
    try:
        return parse(text)
    except ParseError:
        return None


@contextlib.contextmanager
def _database(features: str | os.PathLike[str] | Database | None) -> Iterator[Database]:
    if isinstance(features, Database):
        yield features
    elif features is not None:
        yield Database(features, create=True)
    else:
        with tempfile.TemporaryDirectory(prefix="aqx-replay-") as folder:
            yield Database(Path(folder) / "features.duckdb", create=True)


def _classes(
    db: Database, trees: list[Tree], progress: Progress | None
) -> dict[str, tuple[str, bool | None, bool | None]]:
    """Return (class id, finite, constant) of every function; those that the database lacks are added."""
    names = list(map(str, trees))
    known = functions.find_classes(db, names)
    missing = [tree for tree, name in zip(trees, names, strict=True) if name not in known]
    if missing:
        enumerate_space(db, Space(missing), progress=progress)
        known |= functions.find_classes(db, list(map(str, missing)))
    return known


def _embedding(
    db: Database, task_id: int, preset: Preset, found: Described, progress: Progress | None
) -> Float[np.ndarray, "C _"]:
    """The preset's coordinates: those stored with the features, or fitted now and stored."""
    features = found.features
    if PRESETS.get(preset.name, preset).embed is not preset.embed:
        return surrogate.embed(features, preset, 0, progress)  # another embedding under a known name
    # Beside that of a study in the same database, which has other classes.
    key = task_id, f"replay {preset.name}/{preset.form}", 0
    counts, number, _ = find_embedding(db, *key)
    stored = load_embedding(db, number) if number is not None else None
    if stored is not None and np.array_equal(stored.ids, found.ids):
        whose = np.isfinite(stored.coordinates[:, -1]) & preset.knows_runs(stored.coordinates)
        runs = features.has_runs if preset.without_runs is not None else np.zeros(len(features), bool)
        if np.array_equal(stored.has_spectrum, features.has_spectrum) and np.array_equal(whose, runs):
            return stored.coordinates
    matrix = surrogate.embed(features, preset, 0, progress)
    if not preset.knows_runs(matrix):
        counts = counts._replace(runs=0)
    save_embedding(db, *key, StoredEmbedding(counts, found.ids, matrix, features.has_spectrum))
    return matrix


def _by_class(
    class_of: np.ndarray, values: Float64[np.ndarray, " R"], classes: int
) -> tuple[Float64[np.ndarray, "C S"], Bool[np.ndarray, "C S"]]:
    """Results of R trainings as rows of classes, in the order of the table; class -1 is left out."""
    order = np.argsort(class_of, kind="stable")
    order = order[class_of[order] >= 0]
    counts = np.bincount(class_of[order], minlength=classes)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    matrix = np.full((classes, counts.max()), np.nan)
    matrix[class_of[order], place] = values[order]
    return matrix, np.arange(counts.max()) < counts[:, None]
