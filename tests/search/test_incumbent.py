"""The incumbent: what a search returns is believed to be the best, and is not the luckiest of all results."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy
from toy import make_task

from aqx import Study

# Functions that are all but alike train alike, but for noise.
GOOD = ["swish(x)", "negative(swish(x))", "swish(negative(x))", "relu(x)", "negative(relu(x))", "relu(negative(x))"]
POOR = ["tanh(x)", "erf(x)", "arctan(x)", "negative(tanh(x))", "negative(erf(x))", "negative(arctan(x))"]
OTHERS = ["square(x)", "abs(x)", "cosh(x)", "exp(x)", "sinh(x)", "softplus(x)", "sigmoid(x)", "negative(exp(x))"]
LUCKY = "erf(x)"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of which one result of a poor kind is the luckiest."""
    study = Study(tmp_path_factory.mktemp("told") / "told.duckdb", make_task(), space="act_bench")
    for number, name in enumerate(OTHERS):
        study.add(name, val_acc=0.1 + number / 100)
    for number, (good, poor) in enumerate(zip(GOOD, POOR, strict=True)):
        study.add(good, val_acc=0.8 + number / 1000)
        study.add(poor, val_acc=0.9 if poor == LUCKY else 0.5 + number / 1000)
    return study


def test_the_incumbent_is_not_the_luckiest(told: Study):
    best, incumbent = told.best(), told.incumbent()
    assert best is not None and best.name == LUCKY == told.top(1)[0].name  # the best result stays the best result
    assert incumbent is not None and incumbent.name in GOOD
    assert 0.75 < incumbent.objective < 0.85


def test_a_confirmation_chooses_by_what_is_believed(told: Study):
    plan = told.confirmation_plan(top=3, seeds=2)
    incumbent = told.incumbent()
    assert incumbent is not None
    # In turn: the best by belief, the luckiest, the second best by belief, which is the second best by its result too.
    winners = list(plan.winners.values())
    assert winners[:2] == [incumbent.name, LUCKY] and winners[2] in GOOD
    assert plan.searched[LUCKY] == 0.9  # what the search saw is told as it was
    assert told.confirmation_plan(top=3, seeds=2).winners == plan.winners
    named = told.confirmation_plan(top=3, seeds=2, functions=[LUCKY])
    assert list(named.winners.values()) == [LUCKY]


def test_with_few_results_or_another_surrogate_it_is_the_best_by_its_results(tmp_path: Path, told: Study):
    study = Study(tmp_path / "few.duckdb", toy.task, space="act_bench")
    assert study.incumbent() is None
    study.add("tanh(x)", val_acc=0.5)
    study.add("sin(x)", val_acc=0.7)
    assert study.incumbent() == study.top(1)[0]
    random = Study(told.db, make_task(), surrogate="random")
    assert random.incumbent() == random.top(1)[0]


def test_what_another_version_gave_is_not_believed(told: Study):
    first = told.records()[0]
    assert len(told.queue.believed()) == 20 and not told.queue.believed({first.trial_id})  # 19 are too few
