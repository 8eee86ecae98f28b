"""The choices of a categorical parameter as the surrogate's candidates: classes of equal functions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32

from aqx.enumeration import sample_points
from aqx.errors import InputError, ParseError
from aqx.evaluation import Batch, evaluate, fingerprints
from aqx.evaluation.class_ids import texts
from aqx.store import Database
from aqx.store.spectra import invalid_spectra, load_spectra
from aqx.store.tasks import get_task
from aqx.surrogate import Features, Preset
from aqx.tasks import Task
from aqx.tree import Tree, parse

_POINTS = 256  # as a database has them by default


@dataclass(frozen=True, eq=False)
class Choices:
    """The C classes among the choices.

    Attributes:
        given: the choices as they were given.
        names: the first choice of each class [C].
        row_of: the class of each choice; a choice that cannot be trained has none.
        coordinates: the surrogate's [C, K].
    """

    given: tuple[Any, ...]
    names: list[str]
    row_of: dict[str, int]
    coordinates: Float32[np.ndarray, "C K"]


@dataclass(frozen=True, eq=False)
class Spectra:
    """Features of Fisher spectra by class id, and the classes with which the model breaks."""

    of_class: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    invalid: frozenset[str] = frozenset()


def read_spectra(db: str | os.PathLike[str] | Database, task: Task | str) -> Spectra:
    """Read what a database knows of a task's spectra.

    Raises:
        InputError: it has no such task.
        StoreError: it cannot be read.
    """
    db = db if isinstance(db, Database) else Database(db)
    task_id = get_task(db, task if isinstance(task, str) else task.name).task_id
    ids, rows = load_spectra(db, task_id)
    return Spectra(dict(zip(ids.tolist(), rows, strict=True)), frozenset(invalid_spectra(db, task_id)))


def describe(param: str, given: tuple[Any, ...], spectra: Spectra, preset: Preset) -> Choices:
    """Find the classes among the choices and their coordinates.

    Args:
        param: what the parameter is called, for messages.
        given: its choices.
        spectra: those that are known.
        preset: the surrogate.

    Raises:
        InputError: a choice is no function, or none can be trained.

    Example:
        >>> from aqx.optuna.choices import Spectra, describe
        >>> from aqx.surrogate import PRESETS
        >>> found = describe("act", ("max(x,zero(x))", "tanh(x)", "relu(x)", "one(x)"), Spectra(), PRESETS["ensemble"])
        >>> found.names, found.row_of
        (['max(x,zero(x))', 'tanh(x)'], {'max(x,zero(x))': 0, 'tanh(x)': 1, 'relu(x)': 0})
    """
    points = sample_points(_POINTS, "stratified")
    by_shape: dict[str, dict[str, Tree]] = {}
    for choice in given:
        tree = _function(param, choice)
        by_shape.setdefault(tree.shape, {})[choice] = tree
    class_of: dict[str, str] = {}
    outputs: dict[str, np.ndarray] = {}
    for same_shape in by_shape.values():
        batch = Batch.of_trees(list(same_shape.values()))
        prints, values = fingerprints(batch), evaluate(batch, points)
        usable = np.isfinite(values).all(axis=1) & ~prints.constant
        for choice, class_id, row, good in zip(same_shape, texts(prints.ids), values, usable.tolist(), strict=True):
            if good and class_id not in spectra.invalid:
                class_of[choice], outputs[class_id] = class_id, row
    if not class_of:
        raise InputError(f"none of the {len(given)} choices of {param} can be trained; all are constant or not finite")
    in_order = [choice for choice in given if choice in class_of]
    first: dict[str, str] = {}
    for choice in in_order:
        first.setdefault(class_of[choice], choice)
    row_of = {class_id: row for row, class_id in enumerate(first)}
    features = Features(
        list(first.values()),
        np.stack([outputs[class_id] for class_id in first]),
        _spectra_of(list(first), spectra),
        points,
    )
    coordinates = preset.embed(features, 0, None)
    return Choices(given, list(first.values()), {choice: row_of[class_of[choice]] for choice in in_order}, coordinates)


def _function(param: str, choice: Any) -> Tree:
    if not isinstance(choice, str):
        raise InputError(f"{param} has the choice {choice!r}; give names of functions, such as 'relu(x)'")
    try:
        return parse(choice)
    except ParseError as error:
        raise InputError(f"{param} has a choice that is no function: {error}") from error


def _spectra_of(class_ids: list[str], spectra: Spectra) -> Float32[np.ndarray, "C D"]:
    known = {row: spectra.of_class[id_] for row, id_ in enumerate(class_ids) if id_ in spectra.of_class}
    matrix = np.full((len(class_ids), len(next(iter(known.values()), ()))), np.nan, np.float32)
    for row, spectrum in known.items():
        matrix[row] = spectrum
    return matrix
