"""The surrogate: features of candidates and results so far → which candidate to train next."""

from aqx.surrogate.atlas import draw_map
from aqx.surrogate.features import Features
from aqx.surrogate.fitted import Fitted, Suggestions, fit
from aqx.surrogate.prediction import ENOUGH, predict
from aqx.surrogate.presets import DEFAULT, PRESETS, Preset, Projection, as_preset
from aqx.surrogate.suggestions import embed, first_runs, promising_runs, rank, suggest, undescribed

__all__ = [
    "DEFAULT",
    "ENOUGH",
    "PRESETS",
    "Features",
    "Fitted",
    "Preset",
    "Projection",
    "Suggestions",
    "as_preset",
    "draw_map",
    "embed",
    "first_runs",
    "fit",
    "predict",
    "promising_runs",
    "rank",
    "suggest",
    "undescribed",
]
