"""Confirmations: by ask and tell too, of chosen functions, by the right metric and the right code, against the best."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import toy
from cli_helpers import aqx_command, check_error

from aqx.errors import Exhausted, InputError
from aqx.report.curves import curves_of_best
from aqx.search import Study, load_results
from aqx.search.verdict import compare, stored_verdict

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["relu", "tanh", "sin", "cos", "square", "sigmoid", "erf"]
CODE = """
import toy
from aqx.tasks import Task, losses

RATE = 3e-3


def train(act, seed):
    return {"val_acc": toy.train(act, seed)["val_acc"] + RATE}


task = Task("coded", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, baselines=("relu(x)", "tanh(x)"))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], OPERATORS)


# Trained by somebody else


def untrained(path: Path, n: int = 5) -> Study:
    """A study of a task without `train`, whose first trials have been told."""
    study = Study(path, toy.make_task(name="own loop", train=None))
    for _ in range(n):
        trial = study.ask()
        study.tell(trial, **toy.train(trial.activation, trial.seed))
    return study


def test_a_loop_of_ones_own_confirms(path: Path):
    study = untrained(path)
    begun = study.confirm(top=1, seeds=2)
    assert (begun.ended, begun.wanted, begun.is_complete) == (0, 2 * (3 + 2), False)
    for trial in begun:
        study.tell(trial, **toy.train(trial.activation, trial.seed))
    verdict = study.confirm(top=1, seeds=2)
    assert verdict.is_complete and list(verdict) == []
    assert len(verdict.rows) == 3 and {row.seeds for row in verdict.rows} == {2}


def test_trials_to_confirm_are_claimed_in_blocks_and_by_the_shell(path: Path):
    study = untrained(path)
    with study.trial(confirm=True, top=1, seeds=2) as trial:
        trial.report(**toy.train(trial.activation, trial.seed))
    name, number, seed = aqx_command("claim", path, "--confirm", "--top", "1", "--seeds", "2").stdout.split()
    assert (name, int(seed)) != (trial.name, trial.seed)
    assert study.records("confirm")[-1].id == int(number)
    assert aqx_command("tell", path, "--trial", number, "val_acc=0.5", "test_acc=0.5").exit_code == 0
    shown = aqx_command("confirm", path, "--top", "1", "--seeds", "2")
    assert shown.exit_code == 3 and "2 of 10 trainings" in shown.stderr and "--confirm" in shown.stderr
    with pytest.raises(InputError, match="confirm=True"):
        study.ask(top=3)
    for _ in range(8):
        study.fail(study.ask(confirm=True, top=1, seeds=2), "no")
    with pytest.raises(Exhausted, match="verdict"):
        study.ask(confirm=True, top=1, seeds=2)


# What is confirmed


def test_chosen_functions_and_baselines(path: Path):
    study = Study(path, toy.task)
    chosen = study.confirm(functions=["sin(x)", "erf(x)"], baselines=["tanh(x)", "x"], reference="x", seeds=2)
    assert {row.name: row.is_baseline for row in chosen.rows} == {
        "sin(x)": False, "erf(x)": False, "tanh(x)": True, "x": True
    }  # fmt: skip
    assert chosen.reference == "x" and chosen.wanted == 8
    assert stored_verdict(load_results(path)) == chosen
    study.search(budget=3, spectra=0)
    default = study.confirm(top=1, seeds=2, reference="gelu(x)")
    assert default.reference == "gelu(x)" and {"relu(x)", "gelu(x)"} <= {row.name for row in default.rows}
    with pytest.raises(InputError, match="functions='sin"):
        study.confirm(functions="sin(x)")


def test_it_says_before_how_many_trials_it_will_make(path: Path):
    study = Study(path, toy.task)
    study.search(budget=5, spectra=0)
    said = str(study.confirmation_plan(top=1, seeds=3))
    assert said.startswith("3 functions and 2 baselines on 3 fresh seeds: 15 trials, 15 of them left")
    result = aqx_command("confirm", path, "--task", f"{toy.__file__}:task", "--top", "1", "--seeds", "3", "--json")
    assert result.stderr.startswith(f"confirm: {said.partition(';')[0]}") and result.exit_code == 0
    assert len(study.records("confirm")) == 15
    assert str(study.confirmation_plan(top=1, seeds=3)).endswith("0 of them left; fresh val_acc chooses 1 to report")


# By which metric


def test_one_result_without_the_test_metric_does_not_change_it(path: Path):
    study = Study(path, toy.task)
    study.search(budget=3, spectra=0)
    before = study.confirm(top=1, seeds=2)
    trial = study.ask()
    study.tell(trial, val_acc=-5.0)
    after = study.confirm(top=1, seeds=2)
    assert before.metric == after.metric == "test_acc"
    assert (before.lacking, after.lacking) == ((), (trial.name,))
    assert after.rows == before.rows
    shown = aqx_command("confirm", path, "--task", f"{toy.__file__}:task", "--top", "1", "--seeds", "2")
    assert f"judged by test_acc, which results of these lack: {trial.name}" in shown.stderr


def test_a_fresh_result_without_the_metric_is_lacking_and_not_failed(path: Path):
    study = untrained(path)
    for number, trial in enumerate(study.confirm(top=1, seeds=2)):
        values = toy.train(trial.activation, trial.seed)
        study.tell(trial, **(values if number or trial.name == "relu(x)" else {"val_acc": values["val_acc"]}))
    verdict = study.confirm(top=3, seeds=2)
    assert verdict.metric == "test_acc" and verdict.lacking
    assert [row.verdict for row in verdict.rows if row.name in verdict.lacking] == ["lacking"]


def test_where_no_fresh_result_has_the_test_metric_it_is_the_objective(path: Path):
    study = Study(path, toy.make_task(train=lambda act, seed: {"val_acc": toy.train(act, seed)["val_acc"]}))
    for _ in range(4):
        study.tell(study.ask(), val_acc=0.5, test_acc=0.5)
    assert study.confirm(top=1, seeds=2).metric == "val_acc"


def test_the_best_functions_of_a_report_are_of_one_metric(path: Path):
    study = Study(path, toy.task)
    study.search(budget=5, spectra=0)
    verdict = study.confirm(top=1, seeds=2)
    confirmed = {row.name: row.mean for row in verdict.rows}
    shown = {one.name: one.result for one in curves_of_best(load_results(path), verdict)}
    assert len(shown) > 3 and all(shown[name] == confirmed.get(name) for name in shown)


# Of which code


def test_changed_code_is_told_once_and_confirmed_alone(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "coded.py"
    file.write_text(CODE)
    Study(path, f"{file}:task").search(budget=2, spectra=0)
    file.write_text("# a comment\n" + CODE)
    Study(path, f"{file}:task").search(budget=2, spectra=0)
    assert not caplog.messages
    file.write_text(CODE.replace("3e-3", "0.5"))
    changed = Study(path, f"{file}:task")
    with caplog.at_level(logging.WARNING):
        changed.search(budget=3, spectra=0)
        changed.search(budget=4, spectra=0)
    (said,) = caplog.messages
    for word in ("4 results", "version", "another name", "--accept-changed"):
        assert word in said
    versions = [record.version for record in changed.records()]
    assert versions == [versions[0]] * 4 + [changed.version] * 2 and versions[0] != changed.version
    listed = aqx_command("trials", path).stdout
    assert versions[0] in listed and changed.version in listed
    verdict = changed.confirm(top=5, seeds=2)
    searched = {record.name for record in changed.records("search") if record.version == changed.version}
    assert {row.name for row in verdict.rows if not row.is_baseline} == searched
    assert stored_verdict(load_results(path)) == verdict


def test_accepted_code_counts_as_one(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "coded.py"
    file.write_text(CODE)
    Study(path, f"{file}:task").search(budget=2, spectra=0)
    Study(path, f"{file}:task").confirm(top=1, seeds=2)
    file.write_text(CODE.replace("3e-3", "0.5"))
    check_error(aqx_command("confirm", path, "--task", f"{file}:task", "-q"), "as it is now", "--accept-changed")
    caplog.clear()
    accepted = Study(path, f"{file}:task", accept_changed=True)
    assert accepted.confirm(top=1, seeds=2).is_complete
    assert len(accepted.records("confirm")) == 6  # the old ones count
    assert not caplog.messages
    Study(path, f"{file}:task").search(budget=3, spectra=0)  # it is remembered
    assert not caplog.messages


# Against the best baseline


def test_the_difference_to_the_best_baseline_is_to_the_one_that_came_out_best():
    rng = np.random.default_rng(0)
    values = {name: rng.normal(mean, 0.01, 6) for name, mean in (("a", 0.7), ("b", 0.5), ("c", 0.6), ("dead", 0.9))}
    values["dead"][2] = np.nan
    rows = {row.name: row for row in compare(values, "b", 1, {}, ("b", "c", "dead"))}
    half = rows["a"].difference_high - rows["a"].difference
    assert [rows[name].to_best_verdict for name in ("a", "c", "dead")] == ["better", "reference", "failed"]
    np.testing.assert_allclose(rows["a"].to_best, np.mean(values["a"] - values["c"]))
    np.testing.assert_allclose(rows["a"].to_best - rows["a"].to_best_low, half)
    np.testing.assert_allclose(rows["a"].to_best_high - rows["a"].to_best, 2 * half)
    down = {row.name: row for row in compare(values, "b", -1, {}, ("b", "c"))}
    assert down["b"].to_best_verdict == "reference" and down["a"].to_best_verdict == "worse"
    np.testing.assert_allclose(down["a"].to_best_high - down["a"].to_best, half)


def test_the_interval_holds_the_difference_to_the_truly_best_baseline():
    """Simulated: 6 baselines, all equal or one of them better, and 3 functions equal to the best: 95 % hold."""
    rng = np.random.default_rng(1)
    missed = 0
    for trial in range(600):
        lead = 0.5 * (trial % 3)  # of the best baseline, in units of the noise
        means = {f"b{i}": lead * (i == 0) for i in range(6)} | {f"f{i}": lead for i in range(3)}
        values = {name: mean + rng.normal(size=5) for name, mean in means.items()}
        rows = compare(values, "b1", 1, {}, [f"b{i}" for i in range(6)])
        missed += any(not row.to_best_low <= 0 <= row.to_best_high for row in rows if not row.is_baseline)
    assert missed / 600 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_the_verdict_shows_both_differences_and_marks_what_was_found(path: Path):
    study = Study(path, toy.task)
    study.search(budget=3, spectra=0)
    result = aqx_command("confirm", path, "--task", f"{toy.__file__}:task", "--top", "1", "--seeds", "3", "-q")
    verdict = study.confirm(top=1, seeds=3)
    assert verdict.best_baseline in ("relu(x)", "tanh(x)")
    if verdict.best_baseline != verdict.reference:
        assert f"difference to the best baseline, {verdict.best_baseline}" in result.stdout
    (found,) = (row for row in verdict.rows if not row.is_baseline)
    assert any(line.split()[:2] == ["◆", found.name] for line in result.stdout.splitlines())
