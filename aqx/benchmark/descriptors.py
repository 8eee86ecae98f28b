"""`Descriptors`: what a replayed search knows of its candidates, where spectra and short runs are computed for some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from aqx import surrogate
from aqx.surrogate import Fitted, Preset


@dataclass
class _Part:
    """Columns of the coordinates that candidates get by and by.

    Attributes:
        columns: which.
        known: the candidates that have them, or never get them [C].
        promising: how many of the most promising are to have them.
    """

    columns: slice
    known: Bool[np.ndarray, " C"]
    promising: int


@dataclass
class Descriptors:
    """The coordinates that a search knows: short runs and spectra come by and by, as `Study.search` computes them.

    Attributes:
        whole: what can be known [C, K].
        known: what is known [C, K].
        preset: the surrogate.
        parts: what comes by and by.
    """

    whole: Float[np.ndarray, "C K"]
    known: Float[np.ndarray, "C K"]
    preset: Preset
    parts: list[_Part]

    @classmethod
    def of(
        cls,
        whole: Float[np.ndarray, "C K"],
        usable: Bool[np.ndarray, " C"],
        preset: Preset,
        spectra: int | None,
        runs: int | None,
    ) -> Descriptors:
        """Hide what a search has not computed before its first choice.

        Args:
            whole: the coordinates [C, K].
            usable: which classes may be evaluated [C]; the others get nothing.
            preset: the surrogate.
            spectra: as in `replay`.
            runs: as in `replay`, but not 0.
        """
        found = cls(whole, whole.copy(), preset, [])
        if runs is not None and preset.knows_runs(whole):
            part = _Part(slice(preset.without_runs, None), ~usable, surrogate.promising_runs(runs))
            found._hide(part)
            found._learn(part, surrogate.first_runs(len(whole), runs))
        if spectra is not None and preset.outputs_alone is not None:
            columns = slice(preset.outputs_alone, preset.without_runs)
            found._hide(_Part(columns, ~usable if spectra else np.ones_like(usable), spectra))
        return found

    def fitted(self, rows: Sequence[int], values: Float[np.ndarray, " N"], seed: int, given: int) -> Fitted:
        """Learn what a search computes before its next choice, and fit the surrogate.

        Args:
            rows: evaluated so far.
            values: their results, higher is better.
            seed: as in `surrogate.fit`.
            given: as in `surrogate.fit`.

        Returns:
            The surrogate that the next choice is made by.
        """

        def fit() -> Fitted:
            return surrogate.fit(self.known, rows, values, preset=self.preset, seed=seed, given=given)

        fitted = fit()
        for part in self.parts:
            if not part.known.all() and len(wanted := fitted.undescribed(part.known, part.promising)):
                self._learn(part, wanted)
                fitted = fit()
        return fitted

    def _hide(self, part: _Part) -> None:
        self.parts.append(part)
        self.known[:, part.columns] = np.nan

    def _learn(self, part: _Part, rows: Int[np.ndarray, " R"]) -> None:
        self.known[rows, part.columns] = self.whole[rows, part.columns]
        part.known[rows] = True
