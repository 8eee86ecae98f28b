"""The table of presets: how candidates are embedded, what predicts their results, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32

from aqx.errors import InputError
from aqx.surrogate.embeddings import FITTED, Progress, fit_components, fit_scores, project_on, scores_on, umap_union
from aqx.surrogate.features import Features
from aqx.surrogate.gaussian_process import gaussian_process
from aqx.surrogate.models import Model, average, nearest_neighbours, regressor
from aqx.surrogate.symmetry import parts, parts_in_plane
from aqx.surrogate.trees import extra_trees

Loadings = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Projection:
    """An embedding in which a candidate's place depends on its own features and on some arrays fitted to all of them.

    It does not depend on a seed. It is called like every embedding: `projection(features, seed, progress)`.

    Attributes:
        fit: features of all candidates → the arrays.
        project: features of any candidates and the arrays → their coordinates [C, K].
    """

    fit: Callable[[Features], Loadings]
    project: Callable[[Features, Loadings], np.ndarray]

    def __call__(self, features: Features, seed: int, progress: Any = None) -> Float32[np.ndarray, "C K"]:
        """Fit and project the same candidates."""
        return self.project(features, self.fit(features))


@dataclass(frozen=True)
class Preset:
    """A surrogate: an embedding, a model of results on it, and the choice by mean + exploration · spread.

    Attributes:
        name: how it is asked for and stored.
        embed: features, seed and progress → coordinates [C, K]; a `Projection` where later candidates can join.
        model: predicts from the coordinates of results; None chooses at random.
        exploration: standard deviations added to the mean before the highest is chosen.
        ranks: learn normal scores of ranks instead of the results themselves.
        start: number of results below which the choice is random.
        outputs_alone: how many coordinates, the first ones, need no spectrum: a candidate without one has nan in the
            others, and is predicted from these. None where there is no such division.
        without_runs: how many coordinates, the first ones, need no short runs; the others are those of the runs, which
            are left out where no candidate has any, and nan for a candidate without. None where runs are not used.
        informed: so many first choices go by the short runs alone, spread out, where there are any.
        posterior: predicts what results are worth without their noise; None where nothing does.
        form: raise it when `embed` is changed: stored embeddings of another form are not used.
    """

    name: str
    embed: Callable[[Features, int, Progress | None], np.ndarray]
    model: Model | None
    exploration: float = 0.0
    ranks: bool = False
    start: int = 3
    outputs_alone: int | None = None
    form: int = 1
    without_runs: int | None = None
    informed: int = 0
    posterior: Model | None = None

    def knows_runs(self, embedding: np.ndarray) -> bool:
        """Whether the coordinates of an embedding have a part of short runs."""
        return self.without_runs is not None and embedding.shape[1] > self.without_runs


# Columns of the default embedding: odd part, even part, mean, scale and orientation of the outputs; then the spectrum;
# then the short runs, as many as there are.
_ODD, _EVEN, _SPECTRUM = 6, 6, 8
_GROUPS = (_ODD, _EVEN, 1, 1, 2, _SPECTRUM)
_OUTPUTS, _WITHOUT_RUNS = sum(_GROUPS[:-1]), sum(_GROUPS)
_CHUNK = 8192


def _fit_shapes(features: Features) -> Loadings:
    """Principal components of the oriented odd and even parts of the outputs, and of the spectra; quantiles of runs.

    Where some candidate is a function of two inputs, all are taken as such, at the same points of the plane.
    """
    outputs, taken_apart = features.outputs, partial(parts, points=features.points)
    if features.gated.any():
        outputs, taken_apart = features.in_plane(slice(None, None, -(-len(features) // FITTED))), parts_in_plane
    return {
        "odd": fit_components(outputs, _ODD, lambda rows: taken_apart(rows).odd),
        "even": fit_components(outputs, _EVEN, lambda rows: taken_apart(rows).even),
        "spectra": fit_components(features.spectra[features.has_spectrum], _SPECTRUM),
        "runs": fit_scores(features.runs[features.has_runs]),
    }


def _on_shapes(features: Features, loadings: Loadings) -> Float32[np.ndarray, "C K"]:
    """Coordinates on these components, and the other columns; nan for the spectrum where there is none.

    They are nan for a function of two inputs where the components were fitted without any.
    """
    quantiles = loadings.get("runs", np.empty((0, 0)))  # embeddings of before have none
    runs = quantiles.shape[1] if len(quantiles) else 0
    coordinates = np.full((len(features), _WITHOUT_RUNS + runs), np.nan, np.float32)
    for start in range(0, len(features), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        if len(loadings["odd"]) == features.outputs.shape[1]:
            shape = parts(features.outputs[chunk], features.points)
        else:
            shape = parts_in_plane(features.in_plane(chunk))
        odd, even = project_on(loadings["odd"], shape.odd), project_on(loadings["even"], shape.even)
        coordinates[chunk, :_OUTPUTS] = np.hstack([odd, even, shape.mean, shape.scale, shape.orientation])
    if len(loadings["odd"]) == features.outputs.shape[1]:
        coordinates[features.gated] = np.nan
    if (present := features.has_spectrum).any():
        coordinates[present, _OUTPUTS:_WITHOUT_RUNS] = project_on(loadings["spectra"], features.spectra[present])
    if runs and (present := features.has_runs).any():
        coordinates[present, _WITHOUT_RUNS:] = scores_on(quantiles, features.runs[present])
    return coordinates


def _fit_nothing(features: Features) -> Loadings:
    return {}


def _on_nothing(features: Features, loadings: Loadings) -> Float32[np.ndarray, "C 0"]:
    return np.empty((len(features), 0), np.float32)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "ensemble",
            Projection(_fit_shapes, _on_shapes),
            average(extra_trees, gaussian_process(_GROUPS)),
            exploration=1.0,
            ranks=True,
            start=5,
            outputs_alone=_OUTPUTS,
            without_runs=_WITHOUT_RUNS,
            informed=5,
            posterior=gaussian_process(_GROUPS),
        ),
        Preset("paper", umap_union, nearest_neighbours),
        Preset("random", Projection(_fit_nothing, _on_nothing), None),
    )
}
DEFAULT = "ensemble"


def as_preset(surrogate: Any) -> Preset:
    """Return the preset that a name, a `Preset` or a scikit-learn regressor stands for.

    A regressor is used in place of the models of `ensemble`, on the same embedding (and under its name, so that a
    stored embedding serves both).

    Raises:
        InputError: it is none of these.

    Example:
        >>> from aqx.surrogate import as_preset
        >>> as_preset("paper").exploration
        0.0
    """
    if isinstance(surrogate, Preset):
        return surrogate
    if isinstance(surrogate, str) and surrogate in PRESETS:
        return PRESETS[surrogate]
    # Of the class: some that are made of other estimators have `predict` only once these are fitted.
    methods = all(hasattr(type(surrogate), method) for method in ("fit", "predict", "get_params"))
    if methods and not isinstance(surrogate, type):
        return replace(PRESETS[DEFAULT], model=regressor(surrogate))
    presets = ", ".join(PRESETS)
    raise InputError(f"surrogate={surrogate!r} is not one; give one of {presets}, or a scikit-learn regressor instance")
