"""Stopping hopeless trainings: the rules against their definitions, and what a pruned trial leaves behind."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

import aqx
from aqx.errors import InputError
from aqx.search import Study
from aqx.search.pruning import curve_of, halving, median

values = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


@given(values, st.lists(values, max_size=12))
def test_the_median_rule_is_its_definition(own, others):
    step = len(own)
    there = [other[step - 1] for other in others if len(other) >= step]
    expected = len(there) >= 5 and max(own) < statistics.median(there)
    assert median(list(enumerate(own, 1)), [list(enumerate(other, 1)) for other in others]) == expected


@given(values, st.lists(values, max_size=12))
def test_halving_keeps_the_best_third_of_a_rung(own, others):
    step = len(own)
    there = [other[step - 1] for other in others if len(other) >= step]
    rank = sum(value > own[-1] for value in there)
    kept = max(1, math.ceil((len(there) + 1) / 3))
    expected = step in (1, 3, 9) and len(there) >= 2 and rank >= kept
    assert halving(list(enumerate(own, 1)), [list(enumerate(other, 1)) for other in others]) == expected


def test_rungs_are_met_by_steps_that_pass_over_them():
    others = [[(10, value), (20, value)] for value in (0.1, 0.2, 0.3)]
    assert halving([(10, 0.05)], others) and not halving([(10, 0.25)], others)
    assert not halving([(10, 0.05), (20, 0.05)], others), "no rung between 10 and 20"


@pytest.mark.parametrize("rule", [median, halving])
def test_others_that_are_not_numbers_do_not_count(rule):
    others = [[(1, math.nan)]] * 9
    assert not rule([(1, 0.0)], others)


def test_curves_are_read_from_metrics():
    metrics = {"loss_by_step": [[2, 0.5], [1, 0.75], ["x", 1], [3, "high"], 4]}
    assert curve_of(metrics, "loss", -1) == [(1, -0.75), (2, -0.5)]
    assert curve_of({"loss_by_step": "no"}, "loss", 1) == curve_of({}, "loss", 1) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    operators = ["sin", "tanh", "relu", "square", "add", "mul"]
    return toy.candidates(tmp_path / "toy.duckdb", ["binary(unary(x),unary(x))"], operators)


def seen_by(study: Study):
    snapshot = study.ledger.snapshot()
    return study.queue._seen(study.queue._candidates(snapshot), snapshot.trials)


def train(study: Study, values: list[float]) -> aqx.search.Trial:
    with study.trial() as trial:
        for step, value in enumerate(values, 1):
            trial.report(step=step, val_acc=value)
            if trial.should_prune():
                raise aqx.Pruned
        trial.report(val_acc=values[-1])
    return trial


def test_a_hopeless_training_is_pruned_and_teaches_the_surrogate(path: Path):
    study = Study(path, toy.make_task(name="pruned", baselines=()))
    for height in (0.5, 0.6, 0.7, 0.8, 0.9):
        train(study, [height / 2, height])
    train(study, [0.1, 0.99])
    record = study.records()[-1]
    assert (record.status, record.objective, record.reason) == ("pruned", 0.1, None)
    assert record.metrics == {"val_acc_by_step": [[1, 0.1]]}
    assert study.best().objective == 0.9 and len(study.top()) == 5
    observed, seen, pending = seen_by(study)
    assert sorted(seen) == [0.1, 0.5, 0.6, 0.7, 0.8, 0.9] and not len(pending)
    assert study.ask().name not in {record.name for record in study.records()[:-1]}
    with pytest.raises(InputError, match="pruned already with objective 0.1"):
        study.tell(record.id, val_acc=0.9)


def test_a_block_left_after_the_verdict_is_pruned_too(path: Path):
    study = Study(path, toy.make_task(name="left", baselines=(), direction="minimize"), pruner="halving")
    for height in (0.1, 0.2, 0.3, 0.4):
        with study.trial() as trial:
            trial.report(step=1, val_acc=height)
            if not trial.should_prune():
                trial.report(val_acc=height)
    assert [record.status for record in study.records()] == ["done", "done", "pruned", "pruned"]


def test_running_trainings_see_each_other(path: Path):
    study = Study(path, toy.make_task(name="both", baselines=()))
    waiting = [study.ask() for _ in range(5)]
    for trial in waiting:
        trial.report(step=1, val_acc=0.8)
        assert not trial.should_prune()
    last = study.ask()
    last.report(step=1, val_acc=0.1)
    assert last.should_prune()
    assert study.tell(last, val_acc=0.3).status == "done", "who goes on all the same has a result"


def test_without_values_and_with_no_rule_nothing_is_pruned(path: Path):
    study = Study(path, toy.make_task(name="never", baselines=()), pruner="never")
    trial = study.ask()
    assert not trial.should_prune()
    trial.report(step=1, val_acc=-1e9)
    assert not trial.should_prune()
    with pytest.raises(InputError, match="pruner='hyperband' is unknown; give one of median, halving, never"):
        Study(path, toy.make_task(name="never", baselines=()), pruner="hyperband")
