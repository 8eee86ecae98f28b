"""`AqxSampler`: Optuna chooses the hyperparameters, and aqx's surrogate the activation function beside them."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from aqx.candidates import KnownSpectra
from aqx.errors import InputError
from aqx.optuna.choices import Choices, describe, read_spectra
from aqx.optuna.history import History, history_of
from aqx.store import Database
from aqx.surrogate import DEFAULT, as_preset, suggest
from aqx.tasks import Task
from aqx.tree import parse

_log = logging.getLogger("aqx")

_RETRIES = 4  # where other processes choose the same meanwhile
_UNSEEN = 256  # choices of this process that are remembered: Optuna stores them only after they were returned

_choosing = threading.Lock()  # with n_jobs, threads choose one after the other; samplers are pickled, so not theirs


class AqxSampler(BaseSampler):
    """An Optuna sampler for one categorical parameter whose choices are names of functions.

    The function is chosen as `aqx.Study` chooses it: by a surrogate on the outputs of the choices, so that a result
    tells about similar functions too. All other parameters are left to another sampler of Optuna's.

    - A choice follows from the study's trials alone: any storage, resumption and any number of processes will do.
    - Equal functions, such as relu(x) and max(x,zero(x)), are one, and the first of them is suggested.
    - A trial that failed or gave nan counts as the worst, a pruned one with its last value. A function in training
      elsewhere is not suggested as well, nor are those that are most like it.
    - Each function is suggested once, and again when all were. Where other parameters are searched, their effect on the
      results is estimated and taken off, and every other trial may also suggest again what was tried before.
    - Choices that are constant, or not finite in float32 at some of 256 points of N(0, 1), are never suggested.

    Args:
        param: the parameter's name, as in `trial.suggest_categorical("activation", names)`.
        others: the sampler of all other parameters; default `TPESampler(seed=seed)`.
        surrogate: as in `aqx.Study`: a preset's name or a scikit-learn regressor.
        seed: makes the choices repeatable of a study that runs one trial at a time.
        db: a database of aqx with Fisher spectra of some of the choices (`aqx enumerate`, `aqx eigs`), by which they
            are then judged as well. It is read here and not again.
        task: whose spectra: a `Task`, or its name in the database.

    Raises:
        InputError: an argument cannot be used; and, when a function is to be chosen: a choice is no function, none can
            be trained, or the study has several objectives.
        StoreError: the database cannot be read.

    Example:
        >>> import aqx, optuna
        >>> from aqx.optuna import AqxSampler
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> names = [str(tree) for tree in aqx.Space.act_bench().sample(200, seed=0)]
        >>> def objective(trial):
        ...     act = aqx.activation(trial.suggest_categorical("activation", names))
        ...     rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        ...     return float(abs(act(1.0) - 1)) + abs(rate - 0.01)
        >>> study = optuna.create_study(sampler=AqxSampler(seed=0))
        >>> study.optimize(objective, n_trials=8)
        >>> len(study.trials), study.best_params["activation"] in names
        (8, True)
    """

    def __init__(
        self,
        param: str = "activation",
        *,
        others: BaseSampler | None = None,
        surrogate: Any = DEFAULT,
        seed: int | None = None,
        db: str | os.PathLike[str] | Database | None = None,
        task: Task | str | None = None,
    ):
        if seed is not None and seed < 0:
            raise InputError(f"seed={seed!r} cannot seed a sampler; give an integer from 0, or None")
        if (db is None) != (task is None):
            raise InputError("db and task belong together: spectra are those of a task in a database; give both")
        self._param, self._preset = param, as_preset(surrogate)
        self._others = TPESampler(seed=seed) if others is None else others
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._spectra = KnownSpectra() if db is None or task is None else read_spectra(db, task)
        self._choices: Choices | None = None
        self._served = False  # whether the parameter was asked for, or it was said that it is not
        self._unseen: deque[tuple[str, int, str]] = deque(maxlen=_UNSEEN)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the other sampler's, without the function: that is chosen by itself, from the first trial on."""
        space = self._others.infer_relative_search_space(study, trial)
        return {name: distribution for name, distribution in space.items() if name != self._param}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Leave the other parameters to the other sampler."""
        return self._others.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Choose the function; another parameter is left to the other sampler.

        Raises:
            InputError: see the class.
        """
        if param_name != self._param:
            return self._others.sample_independent(study, trial, param_name, param_distribution)
        self._served = True
        if len(study.directions) > 1:
            raise InputError(f"the study has {len(study.directions)} objectives; AqxSampler serves those with one")
        if not isinstance(param_distribution, CategoricalDistribution):
            raise InputError(
                f"{param_name} is drawn from {param_distribution}; "
                f"use trial.suggest_categorical({param_name!r}, names) with names of functions"
            )
        with _choosing:
            if self._choices is None or self._choices.given != param_distribution.choices:
                self._choices = describe(param_name, param_distribution.choices, self._spectra, self._preset)
            name = self._choose(study, trial, self._choices)
            self._unseen.append((study.study_name, trial.number, name))
        return name

    def _choose(self, study: Study, trial: FrozenTrial, choices: Choices) -> str:
        before = self._history(study, trial, choices)
        row = self._suggest(before, choices, trial.number)
        for _ in range(_RETRIES):
            after = self._history(study, trial, choices)
            if row not in after.taken - before.taken:
                break
            before, row = after, self._suggest(after, choices, trial.number)  # another process was quicker
        return choices.names[row]

    def _history(self, study: Study, trial: FrozenTrial, choices: Choices) -> History:
        unseen = {number: name for study_name, number, name in self._unseen if study_name == study.study_name}
        return history_of(study, trial, self._param, choices, unseen)

    def _suggest(self, history: History, choices: Choices, number: int) -> int:
        coordinates, count = choices.coordinates, len(choices.names)
        candidates = None
        if (history.others and number % 2 == 1) or len(history.taken) == count:
            # What was tried is never suggested: to be tried again, every function stands there a second time.
            coordinates = np.concatenate([coordinates, coordinates])
            candidates = np.arange(2 * count) >= count
        found = suggest(
            coordinates,
            history.observed,
            history.values,
            history.pending,
            preset=self._preset,
            seed=int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0]),
            candidates=candidates,
        )
        return int(found.index[0]) % count

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the other sampler that a trial begins."""
        self._others.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the other sampler that a trial ends."""
        self._others.after_trial(study, trial, state, values)
        if not self._served and state is TrialState.COMPLETE and trial.params and self._param not in trial.params:
            self._served = True  # said once
            of_functions = [name for name, choices in trial.distributions.items() if _are_functions(choices)]
            instead = f"AqxSampler({of_functions[0]!r})" if of_functions else "AqxSampler(param) its name"
            _log.warning(
                "aqx: AqxSampler chooses %r, but trial %d has no such parameter, only %s; give %s",
                self._param,
                trial.number,
                ", ".join(trial.params),
                instead,
            )

    def reseed_rng(self) -> None:
        """Reseed the other sampler; what is random here differs from trial to trial anyway."""
        self._others.reseed_rng()


def _are_functions(distribution: BaseDistribution) -> bool:
    """Whether all choices of a parameter are names of functions."""
    if not isinstance(distribution, CategoricalDistribution):
        return False
    try:
        return all(isinstance(name, str) and parse(name) for name in distribution.choices)
    except InputError:
        return False
