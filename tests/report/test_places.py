"""The map of all candidates is drawn once, and kept in the user's cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aqx import surrogate
from aqx.report import survey
from aqx.report.survey import Survey, places_of


def candidates(number: int) -> Survey:
    coordinates = np.random.default_rng(number).normal(size=(3, 2)).astype(np.float32)
    return Survey(["a", "b", "c"], coordinates, np.full(3, np.nan), np.empty(0, np.int64), None)


def test_it_is_drawn_once_and_again_where_the_file_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AQX_CACHE", str(tmp_path))
    drawn = []

    def draw(rows, progress=None):
        drawn.append(len(rows))
        return rows[:, :2].copy()

    monkeypatch.setattr(surrogate, "draw_map", draw)
    first = places_of(candidates(0))
    np.testing.assert_array_equal(places_of(candidates(0)), first)
    assert len(drawn) == 1
    (file,) = (tmp_path / "maps").glob("*.npz")
    file.write_bytes(file.read_bytes()[:-30])
    np.testing.assert_array_equal(places_of(candidates(0)), first)
    assert len(drawn) == 2
    for number in range(1, survey._KEPT_MAPS + 5):
        assert not np.array_equal(places_of(candidates(number)), first)
    assert len(list((tmp_path / "maps").iterdir())) == survey._KEPT_MAPS
