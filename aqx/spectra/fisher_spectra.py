"""Fisher spectra as a descriptor: eigenvalues of the factors of K candidates, and their features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from aqx.spectra.descriptor import Descriptor
from aqx.spectra.quantiles import QUANTILES, spectrum_features
from aqx.spectra.subject import Subject, checks, fixed_inputs, spectra_of
from aqx.store.kinds import SPECTRA

_PRODUCTS = 2**23


@dataclass(frozen=True)
class Spectra:
    """Eigenvalues of the factors of K candidates, and whether each candidate's numbers are finite.

    Attributes:
        pairs: by layer key, eigenvalues of A [K, B, d] and of G [K, B, p].
        finite: by what was looked at ("loss", "gradient at Dense_0", …), in the order of the computation [K].
        features: [K, D] where the device computes them too, else None.
        failed: candidates whose computation raised an exception, and which; their checks have failed.
    """

    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    finite: dict[str, np.ndarray]
    features: np.ndarray | None = None
    failed: Mapping[int, str] = field(default_factory=dict)

    def reason(self, candidate: int) -> str | None:
        """Why a candidate is invalid, or None."""
        if candidate in self.failed:
            return self.failed[candidate]
        for what, ok in self.finite.items():
            if not ok[candidate]:
                return f"the {what} is not finite"
        return None

    def reasons(self) -> list[str | None]:
        """Why each candidate is invalid, or None."""
        valid = np.logical_and.reduce(list(self.finite.values()))
        return [None if ok else self.reason(candidate) for candidate, ok in enumerate(valid.tolist())]

    def features_of(self, subject: Subject) -> np.ndarray:
        """Weighted quantiles of the log spectra [K, D], rows of nan for invalid candidates."""
        weights = subject.probe.coverage.weights
        bad = ~np.logical_and.reduce(list(self.finite.values()))
        if self.features is not None:
            return np.where(bad[:, None], np.float32(np.nan), self.features)
        # Products of eigenvalues are many, so only so many candidates at a time.
        step = max(1, _PRODUCTS // sum(weights.values()))
        features = []
        for start in range(0, len(bad), step):
            part = slice(start, start + step)
            pairs = {key: (of_A[part], of_G[part]) for key, (of_A, of_G) in self.pairs.items()}
            with np.errstate(invalid="ignore"):  # of the bad ones
                features.append(spectrum_features(pairs, weights, layout=subject.layout))
        matrix = np.concatenate(features)
        matrix[bad] = np.nan
        return matrix


def _program(subject: Subject, on_cpu: bool) -> Callable[..., tuple[Any, ...]]:
    # A host sorts fewer spectra than a GPU computes.
    return partial(spectra_of, subject, not on_cpu and subject.layout is None)


def _gather(subject: Subject, arrays: Sequence[np.ndarray], failed: Mapping[int, str]) -> Spectra:
    values, finite, *features = arrays
    pairs, end = {}, 0
    for layer in subject.probe.layers:
        both = []
        for shape in layer.eigenvalue_shapes:
            start, end = end, end + math.prod(shape)
            both.append(values[:, start:end].reshape(len(values), *shape))
        pairs |= {key: (both[0][:, i], both[1][:, i]) for i, key in enumerate(layer.keys)}
    finite_by_check = dict(zip(checks(subject.probe), finite.T, strict=True))
    return Spectra(pairs, finite_by_check, features[0] if features else None, failed)


def _empty(subject: Subject, count: int) -> list[np.ndarray]:
    size = sum(math.prod(shape) for layer in subject.probe.layers for shape in layer.eigenvalue_shapes)
    return [np.full((count, size), np.nan, np.float32), np.zeros((count, len(checks(subject.probe))), bool)]


def _form(subject: Subject) -> dict[str, Any]:
    coverage = subject.probe.coverage
    return {
        "fisher": subject.probe.fisher,
        "sharing": subject.probe.settings.sharing,
        "quantiles": QUANTILES,
        "examples": subject.probe.examples,
        "layers": dict(coverage.weights),
        "left_out": {part.path: part.weights for part in coverage.left_out},
        "share": round(coverage.share, 6),
    }


FISHER: Descriptor[Spectra] = Descriptor(
    SPECTRA,
    "spectrum",
    _program,
    fixed_inputs,
    lambda subject: subject.bytes_each,
    _gather,
    _empty,
    _form,
    lambda subject: subject.factors,
)
