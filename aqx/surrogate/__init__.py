"""The surrogate: features of candidates and results so far → which candidate to train next."""

from aqx.surrogate.features import Features, fingerprint
from aqx.surrogate.presets import DEFAULT, PRESETS, Preset, as_preset
from aqx.surrogate.suggestions import Suggestions, embed, rank, suggest

__all__ = [
    "DEFAULT",
    "PRESETS",
    "Features",
    "Preset",
    "Suggestions",
    "as_preset",
    "embed",
    "fingerprint",
    "rank",
    "suggest",
]
