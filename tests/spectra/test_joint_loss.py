"""A loss of which the examples of a batch all have a part: refused, or taken as a whole where the task says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from aqx import activation
from aqx.errors import TaskError
from aqx.spectra import compute_spectra
from aqx.spectra.compute import check
from aqx.spectra.subject import prepare
from aqx.tasks import Task, check_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")

N = 16


def contrastive(outputs: Any, _: Any) -> Any:
    """Each output is to be told from all others of the batch by its own mirror image: [N]."""
    unit = outputs / jnp.linalg.norm(outputs, axis=1, keepdims=True)
    return -jnp.diag(jax.nn.log_softmax(unit @ unit[:, ::-1].T))


def token_normalised(outputs: Any, y: Any) -> Any:
    """Cross-entropy by the number of examples that are not masked: one number."""
    kept = y > 0
    return -(jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y] * kept).sum() / kept.sum()


LOSSES = {"contrastive": contrastive, "its mean": lambda o, y: contrastive(o, y).mean(), "tokens": token_normalised}


def make_task(loss: Any, **options: Any) -> Task:
    return Task("joint", toy.Net, toy.batch, loss=loss, baselines=("tanh(x)",), train=toy.train, **options)


@pytest.mark.parametrize("case", LOSSES)
def test_it_is_refused_with_what_to_do(case: str, tmp_path: Path):
    task = make_task(LOSSES[case])
    with pytest.raises(TaskError, match=r"Task\(joint_loss=True\)"):
        check_task(task)
    with pytest.raises(TaskError, match=r"per example|depends on the others"):
        compute_spectra(toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], ["relu"]), task)


@pytest.mark.parametrize(
    "case", ["tokens", *(pytest.param(case, marks=pytest.mark.slow) for case in LOSSES if case != "tokens")]
)
def test_factors_are_those_of_the_whole_batch_s_gradient(case: str):
    loss, act = LOSSES[case], activation("tanh(x)")
    subject = prepare(make_task(loss, joint_loss=True))
    x, y = map(jnp.asarray, toy.batch())
    _, variables = subject.model(act, subject.state)
    second, first = (variables["params"][f"Dense_{i}"] for i in (0, 1))  # the outer one is made first

    def total(shifts: Any) -> Any:
        hidden = jnp.tanh(x @ first["kernel"] + first["bias"] + shifts[0])
        values = loss(hidden @ second["kernel"] + second["bias"] + shifts[1], y)
        return values * N if jnp.ndim(values) == 0 else values.sum()

    gradients = jax.grad(total)([jnp.zeros((N, 5)), jnp.zeros((N, 3))])
    _, factors = subject.factors(act, subject.state, x, y)
    for path, g in zip(("Dense_1", "Dense_0"), gradients, strict=True):
        np.testing.assert_allclose(factors[path].G.reshape(g.shape[1], -1), g.T @ g, rtol=1e-4, atol=1e-6)
        assert np.abs(g).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["tokens", *(pytest.param(case, marks=pytest.mark.slow) for case in LOSSES if case != "tokens")]
)
def test_spectra_are_stored_and_agree_with_the_plain_reference(case: str, tmp_path: Path):
    task = make_task(LOSSES[case], joint_loss=True)
    assert np.isfinite(check_task(task).losses["tanh(x)"])
    path = toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], ["relu", "tanh"])
    assert compute_spectra(path, task).computed == 2
    assert check(task, ["relu(x)", "tanh(x)"]) < 1e-4
