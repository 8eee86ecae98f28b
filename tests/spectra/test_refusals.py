"""Spectra of a wrong task are not stored, those of a task that changed are computed again, and faults are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from click.testing import CliRunner
from flax import linen as nn

import aqx
from aqx import Study, losses
from aqx.cli import main
from aqx.errors import StoreError, TaskError
from aqx.spectra import compute_spectra
from aqx.store import Database, count_spectra, list_tasks, load_spectra
from aqx.tasks import Task

pytestmark = pytest.mark.usefixtures("quick_to_compile")

NAMES = ["relu(x)", "tanh(x)", "exp(x)"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], ["relu", "tanh", "exp"])


def stored(path: Path) -> dict[str, int]:
    db = Database(path)
    return count_spectra(db, list_tasks(db)[0].task_id) if list_tasks(db) else {"valid": 0, "invalid": 0}


def task_of(batch: Any = toy.batch, loss: Any = losses.softmax_cross_entropy, **options: Any) -> Task:
    arguments = {"build_model": toy.Net, "train": toy.train, "baselines": ("relu(x)", "tanh(x)"), **options}
    return Task("mine", batch=batch, loss=loss, **arguments)


def labels_from_one():
    x, y = toy.batch()
    return x, y + 7


def infinite_slope(outputs, y):
    """A loss of 0 that has no derivative."""
    return jnp.sqrt(jnp.sum(0 * outputs, -1))


WRONG = {
    "labels": (task_of(labels_from_one), "loss is nan for relu"),
    "masked": (task_of(lambda: (toy.batch()[0], np.full(16, -100))), "loss is nan for relu"),
    "no derivative": (task_of(loss=infinite_slope), "every baseline of task 'mine' breaks its model"),
    "the batch's mean": (task_of(loss=lambda out, y: jnp.full(len(y), out.mean())), "depends on the others"),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == "no derivative" else pytest.mark.slow) for case in WRONG]
)
def test_a_wrong_task_is_refused_and_nothing_stored(path: Path, case: str):
    task, said = WRONG[case]
    with pytest.raises(TaskError, match=said):
        compute_spectra(path, task)
    assert stored(path) == {"valid": 0, "invalid": 0}
    assert compute_spectra(path, task_of()).computed == len(NAMES)


def test_a_search_refuses_what_eigs_refuses_before_it_trains(path: Path):
    study = Study(path, WRONG["labels"][0])
    with pytest.raises(TaskError, match="loss is nan for relu"):
        study.search(budget=1)
    assert not study.records()


def other_inputs():
    x, y = toy.batch()
    return 2 * x, y


def other_labels():
    x, y = toy.batch()
    return x, (y + 1) % 3


CHANGED = {
    "batch x": task_of(other_inputs),
    "batch y": task_of(other_labels),
    "fewer examples": task_of(lambda: tuple(part[:8] for part in toy.batch())),
    "loss": task_of(loss=lambda out, y: 0.5 * losses.softmax_cross_entropy(out, y)),
    "initial weights": task_of(init=lambda m, key, x: jax.tree.map(lambda w: 0.5 * w, m.init(key, x))),
}


@pytest.mark.parametrize(
    "case", ["batch y", *(pytest.param(case, marks=pytest.mark.slow) for case in CHANGED if case != "batch y")]
)
def test_what_a_changed_task_has_stored_is_computed_again_and_comes_back(
    path: Path, case: str, caplog: pytest.LogCaptureFixture
):
    compute_spectra(path, task_of())
    before = load_spectra(Database(path), 1)
    assert compute_spectra(path, CHANGED[case]).computed == len(NAMES)
    assert sum("3 spectra are set aside" in message for message in caplog.messages) == 1
    assert not np.allclose(load_spectra(Database(path), 1)[1], before[1])
    assert compute_spectra(path, CHANGED[case]).computed == 0
    assert compute_spectra(path, task_of()).computed == 0  # they were set aside, not lost
    for old, new in zip(before, load_spectra(Database(path), 1), strict=True):
        np.testing.assert_array_equal(old, new)


def test_rounding_is_no_change(path: Path):
    x, y = toy.batch()
    compute_spectra(path, task_of())
    near = np.nextafter(x, np.float32(np.inf))
    assert compute_spectra(path, task_of(lambda: (near, y.astype(np.int32)))).computed == 0


def test_spectra_without_a_digest_stay_in_force(path: Path):
    compute_spectra(path, task_of(), names=NAMES[:2])
    with Database(path).transaction() as con:
        con.execute("DELETE FROM subjects")  # as in a database of before
    assert compute_spectra(path, task_of(other_inputs)).computed == 1
    assert stored(path) == {"valid": 3, "invalid": 0}


def test_a_batch_that_is_drawn_anew_is_told_and_keeps_its_spectra(path: Path, caplog: pytest.LogCaptureFixture):
    rng = np.random.default_rng(0)
    task = task_of(lambda: (rng.normal(size=(16, 4)).astype(np.float32), toy.batch()[1]))
    compute_spectra(path, task, names=NAMES[:1])
    assert compute_spectra(path, task).computed == 2
    assert sum("another each time" in message for message in caplog.messages) == 1


def test_a_search_computes_anew_what_was_of_another_batch(path: Path):
    task = task_of(baselines=("relu(x)", "tanh(x)", "sin(x)", "square(x)", "x"))
    compute_spectra(path, task)
    study = Study(path, aqx.Task("mine", toy.Net, other_labels, task.loss, train=toy.train, baselines=task.baselines))
    study.search(budget=1)
    with study.db.read() as con:
        assert con.execute("SELECT count(*) FROM spectra_aside").fetchall() == [(3,)]


def test_spectra_are_deleted_on_request(path: Path):
    study = Study(path, toy.task)
    compute_spectra(path, toy.task)
    study.add("relu(x)", val_acc=0.5)
    file = Path(toy.__file__)
    result = CliRunner().invoke(main, ["reset", str(path), "--task", f"{file}:task", "--spectra"])
    assert (result.exit_code, result.stdout) == (0, "3 spectra deleted\n"), result.output
    assert len(study.records()) == 1
    assert compute_spectra(path, toy.task, sharing="reduce").computed == 3
    with pytest.raises(StoreError, match="aqx reset --spectra"):
        compute_spectra(path, toy.task)


class Reshaping(nn.Module):
    """Works on one size of batch only."""

    act: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.act(nn.Dense(5)(x)).reshape(7, 2))


def test_what_the_model_raises_is_one_line(path: Path):
    given = task_of(build_model=Reshaping, init=lambda m, key, x: {"params": {}})
    for task, said in ((task_of(build_model=Reshaping), "reshape"), (given, "ScopeCollectionNotFound")):
        with pytest.raises(TaskError, match=said) as caught:
            compute_spectra(path, task)
        assert "\n" not in str(caught.value) and "test_refusals.py, line" in str(caught.value)


def test_a_candidate_that_cannot_be_described_is_left_and_the_search_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
):
    def picky(x):
        if jnp.shape(x) == (16, 5):
            raise KeyError("no matrices")
        return jnp.sin(x)

    aqx.register("picky", picky, "unary")
    toy.candidates(path, ["relu(unary(x))"], ["tanh", "picky"])
    report = compute_spectra(path, toy.task)
    assert report.undescribed == {"its spectrum raised KeyError: 'no matrices'": 1}
    assert report.computed == 4 and stored(path) == {"valid": 4, "invalid": 0}
    assert "1 classes left without a spectrum: its spectrum raised KeyError" in str(report)
    task = toy.make_task(baselines=("relu(x)", "tanh(x)", "sin(x)", "square(x)", "x"))
    records = Study(path, task).search(budget=3)
    assert len(records) == 8
