"""Functions of one and of two inputs in one task and one database: spectra, short runs, search, refusals."""

from __future__ import annotations

import logging
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import linen as nn

import aqx
from aqx.enumeration import enumerate_space
from aqx.errors import TaskError
from aqx.fisher.reference import reference
from aqx.search import Study, load_results
from aqx.spectra.compute import check, compute_runs, compute_spectra
from aqx.spectra.layout import layout_of
from aqx.spectra.quantiles import quantile_means
from aqx.spectra.subject import in_other_kind, prepare
from aqx.store import Database
from aqx.store.functions import classes_by_inputs
from aqx.store.spectra import load_spectra
from aqx.tasks import build_model, check_task
from aqx.tasks.inputs import not_applicable
from aqx.tree import parse

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["relu", "tanh", "identity", "mul"]
GATES = ("mul(relu(x),y)", "mul(tanh(x),y)")


class Either(nn.Module):
    """One hidden layer, of plain or of gated units."""

    act: object

    @nn.compact
    def __call__(self, x):
        inputs = getattr(self.act, "inputs", 1)
        units = {1: 6, 2: 4}[inputs]
        hidden = self.act(*(nn.Dense(units)(x) for _ in range(inputs)))
        return nn.Dense(3)(hidden)


class Gated(nn.Module):
    act: object

    @nn.compact
    def __call__(self, x):
        hidden = self.act(nn.Dense(4)(x), nn.Dense(4)(x))
        return nn.Dense(3)(hidden)


def train(act, seed: int) -> dict[str, float]:
    """Gates are better, the one of tanh best."""
    x = toy.POINTS
    values = act(x, x[:, None]) if act.inputs == 2 else act(x)
    wanted = jnp.tanh(x) * x[:, None] if act.inputs == 2 else jnp.tanh(x) + 0.3
    return {"val_acc": 1 - float(jnp.abs(values - wanted).mean())}


EITHER = toy.make_task(name="either", train=train, baselines=("relu(x)", GATES[0]))
EITHER = replace(EITHER, build_model=Either)
ONLY_GATED = replace(EITHER, name="gated", build_model=Gated, baselines=GATES)
PLAIN = toy.make_task(name="plain")


def filled(path) -> Database:
    db = Database(path, create=True)
    enumerate_space(db, aqx.Space("unary(unary(x))", OPERATORS), points=32)
    enumerate_space(db, aqx.Space("binary(unary(x),unary(y))", ["relu", "tanh", "mul"]))
    return db


@pytest.mark.slow
def test_spectra_and_short_runs_of_both_kinds_have_one_form(db_path):
    db = filled(db_path)
    report = compute_spectra(db, EITHER)
    assert report.computed and not report.undescribed and report.shapes == 2
    ids, features = load_spectra(db, 1)
    gated = set(classes_by_inputs(db, 2))
    assert {*ids} & gated and {*ids} - gated and features.shape[1] == 64 and np.isfinite(features).all()
    # A gate's first layer is both projections together: by the plain reference, which knows no candidates' engine.
    class_of = dict(zip(_names(db, ids), features, strict=True))
    x, y = EITHER.batch()
    model, variables = build_model(EITHER, aqx.activation("mul(relu(x),tanh(y))"), x)
    found = reference(model, variables, x, y, loss=EITHER.loss)
    first = np.sort(np.concatenate([found["Dense_0"], found["Dense_1"]]))[None]
    share = (4 + 1) * 6 / ((4 + 1) * 6 + (6 + 1) * 3)
    wanted = quantile_means(np.log(first))[0] * share / 32
    large = wanted > wanted.max() - 6 * share / 32  # where no floor is reached
    np.testing.assert_allclose(class_of["mul(relu(x),tanh(y))"][:32][large], wanted[large], rtol=2e-3)
    runs = compute_runs(db, EITHER, limit=2, names=["relu(tanh(x))", "mul(relu(x),tanh(y))"])
    assert runs.computed == 2


def _names(db: Database, ids) -> list[str]:
    from aqx.store.functions import class_names

    return class_names(db, list(ids))


def test_layers_that_do_not_correspond_are_described_by_the_whole_network():
    plain = prepare(EITHER)
    gated = in_other_kind(plain)
    assert not isinstance(gated, str) and gated.layout is not None
    assert {key: keys for key, (_, keys) in gated.layout.items()} == {
        "Dense_0": ("Dense_0", "Dense_1"),
        "Dense_1": ("Dense_2",),
    }
    assert sum(share for share, _ in gated.layout.values()) == pytest.approx(1)
    fewer = layout_of(plain.probe.layers, gated.probe.layers[:1], plain.probe.coverage.weights)
    assert {keys for _, keys in fewer.values()} == {("Dense_0",)}


def test_a_search_finds_the_best_of_both_kinds(db_path):
    db = filled(db_path)
    study = Study(db, EITHER)
    study.search(budget=6)
    results = load_results(db, "either")
    searched = {trial.name for trial in results.trials if trial.purpose == "search"}
    assert {parse(name).inputs for name in searched} == {1, 2}
    assert {trial.status for trial in results.trials} == {"done"}
    best = study.best()
    assert best is not None and best.objective == max(trial.objective for trial in results.trials)


def test_a_model_of_one_input_is_offered_no_other(db_path, caplog: pytest.LogCaptureFixture):
    db = filled(db_path)
    reason = "not applicable: the model of task 'plain' calls its activation with one input, not with two"
    assert not_applicable(PLAIN, 2, PLAIN.batch()[0]) == reason and not_applicable(PLAIN, 1, PLAIN.batch()[0]) is None
    study = Study(db, PLAIN, surrogate="random")
    with caplog.at_level(logging.WARNING, "aqx"):
        offered = study.suggest(100)
    assert {parse(one.name).inputs for one in offered} == {1} and len(offered) > 3
    assert any(reason in record.message for record in caplog.records)
    report = compute_spectra(db, PLAIN)
    assert report.undescribed == {reason: len(classes_by_inputs(db, 2))} and report.computed
    # Nothing is stored of them: a model that takes both later finds them as they were.
    assert not set(load_spectra(db, 1)[0]) & set(classes_by_inputs(db, 2))


def test_a_model_of_two_inputs_alone_is_described_too(db_path):
    db = filled(db_path)
    report = compute_spectra(db, ONLY_GATED)
    assert report.computed == len(classes_by_inputs(db, 2)) and "not with one" in "".join(report.undescribed)
    assert {parse(one.name).inputs for one in Study(db, ONLY_GATED, surrogate="random").suggest(100)} == {2}


def test_check_says_which_kinds_a_model_takes():
    assert check_task(EITHER).functions == "of one input and of two inputs (gated units)"
    assert check_task(PLAIN).functions == "of one input"
    assert check_task(ONLY_GATED).functions == "of two inputs (gated units)"
    with pytest.raises(TaskError, match=r"baselines: 'mul\(relu\(x\),y\)' is not applicable: the model"):
        check_task(replace(PLAIN, baselines=("relu(x)", GATES[0])))


@pytest.mark.slow
def test_fast_spectra_of_gates_are_those_of_the_plain_reference():
    assert check(EITHER, ["relu(x)", *GATES]) < 1e-4
