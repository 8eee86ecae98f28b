"""`fit`: one fit of the surrogate to the results of a round, for all that a round asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from aqx.errors import Exhausted, InputError
from aqx.surrogate.prediction import (
    ENOUGH,
    SHORT_RUNS,
    SPECTRUM,
    Known,
    Results,
    checked_rows,
    poor_by_runs,
    predict_rows,
    predicted_from,
)
from aqx.surrogate.presets import DEFAULT, Preset, as_preset


@dataclass(frozen=True, eq=False)
class Suggestions:
    """Candidates to train next, the first being the most wanted.

    Attributes:
        index: rows of the embedding [n].
        mean: predicted result, in the unit of the results given [n]; nan where the choice was random.
        spread: its standard deviation, in the same unit [n].
    """

    index: Int[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    spread: Float[np.ndarray, " n"]


def fit(
    embedding: Float32[np.ndarray, "C K"],
    observed: Sequence[Any] | np.ndarray,
    values: Sequence[Any] | np.ndarray,
    pending: Sequence[Any] | np.ndarray = (),
    *,
    preset: Any = DEFAULT,
    seed: int = 0,
    given: int = 0,
) -> Fitted:
    """Fit the surrogate to the results of a round, once for all that is asked of it.

    Each candidate is predicted from what is known of it: from outputs and spectrum by the results of candidates that
    have both, or from outputs alone by all results. The models are fitted, and all candidates predicted, when the first
    question needs it; every other question of the same round is answered from these predictions. Where rows are
    pending, a first fit without them predicts what they will give.

    Args:
        embedding: coordinates of all candidates [C, K]; a row with a nan, its spectrum's coordinates aside, is never
            chosen.
        observed: rows that have a result.
        values: their results, higher is better; nan (or ±inf) is a failed one.
        pending: rows in training elsewhere.
        preset: as in `embed`.
        seed: of everything random: models and choices.
        given: how many of the observed rows nobody chose, as baselines: an informed start follows them.

    Returns:
        The fitted surrogate: `suggest`, `rank` and `undescribed` ask it.

    Raises:
        InputError: lengths differ or a row is out of range.

    Example:
        >>> import numpy as np
        >>> from aqx.surrogate import fit
        >>> line = np.arange(100, dtype=np.float32)[:, None]
        >>> seen = np.arange(0, 100, 10)
        >>> fitted = fit(line, seen, -np.abs(seen - 47.0))
        >>> bool(30 < fitted.suggest().index[0] < 60), len(fitted.rank())
        (True, 100)
    """
    return fit_with(embedding, observed, values, pending, preset, seed, first_draw(seed), given)


def fit_with(
    embedding: np.ndarray,
    observed: Sequence[Any] | np.ndarray,
    values: Sequence[Any] | np.ndarray,
    pending: Sequence[Any] | np.ndarray,
    preset: Any,
    seed: int,
    model_seed: int,
    given: int = 0,
) -> Fitted:
    """As `fit`, with another seed for the models than that which a choice by `seed` draws."""
    chosen, count = as_preset(preset), len(embedding)
    observed, pending = checked_rows("observed", observed, count), checked_rows("pending", pending, count)
    values = np.asarray(values, np.float64).ravel()
    if len(values) != len(observed):
        raise InputError(f"values has {len(values)} entries for {len(observed)} observed rows; give one for each")
    known = Known.of(embedding, chosen)
    poor = poor_by_runs(embedding, known, chosen, observed)
    results = Results.of(observed, values, known, ranks=chosen.ranks, poor=poor)
    return Fitted(chosen, embedding, known, results, observed, pending, seed, model_seed, given)


def first_draw(seed: int) -> int:
    """The seed of the models of a choice that is seeded so."""
    return _draw(np.random.default_rng(seed))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A surrogate fitted to the results of one round; see `fit`, which makes it.

    Attributes:
        preset: the surrogate.
        embedding: coordinates of all candidates [C, K].
        known: which of them are known.
        results: what the models learn.
        observed: rows that have a result, as given.
        pending: rows in training elsewhere.
        seed: of choices.
        model_seed: of the models.
        given: how many of the observed rows nobody chose.
    """

    preset: Preset
    embedding: np.ndarray
    known: Known
    results: Results
    observed: np.ndarray
    pending: np.ndarray
    seed: int
    model_seed: int
    given: int = 0

    def suggest(self, n: int = 1, candidates: Bool[np.ndarray, " C"] | None = None) -> Suggestions:
        """Choose the next candidates; see `aqx.surrogate.suggest`.

        The first is chosen from this fit. Each further one needs a fit of its own, in which those before it are
        pending.

        Args:
            n: how many to choose; fewer are returned where fewer are left.
            candidates: which rows may be chosen [C]; all by default.

        Returns:
            The suggestions, never observed, pending or masked out; the same at every call.

        Raises:
            Exhausted: no candidate is left.
            InputError: `n` or `candidates` cannot be used.
        """
        rows = len(self.embedding)
        if candidates is not None and candidates.shape != (rows,):
            raise InputError(f"candidates has the shape {candidates.shape}; give one bool for each of {rows} rows")
        if n < 1:
            raise InputError(f"n={n} is too small; ask for 1 or more suggestions")
        free = self._free(candidates)
        if not free.any():
            raise Exhausted("no candidate is left to suggest")
        rng, fitted = np.random.default_rng(self.seed), self
        picks = []
        for _ in range(min(n, int(free.sum()))):
            model_seed = _draw(rng)  # of this fit, the first time
            if picks:
                fitted = replace(fitted, pending=np.append(fitted.pending, picks[-1][0]), model_seed=model_seed)
            picks.append(fitted._choose(np.flatnonzero(free), rng))
            free[picks[-1][0]] = False
        index, mean, spread = zip(*picks, strict=True)
        return Suggestions(np.array(index), np.array(mean, float), np.array(spread, float))

    def runners_up(self, n: int, candidates: Bool[np.ndarray, " C"] | None = None) -> Int[np.ndarray, " R"]:
        """Choose candidates for somebody who has lost what `suggest` chose to others, and will not fit once more.

        Args:
            n: how many, at most.
            candidates: which rows may be chosen [C]; all by default.

        Returns:
            Rows in the order of this very fit, the most wanted first; drawn by chance where it guides no choice.
        """
        free = self._free(candidates)
        rows = np.flatnonzero(free)
        if len(rows) and self._guides(rows):
            return self._best_of(free, n)
        return np.random.default_rng(self.seed).permutation(rows)[:n]

    def _free(self, candidates: np.ndarray | None) -> np.ndarray:
        """Which rows may be chosen [C]."""
        free = self.known.outputs.copy() if candidates is None else self.known.outputs & candidates
        free[self.observed] = free[self.pending] = False
        return free

    def rank(self) -> Int[np.ndarray, " R"]:
        """Order candidates by mean + exploration · spread of their prediction, the most promising first.

        Returns:
            Rows whose coordinates are finite, observed ones included; none where too few results exist to predict from.
        """
        if not self._guides(np.flatnonzero(self.known.outputs)):
            return np.empty(0, np.int64)
        return self._best_of(self.known.outputs)

    def posterior(self) -> tuple[Int[np.ndarray, " R"], Float[np.ndarray, " R"]]:
        """Say what the results are worth without their noise: the mean of the posterior where they were observed.

        The best of many noisy results is the luckiest of some that are nearly as good. Measured: see the guide `early`.

        Returns:
            The observed rows and the means, in the unit of the results; none where the preset has no posterior, or
            there are too few results to tell noise from what is there.
        """
        results = self.results
        if self.preset.posterior is None or results.observed < ENOUGH or not results.suffice(self.preset):
            return np.empty(0, np.int64), np.empty(0)
        smooth = replace(self.preset, model=self.preset.posterior)
        learnt = results.rows, results.targets
        mean, spread = predict_rows(smooth, self.embedding, self.known, *learnt, results.rows, self.model_seed)
        return results.rows, results.in_units(mean, spread)[0]

    def undescribed(self, described: Bool[np.ndarray, " C"], among: int) -> Int[np.ndarray, " R"]:
        """Find the promising candidates whose Fisher spectrum is worth computing before the next choice.

        When it returns rows and their spectra are computed, their coordinates have changed: fit anew. When it returns
        none, which is usual, `suggest` chooses from the very fit that it looked at.

        Args:
            described: whose spectrum is known, or is not wanted [C].
            among: how many of the best predictions, and of the results, should have one.

        Returns:
            The rows without a spectrum among the observed and the `among` most promising ones; none while they are
            fewer than a fifth of those, as spectra are computed many at a time, or while there is nothing to predict
            from.
        """
        starts, others = self._starts, self.known.outputs.copy()
        others[self.observed] = False
        if self.preset.outputs_alone is None or not (starts or self._guides(np.flatnonzero(self.known.outputs))):
            return np.empty(0, np.int64)
        among = min(among, int(self.known.outputs.sum()))
        promising = self._best_by_runs(others, among) if starts else self._best_of(others, among)
        best = np.concatenate([np.unique(self.observed), promising])
        lacking = best[~described[best]]
        return lacking if 5 * len(lacking) >= among else lacking[:0]

    def _choose(self, left: np.ndarray, rng: np.random.Generator) -> tuple[int, float, float]:
        """Choose one of the rows that are left: (row, mean, spread)."""
        described = self._described(left) if self._starts else left[:0]
        if len(described):
            return _by_runs(self.embedding[described, self.preset.without_runs :], described, rng), np.nan, np.nan
        if not self._guides(left):
            seen = np.concatenate([self.results.rows, self._awaited])
            outputs = self.embedding[:, : self.preset.outputs_alone]
            return int(rng.choice(left, p=_far_from(seen, left, outputs))), np.nan, np.nan
        wanted, (mean, spread) = self._wanted(left), self._predicted(left)
        at = rng.choice(np.flatnonzero(wanted == wanted.max()))
        (middle,), (deviation,) = self.results.in_units(mean[[at]], spread[[at]])
        return int(left[at]), float(middle), float(deviation)

    @property
    def _starts(self) -> bool:
        """Whether the next choice goes by the short runs alone.

        It does where there are no results to learn from, and while it is one of the first; but results enough that
        nobody chose, such as imported ones, tell more.
        """
        if not self.preset.informed or not self.preset.knows_runs(self.embedding):
            return False
        chosen = len(np.unique(np.concatenate([self.observed, self.pending]))) - self.given
        first = chosen < self.preset.informed and len(np.unique(self.observed)) < ENOUGH
        return first or not self.results.suffice(self.preset)

    def _described(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows whose short runs are known; where the spectra of some are known too, these alone."""
        parts = self.known.parts[rows]
        runs, both = parts & SHORT_RUNS > 0, parts == SHORT_RUNS | SPECTRUM
        return rows[both if both.any() else runs]

    def _best_by_runs(self, wanted: np.ndarray, count: int) -> np.ndarray:
        """The best of the wanted rows by the mean score of their short runs."""
        rows = np.flatnonzero(wanted & (self.known.parts & SHORT_RUNS > 0))
        scores = self.embedding[rows, self.preset.without_runs :].mean(axis=1)
        return rows[np.argsort(-scores, kind="stable")][:count]

    def _guides(self, rows: np.ndarray) -> bool:
        """Whether there is a prediction to choose rows by: enough results, and a model that could learn from them."""
        return self.results.suffice(self.preset) and bool(np.isfinite(self._wanted(rows)).any())

    def _wanted(self, rows: np.ndarray) -> np.ndarray:
        """Mean + exploration · spread of some rows; −∞ where the model cannot tell."""
        mean, spread = self._predicted(rows)
        wanted = mean + self.preset.exploration * spread
        return np.where(np.isnan(wanted), -np.inf, wanted)

    def _best_of(self, wanted: np.ndarray, count: int | None = None) -> np.ndarray:
        """The most promising of the wanted rows, or so many of them; equal ones in their order."""
        rows = np.flatnonzero(wanted)
        loss = -self._wanted(rows)
        if count is not None and count < len(rows):
            promising = np.flatnonzero(loss <= np.partition(loss, count)[count])
            rows, loss = rows[promising], loss[promising]
        return rows[np.argsort(loss, kind="stable")][:count]

    @property
    def _awaited(self) -> np.ndarray:
        """The pending rows of which enough is known."""
        return self.pending[self.known.outputs[self.pending]]

    def _predicted(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and spread of the targets of some rows.

        The first row that is predicted from all coordinates brings all such rows, and so does one from outputs alone,
        or from outputs and one part more: a fit costs more than what it predicts.
        """
        described, predictions = predicted_from(self.preset, self.known, *self._learnt), self._predictions
        new = [parts for parts in range(4) if parts not in predictions.made and (described[rows] == parts).any()]
        if new:
            asked = np.flatnonzero(self.known.outputs & np.isin(described, new))
            predictions.mean[asked], predictions.spread[asked] = self._predict(*self._learnt, asked)
            predictions.made.update(new)
        return predictions.mean[rows], predictions.spread[rows]

    @cached_property
    def _predictions(self) -> _Predictions:
        mean, spread = np.full((2, len(self.embedding)), np.nan)
        return _Predictions(mean, spread, set())

    @cached_property
    def _learnt(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and targets that the models learn: the results, and what pending rows are believed to give."""
        rows, targets, awaited = self.results.rows, self.results.targets, self._awaited
        if self.preset.exploration and len(awaited):
            believed, _ = self._predict(rows, targets, awaited)
            made = np.isfinite(believed)
            rows, targets = np.append(rows, awaited[made]), np.append(targets, believed[made])
        return rows, targets

    def _predict(self, rows: np.ndarray, targets: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return predict_rows(self.preset, self.embedding, self.known, rows, targets, query, self.model_seed)


class _Predictions(NamedTuple):
    """Mean and spread of candidates' targets [C], and which are made, by what they are predicted from."""

    mean: np.ndarray
    spread: np.ndarray
    made: set[int]


def _draw(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _by_runs(scores: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> int:
    """The best of some rows by a random mixture of the scores of their short runs, so that choices differ."""
    return int(rows[np.argmax(scores @ rng.dirichlet(np.ones(scores.shape[1])))])


def _far_from(seen: np.ndarray, left: np.ndarray, coordinates: np.ndarray) -> np.ndarray | None:
    """Probabilities of rows that grow with the squared distance to the nearest row seen; None for equal ones."""
    if not len(seen) or not coordinates.shape[1]:
        return None
    spread = coordinates[left].std(axis=0)
    scaled = coordinates / np.where(spread > 0, spread, 1)
    nearest, scaled_left = np.full(len(left), np.inf), scaled[left]
    for row in seen:
        nearest = np.minimum(nearest, np.square(scaled_left - scaled[row]).sum(axis=1, dtype=np.float64))
    return nearest / nearest.sum() if nearest.sum() > 0 else None
