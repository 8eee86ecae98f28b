"""What noisy results are worth: the posterior mean against the truth that the noise hides."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from aqx.surrogate import fit


def hill(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in a square, and a smooth truth over them."""
    places = np.random.default_rng(1).uniform(-1, 1, (count, 2)).astype(np.float32)
    return places, -np.square(places - 0.3).sum(axis=1).astype(np.float64)


def test_the_posterior_sees_through_noise_and_the_best_result_does_not():
    places, truth = hill(60)
    observed, random = np.arange(60), np.random.default_rng(0)
    luckiest, believed = [], []
    for _ in range(20):
        results = truth + random.normal(scale=0.3, size=60)
        rows, means = fit(places, observed, results).posterior()
        assert rows.tolist() == observed.tolist() and means.min() >= results.min() and means.max() <= results.max()
        luckiest.append(truth[results.argmax()])
        believed.append(truth[rows[means.argmax()]])
        assert spearmanr(means, truth)[0] > spearmanr(results, truth)[0]
    assert np.mean(believed) > np.mean(luckiest) + 0.05


def test_without_noise_the_posterior_is_what_was_seen():
    places, truth = hill(40)
    rows, means = fit(places, np.arange(40), truth).posterior()
    assert rows[means.argmax()] == truth.argmax() and spearmanr(means, truth)[0] > 0.99


def test_failed_results_are_not_believed_in_and_several_of_a_row_are_one():
    places, truth = hill(40)
    results = truth.copy()
    results[truth.argmin()] = np.nan
    rows, means = fit(places, np.arange(40), results).posterior()
    assert means[rows.tolist().index(truth.argmin())] < np.median(means)
    twice = fit(places, [*range(40), 0, 1], [*truth, truth[0], truth[1]]).posterior()
    assert twice[0].tolist() == list(range(40))


@pytest.mark.parametrize("preset", ["random", "paper"])
def test_a_surrogate_without_a_posterior_says_nothing(preset: str):
    places, truth = hill(40)
    assert not len(fit(places, np.arange(40), truth, preset=preset).posterior()[0])


def test_few_results_or_equal_ones_say_nothing():
    places, truth = hill(40)
    assert not len(fit(places, np.arange(19), truth[:19]).posterior()[0])
    assert len(fit(places, np.arange(20), truth[:20]).posterior()[0]) == 20
    assert not len(fit(places, np.arange(40), np.ones(40)).posterior()[0])
