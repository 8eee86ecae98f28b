"""The surrogate: features of candidates and results so far → which candidate to train next."""

from aqx.surrogate.atlas import draw_map
from aqx.surrogate.features import Features
from aqx.surrogate.presets import DEFAULT, PRESETS, Preset, as_preset
from aqx.surrogate.projection import Projection
from aqx.surrogate.suggestions import Suggestions, embed, predict, rank, suggest, undescribed

__all__ = [
    "DEFAULT",
    "PRESETS",
    "Features",
    "Preset",
    "Projection",
    "Suggestions",
    "as_preset",
    "draw_map",
    "embed",
    "predict",
    "rank",
    "suggest",
    "undescribed",
]
