"""What 16-bit floats make of functions: where they overflow, or lose all digits."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from aqx.evaluation.family import Batch
from aqx.evaluation.values import evaluate

# Eighths up to ±30, and powers of two around 0: the same numbers in float16, bfloat16, float32 and float64, so that
# whatever differs is the function's doing. (bfloat16 has 8 bits, and 30 is 240 eighths.)
_EIGHTHS = np.arange(-240, 241) / 8.0
_SMALL = 2.0 ** -np.arange(4.0, 15.0)
POINTS: Float[np.ndarray, " P"] = np.sort(np.concatenate([_EIGHTHS, _SMALL, -_SMALL]))
_COARSE = POINTS[::12]
_PAIRS: Float[np.ndarray, "2 P"] = np.stack(np.meshgrid(_COARSE, _COARSE)).reshape(2, -1)  # of functions of two inputs
_TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(jnp.bfloat16)}
_LEAST = 2.0**-14  # the smallest normal number of float16: what is smaller counts as 0
_ROWS = 1 << 14  # functions at a time, in a hundred megabytes


@dataclass(frozen=True)
class Precision:
    """Of K functions on [-30, 30], or [-30, 30]², by type: what becomes of their values.

    Attributes:
        overflows: somewhere the value is finite in float64, and in the type it is not [K].
        loses_digits: somewhere the value, at least 2⁻¹⁴ in size, is wrong by half of it or more [K].
    """

    overflows: dict[str, Bool[np.ndarray, " K"]]
    loses_digits: dict[str, Bool[np.ndarray, " K"]]

    def flags(self) -> dict[str, Bool[np.ndarray, " K"]]:
        """Return both by a name each, such as "float16_overflows", as a database keeps them."""
        return {
            f"{kind}_{what}": flags[kind]
            for kind in _TYPES
            for what, flags in (("overflows", self.overflows), ("loses_digits", self.loses_digits))
        }


def precision(batch: Batch) -> Precision:
    """Evaluate functions as an activation does on a 16-bit array, and compare with float64.

    That is: in float32, and rounded to the type at the end. At the points, numbers of all four types, x itself is
    exact. A framework that rounds to 16 bits after every operator (`aqx export`) does worse.

    Args:
        batch: the functions.

    Returns:
        Where each type fails each function.

    Example:
        >>> import aqx
        >>> from aqx.evaluation import Batch, precision
        >>> found = precision(Batch.of_trees([aqx.parse("tanh(x)"), aqx.parse("exp(x)")]))
        >>> found.overflows["float16"].tolist(), found.overflows["bfloat16"].tolist()
        ([False, True], [False, False])
    """
    overflows = {kind: np.zeros(len(batch), bool) for kind in _TYPES}
    loses = {kind: np.zeros(len(batch), bool) for kind in _TYPES}
    for start in range(0, len(batch), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(batch)))
        part = batch.take(rows)
        points = POINTS if part.inputs == 1 else _PAIRS
        exact, single = evaluate(part, points), evaluate(part, points.astype(np.float32))
        finite = np.isfinite(exact)
        for kind, type_ in _TYPES.items():
            with np.errstate(over="ignore", invalid="ignore"):
                found = single.astype(type_).astype(np.float64)
                wrong = np.abs(found - exact) >= np.abs(exact) / 2
            held = np.isfinite(found)
            overflows[kind][rows] = (finite & ~held).any(axis=1)
            loses[kind][rows] = (finite & held & wrong & (np.abs(exact) >= _LEAST)).any(axis=1)
    return Precision(overflows, loses)
