"""A search computes the short runs that it needs by itself: all in a small space, some in a large one, none if told."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import toy

from aqx import candidates
from aqx.errors import InputError
from aqx.search import Study
from aqx.store import Database, add_spectra, count_spectra, load_spectra
from aqx.store.features import find_embedding
from aqx.store.kinds import RUNS
from aqx.surrogate import PRESETS

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ENSEMBLE = PRESETS["ensemble"]
OPERATORS = ["sin", "tanh", "relu", "square", "abs", "cos", "erf", "swish"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """64 functions of one shape."""
    return toy.candidates(tmp_path / "toy.duckdb", ["unary(unary(x))"], OPERATORS)


def give_runs(db: Database, study: Study, seed: int = 0) -> np.ndarray:
    """Store short runs of all candidates that nobody has computed."""
    ids = candidates.of_database(db, study.task_id, ENSEMBLE, 0, keep=False)
    losses = np.random.default_rng(seed).random((len(ids), 6)).astype(np.float32)
    add_spectra(db, study.task_id, ids.class_ids(np.arange(len(ids))), losses, kind=RUNS)
    return losses


def test_a_search_of_a_small_space_describes_all_of_it_first(path: Path):
    study, notes = Study(path, toy.task), list[str]()
    finished = study.search(budget=2, spectra=4, progress=lambda done, total, note: notes.append(note))
    usable = candidates.of_database(study.db, study.task_id, ENSEMBLE, 0, keep=False)
    assert usable.has_runs.all() and len(usable) > 20
    assert any("short runs" in note for note in notes)
    assert [record.purpose for record in finished] == ["baseline", "baseline", "search", "search"]
    # What it has chosen is the best of all by a mixture of the runs, among those that have spectra too.
    rows = usable.rows_of(record.class_id or "" for record in finished[2:])
    scores = usable.coordinates[:, ENSEMBLE.without_runs :].mean(axis=1)
    assert (rows >= 0).all() and (np.argsort(np.argsort(-scores))[rows] < 10).all()


@pytest.mark.parametrize("settings", [{"runs": 0}, {"spectra": 0}, {"budget": 7}])
def test_no_short_runs_where_they_are_not_wanted(path: Path, settings: dict[str, int]):
    """Switched off; where nothing is to be described; where the budget is a good part of the space."""
    study = Study(path, toy.task)
    study.search(**{"budget": 1, "spectra": 2} | settings)
    assert count_spectra(study.db, study.task_id, RUNS) == {"valid": 0, "invalid": 0}


def test_a_large_space_is_described_in_part(path: Path):
    study = Study(path, toy.task)
    study.search(budget=2, spectra=0, runs=12)
    described = count_spectra(study.db, study.task_id, RUNS)["valid"]
    assert 3 <= described <= 16


def test_a_wrong_number_is_refused(path: Path):
    with pytest.raises(InputError, match=r"runs=-1 is not a number of candidates"):
        Study(path, toy.task).search(1, runs=-1)


def test_a_model_that_cannot_be_trained_so_is_searched_all_the_same(path: Path, caplog: pytest.LogCaptureFixture):
    class Weightless(toy.nn.Module):
        act: object

        def __call__(self, x):
            return self.act(x[:, :3])

    task = dataclasses.replace(toy.task, name="weightless", build_model=lambda act: Weightless(act))
    with caplog.at_level(logging.WARNING):
        assert len(Study(path, task).search(budget=1, runs=100)) == 3
    assert "judged without their short runs" in caplog.text
    assert "the model of task 'weightless' has no weights to train" in caplog.text


def test_an_embedding_is_fitted_anew_when_short_runs_come_and_joined_by_more(path: Path):
    study = Study(path, toy.task)
    db, key = study.db, (study.task_id, f"{ENSEMBLE.name}/{ENSEMBLE.form}", 0)
    before = candidates.of_database(db, study.task_id, ENSEMBLE, 0)
    assert not before.has_runs.any() and before.coordinates.shape[1] == ENSEMBLE.without_runs
    number = find_embedding(db, *key)[1]
    ids = before.class_ids(np.arange(len(before)))
    losses = np.random.default_rng(0).random((len(before), 6)).astype(np.float32)
    add_spectra(db, study.task_id, ids[:-3], losses[:-3], kind=RUNS)
    after = candidates.of_database(db, study.task_id, ENSEMBLE, 0, before)
    counts, fitted, fitted_to = find_embedding(db, *key)
    assert fitted != number and fitted_to and fitted_to.runs == counts.runs == len(ids) - 3
    assert after.has_runs.tolist() == [True] * (len(ids) - 3) + [False] * 3
    add_spectra(db, study.task_id, ids[-3:-1], losses[-3:-1], kind=RUNS)
    joined = candidates.of_database(db, study.task_id, ENSEMBLE, 0, after)
    assert joined.has_runs.sum() == len(ids) - 1 and find_embedding(db, *key)[1] == fitted
    fresh = candidates.of_database(Database(path), study.task_id, ENSEMBLE, 0)
    np.testing.assert_array_equal(fresh.coordinates, joined.coordinates)
    # A surrogate that does not use them keeps its embedding.
    other = candidates.of_database(db, study.task_id, PRESETS["random"], 0)
    assert not other.has_runs.any()


def test_invalid_short_runs_leave_a_class_out(path: Path):
    study = Study(path, toy.task)
    ids = candidates.of_database(study.db, study.task_id, ENSEMBLE, 0).class_ids(np.arange(3))
    add_spectra(study.db, study.task_id, ids, None, ["the loss is not finite"] * 3, kind=RUNS)
    table = candidates.of_database(study.db, study.task_id, ENSEMBLE, 0)
    assert np.flatnonzero(~table.usable).tolist() == [0, 1, 2]
    assert study.left_out()["break the model"] == 3


def test_asking_uses_short_runs_that_are_there(path: Path):
    study = Study(path, toy.make_task(baselines=()))
    losses = give_runs(study.db, study)
    asked = study.ask()
    (record,) = [record for record in study.records() if record.id == asked.id]
    ids, stored = load_spectra(study.db, study.task_id, RUNS)
    chosen = stored[ids == record.class_id][0]
    assert len(stored) == len(losses) and not (stored < chosen).all(axis=1).any()
