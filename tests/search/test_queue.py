"""What is trained next costs one fit of the surrogate, and few turns at the store's lock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy

import aqx
from aqx.errors import Exhausted
from aqx.search import Study, load_results
from aqx.store import Database, StudySettings, claims, list_studies
from aqx.store.claims import Wanted
from aqx.store.trial_rows import Status
from aqx.surrogate import fitted

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SCHEMAS, OPERATORS = ["binary(unary(x),unary(x))"], ["sin", "tanh", "relu", "square", "abs", "add", "sub", "max"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy.candidates(tmp_path / "toy.duckdb", SCHEMAS, OPERATORS)


class Counted:
    """How often the two costly things happened: a fit of the surrogate, and a turn at the database's lock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.fits = self.locks = 0
        predict_rows, locked = fitted.predict_rows, Database._held

        def counted_fit(*args):
            self.fits += 1
            return predict_rows(*args)

        def counted_lock(*args, **options):
            self.locks += 1
            return locked(*args, **options)

        monkeypatch.setattr(fitted, "predict_rows", counted_fit)
        monkeypatch.setattr(Database, "_held", counted_lock)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_a_search_with_spectra_takes_one_fit_and_three_turns_at_the_lock_per_trial(path: Path, counted: Counted):
    study = Study(path, toy.task)
    counted.locks = counted.fits = 0
    finished = study.search(budget=30)
    assert len(finished) == 32 and study.queue._table.has_spectrum.all()
    assert counted.fits <= len(finished)
    assert counted.locks <= 3 * len(finished)


def test_ask_and_tell_take_one_fit_and_three_turns_at_the_lock(path: Path, counted: Counted):
    study = Study(path, toy.task)
    study.search(budget=8, spectra=0)
    counted.locks = counted.fits = 0
    for _ in range(4):
        study.tell(study.ask(), val_acc=0.5)
    assert counted.fits == 4 and counted.locks == 12


@pytest.mark.parametrize("results", [0, 8])
def test_who_is_always_too_late_fits_no_third_time(
    path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch, results: int
):
    study, other = Study(path, toy.task), Study(path, toy.task)
    study.search(budget=results, spectra=0)
    claim, taken = type(study.queue.ledger).claim, []

    def too_late(ledger, wanted, *args):
        if isinstance(wanted, list) and len(taken) < 5:
            taken.extend(claim(other.queue.ledger, wanted[:3], *args[:-1], 3)[0])
        return claim(ledger, wanted, *args)

    monkeypatch.setattr(type(study.queue.ledger), "claim", too_late)
    counted.fits = 0
    trial = study.ask()
    assert len(taken) >= 4 and trial.name not in {record.name for record in taken}
    assert counted.fits == (3 if results else 0)  # one, and where others are in training, one without them first


def test_results_that_come_together_are_stored_and_read_in_one_turn(path: Path, counted: Counted):
    study = Study(path, toy.task)
    study.search(budget=6, spectra=0)
    counted.locks = 0
    finished = study.search(budget=22, spectra=0, together=8)
    assert len(finished) == 16
    # A look, then per job of eight a claim and a result.
    assert counted.locks <= 1 + 2 * 2


def test_many_are_claimed_at_once_and_none_twice(path: Path):
    study = Study(path, toy.task)
    names = [record.name for record in study.queue.claim(60.0, most=8)]
    assert names == ["relu(x)", "tanh(x)"], "baselines go first"
    many = study.queue.claim(60.0, most=8)
    assert len({record.class_id for record in many}) == 8
    again = study.queue.claim(60.0, most=8)
    assert not {record.class_id for record in many} & {record.class_id for record in again}
    assert [record.trial_id for record in study.records()] == list(range(1, 19))
    assert all(record.seed == claims_seed(study, record.id) for record in study.records())


def claims_seed(study: Study, trial_id: int) -> int:
    return int(np.random.SeedSequence([study.seed, trial_id]).generate_state(1)[0] >> 1)


def test_what_is_left_is_claimed_where_it_is_less_than_asked_for(tmp_path: Path):
    study = Study(toy.candidates(tmp_path / "few.duckdb", ["unary(x)"], ["sin", "tanh", "relu"]), toy.task)
    assert len(study.queue.claim(60.0, most=8)) == 2
    assert [record.name for record in study.queue.claim(60.0, most=8)] == ["sin(x)"]
    with pytest.raises(Exhausted):
        study.queue.claim(60.0, most=8)


def test_a_choice_that_another_was_quicker_with_is_made_anew(path: Path, monkeypatch: pytest.MonkeyPatch):
    study, other = Study(path, toy.make_task(baselines=())), Study(path, toy.make_task(baselines=()))
    taken: list[str] = []
    take = study.ledger.claim

    def slow(wanted, *args):
        if not callable(wanted) and not taken:
            taken.append(wanted[0].class_id)
            (quicker,) = other.queue.claim_these([Wanted(wanted[0].class_id, None, "search")], 60.0)
            assert quicker.status is Status.RUNNING
        return take(wanted, *args)

    monkeypatch.setattr(
        type(study.ledger),
        "claim",
        lambda ledger, *args: slow(*args) if ledger is study.ledger else claims_of(other, *args),
    )
    assert study.ask().id == 2
    assert study.records()[1].class_id != taken[0]


def claims_of(study: Study, wanted, lease, settled, settings, most=1):
    rows, snapshot = claims.claim_first(study.db, study.task_id, wanted, seed=0, lease_seconds=lease, settled=settled)
    return [study.records()[-1] for _ in rows], snapshot


def test_the_study_is_stored_beside_its_trials(path: Path):
    Study(path, toy.task, seed=3, surrogate="random", pruner="halving").search(budget=3, spectra=0)
    Study(path, toy.task, seed=4).tell(Study(path, toy.task, seed=4).ask(), val_acc=0.1)
    Study(path, toy.task, seed=5).suggest()
    settings = {1: StudySettings(3, "random", "halving"), 2: StudySettings(4, "ensemble", "median")}
    assert list_studies(Database(path), 1) == settings
    results = load_results(path)
    assert [trial.study_id for trial in results.trials] == [1] * 5 + [2]
    assert results.settings == settings[1]


def test_a_result_of_elsewhere_belongs_to_no_study(path: Path):
    study = Study(path, toy.task)
    study.add("sin(x)", val_acc=0.5)
    assert study.records()[0].study_id is None and load_results(path).settings is None


def test_functions_of_several_shapes_are_trained_by_a_program_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs: list[tuple[str, ...]] = []

    def train_many(acts: aqx.Activation, seeds):
        jobs.append(acts.shape)
        return {"val_acc": np.linspace(0.1, 0.9, len(seeds)), "test_acc": np.zeros(len(seeds))}

    path = toy.candidates(tmp_path / "two.duckdb", ["unary(x)", "binary(unary(x),unary(x))"], OPERATORS)
    study = Study(path, toy.make_task(train=None, train_many=train_many))
    finished = study.search(budget=12, spectra=0, together=12)
    assert len(finished) == 14 and all(record.status is Status.DONE for record in finished)
    assert set(jobs) <= {"unary(x)", "binary(unary(x),unary(x))"} and len(jobs) <= 5
    assert all(record.seconds is not None and record.environment for record in finished)


def test_a_job_that_fails_together_is_trained_one_by_one(path: Path):
    def train_many(acts: aqx.Activation, seeds):
        if len(seeds) > 1:
            raise FloatingPointError("one of them")
        return {"val_acc": np.array([0.5])}

    study = Study(path, toy.make_task(train=None, train_many=train_many))
    finished = study.search(budget=4, spectra=0, together=4)
    assert [record.status for record in finished] == [Status.DONE] * 6


def test_a_confirmation_trains_functions_and_seeds_together(path: Path):
    sizes: list[int] = []

    def train_many(acts: aqx.Activation, seeds):
        sizes.append(len(seeds))
        return {"val_acc": np.asarray(seeds) % 97 / 97}

    study = Study(path, toy.make_task(train=None, train_many=train_many))
    study.search(budget=3, spectra=0)
    sizes.clear()
    confirmation = study.confirm(top=2, seeds=4, together=64)
    assert len(confirmation.rows) == 4 and all(row.seeds == 4 for row in confirmation.rows)
    assert sum(sizes) == 16 and len(sizes) == 2, "one job for each shape"


def test_on_a_gpu_functions_are_trained_together_unless_said_otherwise(path: Path, monkeypatch: pytest.MonkeyPatch):
    together = Study(path, toy.make_task(train=None, train_many=lambda acts, seeds: {}))._together
    alone = Study(path, toy.task)._together
    assert (together(None, True), together(5, False)) == (1, 5)
    monkeypatch.setattr("aqx.search.study._on_gpu", lambda: True)
    assert (together(None, True), together(1, True), together(None, False), alone(None, True)) == (8, 1, 1, 1)
    with pytest.raises(aqx.InputError, match="together=0 is too few; give 1 or more"):
        together(0, True)
