"""Short runs: the losses of plain training steps, whatever the flavour; stored, shared and resumed as spectra are."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from click.testing import CliRunner
from flax import linen as nn
from flax import nnx
from store_helpers import put

import aqx
from aqx.cli import main
from aqx.enumeration import enumerate_space
from aqx.errors import StoreError, TaskError
from aqx.spectra import compute_runs, compute_spectra
from aqx.spectra.compute import accepted, accepted_without_layers
from aqx.spectra.engine import Engine
from aqx.spectra.short_runs import DIVERGED, EVERY, KEPT, RATES, SHORT_RUNS, STEPS, ShortRuns
from aqx.store import Database, count_spectra, invalid_spectra, load_spectra, spectra_form
from aqx.store.health import check_file
from aqx.store.kinds import RUNS, SPECTRA
from aqx.tasks.model import build_model

pytestmark = pytest.mark.usefixtures("quick_to_compile")

NAMES = ("relu(x)", "tanh(x)", "x")


class Normed(nnx.Module):
    """A layer, a normalisation whose statistics are no weights, and a head."""

    def __init__(self, act, rngs: nnx.Rngs):
        self.first, self.norm = nnx.Linear(4, 5, rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
        self.act, self.head = act, nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.act(self.norm(self.first(x))))


def nnx_task() -> aqx.Task:
    return dataclasses.replace(toy.task, name="nnx", build_model=lambda act, rngs: Normed(act, rngs))


class Plain(nn.Module):
    """A model without a layer that spectra cover, whose weights are its own."""

    act: object

    @nn.compact
    def __call__(self, x):
        weights = self.param("weights", nn.initializers.normal(0.5), (4, 3))
        return self.act(x @ weights)


def by_hand(task: aqx.Task, name: str) -> np.ndarray:
    """The held-out losses of one function, one step after the other, Adam written out in NumPy."""
    act = aqx.activation(name)
    x, y = map(jnp.asarray, task.batch())
    model, variables = build_model(task, act, x)
    if variables is None:
        graph, weights, rest = nnx.split(model, nnx.Param, ...)

        def outputs(weights, x):
            return nnx.merge(graph, weights, rest, copy=True)(x)
    else:
        weights = variables["params"]

        def outputs(weights, x):
            return model.apply({"params": weights}, x)

    def loss(weights, rows):
        return task.loss(outputs(weights, x[rows]), y[rows]).mean()

    random, gradient, loss_of = np.random.default_rng(0), jax.jit(jax.grad(loss)), jax.jit(loss)
    trained, held_out = random.permutation(16).reshape(2, 8)
    order = [random.permutation(trained) for _ in range(STEPS)]
    found = []
    for rate in RATES:
        leaves, tree = jax.tree.flatten(weights)
        leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
        m, v = [0 * leaf for leaf in leaves], [0 * leaf for leaf in leaves]
        values = []
        for step in range(STEPS):
            here = jax.tree.unflatten(tree, [jnp.asarray(leaf, jnp.float32) for leaf in leaves])
            if step % EVERY == 0:
                values.append(float(loss_of(here, held_out)))
            now = rate * (1 + math.cos(math.pi * step / STEPS)) / 2
            for i, g in enumerate(map(np.asarray, jax.tree.leaves(gradient(here, order[step])))):
                m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
                m_hat, v_hat = m[i] / (1 - 0.9 ** (step + 1)), v[i] / (1 - 0.999 ** (step + 1))
                leaves[i] = leaves[i] - now * m_hat / (np.sqrt(v_hat) + 1e-8)
        here = jax.tree.unflatten(tree, [jnp.asarray(leaf, jnp.float32) for leaf in leaves])
        values.append(float(loss_of(here, held_out)))
        found.append([*(values[end // EVERY] for end in KEPT), min(values[1:])])
    return np.array(found)


@pytest.mark.parametrize("task", [toy.task, pytest.param(nnx_task(), marks=pytest.mark.slow)], ids=["linen", "nnx"])
def test_they_are_the_losses_of_plain_steps(task: aqx.Task):
    subject = accepted_without_layers(task)
    with Engine(subject, descriptor=SHORT_RUNS) as engine:
        found = engine.start([aqx.activation(name) for name in NAMES])()
    assert found.reasons() == [None] * len(NAMES)
    for name, rows in zip(NAMES, found.losses, strict=True):
        np.testing.assert_allclose(rows, by_hand(task, name), rtol=2e-3)
        assert (rows[:, -1] <= rows[:, :-1].min(axis=1)).all()
    assert engine.shapes == 2  # one program for each
    assert np.ptp(found.losses[:, :, -1], axis=0).min() > 1e-3  # the functions differ


def test_they_start_where_spectra_do_and_need_no_layer(tmp_path: Path):
    """A subject with layers gives the same; a model without any is described all the same."""
    acts = [aqx.activation("relu(x)")]
    both = [Engine(made(toy.task), descriptor=SHORT_RUNS).start(acts)() for made in (accepted, accepted_without_layers)]
    np.testing.assert_array_equal(both[0].losses, both[1].losses)
    plain = dataclasses.replace(toy.task, name="plain", build_model=Plain, baselines=("tanh(x)",))
    path = toy.candidates(tmp_path / "plain.duckdb", ["unary(x)"], ["tanh", "swish"])
    with pytest.raises(TaskError, match="no layer that aqx covers"):
        compute_spectra(path, plain)
    assert compute_runs(path, plain).computed == 2


def test_the_whole_batch_where_the_model_takes_no_half():
    def apply(model, variables, x):
        assert x.shape[0] == 16, "not another number of examples"
        return model.apply(variables, x)

    whole = dataclasses.replace(toy.task, apply=apply)
    found = Engine(accepted_without_layers(whole), descriptor=SHORT_RUNS).start([aqx.activation("tanh(x)")])()
    assert found.reasons() == [None]
    assert (np.diff(found.losses[0, :, : len(KEPT)], axis=1) < 0).all()  # of the same examples at every step


def test_what_breaks_is_invalid_with_its_reason_and_what_diverges_at_one_rate_is_not(tmp_path: Path):
    broken = ShortRuns(np.ones((3, len(RATES), len(KEPT) + 1)), {})
    broken.losses[0, 0, 2:] = np.nan  # at the lower rate alone
    broken.losses[1, :, len(KEPT) - 1] = np.inf
    broken.losses[2] = np.nan
    assert broken.reasons() == [
        None,
        f"the loss after {STEPS} steps is not finite, whatever the rate",
        "the loss is not finite",
    ]
    features = broken.features_of(accepted_without_layers(toy.task))
    assert np.isnan(features[1:]).all() and features[0].max() == np.float32(DIVERGED) and features[0, 0] == 1
    path = toy.candidates(tmp_path / "broken.duckdb", ["unary(unary(x))"], ["exp", "tanh"])
    wild = dataclasses.replace(toy.task, batch=lambda: (toy.batch()[0] * 30, toy.batch()[1]), baselines=("tanh(x)",))
    report = compute_runs(path, wild)
    reasons = invalid_spectra(Database(path), 1, RUNS)
    assert report.computed and set(reasons.values()) == {"the loss is not finite"} == set(report.invalid)
    assert report.computed + len(reasons) == 4 and "1 classes invalid: the loss is not finite" in str(report)
    assert len(load_spectra(Database(path), 1, RUNS)[0]) == report.computed
    assert check_file(path).problems == []


def test_a_batch_on_which_every_baseline_breaks_is_refused(tmp_path: Path):
    path = toy.candidates(tmp_path / "refused.duckdb", ["unary(x)"], ["exp"])
    wild = dataclasses.replace(toy.task, batch=lambda: (toy.batch()[0] * 1e3, toy.batch()[1]), baselines=("exp(x)",))
    with pytest.raises(TaskError, match=r"every baseline of task 'toy' breaks its model.*no short run was stored"):
        compute_runs(path, wild)
    assert count_spectra(Database(path), 1, RUNS) == {"valid": 0, "invalid": 0}


@pytest.fixture(scope="module")
def enumerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "enumerated.duckdb"
    return toy.candidates(path, ["unary(x)"], ["relu", "tanh", "swish", "elu", "sinh", "abs", "cos", "erf"])


@pytest.fixture(scope="module")
def alone(enumerated: Path) -> tuple[np.ndarray, np.ndarray]:
    """The short runs of an undisturbed run."""
    path = Path(shutil.copy(enumerated, enumerated.with_name("alone.duckdb")))
    assert compute_runs(path, toy.task).computed == 8
    return load_spectra(Database(path), 1, RUNS)


KILLED = """
import os, signal, sys
import toy
from aqx.spectra import compute_runs
def progress(done, total, note):
    if done >= 4:
        os.kill(os.getpid(), signal.SIGKILL)  # its next batch is claimed
compute_runs(sys.argv[1], toy.task, batch=2, lease_seconds=1, progress=progress)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_rows(enumerated: Path, alone, tmp_path: Path):
    path = Path(shutil.copy(enumerated, tmp_path / "killed.duckdb"))
    paths = os.pathsep.join([str(Path(toy.__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == -signal.SIGKILL
    stored = count_spectra(Database(path), 1, RUNS)["valid"]
    assert 4 <= stored < 8
    with Database(path).read() as con:
        assert con.execute("SELECT count(*) FROM runs_claims").fetchall()[0][0] == 2
    assert compute_runs(path, toy.task).computed == 8 - stored  # after the lease has lapsed
    ids, found = load_spectra(Database(path), 1, RUNS)
    np.testing.assert_array_equal(ids, alone[0])
    np.testing.assert_allclose(found, alone[1], rtol=1e-4)
    assert compute_runs(path, toy.task).computed == 0


def test_limits_names_and_order_are_those_of_spectra(enumerated: Path, alone, tmp_path: Path):
    path = Path(shutil.copy(enumerated, tmp_path / "some.duckdb"))
    assert compute_runs(path, toy.task, first=[alone[0][5]], limit=1).computed == 1
    assert load_spectra(Database(path), 1, RUNS)[0].tolist() == [alone[0][5]]
    assert compute_runs(path, toy.task, names=["cos(x)", "erf(x)"]).computed >= 1
    assert not count_spectra(Database(path), 1, SPECTRA)["valid"]  # the two kinds do not mix
    form = spectra_form(Database(path), 1, RUNS)
    assert form and form["runs"]["steps"] == STEPS and form["examples"] == 16


def test_both_kinds_are_set_aside_with_their_batch_and_come_back(enumerated: Path, tmp_path: Path, caplog):
    path = Path(shutil.copy(enumerated, tmp_path / "aside.duckdb"))
    other = dataclasses.replace(toy.task, batch=lambda: (toy.batch()[0] * 2, toy.batch()[1]))
    compute_runs(path, toy.task)
    compute_spectra(path, toy.task)
    before = load_spectra(Database(path), 1, RUNS)
    caplog.clear()
    assert compute_runs(path, other, limit=3).computed == 3
    assert "8 spectra are set aside; 8 short runs are set aside" in caplog.text
    assert count_spectra(Database(path), 1, SPECTRA)["valid"] == 0
    assert compute_spectra(path, toy.task).computed == 0  # they were set aside, not lost
    assert compute_runs(path, toy.task).computed == 0
    after = load_spectra(Database(path), 1, RUNS)
    np.testing.assert_array_equal(before[1], after[1])
    assert check_file(path).problems == []


def aqx_(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_describe_show_and_reset(enumerated: Path, tmp_path: Path):
    path = Path(shutil.copy(enumerated, tmp_path / "cli.duckdb"))
    task = f"{toy.__file__}:task"
    said = json.loads(aqx_("describe", path, "--task", task, "--only", "runs", "-q", "--json"))
    assert said["runs"]["computed"] == 8 and list(said) == ["runs"]
    assert "8 spectra computed" in aqx_("describe", path, "--task", task, "-q")
    (summary,) = json.loads(aqx_("summary", path, "--json"))
    assert (summary["runs"], summary["spectra"]) == (8, 8)
    (score,) = json.loads(aqx_("show", "tanh(x)", path, "--json"))["scores"]
    assert score["has_spectrum"] and set(score["short_runs"]) == {f"{rate:g}" for rate in RATES}
    assert all(math.isfinite(loss) for run in score["short_runs"].values() for loss in run)
    assert "loss in short runs" in aqx_("show", "tanh(x)", path)
    assert "8 short runs deleted" in aqx_("reset", path, "--task", task, "--runs")
    (summary,) = json.loads(aqx_("summary", path, "--json"))
    assert (summary["runs"], summary["spectra"]) == (0, 8)
    assert compute_spectra(path, toy.task).computed == 0  # the spectra are those of this batch still
    assert compute_runs(path, toy.task, limit=2).computed == 2
    assert aqx.Study(path, toy.task).reset_spectra() == 8
    assert count_spectra(Database(path), 1, RUNS)["valid"] == 2
    assert check_file(path).problems == []


def test_a_store_of_another_form_is_refused(enumerated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = Path(shutil.copy(enumerated, tmp_path / "form.duckdb"))
    compute_runs(path, toy.task, limit=1)
    descriptor = dataclasses.replace(SHORT_RUNS, form=lambda subject: {"runs": "others", "examples": 16})
    monkeypatch.setattr("aqx.spectra.compute.SHORT_RUNS", descriptor)
    with pytest.raises(StoreError, match="short runs of task 'toy' .* have another form: .*aqx reset --runs"):
        compute_runs(path, toy.task)


def test_enumerating_more_leaves_what_is_stored(enumerated: Path, tmp_path: Path):
    path = Path(shutil.copy(enumerated, tmp_path / "more.duckdb"))
    compute_runs(path, toy.task)
    enumerate_space(Database(path), aqx.Space(["unary(x)"], ["sin"]))
    assert compute_runs(path, toy.task).computed == 1


def test_those_of_an_earlier_version_are_computed_anew(enumerated: Path, tmp_path: Path):
    path = Path(shutil.copy(enumerated, tmp_path / "earlier.duckdb"))
    compute_runs(path, toy.task)
    compute_spectra(path, toy.task)
    study = aqx.Study(path, toy.task)
    study.suggest()  # an embedding that knows of them
    put(study.db, "schema_version", "9")
    later = Database(path)
    assert count_spectra(later, 1, RUNS) == {"valid": 0, "invalid": 0} and spectra_form(later, 1, RUNS) is None
    assert compute_spectra(path, toy.task).computed == 0 and compute_runs(path, toy.task).computed == 8
    assert [each.name for each in aqx.Study(path, toy.task).suggest()] == [each.name for each in study.suggest()]
    assert check_file(path).problems == []
