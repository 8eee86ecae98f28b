"""What the surrogate knows of functions of two inputs: symmetries that training cannot see, and both kinds together."""

from __future__ import annotations

import numpy as np
import pytest

from aqx.plane import normal_pairs
from aqx.surrogate import Features, as_preset, embed
from aqx.surrogate.symmetry import in_plane, mid_quantiles, parts, parts_in_plane

X, Y = normal_pairs(256).astype(float)


def f(x, y):
    return np.tanh(x + 0.7) * (y + 0.2) + 0.1 * x


TWINS = {
    "f": f(X, Y),
    "minus f": -f(X, Y),
    "mirrored in x": f(-X, Y),
    "mirrored in y": f(X, -Y),
    "exchanged": f(Y, X),
    "all of it": -f(-Y, -X),
}


@pytest.mark.parametrize("twin", TWINS)
def test_a_function_and_its_twins_have_the_same_parts(twin: str):
    outputs = np.stack([TWINS["f"], TWINS[twin], np.tanh(X) * Y]).astype(np.float32)
    found = parts_in_plane(outputs)
    for part in (found.odd, found.even, found.scale, np.abs(found.mean)):
        np.testing.assert_allclose(part[1], part[0], atol=1e-5)
    assert np.abs(found.odd[2] - found.odd[0]).max() > 0.1


def test_parts_add_up_and_have_unit_scale():
    outputs = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    found = parts_in_plane(outputs)
    np.testing.assert_allclose((found.odd**2 + found.even**2).sum(axis=1) / 256, 1, rtol=1e-6)


def test_a_plain_function_in_the_plane_is_itself():
    x = mid_quantiles(256)
    plain = np.stack([np.tanh(x), np.abs(x), np.maximum(x, 0)]).astype(np.float32)
    found = in_plane(plain, x)
    np.testing.assert_allclose(found, [np.tanh(X), np.abs(X), np.maximum(X, 0)], atol=0.02)
    one, two = parts(plain, x), parts_in_plane(found)
    np.testing.assert_allclose(two.scale, one.scale, atol=0.02)
    np.testing.assert_allclose(two.mean, one.mean, atol=0.03)
    assert np.abs(two.odd[:, 256:]).max() < 1e-6 and np.abs(two.even[:, 256:]).max() < 1e-6


def test_both_kinds_have_coordinates_and_like_is_near_like():
    names = ["tanh(x)", "relu(x)", "exp(x)", "mul(tanh(x),one(y))", "mul(x,y)", "mul(relu(x),y)", "mul(y,relu(x))"]
    x = mid_quantiles(256)
    outputs = [np.tanh(x), np.maximum(x, 0), np.exp(x), np.tanh(X), X * Y, np.maximum(X, 0) * Y, np.maximum(X, 0) * Y]
    both = Features(names, np.stack(outputs))
    assert both.gated.tolist() == [False] * 3 + [True] * 4
    found = embed(both)
    assert found.shape[1] == embed(Features(names[:3], np.stack(outputs[:3]))).shape[1]
    assert np.isfinite(found[:, :16]).all()

    def distance(i: int, j: int) -> float:
        return float(np.linalg.norm(found[i, :16] - found[j, :16]))

    assert distance(0, 3) < 0.1 * distance(0, 4)  # tanh(x)·1 is as good as tanh(x)
    assert distance(5, 6) < 1e-5


def test_functions_of_one_input_alone_are_embedded_as_ever():
    x = mid_quantiles(64)
    outputs = np.stack([np.tanh(k * x + k) for k in np.linspace(0.2, 3, 9)]).astype(np.float32)
    plain = Features([f"f{k}(x)" for k in range(9)], outputs)
    assert not plain.gated.any()
    preset = as_preset("ensemble")
    assert len(preset.embed.fit(plain)["odd"]) == 64


@pytest.mark.parametrize("name", ["y1(x)", "yes(x,x)", "mul(ray(x),x)", "x"])
def test_a_name_with_the_letter_is_no_function_of_two(name: str):
    assert not Features([name], np.zeros((1, 4))).gated.any()
