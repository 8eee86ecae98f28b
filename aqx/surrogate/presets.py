"""The table of presets: how candidates are embedded, what predicts their results, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from aqx.errors import InputError
from aqx.surrogate.embeddings import Progress, fit_components, project_on, squash, umap_union
from aqx.surrogate.features import Features
from aqx.surrogate.models import Model, extra_trees, nearest_neighbours, regressor
from aqx.surrogate.projection import Loadings, Projection


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
        form: raise it when `embed` is changed: stored embeddings of another form are not used.
    """

    name: str
    embed: Callable[[Features, int, Progress | None], np.ndarray]
    model: Model | None
    exploration: float = 0.0
    ranks: bool = False
    start: int = 3
    form: int = 1


def _fit_components(features: Features) -> Loadings:
    """Principal components of squashed outputs and of spectra.

    Candidates without a spectrum are put at the mean of the others. Mean regret after 100 evaluations on 1,450
    functions of act_bench (one training each, 8 searches from 8 random results, 40 trees):

        mnist1d MLP       random 0.0147, `paper` 0.0076, these 0.0024, these and UMAP's union 0.0032, no spectra 0.0032
        digits deep MLP   random 0.0060, all others 0
        sine regression   random 0.0261, `paper` 0.0087, these 0, these and UMAP's union 0, no spectra 0.0058

    After 20 evaluations `paper` is level on mnist1d and ahead on digits. UMAP's columns cost 20 s of compiling
    and do not help, so they are left out.
    """
    spectra = fit_components(features.spectra[features.has_spectrum], 8)
    return {"outputs": fit_components(features.outputs, 8, squash), "spectra": spectra}


def _on_components(features: Features, loadings: Loadings) -> Float32[np.ndarray, "C K"]:
    """Coordinates on these components, and whether there is a spectrum."""
    present = features.has_spectrum
    spectra = np.zeros((len(features), 8), np.float32)
    if present.any():  # else they may have no columns either
        spectra[present] = project_on(loadings["spectra"], features.spectra[present])
    return np.hstack([project_on(loadings["outputs"], features.outputs, squash), spectra, present[:, None]])


_COMPONENTS = Projection(_fit_components, _on_components)
_NOTHING = Projection(lambda features: {}, lambda features, loadings: np.empty((len(features), 0), np.float32))

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "forest", Projection(_fit_components, _on_components), extra_trees, exploration=1.0, ranks=True, start=5
        ),
        Preset("paper", umap_union, nearest_neighbours),
        Preset("random", _NOTHING, None),
    )
}
DEFAULT = "forest"


def as_preset(surrogate: Any) -> Preset:
    """Return the preset that a name, a `Preset` or a scikit-learn regressor stands for.

    A regressor is used in place of the trees of `forest`, on the same embedding (and under its name, so that a
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
    methods = all(hasattr(surrogate, method) for method in ("fit", "predict", "get_params"))
    if methods and not isinstance(surrogate, type):
        return replace(PRESETS[DEFAULT], model=regressor(surrogate))
    presets = ", ".join(PRESETS)
    raise InputError(f"surrogate={surrogate!r} is not one; give one of {presets}, or a scikit-learn regressor instance")
