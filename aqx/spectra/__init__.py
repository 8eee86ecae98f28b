"""Fisher spectra of candidates on a task: computed on all devices, stored, claimed, resumed."""

from aqx.spectra.compute import SpectraReport, check, compute_spectra
from aqx.spectra.devices import connect, leads

__all__ = ["SpectraReport", "check", "compute_spectra", "connect", "leads"]
