"""Fisher spectra of Flax models: taps on layers, Kronecker factors, eigenvalues, features per class of functions."""

from aqx.fisher.compute import SpectraReport, check, compute_spectra
from aqx.fisher.devices import connect, leads
from aqx.fisher.eigenvalues import coverage, eigenvalues
from aqx.fisher.layers import Coverage, LeftOut
from aqx.fisher.reference import reference

__all__ = [
    "Coverage",
    "LeftOut",
    "SpectraReport",
    "check",
    "compute_spectra",
    "connect",
    "coverage",
    "eigenvalues",
    "leads",
    "reference",
]
