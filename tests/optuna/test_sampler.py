"""The sampler for Optuna: with Optuna's own studies, storages, processes and tests of samplers."""

from __future__ import annotations

import importlib
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase
from optuna.trial import TrialState, create_trial

import aqx
from aqx.candidates import KnownSpectra
from aqx.enumeration import enumerate_space
from aqx.errors import InputError
from aqx.evaluation import Batch, class_id_of, evaluate
from aqx.optuna import AqxSampler
from aqx.optuna.choices import describe, read_spectra
from aqx.optuna.history import history_of, without_effect_of
from aqx.store import Database
from aqx.store.spectra import add_spectra
from aqx.store.tasks import register_task
from aqx.surrogate import PRESETS

SPACE = aqx.Space(["binary(unary(x),unary(x))"], "paper")
NAMES = [str(tree) for tree in SPACE.sample(300, seed=0)]
SOME = NAMES[:60]
FEW = [
    f"{name}(x)" for name in ("relu", "tanh", "swish", "erf", "softsign", "square", "abs", "arctan", "elu", "softplus")
]
CHOICES = CategoricalDistribution(FEW)


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(scope="module")
def quality() -> dict[str, float]:
    """How well each function fits sin(x) - relu(x), from 0 to 1: alike functions do alike."""
    points = np.linspace(-2, 2, 41, dtype=np.float32)
    with np.errstate(all="ignore"):
        values = evaluate(Batch.of_trees([aqx.parse(name) for name in NAMES]), points)
        error = np.abs(values - (np.sin(points) - np.maximum(points, 0))).mean(axis=1)
    return dict(zip(NAMES, (1 - np.minimum(np.nan_to_num(error, nan=3.0), 3) / 3).tolist(), strict=True))


def length(trial: optuna.Trial) -> float:
    return float(len(trial.suggest_categorical("activation", FEW)))


def chosen(study: optuna.Study) -> list[str]:
    return [trial.params["activation"] for trial in study.trials]


class TestOptunasOwnTests(BasicSamplerTestCase):
    """What Optuna asks of every sampler, where the sampler passes all parameters on."""

    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return lambda: AqxSampler(others=RandomSampler(seed=0), seed=0)


# --- what it is for -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_beats_random_search(quality: dict[str, float]):
    """After 20 of 300 functions: the median of three searches against 200 random ones."""
    best = []
    for seed in range(3):
        study = optuna.create_study(direction="maximize", sampler=AqxSampler(seed=seed))
        study.optimize(lambda t: quality[t.suggest_categorical("activation", NAMES)], n_trials=20)
        best.append(study.best_value)
    rng = np.random.default_rng(0)
    random = [max(quality[str(name)] for name in rng.choice(NAMES, 20, replace=False)) for _ in range(200)]
    assert np.median(best) > np.quantile(random, 0.75)


@pytest.mark.slow
def test_it_beats_random_search_beside_a_learning_rate(quality: dict[str, float]):
    def search(sampler: optuna.samplers.BaseSampler, seed: int) -> float:
        rng = np.random.default_rng(seed)

        def objective(trial: optuna.Trial) -> float:
            rate = trial.suggest_float("rate", 1e-5, 1, log=True)
            penalty = 0.05 * (math.log10(rate) + 2.5) ** 2
            trial.set_user_attr("truth", quality[trial.suggest_categorical("activation", NAMES)] - penalty)
            return trial.user_attrs["truth"] + rng.normal(scale=0.005)

        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(objective, n_trials=50)
        return study.best_trial.user_attrs["truth"]

    own = [search(AqxSampler(seed=seed), seed) for seed in range(5)]
    random = [search(RandomSampler(seed=seed), seed) for seed in range(40)]
    assert np.mean(own) > np.mean(random) + 0.01


# --- a choice follows from the trials and the seed ------------------------------------------------------------------


def test_seeds_decide(quality: dict[str, float]):
    def search(seed: int | None, sign: int = 1) -> list[str]:
        study = optuna.create_study(direction="maximize" if sign == 1 else "minimize", sampler=AqxSampler(seed=seed))
        study.optimize(lambda t: sign * quality[t.suggest_categorical("activation", SOME)], n_trials=7)
        return chosen(study)

    first = search(0)
    assert search(0) == first
    assert search(0, sign=-1) == first, "what is to be minimised is the negative of what is to be maximised"
    assert search(1) != first and search(None) != search(None)


def test_a_study_is_resumed_from_its_storage(quality: dict[str, float], tmp_path: Path):
    def objective(trial: optuna.Trial) -> float:
        return quality[trial.suggest_categorical("activation", SOME)]

    at_one_go = optuna.create_study(sampler=AqxSampler(seed=0))
    at_one_go.optimize(objective, n_trials=8)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    try:
        study = optuna.create_study(study_name="s", storage=storage, sampler=AqxSampler(seed=0))
        study.optimize(objective, n_trials=5)
        again = optuna.load_study(study_name="s", storage=storage, sampler=pickle.loads(pickle.dumps(study.sampler)))
        again.optimize(objective, n_trials=1)
        fresh = optuna.load_study(study_name="s", storage=storage, sampler=AqxSampler(seed=0))
        fresh.optimize(objective, n_trials=2)
        assert chosen(fresh) == chosen(at_one_go)
    finally:
        storage.engine.dispose()


PROCESS = """
import sys, optuna
from aqx.optuna import AqxSampler
optuna.logging.set_verbosity(optuna.logging.ERROR)
names = sys.argv[2].split(";")
storage = optuna.storages.RDBStorage(sys.argv[1], engine_kwargs={"connect_args": {"timeout": 60}})
study = optuna.load_study(study_name="s", storage=storage, sampler=AqxSampler(seed=0))
study.optimize(lambda trial: float(len(trial.suggest_categorical("activation", names))), n_trials=8)
"""


@pytest.mark.slow
def test_several_processes_on_one_storage_share_the_functions_out(tmp_path: Path):
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=storage)
    command = [sys.executable, "-c", PROCESS, storage, ";".join(NAMES)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert len(trials) == 24 and {trial.state for trial in trials} == {TrialState.COMPLETE}
    # Within the milliseconds that a choice takes to be stored two may coincide.
    assert len({class_id_of(aqx.parse(trial.params["activation"])) for trial in trials}) >= 20


def test_threads_share_the_functions_out():
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    study.optimize(length, n_trials=10, n_jobs=3)
    assert sorted(chosen(study)) == sorted(FEW)


def test_of_two_that_choose_the_same_the_slower_one_chooses_again(monkeypatch: pytest.MonkeyPatch):
    """Another process stores its choice while this one is choosing."""
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    study.optimize(length, n_trials=3)
    quick, slow = study.ask(), study.ask()
    suggested: list[int] = []
    suggest = AqxSampler._suggest

    def overtaken(sampler, history, choices, number):
        row = suggest(sampler, history, choices, number)
        if not suggested:
            study.enqueue_trial({"activation": choices.names[row]})
            study.ask({"activation": CHOICES})
        suggested.append(row)
        return row

    monkeypatch.setattr(AqxSampler, "_suggest", overtaken)
    slow.suggest_categorical("activation", FEW)
    monkeypatch.undo()
    quick.suggest_categorical("activation", FEW)
    assert len(suggested) == 2 and suggested[0] != suggested[1]
    assert len(set(chosen(study))) == 6


def test_ask_and_tell_out_of_order():
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    trials = [study.ask({"activation": CHOICES, "rate": FloatDistribution(0, 1)}) for _ in range(4)]
    for trial in reversed(trials):
        study.tell(trial, trial.params["rate"])
    assert len(set(chosen(study))) == 4


# --- which functions are suggested ----------------------------------------------------------------------------------


def test_every_function_once_and_then_again():
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    study.optimize(length, n_trials=12)
    names = chosen(study)
    assert sorted(names[:10]) == sorted(FEW) and set(names[10:]) <= set(FEW)


def test_equal_functions_are_one():
    names = ["max(x,zero(x))", "relu(x)", " relu( x ) ", "tanh(x)", "mul(x,sigmoid(x))", "swish(x)"]
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    study.enqueue_trial({"activation": "swish(x)"})
    study.optimize(lambda t: float(len(t.suggest_categorical("activation", names))), n_trials=3)
    assert chosen(study)[0] == "swish(x)" and set(chosen(study)[1:]) == {"max(x,zero(x))", "tanh(x)"}


def test_what_cannot_be_trained_is_never_suggested_but_may_be_enqueued():
    names = ["one(x)", "relu(x)", "reciprocal(zero(x))", "tanh(x)", "exp(exp(exp(x)))"]
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    study.enqueue_trial({"activation": "one(x)"})
    study.optimize(lambda t: float(len(t.suggest_categorical("activation", names))), n_trials=7)
    assert chosen(study)[0] == "one(x)" and set(chosen(study)[1:]) == {"relu(x)", "tanh(x)"}


def test_enqueued_functions_are_learned_from():
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    for name in FEW[:5]:
        study.enqueue_trial({"activation": name})
    study.optimize(length, n_trials=10)
    assert chosen(study)[:5] == FEW[:5] and sorted(chosen(study)) == sorted(FEW)


def test_failed_and_pruned_trials_do_not_stop_the_search():
    def objective(trial: optuna.Trial) -> float:
        name = trial.suggest_categorical("activation", FEW)
        match trial.number % 4:
            case 0:
                raise FloatingPointError(name)
            case 1:
                return math.nan
            case 2:
                trial.report(0.5, step=1)
                raise optuna.TrialPruned
        return 1.0

    study = optuna.create_study(sampler=AqxSampler(seed=0))
    study.optimize(objective, n_trials=10, catch=(FloatingPointError,))
    assert sorted(chosen(study)) == sorted(FEW)
    states = [TrialState.FAIL, TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE]
    assert [trial.state for trial in study.trials[:4]] == states


@pytest.mark.parametrize("pruner", [optuna.pruners.HyperbandPruner(1, 4), optuna.pruners.MedianPruner()])
def test_pruners(pruner: optuna.pruners.BasePruner):
    def objective(trial: optuna.Trial) -> float:
        value = length(trial)
        for step in range(4):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(sampler=AqxSampler(seed=0), pruner=pruner)
    study.optimize(objective, n_trials=12)
    assert len(study.trials) == 12


# --- other parameters -----------------------------------------------------------------------------------------------


class Spy(TPESampler):
    """Remembers what it was asked for."""

    def __init__(self):
        super().__init__(seed=0, n_startup_trials=3, multivariate=True)
        self.asked: set[str] = set()
        self.calls: list[str] = []

    def sample_relative(self, study, trial, search_space):
        self.asked |= set(search_space)
        return super().sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        self.asked.add(param_name)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study, trial):
        self.calls.append("before")

    def after_trial(self, study, trial, state, values):
        self.calls.append("after")

    def reseed_rng(self):
        self.calls.append("reseed")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_other_sampler_is_asked_for_everything_else():
    spy = Spy()
    study = optuna.create_study(sampler=AqxSampler("f", others=spy, seed=0))

    def objective(trial: optuna.Trial) -> float:
        act, width = trial.suggest_categorical("f", FEW), trial.suggest_int("width", 1, 64, log=True)
        return len(act) + width * trial.suggest_float("rate", 0, 1) + len(trial.suggest_categorical("kind", ["a", "b"]))

    study.optimize(objective, n_trials=8)
    assert spy.asked == {"width", "rate", "kind"}
    assert spy.calls == ["before", "after"] * 8
    study.sampler.reseed_rng()
    assert spy.calls[-1] == "reseed"


def test_where_others_are_searched_every_other_trial_may_repeat_a_function():
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    study.optimize(lambda t: length(t) + t.suggest_float("rate", 0, 1), n_trials=16)
    names = chosen(study)
    for number in range(0, 16, 2):
        assert names[number] not in names[:number] or set(names[:number]) == set(FEW)
    assert len(set(names[:10])) < 10


def test_the_effect_of_others_is_taken_off(quality: dict[str, float]):
    rng = np.random.default_rng(0)
    names = [str(name) for name in rng.choice(NAMES, 40, replace=False)]
    kinds = {"a": 0.0, "b": 2.0}
    space = {"activation": CategoricalDistribution(NAMES), "rate": FloatDistribution(1e-5, 1, log=True)}
    trials = [
        create_trial(
            params={"activation": name, "rate": 10 ** rng.uniform(-5, 0), "kind": str(rng.choice(list(kinds)))},
            distributions=space | {"kind": CategoricalDistribution(list(kinds))},
            value=0.0,
        )
        for name in names
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    truth = np.array([quality[name] for name in names])
    effect = [(math.log10(trial.params["rate"]) + 2.5) ** 2 / 4 + kinds[trial.params["kind"]] for trial in trials]
    values = truth - np.array(effect)

    def agreement(found: np.ndarray) -> float:
        return float(np.corrcoef(found, truth)[0, 1])

    cleaned = without_effect_of(["kind", "rate"], trials, values)
    assert agreement(cleaned) > 0.6 > 0.4 > agreement(values)
    del trials[3].params["rate"], trials[4].params["kind"]  # as conditional parameters may be missing
    assert np.isfinite(without_effect_of(["kind", "rate"], trials, values)).all()


# --- what trials tell -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_what_trials_tell(direction: str):
    study = optuna.create_study(direction=direction, sampler=AqxSampler(seed=0))
    space = {"activation": CHOICES}

    def add(name: str, state: TrialState, value: float | None = None) -> None:
        steps = {} if value is None or state != TrialState.PRUNED else {1: value}
        study.add_trial(
            create_trial(
                params={"activation": name}, distributions=space, state=state, value=value, intermediate_values=steps
            )
        )

    add("relu(x)", TrialState.COMPLETE, 2.0)
    add("relu(x)", TrialState.COMPLETE, 3.0)
    add("tanh(x)", TrialState.FAIL)
    add("softsign(x)", TrialState.PRUNED, 1.0)
    add("abs(x)", TrialState.PRUNED)
    study.ask(space)
    unseen, own = study.ask(), study.ask()
    frozen = study.get_trials()[own.number]
    choices = describe("activation", CHOICES.choices, KnownSpectra(), PRESETS["ensemble"])
    history = history_of(study, frozen, "activation", choices, {unseen.number: "elu(x)", 0: "softplus(x)"})
    sign = 1 if direction == "maximize" else -1
    assert [choices.names[row] for row in history.observed] == [
        "relu(x)",
        "relu(x)",
        "tanh(x)",
        "softsign(x)",
        "abs(x)",
    ]
    np.testing.assert_equal(history.values, [2 * sign, 3 * sign, math.nan, sign, math.nan])
    assert [choices.names[row] for row in history.pending] == [study.trials[5].params["activation"], "elu(x)"]
    assert not history.others


# --- spectra --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_spectra(db_path: Path) -> Path:
    db = Database(db_path, create=True)
    enumerate_space(db, aqx.Space(["unary(x)"], "aquasurf"), points=32)
    task_id = register_task(db, "mine", {"objective": "val_acc"})
    ids = [class_id_of(aqx.parse(name)) for name in FEW[:7]]
    spectra = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    add_spectra(db, task_id, ids, spectra, [None] * 6 + ["the loss is not finite"])
    return db_path


def test_spectra_of_a_database_are_used(with_spectra: Path):
    choices = describe("f", CHOICES.choices, read_spectra(with_spectra, "mine"), PRESETS["ensemble"])
    assert FEW[6] not in choices.names, "the model breaks with it"
    described = np.isfinite(choices.coordinates).all(axis=1)
    assert [choices.names[row] for row in np.flatnonzero(described)] == FEW[:6]
    study = optuna.create_study(sampler=AqxSampler(db=with_spectra, task="mine", seed=0))
    study.optimize(length, n_trials=9)
    assert sorted(chosen(study)) == sorted({*FEW} - {FEW[6]})


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["relu(x)", "rleu(x)"], "activation has a choice that is no function.*relu"),
        (["relu(x)", None], "activation has the choice None; give names of functions"),
        (["relu(x)", 3], "activation has the choice 3; give names of functions"),
        (["one(x)", "zero(x)"], "none of the 2 choices of activation can be trained"),
    ],
)
def test_a_choice_that_is_no_function_is_named(choices: list, message: str):
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    with pytest.raises(InputError, match=f"(?s){message}"):
        study.optimize(lambda t: float(len(t.suggest_categorical("activation", choices))), n_trials=1)


def test_other_mistakes_are_named(with_spectra: Path):
    study = optuna.create_study(sampler=AqxSampler(seed=0))
    with pytest.raises(InputError, match=r"use trial.suggest_categorical\('activation', names\)"):
        study.ask().suggest_float("activation", 0, 1)
    two = optuna.create_study(directions=["minimize", "maximize"], sampler=AqxSampler(seed=0))
    with pytest.raises(InputError, match="the study has 2 objectives"):
        two.ask(fixed_distributions={"activation": CHOICES})
    with pytest.raises(InputError, match="seed=-1 cannot seed a sampler"):
        AqxSampler(seed=-1)
    with pytest.raises(InputError, match="surrogate='best' is not one"):
        AqxSampler(surrogate="best")
    with pytest.raises(InputError, match="db and task belong together"):
        AqxSampler(db=with_spectra)
    with pytest.raises(InputError, match="task 'yours' is not in .*; it has mine"):
        AqxSampler(db=with_spectra, task="yours")


class Missing:
    """Finds no Optuna."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "optuna":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_optuna_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "optuna" or name.startswith("aqx.optuna")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"aqx.optuna needs Optuna; install it: pip install 'aqx\[optuna\]'"):
        importlib.import_module("aqx.optuna")


@pytest.mark.parametrize("multivariate", [False, True])
def test_a_parameter_of_another_name_is_told_once(multivariate: bool, caplog: pytest.LogCaptureFixture):
    others = optuna.samplers.TPESampler(seed=0, multivariate=multivariate)

    def objective(trial):
        trial.suggest_float("rate", 0, 1)
        return len(trial.suggest_categorical("act", ["relu(x)", "tanh(x)"]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=AqxSampler(others=others, seed=0))
    study.optimize(objective, n_trials=4)
    told = [message for message in caplog.messages if message.startswith("aqx: ")]
    what = "AqxSampler chooses 'activation', but trial 0 has no such parameter, only rate, act"
    assert told == [f"aqx: {what}; give AqxSampler('act')"]


def test_a_parameter_that_is_enqueued_or_asked_for_is_not_missed(caplog: pytest.LogCaptureFixture):
    study = optuna.create_study(sampler=AqxSampler("act", seed=0))
    study.enqueue_trial({"act": "tanh(x)"})
    study.optimize(lambda trial: len(trial.suggest_categorical("act", ["relu(x)", "tanh(x)"])), n_trials=2)
    assert not [message for message in caplog.messages if message.startswith("aqx: ")]
