"""The losses against formulas written out in NumPy, and their refusal of shapes that do not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax

from aqx import losses
from aqx.errors import InputError

N, T, C, D = 7, 3, 5, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, C)).astype(np.float32)
POSITIONS = RNG.normal(size=(N, T, C)).astype(np.float32)
CLASSES = RNG.integers(C, size=N)
POSITION_CLASSES = RNG.integers(C, size=(N, T))
OUTPUTS = RNG.normal(size=(N, D)).astype(np.float32)
TARGETS = RNG.normal(size=(N, D))
BITS = RNG.integers(2, size=(N, D))
EYE = np.eye(C)


def softmax_oracle(logits, one_hot):
    values = -(one_hot * log_softmax(logits.astype(np.float64), axis=-1)).sum(-1)
    return values.reshape(N, -1).mean(1)


def binary_oracle(outputs, bits):
    p = expit(outputs.astype(np.float64))
    return -(bits * np.log(p) + (1 - bits) * np.log1p(-p)).reshape(N, -1).mean(1)


def squared_oracle(outputs, targets):
    return ((outputs - targets) ** 2).reshape(N, -1).mean(1)


CASES = {
    "integer classes": (losses.softmax_cross_entropy, LOGITS, CLASSES, softmax_oracle(LOGITS, EYE[CLASSES])),
    "unsigned classes": (losses.softmax_cross_entropy, LOGITS, np.uint8(CLASSES), softmax_oracle(LOGITS, EYE[CLASSES])),
    "one-hot rows": (losses.softmax_cross_entropy, LOGITS, EYE[CLASSES], softmax_oracle(LOGITS, EYE[CLASSES])),
    "integer one-hot": (
        losses.softmax_cross_entropy,
        LOGITS,
        np.int32(EYE[CLASSES]),
        softmax_oracle(LOGITS, EYE[CLASSES]),
    ),
    "soft labels": (losses.softmax_cross_entropy, LOGITS, np.full((N, C), 0.2), softmax_oracle(LOGITS, 0.2)),
    "positions": (
        losses.softmax_cross_entropy,
        POSITIONS,
        POSITION_CLASSES,
        softmax_oracle(POSITIONS, EYE[POSITION_CLASSES]),
    ),
    "bits": (losses.binary_cross_entropy, OUTPUTS, BITS, binary_oracle(OUTPUTS, BITS)),
    "true and false": (
        losses.binary_cross_entropy,
        OUTPUTS[:, 0],
        BITS[:, 0] == 1,
        binary_oracle(OUTPUTS[:, 0], BITS[:, 0]),
    ),
    "column of logits": (
        losses.binary_cross_entropy,
        OUTPUTS[:, :1],
        BITS[:, 0],
        binary_oracle(OUTPUTS[:, 0], BITS[:, 0]),
    ),
    "targets": (losses.mean_squared_error, OUTPUTS, TARGETS, squared_oracle(OUTPUTS, TARGETS)),
    "images": (
        losses.mean_squared_error,
        OUTPUTS.reshape(N, 2, 2),
        TARGETS.reshape(N, 2, 2),
        squared_oracle(OUTPUTS, TARGETS),
    ),
    "column of predictions": (
        losses.mean_squared_error,
        OUTPUTS[:, :1],
        TARGETS[:, 0],
        squared_oracle(OUTPUTS[:, 0], TARGETS[:, 0]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_value(case: str):
    loss, outputs, y, expected = CASES[case]
    for function in (loss, jax.jit(loss)):
        values = function(outputs, y)
        assert values.shape == (N,) and values.dtype == jnp.float32
        np.testing.assert_allclose(values, expected, rtol=2e-6, atol=1e-7)


def test_extreme_logits_stay_finite():
    outputs = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    assert losses.softmax_cross_entropy(outputs, jnp.array([1, 1])).tolist() == [2e4, 0]
    assert losses.binary_cross_entropy(outputs[:, 0], jnp.array([0, 0])).tolist() == [1e4, 0]


@pytest.mark.parametrize(
    ("loss", "outputs", "y"),
    [
        (losses.softmax_cross_entropy, (4, 3), np.zeros(5, int)),
        (losses.softmax_cross_entropy, (4, 3), np.zeros(4)),
        (losses.softmax_cross_entropy, (4, 3), np.zeros((4, 2))),
        (losses.softmax_cross_entropy, (4,), np.zeros(4, int)),
        (losses.binary_cross_entropy, (4, 3), np.zeros(4)),
        (losses.mean_squared_error, (4, 3), np.zeros((4, 1))),
        (losses.mean_squared_error, (4,), np.zeros((4, 1))),
    ],
)
def test_shapes_that_do_not_fit(loss, outputs, y):
    with pytest.raises(InputError, match=r"y of shape .* does not fit outputs .*; give") as caught:
        getattr(loss, "__wrapped__", loss)(jnp.zeros(outputs), y)
    assert "\n" not in str(caught.value)
