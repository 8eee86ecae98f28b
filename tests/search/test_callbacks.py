"""Callbacks of a study: called with every trial that ends, after it is stored, in the driver's process."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import toy

from aqx.errors import InputError
from aqx.search import Pruned, Record, Study

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["sin", "tanh", "relu", "arctan", "identity", "negative", "add", "sub"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy.candidates(tmp_path / "toy.duckdb", ["unary(x)", "binary(unary(x),unary(x))"], OPERATORS)


class Log:
    """A callback that keeps what it was called with, and what was stored at that moment."""

    def __init__(self):
        self.records: list[Record] = []

    def __call__(self, study: Study, record: Record) -> None:
        assert record == study.records()[record.id - 1], "the result is stored before"
        self.records.append(record)


def by_tell(study: Study) -> None:
    study.tell(study.ask(), val_acc=0.5)


def by_tell_of_an_id(study: Study) -> None:
    study.tell(study.ask().id, val_acc=0.5)


def by_tell_of_nan(study: Study) -> None:
    study.tell(study.ask(), val_acc=math.nan)


def by_fail(study: Study) -> None:
    study.fail(study.ask(), "out of memory")


def by_fail_of_an_id(study: Study) -> None:
    study.fail(study.ask().id, "out of memory")


def by_a_block(study: Study) -> None:
    with study.trial() as trial:
        trial.report(step=1, val_acc=0.1)
        trial.report(val_acc=0.5)


def by_a_block_that_raises(study: Study) -> None:
    with pytest.raises(ZeroDivisionError), study.trial():
        1 / 0  # noqa: B018


def by_a_block_that_reports_nothing(study: Study) -> None:
    with study.trial():
        pass


def by_a_block_that_reports_what_cannot_be_stored(study: Study) -> None:
    with pytest.raises(InputError, match="must be a number"), study.trial() as trial:
        trial.report(val_acc=0.5, model=object())


def by_a_block_that_prunes(study: Study) -> None:
    with study.trial() as trial:
        trial.report(step=1, val_acc=0.1)
        raise Pruned


@pytest.mark.parametrize(
    ("end", "status", "objective"),
    [
        (by_tell, "done", 0.5),
        (by_tell_of_an_id, "done", 0.5),
        (by_tell_of_nan, "failed", None),
        (by_fail, "failed", None),
        (by_fail_of_an_id, "failed", None),
        (by_a_block, "done", 0.5),
        (by_a_block_that_raises, "failed", None),
        (by_a_block_that_reports_nothing, "failed", None),
        (by_a_block_that_reports_what_cannot_be_stored, "failed", None),
        (by_a_block_that_prunes, "pruned", 0.1),
    ],
)
def test_every_end_of_a_trial_is_told_once(path: Path, end, status: str, objective: float | None):
    log = Log()
    end(Study(path, toy.task, callbacks=[log]))
    (record,) = log.records
    assert (record.id, record.name, record.status, record.objective) == (1, "relu(x)", status, objective)


def test_intermediate_values_come_with_the_record(path: Path):
    log = Log()
    by_a_block(Study(path, toy.task, callbacks=[log]))
    assert log.records[0].metrics == {"val_acc_by_step": [[1, 0.1]], "val_acc": 0.5}


def test_what_has_not_ended_or_is_no_trial_of_the_study_is_not_told(path: Path):
    log = Log()
    study = Study(path, toy.task, callbacks=[log])
    study.ask()
    study.add("tanh(x)", val_acc=0.4)
    with pytest.raises(KeyboardInterrupt), study.trial():
        raise KeyboardInterrupt
    by_tell(Study(path, toy.task))
    assert log.records == []


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor(2)], ids=["here", "threads"])
def test_search_and_confirm_tell_every_trial_in_the_drivers_thread(path: Path, executor: Executor | None):
    log, places = Log(), set()
    where = lambda study, record: places.add((os.getpid(), threading.get_ident()))  # noqa: E731
    study = Study(path, toy.task, callbacks=[log, where])
    found = study.search(budget=4, spectra=0, executor=executor)
    assert log.records == found and len(found) == 6
    study.confirm(top=1, seeds=2, executor=executor)
    confirmed = log.records[len(found) :]
    assert sorted(confirmed, key=lambda record: record.id) == study.records(purpose="confirm")
    assert places == {(os.getpid(), threading.get_ident())}


def test_a_failed_training_is_told_by_search(path: Path):
    log = Log()
    Study(path, toy.make_task(baselines=("relu(x)", "exp(x)")), callbacks=[log]).search(budget=0, spectra=0)
    assert [(record.name, record.status) for record in log.records] == [("relu(x)", "done"), ("exp(x)", "failed")]
    assert log.records[1].reason == "FloatingPointError: overflow in exp"


def test_callbacks_are_called_in_their_order(path: Path):
    order: list[str] = []
    study = Study(path, toy.task, callbacks=[lambda *_: order.append("first"), lambda *_: order.append("second")])
    by_tell(study)
    by_tell(study)
    assert order == ["first", "second"] * 2


class Broken(RuntimeError):
    """What a logging service says that cannot be reached."""


class BrokenInput(InputError):
    """An error that aqx itself might raise."""


@pytest.mark.parametrize("kind", [Broken, BrokenInput])
@pytest.mark.parametrize("end", [by_tell, by_tell_of_an_id, by_a_block, by_a_block_that_prunes])
def test_what_a_callback_raises_goes_on_and_the_result_stays(path: Path, end, kind: type[Exception]):
    def broken(study: Study, record: Record) -> None:
        raise kind("no connection")

    study = Study(path, toy.task, callbacks=[broken])
    with pytest.raises(kind, match="no connection"):
        end(study)
    (record,) = study.records()
    assert record.status == ("pruned" if end is by_a_block_that_prunes else "done")


@pytest.mark.parametrize("kind", [Broken, BrokenInput])
def test_a_callback_may_stop_a_search_which_the_same_call_resumes(path: Path, kind: type[Exception]):
    def stop(study: Study, record: Record) -> None:
        if record.id == 3:
            raise kind("that is enough")

    study = Study(path, toy.task, callbacks=[stop])
    with pytest.raises(kind, match="that is enough"):
        study.search(budget=4, spectra=0)
    assert [record.status for record in study.records()] == ["done"] * 3
    study.search(budget=4, spectra=0)
    assert [record.status for record in study.records()] == ["done"] * 6


class AllAtOnce(Executor):
    """Finishes what was submitted only when two trainings were: both have ended when the driver looks."""

    def __init__(self):
        self.waiting: list = []

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        self.waiting.append((future, fn, args))
        if len(self.waiting) == 2:
            for other, work, given in self.waiting:
                other.set_result(work(*given))
            self.waiting.clear()
        return future


def test_results_that_came_together_are_stored_before_a_callback_may_raise(path: Path):
    def broken(study: Study, record: Record) -> None:
        raise Broken("no connection")

    study = Study(path, toy.task, callbacks=[broken])
    with pytest.raises(Broken):
        study.search(budget=2, spectra=0, executor=AllAtOnce(), workers=2)
    assert [record.status for record in study.records()] == ["done", "done"]


@pytest.mark.parametrize("callbacks", [print, [None], "print", [print, 3]])
def test_what_cannot_be_called_is_named(path: Path, callbacks):
    with pytest.raises(InputError, match="give a list of functions of \\(study, record\\)"):
        Study(path, toy.task, callbacks=callbacks)
