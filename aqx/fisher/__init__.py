"""Fisher spectra of any Flax model: taps on layers, Kronecker factors, eigenvalues."""

from __future__ import annotations

import importlib
from typing import Any

from aqx.fisher.eigenvalues import coverage, eigenvalues
from aqx.fisher.kinds import register_layer
from aqx.fisher.layers import Coverage, LeftOut
from aqx.fisher.reference import reference

__all__ = ["Coverage", "LeftOut", "coverage", "eigenvalues", "reference", "register_layer"]

# What computes the spectra of a task's candidates stands above this library; its names were public here.
_OF_SPECTRA = ("SpectraReport", "check", "compute_spectra", "connect", "leads")


def __getattr__(name: str) -> Any:
    if name in _OF_SPECTRA:
        return getattr(importlib.import_module("aqx.spectra"), name)
    raise AttributeError(f"module 'aqx.fisher' has no attribute {name!r}")
