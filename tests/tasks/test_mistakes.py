"""The commonest mistakes of a task: a model or a training that ignores the activation, one that compiles for each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from toy import Net, batch

from aqx import losses
from aqx.errors import TaskError
from aqx.tasks import Task, check_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")


class Deaf(nn.Module):
    """A model that takes an activation and does not call it."""

    act: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x)))


class Zeros(nn.Module):
    """A head that starts at zero: untrained, the loss is the same whatever the activation."""

    act: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, kernel_init=nn.initializers.zeros)(self.act(nn.Dense(5)(x)))


def make(model=Net, **settings) -> Task:
    return Task("t", model, batch, losses.softmax_cross_entropy, **{"baselines": ("relu(x)", "tanh(x)"), **settings})


@pytest.mark.parametrize("baselines", [("relu(x)", "tanh(x)"), ("relu(x)",), ()], ids=len)
def test_a_model_that_ignores_the_activation_is_refused(baselines):
    with pytest.raises(TaskError, match="build_model ignores the activation.*CNN.act=act"):
        check_task(make(Deaf, baselines=baselines))
    check_task(make(baselines=baselines))


def test_a_head_of_zeros_is_none_that_ignores_it():
    report = check_task(make(Zeros))
    assert len(set(report.losses.values())) == 1


@jax.jit
def step(act, params, x):
    return params - 0.1 * jax.grad(lambda params: jnp.mean(act(x @ params) ** 2))(params)


def train_once_compiled(act, seed):
    params = jnp.ones((4, 3))
    for _ in range(3):
        params = step(act, params, jnp.asarray(batch()[0]))
    return {"val_acc": float(params.sum())}


def train_compiling_anew(act, seed):
    @jax.jit
    def own_step(params, x):
        return params - 0.1 * jax.grad(lambda params: jnp.mean(act(x @ params) ** 2))(params)

    params = jnp.ones((4, 3))
    for _ in range(3):
        params = own_step(params, jnp.asarray(batch()[0]))
    return {"val_acc": float(params.sum())}


def test_a_training_that_compiles_for_each_function_is_told():
    told = check_task(make(train=train_compiling_anew), second=True).training
    quick = check_task(make(train=train_once_compiled), second=True).training
    assert "COMPILING ANEW" in told and "own_step" in told and "argument" in told
    assert "COMPILING ANEW" not in quick and "then tanh(x), of the same shape, in " in quick


def test_a_training_that_ignores_the_activation_is_told():
    def train(act, seed):
        return {"val_acc": float(np.random.default_rng(seed).normal())}

    assert "SAME METRICS" in check_task(make(train=train), second=True).training
    assert "SAME METRICS" not in check_task(make(train=train_once_compiled), second=True).training
