"""Array shapes are checked under the tests: a wrong one is refused where it arrives."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from aqx.surrogate.symmetry import parts


@pytest.mark.parametrize("points", [np.zeros(4), np.zeros((5, 1)), np.zeros(5, np.int32)])
def test_a_wrong_shape_is_refused(points: np.ndarray):
    outputs = np.zeros((3, 5), np.float32)
    parts(outputs, np.linspace(-1, 1, 5))
    with pytest.raises(TypeCheckError):
        parts(outputs, points)
