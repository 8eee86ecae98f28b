"""Whether learning paid: learnt, frozen and plain on the same seeds, in two tasks, resumed, by the shell too."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from cli_helpers import aqx_command, check_error

from aqx.errors import InputError, TaskError
from aqx.search import Study, load_results
from aqx.search.ledger import only_task
from aqx.search.verdict import stored_verdict
from aqx.tasks.loading import load_task, without_learning

pytestmark = pytest.mark.usefixtures("quick_to_compile")

CODE = """
import numpy as np
import toy
from aqx.constants import numbers_of
from aqx.linen import Learning
from aqx.tasks import Task, losses


def train(act, seed):
    \"\"\"The best of constants is 2, which those that are learnt come near, two layers each in its own way.\"\"\"
    numbers = numbers_of(act.name)
    noise = np.random.default_rng([seed, len(act.name)]).normal(scale=1e-3)
    if isinstance(act, Learning) and numbers:
        error = 0
        learnt = {f"learnt/Act_{i}/c{j}": 2 + i / 10 + seed % 3 / 10 for i in (0, 1) for j in range(len(numbers))}
    else:
        error = sum(abs(number - 2) for number in numbers) if numbers else 0.5
        learnt = {}
    return {"val_acc": 1 - error + noise, "test_acc": 0.9 - error + noise, **learnt}


task = Task("mine", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, baselines=("relu(x)", "tanh(x)"))
own = Task("own", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, learnable="layer")
mute = Task("mute", toy.Net, toy.batch, losses.softmax_cross_entropy, train=lambda act, seed: {"val_acc": seed % 7 / 7})
"""
SLOPED, PARAMETRISED = "max(x,mul(0.5,x))", "mul(1.0,tanh(mul(1.0,x)))"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], ["relu", "tanh", "sin", "cos", "square"])


def task_in(db: Path, name: str) -> str:
    return f"{db.parent / 'mine.py'}:{name}"


def test_three_ways_on_the_same_seeds(db: Path):
    study = Study(db, task_in(db, "task+layer"))
    found = study.compare_learning(functions=[SLOPED, "tanh(x)"], seeds=4)
    assert found.is_complete and found.metric == "test_acc" and found.wanted == 2 * (4 + 3) + 2 * 2 * 4
    assert [row.way for row in found.rows] == ["learnt", "frozen", "plain"] * 2
    assert [row.name for row in found.rows[::3]] == [SLOPED, PARAMETRISED]

    plain = load_results(db, "mine").records("compare")
    seeds = {record.seed for record in plain}
    learning = study.records("compare")
    told = [record for record in learning if record.seed not in seeds]
    assert len(seeds) == 4 and len(plain) == 16 and len(learning) - len(told) == 8
    assert len(told) == 6 and {record.name for record in told} == {SLOPED, PARAMETRISED}, "seeds of their own"
    mean = np.mean([v for r in told if r.name == SLOPED for k, v in r.metrics.items() if k.startswith("learnt/")])
    assert found.rows[1].name == f"max(x,mul({mean:.4g},x))"
    for row in found.rows[:2]:
        kept = {
            seed: next(r.metrics["test_acc"] for r in plain if (r.name, r.seed) == (SLOPED, seed)) for seed in seeds
        }
        own = {
            r.seed: r.metrics["test_acc"] for r in (learning if row.way == "learnt" else plain) if r.name == row.name
        }
        np.testing.assert_allclose(row.difference, np.mean([own[seed] - kept[seed] for seed in seeds]))
    assert found.paid == (SLOPED, "tanh(x)")
    assert {row.verdict for row in found.rows if row.way != "plain"} == {"better"}


def test_it_goes_on_where_it_was_interrupted_and_leaves_the_rest_alone(db: Path):
    ended: list[str] = []

    def stop(study: Study, record) -> None:
        ended.append(record.name)
        if len(ended) in (5, 12):
            raise KeyboardInterrupt

    def compare():
        return Study(db, task_in(db, "task+layer"), callbacks=[stop]).compare_learning(functions=[SLOPED], seeds=4)

    for trials in (5, 12):
        with pytest.raises(KeyboardInterrupt):
            compare()
        assert len(ended) == trials
    found = compare()
    assert found.is_complete and len(ended) == found.wanted == 4 + 3 + 2 * 4
    assert repr(compare()) == repr(found) and len(ended) == found.wanted, "nothing is trained twice"
    for name in ("mine", "mine+layer"):
        assert stored_verdict(load_results(db, name)) is None and load_results(db, name).ranking == []
    Study(db, task_in(db, "task+layer")).add(SLOPED, val_acc=0.9)
    assert only_task(db) == "mine+layer", "the other task was only compared with"
    study = Study(db, task_in(db, "task"))
    study.search(budget=2, spectra=0)
    assert study.confirm(top=1, seeds=2).wanted == 2 * (3 + 2) - 2, "a search finds four functions and baselines"


def test_the_best_of_the_search_are_compared(db: Path):
    study = Study(db, task_in(db, "own"))
    with pytest.raises(InputError, match="nothing has been trained yet"):
        study.compare_learning()
    study.add(SLOPED, val_acc=0.9)
    study.add("cos(x)", val_acc=0.8)
    plan = study.learning_plan(top=1, seeds=2)
    assert dict(plan.functions) == {SLOPED: SLOPED} and plan.keeping.ledger.task.name == "own+plain"
    assert str(plan).startswith("1 functions, learnt in task own, frozen and plain in task own+plain, on 2 fresh seeds")
    assert pickle.loads(pickle.dumps(plan.keeping.queue.task)).name == "own+plain", "it travels to workers"
    found = study.compare_learning(top=1, seeds=2)
    assert found.is_complete and found.rows[0].verdict == "better"


def test_without_what_was_learnt_nothing_is_frozen(db: Path):
    study = Study(db, replace(load_task(task_in(db, "mute")), learnable="layer"))
    found = study.compare_learning(functions=[SLOPED], seeds=3)
    assert found.is_complete and found.not_frozen == (SLOPED,) and found.wanted == 3 + 3 + 3
    assert [row.way for row in found.rows] == ["learnt", "plain"]
    assert found.rows[0].verdict == "no evidence" and found.rows[0].difference == 0 and found.paid == ()


@pytest.mark.parametrize(("argument", "value"), [("top", 0), ("seeds", 1), ("functions", "tanh(x)")])
def test_mistakes(db: Path, argument: str, value):
    with pytest.raises(InputError, match=argument):
        Study(db, task_in(db, "own")).compare_learning(**{argument: value})
    with pytest.raises(TaskError, match=r"task 'mine' learns no constants; give --task mine\+layer"):
        Study(db, task_in(db, "task")).compare_learning()


def test_a_task_that_aqx_cannot_train(db: Path):
    with (db.parent / "mine.py").open("a") as file:
        file.write("asked = Task('asked', toy.Net, toy.batch, losses.softmax_cross_entropy)\n")
    with pytest.raises(TaskError, match="'asked\\+layer' has no train function"):
        Study(db, task_in(db, "asked+layer")).compare_learning(functions=["tanh(x)"])


def test_the_task_without_learning(db: Path):
    learning = load_task(task_in(db, "task+channel"))
    assert learning.learnable == "channel" and without_learning(learning) is load_task(task_in(db, "task"))
    own = without_learning(load_task(task_in(db, "own")))
    assert (own.name, own.learnable) == ("own+plain", None)
    assert without_learning(load_task("text+layer")) is load_task("text")


def test_by_the_shell(db: Path):
    one = ("--compare-learning", "--fn", SLOPED, "--seeds", "2")
    shown = aqx_command("confirm", db, "--task", task_in(db, "task+layer"), *one)
    assert shown.exit_code == 0, shown.output
    assert "compare: 1 functions, learnt in task mine+layer, frozen and plain in task mine" in shown.stderr
    assert "learning paid: max(x,mul(0.5,x))" in shown.stdout and "frozen" in shown.stdout
    again = aqx_command("confirm", db, "--task", "mine+layer", *one, "--json")
    assert [row["way"] for row in json.loads(again.stdout)] == ["learnt", "frozen", "plain"], "the task is known"
    check_error(aqx_command("confirm", db, *one, "--reference", "relu(x)"), "--reference", "--compare-learning")
    check_error(aqx_command("confirm", db, "--task", task_in(db, "task"), *one), "task 'mine' learns no constants")
