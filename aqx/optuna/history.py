"""What the trials of an Optuna study tell about functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from optuna.distributions import CategoricalDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from aqx.optuna.choices import Choices
from aqx.surrogate.gaussian_process import gaussian_process
from aqx.surrogate.prediction import normal_scores

_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
_ENOUGH = 5  # results from which the effect of other parameters is estimated


@dataclass(frozen=True, eq=False)
class History:
    """What is known before a choice.

    Attributes:
        observed: for each trial with a result, the row of its function.
        values: those results, higher is better, nan for a failed one; the other parameters' effect is taken off.
        pending: rows in training.
        others: whether other parameters are searched too.
    """

    observed: list[int]
    values: list[float]
    pending: list[int]
    others: bool

    @property
    def taken(self) -> set[int]:
        """Rows that have a result or are in training."""
        return {*self.observed, *self.pending}


def history_of(
    study: Study, trial: FrozenTrial, param: str, choices: Choices, unseen: Mapping[int, str] | None = None
) -> History:
    """Read a study's trials, but for this one.

    Args:
        study: the study.
        trial: the one for which a function is to be chosen.
        param: what that parameter is called.
        choices: the candidates.
        unseen: functions that were chosen for running trials, by number, and may not be stored yet.
    """
    sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
    trials = [other for other in study.get_trials(deepcopy=False, states=_STATES) if other.number != trial.number]
    running = [other for other in trials if other.state == TrialState.RUNNING]
    chosen = [other.params.get(param, (unseen or {}).get(other.number)) for other in running]
    ended = [t for t in trials if t.state != TrialState.RUNNING and t.params.get(param) in choices.row_of]
    values = np.array([_value(other) * sign for other in ended])
    others = sorted({name for other in [trial, *trials] for name in other.params} - {param})
    finite = np.flatnonzero(np.isfinite(values))
    if others and len(finite) >= _ENOUGH:
        values[finite] = without_effect_of(others, [ended[at] for at in finite], values[finite])
    return History(
        [choices.row_of[other.params[param]] for other in ended],
        values.tolist(),
        [choices.row_of[name] for name in chosen if name in choices.row_of],
        bool(others),
    )


def _value(trial: FrozenTrial) -> float:
    failed = trial.state == TrialState.FAIL or trial.value is None
    return math.nan if failed else float(trial.value or 0)


def without_effect_of(
    params: Sequence[str], trials: Sequence[FrozenTrial], values: Float[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """Return what is left of results, as normal scores, when the effect of some parameters is taken off.

    That is the prediction of a Gaussian process on these parameters alone: with a bad learning rate every function is
    bad, which says nothing about this one.

    Args:
        params: names of the parameters.
        trials: N of them.
        values: their results [N], finite.
    """
    x = np.hstack([_columns(name, trials) for name in params]).astype(np.float32)
    scores = normal_scores(values)
    effect, _ = gaussian_process([1] * x.shape[1])(x, scores, x, 0)
    return scores - effect


def _columns(name: str, trials: Sequence[FrozenTrial]) -> Float[np.ndarray, "N columns"]:
    """A parameter between 0 and 1, or a column for each of its choices; a trial without it stands in the middle."""
    holders = [trial for trial in trials if name in trial.params]
    categories = [d.choices for t in holders if isinstance(d := t.distributions[name], CategoricalDistribution)]
    if categories:
        seen = sorted({repr(trial.params[name]) for trial in holders})
        return np.array([[repr(trial.params.get(name)) == choice for choice in seen] for trial in trials], float)
    logarithmic = any(getattr(trial.distributions[name], "log", False) for trial in holders)
    known = {t.number: float(t.params[name]) for t in holders}
    known = {number: math.log(value) if logarithmic else value for number, value in known.items()}
    low, high = min(known.values(), default=0.0), max(known.values(), default=1.0)
    middle = (low + high) / 2
    column = np.array([[known.get(trial.number, middle)] for trial in trials])
    return (column - low) / (high - low or 1.0)
