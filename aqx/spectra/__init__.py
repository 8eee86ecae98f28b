"""Fisher spectra and short runs of candidates on a task: computed on all devices, stored, claimed, resumed."""

from aqx.spectra.compute import RunsReport, SpectraReport, check, compute_runs, compute_spectra
from aqx.spectra.devices import connect, leads

__all__ = ["RunsReport", "SpectraReport", "check", "compute_runs", "compute_spectra", "connect", "leads"]
