"""The kinds of descriptors that a database keeps of a task's classes, each in tables of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Where descriptors of one kind are kept. All of a task are of the same subject.

    Attributes:
        table: those in force.
        noun: what people call them.
        option: of `aqx reset`, which deletes them.
    """

    table: str
    noun: str
    option: str

    @property
    def claims(self) -> str:
        """The table of who computes some."""
        return f"{self.table}_claims"

    @property
    def aside(self) -> str:
        """The table of those of an earlier batch, loss or initial weights."""
        return f"{self.table}_aside"


SPECTRA = Kind("spectra", "spectra", "--spectra")
RUNS = Kind("runs", "short runs", "--runs")
KINDS = (SPECTRA, RUNS)
