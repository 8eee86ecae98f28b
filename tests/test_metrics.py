"""What goes into the database comes out of it."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqx.errors import InputError
from aqx.metrics import clean_text, decode_metrics, encode_metrics
from aqx.store.encoding import differences

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["nan", "inf", "-inf", "'nan", "''inf", "NaN"]
)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | texts, st.lists, max_leaves=8)


def same(left: object, right: object) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return type(left) is type(right) and left == right


@given(st.dictionaries(texts, values, max_size=5))
def test_metrics_come_back_and_are_plain_json(metrics: dict[str, object]):
    text = encode_metrics(metrics)
    back = decode_metrics(text)
    assert back.keys() == metrics.keys()
    assert all(same(back[key], value) for key, value in metrics.items())
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_arrays_and_their_scalars_come_back_as_lists_and_numbers():
    metrics = {
        "a": np.float32(0.5),
        "b": jnp.array([1.0, jnp.nan]),
        "c": np.arange(3),
        "d": (1, "x"),
        "e": jnp.float32(2),
    }
    back = decode_metrics(encode_metrics(metrics))
    assert str(back) == "{'a': 0.5, 'b': [1.0, nan], 'c': [0, 1, 2], 'd': [1, 'x'], 'e': 2.0}"


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({1: 2.0}, "strings as keys"),
        ({"a": {"b": 1}}, "'a'.*dict"),
        ({"a": [object()]}, "object"),
        ({"a": 1j}, "complex"),
    ],
)
def test_other_metrics_are_named(metrics: dict, words: str):
    with pytest.raises(InputError, match=words) as error:
        encode_metrics(metrics)
    assert "\n" not in str(error.value)


def test_half_a_surrogate_pair_becomes_a_question_mark():
    assert clean_text("a\ud800b") == "a?b" and clean_text("a→𝛼\0") == "a→𝛼\0"
    assert decode_metrics(encode_metrics({"a\ud800": "\udfff"})) == {"a?": "?"}


def test_differences_name_what_differs():
    assert differences({"a": 1, "b": [1]}, {"a": 1, "b": [1]}) == ""
    assert differences({"a": 1}, {"b": "x" * 99}) == f"a (stored 1, now nothing), b (stored nothing, now '{'x' * 58}…)"
