"""The study: ask, tell, trials, the search loop, failures, several processes, confirmation."""

import logging
import math
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import toy
from scipy import stats

from aqx.activation import activation
from aqx.enumeration import enumerate_space
from aqx.errors import Exhausted, InputError, StoreError, TaskError
from aqx.search import Study, describe, summarize
from aqx.search.confirmation import confirmation_seeds
from aqx.search.verdict import compare
from aqx.space import Space
from aqx.store import Database
from aqx.store.functions import candidate_names
from aqx.store.spectra import count_spectra, load_spectra
from aqx.tree import parse

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["sin", "tanh", "relu", "square", "exp", "reciprocal", "identity", "negative", "add", "mul", "sub", "max"]


@pytest.fixture(scope="module")
def enumerated(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "toy.duckdb"
    return toy.candidates(path, ["unary(x)", "binary(unary(x),unary(x))"], OPERATORS)


@pytest.fixture
def path(enumerated, tmp_path) -> Path:
    copy = tmp_path / "toy.duckdb"
    copy.write_bytes(enumerated.read_bytes())
    return copy


def test_baselines_come_first_then_suggestions(path):
    study = Study(path, toy.task)
    first, second, third = study.ask(), study.ask(), study.ask()
    assert [first.name, second.name] == ["relu(x)", "tanh(x)"]
    assert third.name not in ("relu(x)", "tanh(x)")
    assert [trial.id for trial in (first, second, third)] == [1, 2, 3]
    assert len({trial.seed for trial in (first, second, third)}) == 3


def test_tell_and_best(path):
    study = Study(path, toy.task)
    assert study.best() is None
    first, second = study.ask(), study.ask()
    study.tell(first, val_acc=0.5, note="ok")
    study.tell(second.id, val_acc=np.float32(0.75))
    best = study.best()
    assert (best.id, best.name, best.seed, best.objective) == (second.id, "tanh(x)", second.seed, 0.75)
    assert best.activation(0.0) == 0.0
    with pytest.raises(InputError, match="done already"):
        study.tell(first, val_acc=0.9)
    assert study.records()[0].metrics == {"val_acc": 0.5, "note": "ok"}


def test_the_direction_decides_what_is_best(path):
    study = Study(path, toy.make_task(name="down", direction="minimize", objective="loss"))
    for value in (3.0, 1.0):
        study.tell(study.ask(), loss=value)
    assert study.best().objective == 1.0
    assert [row.objective for row in study.top()] == [1.0, 3.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_is_a_failure(path, value):
    study = Study(path, toy.task)
    record = study.tell(study.ask(), val_acc=value)
    assert (record.status, record.objective) == ("failed", None)
    assert str(value) in record.reason
    assert study.best() is None


def test_a_metric_may_have_any_name(path):
    study = Study(path, toy.task)
    record = study.tell(study.ask(), val_acc=0.5, **{"self": 1, "trial": 2})
    assert record.metrics == {"val_acc": 0.5, "self": 1, "trial": 2}


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0, -1.0, 1e12])
def test_a_lease_is_a_time(path, seconds):
    with pytest.raises(InputError, match="lease_seconds=.* is no time to hold a claim"):
        Study(path, toy.task).ask(seconds)


def test_tell_names_what_is_wrong(path):
    study = Study(path, toy.task)
    trial = study.ask()
    with pytest.raises(InputError, match=r"val_acc is missing from the metrics \(accuracy\)"):
        study.tell(trial, accuracy=0.5)
    with pytest.raises(InputError, match="val_acc='high' is not a number"):
        study.tell(trial, val_acc="high")
    assert study.tell(trial, val_acc=0.5).status == "done"


def test_a_trial_block_stores_what_it_reported(path):
    study = Study(path, toy.task)
    with study.trial() as trial:
        trial.report(step=1, val_acc=0.1)
        trial.report(step=2, val_acc=0.2)
        trial.report(loss=1.0)
        trial.report(val_acc=0.3)
    (record,) = study.records()
    assert record.metrics == {"val_acc_by_step": [[1, 0.1], [2, 0.2]], "loss": 1.0, "val_acc": 0.3}
    assert (record.status, record.objective) == ("done", 0.3)


def test_an_exception_fails_the_trial_with_its_reason(path):
    study = Study(path, toy.task)
    with pytest.raises(ZeroDivisionError), study.trial():
        1 / 0  # noqa: B018
    (record,) = study.records()
    assert (record.status, record.reason) == ("failed", "ZeroDivisionError: division by zero")
    assert "1 / 0" in record.metrics["traceback"]


def test_a_block_without_the_objective_is_a_failure(path, caplog):
    study = Study(path, toy.task)
    with caplog.at_level(logging.WARNING), study.trial() as trial:
        trial.report(accuracy=0.5)
    assert study.records()[0].reason == "the training ended without reporting val_acc (it reported accuracy)"
    assert "without reporting val_acc" in caplog.text


def test_a_failure_that_is_told_keeps_what_was_reported(path):
    study = Study(path, toy.task)
    first, second = study.ask(), study.ask()
    first.report(loss=1.0)
    kept = study.fail(first, "out of memory")
    assert (kept.status, kept.reason, kept.metrics) == ("failed", "out of memory", {"loss": 1.0})
    assert study.fail(second.id, "lost its data").reason == "lost its data"
    assert [record.name for record in study.records(status="failed")] == ["relu(x)", "tanh(x)"]


def test_an_interrupt_gives_the_claim_back(path):
    study = Study(path, toy.task)
    with pytest.raises(KeyboardInterrupt), study.trial() as trial:
        raise KeyboardInterrupt
    assert study.records()[0].status == "queued"
    assert (study.ask().id, study.records()[0].status) == (trial.id, "running")


def test_search_finds_what_is_planted(path):
    study = Study(path, toy.task)
    assert len(study.search(budget=30, spectra=0)) == 32
    distances = [toy.distance(activation(name)) for name in candidate_names(Database(path)).values()]
    assert len(distances) > 100
    assert toy.distance(study.best().activation) <= np.sort(distances)[1]


def test_failures_are_recorded_and_the_search_goes_on(path):
    study = Study(path, toy.task, surrogate="random")
    study.search(budget=60, spectra=0)
    raised = {record.name: record.reason for record in study.records() if "exp(" in record.name}
    assert raised and set(raised.values()) == {"FloatingPointError: overflow in exp"}
    assert all(record.status == "failed" for record in study.records() if record.name in raised)
    assert sum(record.purpose == "search" for record in study.records()) == 60


def test_the_same_search_again_trains_nothing(path):
    study = Study(path, toy.task)
    study.search(budget=5, spectra=0)
    assert Study(path, toy.task).search(budget=5, spectra=0) == []
    assert len(Study(path, toy.task).search(budget=7, spectra=0)) == 2


def test_a_search_is_a_function_of_its_seed(path, tmp_path):
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(path.read_bytes())
    names = [[record.name for record in Study(p, toy.task, seed=3).search(budget=12, spectra=0)] for p in (path, copy)]
    assert names[0] == names[1]


def test_an_interrupted_search_resumes_to_the_same_trials(path, tmp_path):
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(path.read_bytes())
    whole = Study(path, toy.task)
    whole.search(budget=8, spectra=0)

    def interrupted(done: int, total: int, note: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Study(copy, toy.task).search(budget=8, spectra=0, progress=interrupted)
    Study(copy, toy.task).search(budget=8, spectra=0)
    keep = [(r.id, r.name, r.seed, r.objective) for r in whole.records()]
    assert [(r.id, r.name, r.seed, r.objective) for r in Study(copy, toy.task).records()] == keep


def test_two_workers_claim_no_class_twice(path):
    study = Study(path, toy.task)
    with ThreadPoolExecutor(4) as pool:
        study.search(budget=20, spectra=0, executor=pool)
    records = study.records()
    assert len(records) == 22 and len({record.class_id for record in records}) == 22


def test_worker_processes_train_tasks_of_importable_modules(path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        Study(path, toy.task).search(budget=3, spectra=0, executor=pool)
    records = Study(path, toy.task).records()
    reasons = {None, "FloatingPointError: overflow in exp", "objective is -inf", "objective is nan"}
    assert len(records) == 5 and {record.reason for record in records} <= reasons
    assert sum(record.status == "done" for record in records) >= 2


def test_when_every_baseline_fails_the_task_is_at_fault(path):
    def broken(act, seed):
        raise NameError("name 'optimiser' is not defined")

    with pytest.raises(
        TaskError, match="every baseline of task 'broken' failed; the first: NameError: name 'optimiser'"
    ):
        Study(path, toy.make_task(name="broken", train=broken)).search(budget=5, spectra=0)


def test_search_needs_a_train_function_and_candidates(path, tmp_path):
    with pytest.raises(TaskError, match="has no train function"):
        Study(path, toy.make_task(name="untrained", train=None)).search(budget=1, spectra=0)
    with pytest.raises(Exhausted, match="aqx enumerate"):
        Study(tmp_path / "empty.duckdb", toy.task).search(budget=1, spectra=0)


def test_a_search_ends_when_all_candidates_are_trained(tmp_path):
    db = Database(tmp_path / "few.duckdb", create=True)
    enumerate_space(db, Space(["unary(x)"], ["sin", "tanh", "relu"]), points=8)
    study = Study(db, toy.task)
    assert len(study.search(budget=50, spectra=0)) == 3
    with pytest.raises(Exhausted):
        study.ask()


def test_add_records_what_was_trained_elsewhere(path):
    study = Study(path, toy.task)
    study.add("max(x, zero(x))", val_acc=0.9)
    assert study.best().name == "max(x,zero(x))"
    assert study.ask().name == "tanh(x)"  # relu(x) is the same function, so its result is known


def test_tasks_of_one_name_must_agree(path):
    Study(path, toy.task)
    with pytest.raises(StoreError, match="objective"):
        Study(path, toy.make_task(objective="val_loss"))


def test_bad_arguments_are_named(path):
    for arguments, message in (
        ({"seed": -1}, "seed=-1"),
        ({"surrogate": "oracle"}, "oracle"),
        ({"task": "mnist2d"}, "mnist2d"),
    ):
        with pytest.raises(InputError, match=message):
            Study(**({"db": path, "task": toy.task} | arguments))


def test_suggest_shows_without_claiming(path):
    study = Study(path, toy.task)
    shown = study.suggest(3)
    assert len({suggestion.class_id for suggestion in shown}) == 3
    assert study.records() == []


KILLED = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]}
import toy
from aqx.search import Study
study = Study(sys.argv[1], toy.task)
with study.trial() as trial:
    os.kill(os.getpid(), 9)
"""


def test_a_search_computes_the_spectra_that_it_needs(path):
    study = Study(path, toy.make_task(name="described", baselines=("relu(x)", "tanh(x)", "sin(x)", "square(x)", "x")))
    study.search(budget=2, spectra=10)
    described = count_spectra(study.db, study.task_id)
    # Five baselines and the ten best predictions, then perhaps one more lot; never all of the space.
    assert 10 <= sum(described.values()) <= 40
    assert len(candidate_names(study.db)) > 60
    trained = {record.class_id for record in study.records("search")}
    assert trained <= set(load_spectra(study.db, study.task_id)[0])


def test_a_model_without_spectra_is_searched_all_the_same(path, caplog):
    class Layerless(toy.nn.Module):
        act: object

        @toy.nn.compact
        def __call__(self, x):
            return self.act(x[:, :3])

    task = toy.make_task(name="layerless", baselines=("relu(x)", "tanh(x)", "sin(x)", "square(x)", "x"))
    study = Study(path, replace(task, build_model=lambda act: Layerless(act)))
    assert len(study.search(budget=2)) == 7
    assert sum("goes on without" in message for message in caplog.messages) == 1


def test_a_killed_training_is_offered_again_but_not_forever(path):
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, str(path)])
        expire_claims(path)
    study = Study(path, toy.task)
    assert [record.status for record in study.records()] == ["stale", "stale"]
    assert study.ask().name == "tanh(x)"


def expire_claims(path: Path) -> None:
    with Database(path).transaction() as con:
        con.execute("UPDATE trials SET expires_at = expires_at - INTERVAL 1 DAY WHERE status = 'running'")


# Confirmation


def test_confirm_finds_the_planted_winner_and_resumes(path):
    study = Study(path, toy.task)
    study.search(budget=25, spectra=0)
    confirmation = study.confirm(top=2, seeds=5)
    assert (confirmation.metric, confirmation.reference) == ("test_acc", "relu(x)")
    rows = {row.name: row for row in confirmation.rows}
    assert len(rows) == 4 and rows["relu(x)"].verdict == "reference"
    assert confirmation.rows[0].verdict == "better"
    assert study.confirm(top=2, seeds=5) == confirmation
    # Six are retrained and fresh validation results keep two; where there is no test metric, two are retrained.
    assert sum(record.purpose == "confirm" for record in study.records()) == 5 * (6 + 2)
    seeds = {record.seed for record in study.records("confirm")}
    assert seeds == set(confirmation_seeds(0, 5)) and seeds.isdisjoint(r.seed for r in study.records("search"))


def test_without_a_test_metric_the_best_alone_are_retrained(path):
    def train(act, seed):
        return {"val_acc": toy.train(act, seed)["val_acc"]}

    study = Study(path, toy.make_task(name="val alone", train=train))
    study.search(budget=8, spectra=0)
    confirmation = study.confirm(top=2, seeds=3)
    assert confirmation.metric == "val_acc" and len(confirmation.rows) == 4
    assert sum(record.purpose == "confirm" for record in study.records()) == 3 * 4


def test_with_two_functions_it_is_students_paired_test():
    rng = np.random.default_rng(0)
    values = {"relu(x)": rng.normal(0.5, 0.01, 6), "a": rng.normal(0.6, 0.03, 6)}
    row = next(row for row in compare(values, "relu(x)", 1, {}) if row.name == "a")
    expected = stats.ttest_rel(values["a"], values["relu(x)"]).confidence_interval(0.95)
    np.testing.assert_allclose((row.difference_low, row.difference_high), tuple(expected))
    alone = stats.ttest_1samp(values["a"], 0).confidence_interval(0.95)
    np.testing.assert_allclose((row.low, row.high), tuple(alone))
    assert row.verdict == "better"


def test_with_more_functions_it_is_least_squares_with_blocks():
    """The oracle: regression on one dummy column per function and one per seed, with its textbook standard error."""
    rng = np.random.default_rng(1)
    values = {name: rng.normal(mean, 0.01, 5) for name, mean in (("relu(x)", 0.5), ("a", 0.6), ("b", 0.5), ("c", 0.4))}
    y = np.concatenate(list(values.values()))
    design = np.hstack([np.kron(np.eye(4)[:, 1:], np.ones((5, 1))), np.kron(np.ones((4, 1)), np.eye(5))])
    effects, residual, *_ = np.linalg.lstsq(design, y)
    error = np.sqrt(residual[0] / (20 - 8) * np.linalg.inv(design.T @ design)[0, 0])
    rows = {row.name: row for row in compare(values, "relu(x)", 1, {})}
    np.testing.assert_allclose([rows[name].difference for name in "abc"], effects[:3])
    half = stats.t.ppf(1 - 0.05 / 6, 12) * error
    np.testing.assert_allclose(rows["a"].difference_high - rows["a"].difference, half)
    assert [rows[name].verdict for name in ("a", "b", "c", "relu(x)")] == [
        "better",
        "no evidence",
        "worse",
        "reference",
    ]


def test_verdicts_by_direction_and_failures():
    values = {
        "relu(x)": np.array([0.5, 0.51, 0.49]),
        "low": np.array([0.1, 0.12, 0.09]),
        "broken": np.array([0.1, np.nan, 0.1]),
        "dead": np.full(3, np.nan),
    }
    up, down = ({row.name: row.verdict for row in compare(values, "relu(x)", sign, {})} for sign in (1, -1))
    assert (up["low"], down["low"]) == ("worse", "better")
    assert (up["broken"], up["dead"]) == ("failed", "failed")
    assert [row.name for row in compare(values, "relu(x)", -1, {})][-1] == "dead"


def test_a_function_no_better_is_seldom_called_better():
    """All intervals hold together with 95 %: among 8 functions equal to the reference, any is called better seldom."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        values = {str(i): rng.normal(size=5) for i in range(9)}
        wrong += any(row.verdict in ("better", "worse") for row in compare(values, "0", 1, {}))
    assert wrong / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(("top", "seeds"), [(0, 5), (3, 1)])
def test_confirm_names_what_is_wrong(path, top, seeds):
    with pytest.raises(InputError, match="give"):
        Study(path, toy.task).confirm(top=top, seeds=seeds)


def test_confirm_before_any_search_says_so(path):
    with pytest.raises(InputError, match="search first"):
        Study(path, toy.task).confirm()


# What a database holds


def test_summary_counts(path):
    study = Study(path, toy.task)
    study.search(budget=3, spectra=0)
    study.ask()
    (summary,) = summarize(path)
    space = Space(["unary(x)", "binary(unary(x),unary(x))"], OPERATORS)
    assert (summary.task, summary.functions) == ("toy", space.size)
    assert (summary.done + summary.failed, summary.running, summary.stale) == (5, 1, 0)
    assert (summary.best, summary.objective) == (study.best().name, study.best().objective)
    with pytest.raises(InputError, match="it has toy"):
        summarize(path, "mnist")


def test_describe_finds_equal_names_and_results(path):
    Study(path, toy.task).add("relu(x)", val_acc=0.25)
    report = describe("max(zero(x), x)", path)
    assert (report.size, report.shape) == (2, "binary(unary(x),x)")
    assert report.simplest == "relu(x)"
    assert report.results == [("toy", "added", "done", 0, 0.25)]
    assert {parse(name).size for name in report.equal} >= {1, 3}
