"""The choices of a categorical parameter as the surrogate's candidates: classes of equal functions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from aqx.candidates import KnownSpectra, of_names
from aqx.enumeration import sample_points
from aqx.errors import InputError, ParseError
from aqx.store import Database
from aqx.store.tasks import get_task
from aqx.surrogate import Preset
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


def read_spectra(db: str | os.PathLike[str] | Database, task: Task | str) -> KnownSpectra:
    """Read what a database knows of a task's spectra.

    Raises:
        InputError: it has no such task.
        StoreError: it cannot be read.
    """
    db = db if isinstance(db, Database) else Database(db)
    task_id = get_task(db, task if isinstance(task, str) else task.name).task_id
    return KnownSpectra.of_task(db, task_id)


def describe(param: str, given: tuple[Any, ...], spectra: KnownSpectra, preset: Preset) -> Choices:
    """Find the classes among the choices and their coordinates.

    Args:
        param: what the parameter is called, for messages.
        given: its choices.
        spectra: those that are known.
        preset: the surrogate.

    Raises:
        InputError: a choice is no function, or none can be trained.

    Example:
        >>> from aqx.candidates import KnownSpectra
        >>> from aqx.optuna.choices import describe
        >>> from aqx.surrogate import PRESETS
        >>> given = ("max(x,zero(x))", "tanh(x)", "relu(x)", "one(x)")
        >>> found = describe("act", given, KnownSpectra(), PRESETS["ensemble"])
        >>> found.names, found.row_of
        (['max(x,zero(x))', 'tanh(x)'], {'max(x,zero(x))': 0, 'tanh(x)': 1, 'relu(x)': 0})
    """
    trees = [_function(param, choice) for choice in given]
    found, rows = of_names(trees, sample_points(_POINTS, "stratified"), spectra)
    if not len(found):
        raise InputError(f"none of the {len(given)} choices of {param} can be trained; all are constant or not finite")
    row_of = {choice: row for choice, row in zip(given, rows.tolist(), strict=True) if row >= 0}
    # As they were given, which may be with blanks.
    first = {row: choice for choice, row in reversed(row_of.items())}
    names = [first[row] for row in range(len(found))]
    return Choices(given, names, row_of, preset.embed(found.features, 0, None))


def _function(param: str, choice: Any) -> Tree:
    if not isinstance(choice, str):
        raise InputError(f"{param} has the choice {choice!r}; give names of functions, such as 'relu(x)'")
    try:
        return parse(choice)
    except ParseError as error:
        raise InputError(f"{param} has a choice that is no function: {error}") from error
