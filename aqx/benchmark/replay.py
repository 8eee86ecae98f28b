"""`replay`: searches on results that are known already: what they would have found, evaluation by evaluation."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from aqx import surrogate
from aqx.benchmark.descriptors import Descriptors
from aqx.benchmark.local import LOCAL, climb, neighbours
from aqx.errors import InputError
from aqx.surrogate import Features, Preset
from aqx.training.processes import run_each

Progress = Callable[[int, int, str], None]
_SEED = 2**32  # what a NumPy seed may not reach


@dataclass(frozen=True, eq=False)
class Curves:
    """N searches of one policy over E evaluations each, among C classes.

    After k evaluations a search would return the *incumbent*: the class with the best result that it has seen, or the
    one that it believes in. What it is worth is its true value, the mean over all its seeds, which the search does not
    know.

    Attributes:
        policy: the policy's name.
        seeds: of the searches [N].
        evaluated: the row that was evaluated [N, E].
        incumbents: the row that the search would return then; -1 as long as everything failed [N, E].
        best: the incumbent's true value, in the objective's unit; the worst of the table where there is none [N, E].
        regret: how much the best true value of the table is better, ≥ 0 [N, E].
        rank: how many classes are truly better, plus 1, so that equal ones share the better rank [N, E].
        optimum: the best true value of the table.
        classes: C.
        seconds: what one choice took, on average; starts are not counted, nor is the embedding.
    """

    policy: str
    seeds: Int64[np.ndarray, " N"]
    evaluated: Int64[np.ndarray, "N E"]
    incumbents: Int64[np.ndarray, "N E"]
    best: Float64[np.ndarray, "N E"]
    regret: Float64[np.ndarray, "N E"]
    rank: Int64[np.ndarray, "N E"]
    optimum: float
    classes: int
    seconds: float

    def evaluations_to(self, share: float) -> Float64[np.ndarray, " N"]:
        """Evaluations until the incumbent is among the best `share` of the classes [N]; inf where it never is."""
        reached = self.rank <= top(self.classes, share)
        return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)


def top(classes: int, share: float) -> int:
    """How many classes the best share of them is: rounded down, but at least one."""
    return max(1, int(classes * share + 1e-9))


def replay(
    features: Features,
    values: Float[np.ndarray, "..."] | Sequence[Any],
    policy: Any = surrogate.DEFAULT,
    *,
    seeds: int | Sequence[int] = 20,
    evaluations: int = 100,
    start: int = 8,
    direction: str = "maximize",
    present: Bool[np.ndarray, "C S"] | None = None,
    usable: Bool[np.ndarray, " C"] | None = None,
    embedding: Float[np.ndarray, "C K"] | None = None,
    spectra: int | None = None,
    runs: int | None = None,
    batch: int = 1,
    baselines: Sequence[int] | Int[np.ndarray, " B"] = (),
    posterior: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Curves:
    """Replay searches of one policy, without training anything.

    Every search evaluates `start` random classes, the same for all policies at one seed, and then what the policy
    suggests, `batch` at a time. Where the features have short runs and the policy uses them, the start is its own: the
    best by random mixtures of them. With `baselines` a search begins as `Study.search` does: with these, and then
    with what the policy suggests, so that there is no random start either. It sees one of the trainings of a class,
    drawn by the search's seed and the class alone. A class whose trainings mostly failed has no true value: it is worse
    than all that have one.

    Args:
        features: of C classes.
        values: results of the trainings of each class [C] or [C, S]; nan or ±inf is a failed one.
        policy: a preset's name, a `Preset` or a scikit-learn regressor; or "local": neighbours of the best so far, of
            which one operator is another, in a random order.
        seeds: of the searches, or how many of them.
        evaluations: of each search, `start` included.
        start: random classes at the beginning.
        direction: "maximize" or "minimize".
        present: which values are trainings at all, where classes have different numbers of them; default all [C, S].
        usable: which classes may be evaluated; default all [C].
        embedding: of the features for this policy, from `surrogate.embed`; default computed, with seed 0.
        spectra: know Fisher spectra only of the classes that `Study.search(spectra=…)` would have computed them for;
            0 for of none, default of all.
        runs: know short runs only of the classes that `Study.search(runs=…)` would have computed them for; 0 for of
            none, default of all.
        batch: evaluations that are chosen together, before any of them is known, as a GPU trains them by one program.
        baselines: rows that every search evaluates first, as `Landscape.baselines`.
        posterior: the incumbent is the best by the mean of the posterior, as `Study.incumbent` returns it, where the
            policy has one and there are results enough; default the best result.
        workers: processes; the policy must pickle for more than one.
        progress: called as progress(done, total, note).

    Returns:
        For each search and each number of evaluations, how good the best class found so far is.

    Raises:
        InputError: an argument cannot be used, or there are fewer usable classes than evaluations.

    Example:
        >>> import numpy as np
        >>> from sklearn.neighbors import KNeighborsRegressor
        >>> from aqx.benchmark import replay
        >>> from aqx.surrogate import Features
        >>> x = np.linspace(-1, 1, 50)
        >>> features = Features([f"f{i}" for i in range(50)], x[:, None] * np.arange(1, 9))
        >>> curves = replay(features, -(x - 0.3) ** 2, KNeighborsRegressor(3), seeds=3, evaluations=20)
        >>> curves.regret.shape, bool(curves.regret[:, -1].max() < 0.01)
        ((3, 20), True)
    """
    preset = as_policy(policy)
    given, trained, chosen = _checked(features, values, present, usable, direction)
    seed_list = _seeds(seeds)
    if not 1 <= start <= evaluations:
        raise InputError(f"start={start} must be from 1 to evaluations={evaluations}")
    for what, number, least in (
        ("workers", workers, 1),
        ("batch", batch, 1),
        ("spectra", spectra, 0),
        ("runs", runs, 0),
    ):
        if number is not None and number < least:
            raise InputError(f"{what}={number} is too few; give {least} or more")
    first = _baselines(baselines, chosen, evaluations)
    if chosen.sum() < evaluations:
        raise InputError(f"evaluations={evaluations}, but only {chosen.sum()} classes can be evaluated; give fewer")
    sign = 1.0 if direction == "maximize" else -1.0
    # Higher is better from here to `_curves`.
    truth = sign * true_values(given, trained)
    if np.isnan(truth).all():
        raise InputError("values: every class failed; nothing can be replayed")
    seen = np.stack([sign * _seen(given, trained, seed) for seed in seed_list.tolist()])
    if preset.model is None:
        coordinates = np.zeros((len(features), 0), np.float32)
    else:
        coordinates = surrogate.embed(features, preset, 0) if embedding is None else embedding
    if runs == 0:
        coordinates = coordinates[:, : preset.without_runs]
    near = neighbours(features.names) if preset is LOCAL else None
    searches = [
        (coordinates, seen[n], chosen, preset, seed, evaluations, start, spectra, runs, batch, first, near, posterior)
        for n, seed in enumerate(seed_list.tolist())
    ]
    rows, believed = np.empty((2, len(searches), evaluations), np.int64)
    spent = 0.0
    for done, (n, order, best, seconds) in enumerate(_run(searches, workers, preset), 1):
        rows[n], believed[n] = order, best
        spent += seconds
        if progress:
            progress(done, len(searches), preset.name)
    choices = len(searches) * (evaluations - start)
    return _curves(preset.name, seed_list, rows, believed, seen, truth, sign, spent / max(choices, 1))


def as_policy(policy: Any) -> Preset:
    """Return the preset that a policy of `replay` stands for."""
    return LOCAL if isinstance(policy, str) and policy == LOCAL.name else surrogate.as_preset(policy)


def true_values(
    values: Float64[np.ndarray, "C S"], present: Bool[np.ndarray, "C S"] | None = None
) -> Float64[np.ndarray, " C"]:
    """Mean of the finite results of each class; nan where more than half of its trainings failed, or all.

    Example:
        >>> import numpy as np
        >>> from aqx.benchmark.replay import true_values
        >>> true_values(np.array([[0.5, 0.7], [0.5, np.nan], [np.nan, np.inf]]))
        array([0.6, 0.5, nan])
    """
    trained = np.ones(values.shape, bool) if present is None else present
    finite = np.isfinite(values) & trained
    counts = finite.sum(axis=1)
    # Divided first: a sum of the largest losses would overflow.
    means = (np.where(finite, values, 0) / np.maximum(counts, 1)[:, None]).sum(axis=1)
    return np.where((counts > 0) & (2 * counts >= trained.sum(axis=1)), means, np.nan)


def _search(
    coordinates: np.ndarray,
    seen: np.ndarray,
    usable: np.ndarray,
    preset: Preset,
    seed: int,
    evaluations: int,
    start: int,
    spectra: int | None,
    runs: int | None,
    batch: int,
    first: list[int],
    near: list[np.ndarray] | None,
    posterior: bool,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The rows that one search evaluates, in order, those that it believes in, and how long it took to choose."""
    nothing = np.full(evaluations, -1)
    order = _generator(seed, 0).permutation(np.flatnonzero(usable))
    if near is not None:
        climbed = climb(near, seen, first or order[:start].tolist(), order, evaluations, _generator(seed, 3))
        return climbed, nothing, 0.0
    if preset.model is None:
        others = order[~np.isin(order, first)]
        return np.concatenate([np.array(first, np.int64), others])[:evaluations], nothing, 0.0
    if preset.informed and preset.knows_runs(coordinates):
        rows, preset = list(first), preset if first else replace(preset, informed=min(start, preset.informed))
    else:
        rows = first or order[:start].tolist()
    choices = _generator(seed, 2).integers(2**31, size=evaluations)
    began = time.perf_counter()
    descriptors = Descriptors.of(coordinates, usable, preset, spectra, runs)
    while len(rows) < evaluations:
        fitted = descriptors.fitted(rows, seen[rows], int(choices[len(rows)]), given=len(first))
        rows += fitted.suggest(min(batch, evaluations - len(rows)), usable).index.tolist()
    seconds = time.perf_counter() - began
    believed = _believed(descriptors.known, rows, seen, preset) if posterior else nothing
    return np.array(rows, np.int64), believed, seconds


def _believed(coordinates: np.ndarray, rows: list[int], seen: np.ndarray, preset: Preset) -> np.ndarray:
    """The best by the posterior after each evaluation [E]; -1 where there is none."""
    found = np.full(len(rows), -1)
    for k in range(1, len(rows) + 1):
        observed, means = surrogate.fit(coordinates, rows[:k], seen[rows[:k]], preset=preset).posterior()
        if len(observed):
            found[k - 1] = observed[np.where(np.isfinite(seen[observed]), means, -np.inf).argmax()]
    return found


def _baselines(baselines: Any, usable: np.ndarray, evaluations: int) -> list[int]:
    rows = np.asarray(baselines)
    rows = rows.astype(np.int64) if not rows.size else rows
    whole = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer)
    if not whole or not ((rows >= 0) & (rows < len(usable))).all() or not usable[rows].all():
        raise InputError(f"baselines={baselines!r} must be rows of classes that may be evaluated")
    if len(set(rows.tolist())) < len(rows) or len(rows) > evaluations:
        raise InputError(f"baselines={baselines!r} must differ, and be no more than evaluations={evaluations}")
    return rows.tolist()


def _run(
    searches: list[tuple[Any, ...]], workers: int, preset: Preset
) -> Iterator[tuple[int, np.ndarray, np.ndarray, float]]:
    """Run searches here or in processes; yield the number of each, and what `_search` returns, as it ends."""
    workers = 1 if preset.model is None else min(workers, len(searches))
    if workers == 1:
        for n, search in enumerate(searches):
            yield n, *_search(*search)
        return
    try:
        pickle.dumps(preset)
    except Exception as error:
        raise InputError(
            f"policy={preset.name!r} cannot be sent to other processes ({error}); use workers=1"
        ) from error
    # Processes, as the trees of one suggestion are too small for threads.
    numbers = {id(search): n for n, search in enumerate(searches)}
    for search, future in run_each(workers, _search, searches):
        yield numbers[id(search)], *future.result()


def _curves(
    policy: str,
    seeds: np.ndarray,
    rows: np.ndarray,
    believed: np.ndarray,
    seen: np.ndarray,
    truth: np.ndarray,
    sign: float,
    seconds: float,
) -> Curves:
    """Follow the incumbents of N searches."""
    results = np.take_along_axis(seen, rows, axis=1)
    results = np.where(np.isfinite(results), results, -np.inf)
    records = np.maximum.accumulate(results, axis=1)
    improves = results > np.concatenate([np.full((len(rows), 1), -np.inf), records[:, :-1]], axis=1)
    # The evaluation that made the record; the first of equal results stays the incumbent.
    at = np.maximum.accumulate(np.where(improves, np.arange(rows.shape[1]), -1), axis=1)
    luckiest = np.where(at >= 0, np.take_along_axis(rows, np.maximum(at, 0), axis=1), -1)
    incumbents = np.where(believed >= 0, believed, luckiest)
    worth = np.where(np.isfinite(truth), truth, np.nanmin(truth))
    ranks = _ranks(truth)
    last = 1 + np.isfinite(truth).sum()
    best = np.where(at >= 0, worth[incumbents], worth.min())
    return Curves(
        policy,
        seeds,
        rows,
        incumbents,
        sign * best,
        worth.max() - best,
        np.where(at >= 0, ranks[incumbents], last),
        sign * float(worth.max()),
        len(truth),
        seconds,
    )


def _ranks(truth: Float64[np.ndarray, " C"]) -> Int64[np.ndarray, " C"]:
    """1 + the number of classes that are truly better; all failed ones follow the others."""
    finite = np.sort(truth[np.isfinite(truth)])
    better = len(finite) - np.searchsorted(finite, np.where(np.isfinite(truth), truth, -np.inf), side="right")
    return better.astype(np.int64) + 1


def _seen(values: np.ndarray, present: np.ndarray, seed: int) -> np.ndarray:
    """What a search of this seed sees of each class [C]: one of its trainings."""
    order = np.argsort(~present, axis=1, kind="stable")  # trainings first
    draw = np.floor(_generator(seed, 1).random(len(values)) * present.sum(axis=1)).astype(np.int64)
    return values[np.arange(len(values)), order[np.arange(len(values)), draw]]


def _generator(seed: int, use: int) -> np.random.Generator:
    return np.random.default_rng([seed, use])


def _checked(
    features: Features, values: Any, present: np.ndarray | None, usable: np.ndarray | None, direction: str
) -> tuple[Float64[np.ndarray, "C S"], Bool[np.ndarray, "C S"], Bool[np.ndarray, " C"]]:
    classes = len(features)
    matrix = np.asarray(values, np.float64)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or len(matrix) != classes or not matrix.size:
        raise InputError(f"values has the shape {np.shape(values)}; give [C] or [C, S] for the {classes} classes")
    trained = np.ones(matrix.shape, bool) if present is None else np.asarray(present, bool)
    if trained.shape != matrix.shape or not trained.any(axis=1).all():
        raise InputError(f"present must have the shape {matrix.shape} of values, and a training in every row")
    free = np.ones(classes, bool) if usable is None else np.asarray(usable, bool)
    if free.shape != (classes,):
        raise InputError(f"usable has the shape {free.shape}; give one bool for each of {classes} classes")
    if direction not in ("maximize", "minimize"):
        raise InputError(f"direction={direction!r} is unknown; give 'maximize' or 'minimize'")
    return matrix, trained, free


def _seeds(seeds: int | Sequence[int]) -> Int[np.ndarray, " N"]:
    listed = np.arange(seeds) if isinstance(seeds, (int, np.integer)) else np.asarray(seeds)
    if not len(listed) or not np.issubdtype(listed.dtype, np.integer) or (listed < 0).any() or (listed >= _SEED).any():
        raise InputError(f"seeds={seeds!r} cannot be used; give a number of searches, or their seeds from 0")
    return listed.astype(np.int64)
