"""`Features`: what the surrogate knows of every candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from aqx.errors import InputError
from aqx.surrogate.symmetry import in_plane, mid_quantiles


@dataclass(frozen=True, eq=False)
class Features:
    """Names, outputs and spectra of C candidates; row i of each is the same candidate.

    Attributes:
        names: name of each candidate [C].
        outputs: finite values of each candidate at the P stored points [C, P]; those of a function of two inputs at as
            many points of the plane, `aqx.plane.normal_pairs`.
        spectra: weighted quantiles of its Fisher spectrum [C, D], so that the L1 distance of two rows is the
            weight-weighted Wasserstein-1 distance of two spectra; a row with a nan has no spectrum. Left out, or
            with D = 0, outputs are all there is.
        points: where the outputs were taken [P]; default quantiles of N(0, 1), as a database has them by default.
        runs: losses of its short runs [C, R], the lower the better; a row with a nan has none. Left out, nobody has.
        gated: which candidates are functions of two inputs [C]; derived from the names.
        has_spectrum: which candidates have a spectrum [C]; derived.
        has_runs: which candidates have short runs [C]; derived.

    Raises:
        InputError: the numbers of rows differ, or outputs are not finite.

    Example:
        >>> import numpy as np
        >>> from aqx.surrogate import Features
        >>> Features(["relu(x)", "tanh(x)"], np.array([[0, 1], [-0.7, 0.7]])).has_spectrum
        array([False, False])
    """

    names: Sequence[str]
    outputs: np.ndarray  # float32 [C, P]; what is given may be of any real dtype
    spectra: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # float32 [C, D]
    points: np.ndarray = field(default_factory=lambda: np.empty(0))  # float64 [P]
    runs: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # float32 [C, R]
    gated: np.ndarray = field(init=False, repr=False)  # bool [C]
    has_spectrum: np.ndarray = field(init=False, repr=False)  # bool [C]
    has_runs: np.ndarray = field(init=False, repr=False)  # bool [C]

    def __post_init__(self) -> None:
        names = tuple(map(str, self.names))
        outputs = _matrix("outputs", self.outputs, len(names))
        spectra, has_spectrum = _descriptor("spectra", self.spectra, len(names))
        runs, has_runs = _descriptor("runs", self.runs, len(names))
        finite = np.isfinite(outputs).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise InputError(f"outputs of {names[bad]!r} (row {bad}) are not finite; leave such candidates out")
        points = np.asarray(self.points, np.float64) if self.points.size else mid_quantiles(outputs.shape[1])
        if points.shape != outputs.shape[1:]:
            raise InputError(f"points has the shape {points.shape}; give one for each of {outputs.shape[1]} outputs")
        fields = {"names": names, "outputs": outputs, "spectra": spectra, "points": points, "runs": runs}
        gated = np.fromiter(map(_takes_y, names), bool, len(names))
        derived = {"gated": gated, "has_spectrum": has_spectrum, "has_runs": has_runs}
        for name, value in (fields | derived).items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.names)

    def in_plane(self, rows: slice = slice(None)) -> np.ndarray:
        """Return the outputs of some candidates, all as functions of two inputs at the same points [R, P].

        So functions of one and of two inputs are compared: f(x) is the function of x and y that y does not change.
        """
        outputs, plain = self.outputs[rows].copy(), ~self.gated[rows]
        outputs[plain] = in_plane(outputs[plain], self.points)
        return outputs


def _takes_y(name: str) -> bool:
    """Whether `y` stands in a function's name: as an argument, not as a part of another name."""
    return "y)" in name and ("(y)" in name or ",y)" in name) or "y," in name and ("(y," in name or ",y," in name)


def _descriptor(name: str, value: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix that may lack rows, or all of them, and which are there."""
    matrix = _matrix(name, value if value.size else np.empty((rows, 0)), rows)
    if not matrix.shape[1]:
        return matrix, np.zeros(rows, bool)
    return matrix, np.asarray(np.isfinite(matrix).all(axis=1))


def _matrix(name: str, value: object, rows: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(value, dtype=np.float32)
    if matrix.ndim != 2 or len(matrix) != rows:
        raise InputError(f"{name} has the shape {matrix.shape}; give a matrix with one row for each of {rows} names")
    return matrix
