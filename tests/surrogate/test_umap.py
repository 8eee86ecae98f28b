"""The `paper` preset: the union of two UMAP graphs, its determinism and its degenerate inputs."""

from __future__ import annotations

import numpy as np
import pytest
from test_surrogate import degenerate, family

from aqx.surrogate import Features, atlas, draw_map, embed, suggest


@pytest.fixture(scope="module")
def planted() -> tuple[Features, np.ndarray]:
    return family(150)


@pytest.fixture(scope="module")
def union(planted) -> np.ndarray:
    return embed(planted[0], "paper")


@pytest.mark.slow
def test_union_is_two_dimensional_and_determined_by_the_seed(planted, union):
    assert union.shape == (150, 2) and union.dtype == np.float32
    assert np.isfinite(union).all()
    np.testing.assert_array_equal(union, embed(planted[0], "paper"))


@pytest.mark.slow
def test_union_keeps_neighbours_of_both_features(planted, union):
    """Near in outputs, or near in spectra (by L1), means near in the union."""
    features, _ = planted
    outputs = np.linalg.norm(features.outputs[:, None] - features.outputs, axis=2)
    spectra = np.abs(features.spectra[:, None] - features.spectra).sum(axis=2)
    apart = np.linalg.norm(union[:, None] - union, axis=2)
    for distances in (outputs, spectra):
        nearest = np.argsort(distances, axis=1)[:, 1:4]
        assert np.take_along_axis(apart, nearest, axis=1).mean() < 0.5 * apart.mean()


@pytest.mark.slow
def test_union_is_umap_learns_own(planted, union):
    import umap

    features, _ = planted
    options = {"random_state": 0, "n_jobs": 1, "transform_mode": "graph"}
    by_outputs = umap.UMAP(**options).fit(features.outputs)
    by_spectra = umap.UMAP(metric="manhattan", n_neighbors=3, **options).fit(features.spectra)
    np.testing.assert_array_equal(union, (by_outputs + by_spectra).embedding_)


@pytest.mark.slow
def test_nearest_neighbours_in_the_union_predict_results(planted, union):
    _, values = planted
    held_out = np.arange(150) % 2 == 1
    observed = np.flatnonzero(~held_out)
    found = suggest(union, observed, values[observed], preset="paper", candidates=held_out, n=75)
    assert np.corrcoef(found.mean, values[found.index])[0, 1] > 0.6
    assert (np.diff(found.mean) <= 1e-12).all(), "the highest prediction comes first"


@pytest.mark.slow
def test_candidates_without_spectra_are_placed_by_their_outputs(planted):
    features, values = planted
    spectra = features.spectra.copy()
    spectra[::3] = np.nan
    union = embed(Features(features.names, features.outputs, spectra), "paper")
    assert np.isfinite(union).all()
    observed = np.arange(0, 150, 2)
    found = suggest(union, observed, values[observed], preset="paper", n=10)
    assert len(set(found.index)) == 10


@pytest.mark.slow
def test_equal_candidates_share_a_place(planted):
    features, _ = planted
    twice = Features(features.names * 2, np.tile(features.outputs, (2, 1)), np.tile(features.spectra, (2, 1)))
    union = embed(twice, "paper")
    np.testing.assert_array_equal(union[:150], union[150:])
    np.testing.assert_array_equal(union[:150], embed(features, "paper"))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, pytest.param(16, marks=pytest.mark.slow), 20])
@pytest.mark.parametrize("spectra", ["none", "some", "all"])
@pytest.mark.parametrize("outputs", ["varied", "equal", "huge"])
def test_tiny_and_degenerate_inputs_embed(count, spectra, outputs):
    embedding = embed(degenerate(count, spectra, outputs), "paper")
    assert embedding.shape == (count, 2) and embedding.dtype == np.float32
    assert np.isfinite(embedding).all()


@pytest.mark.slow
def test_progress_is_reported(planted):
    seen: list[tuple[int, int, str]] = []
    embed(planted[0], "paper", progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == [0, 1, 2, 3]
    assert {total for _, total, _ in seen} == {3}


def test_a_map_keeps_neighbours_and_does_not_change(planted):
    points, _ = planted
    places = draw_map(points.outputs)
    np.testing.assert_array_equal(draw_map(points.outputs), places)
    assert places.shape == (150, 2) and np.isfinite(places).all()
    near = np.argsort(np.linalg.norm(points.outputs[:, None] - points.outputs, axis=2), axis=1)[:, 1:4]
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    assert np.take_along_axis(apart, near, axis=1).mean() < 0.5 * apart.mean()


def test_whoever_joins_a_map_lies_among_its_nearest_landmarks(planted, monkeypatch):
    monkeypatch.setattr(atlas, "_LANDMARKS", 50)
    outputs = planted[0].outputs
    places = draw_map(outputs)
    landmarks = outputs[::3]
    for row in range(1, 150, 3):
        nearest = 3 * np.argsort(np.linalg.norm(landmarks - outputs[row], axis=1))[:8]
        assert (places[row] >= places[nearest].min(axis=0) - 1e-5).all()
        assert (places[row] <= places[nearest].max(axis=0) + 1e-5).all()


@pytest.mark.parametrize("rows", [0, 1, 15])
def test_a_few_candidates_or_equal_ones_have_a_map(rows: int):
    rng = np.random.default_rng(0)
    assert np.isfinite(draw_map(rng.normal(size=(rows, 4)))).all()
    assert np.isfinite(draw_map(np.ones((rows, 4)))).all()
