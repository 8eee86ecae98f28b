"""Initial weights of a Linen model under whatever an `apply` does around it, and by a task's own `init`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.ode import odeint

from aqx import losses
from aqx.activation import activation
from aqx.errors import TaskError
from aqx.fisher import eigenvalues, reference
from aqx.tasks import Task, apply_model, build_model, check_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


class Net(nn.Module):
    """Four numbers in, four out, with or without dropout."""

    act: Any
    train: bool = False

    @nn.compact
    def __call__(self, x, scale=1.0):
        x = nn.Dropout(0.5, deterministic=not self.train)(self.act(nn.Dense(8)(x)))
        return scale * nn.Dense(4)(x)


class Autoencoder(nn.Module):
    """Two methods, each with a layer of its own."""

    act: Any

    def setup(self):
        self.encoder, self.decoder = nn.Dense(3), nn.Dense(4)

    def encode(self, x):
        return self.act(self.encoder(x))

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


def scanned(m, v, x):
    return jax.lax.scan(lambda h, _: (h + 0.1 * m.apply(v, h), None), x, None, length=5)[0]


def unrolled(m, v, x):
    for _ in range(5):
        x = x + 0.1 * m.apply(v, x)
    return x


def scanned_with_dropout(m, v, x):
    def step(h, key):
        return h + 0.1 * m.clone(train=True).apply(v, h, rngs={"dropout": key}), None

    return jax.lax.scan(step, x, jax.random.split(jax.random.key(1), 3))[0]


def encoded_and_decoded(m, v, x):
    return m.apply(v, m.apply(v, x, method="encode"), method=m.decode)


@partial(jax.jit, static_argnums=0)
def predict(m, v, x):
    return m.apply(v, x, scale=2.0)


def adapted(m, v, x):
    """A step of gradient descent on the weights, then the outputs."""
    gradient = jax.grad(lambda v: jnp.sum(m.apply(v, x) ** 2))(v)
    return m.apply(jax.tree.map(lambda p, g: p - 0.01 * g, v, gradient), x)


APPLIES = {
    "lax.scan": (Net, scanned),
    "dropout in a scan": (Net, scanned_with_dropout),
    "jit": (Net, predict),
    "jit of the method": (Net, lambda m, v, x: jax.jit(m.apply)(v, x)),
    "odeint": (Net, lambda m, v, x: odeint(lambda h, t: m.apply(v, h), x, jnp.linspace(0.0, 0.1, 2))[-1]),
    "vmap": (Net, lambda m, v, x: jax.vmap(lambda one: m.apply(v, one))(x)),
    "while_loop": (Net, lambda m, v, x: jax.lax.fori_loop(0, jnp.int32(2), lambda i, h: m.apply(v, h), x)),
    "cond": (Net, lambda m, v, x: jax.lax.cond(jnp.ones(()) > 0, lambda h: m.apply(v, h), lambda h: h, x)),
    "checkpoint": (Net, lambda m, v, x: jax.checkpoint(m.apply)(v, x)),
    "gradient of inputs": (Net, lambda m, v, x: jax.vmap(jax.grad(lambda one: m.apply(v, one).sum()))(x)),
    "gradient of weights": (Net, adapted),
    "encode, then decode": (Autoencoder, encoded_and_decoded),
    "encode, then decode, in a scan": (
        Autoencoder,
        lambda m, v, x: jax.lax.scan(lambda h, _: (encoded_and_decoded(m, v, h), None), x, None, length=2)[0],
    ),
}


def same_but_for_rounding(actual: Any, expected: Any) -> None:
    """One program and operations one by one round differently, on some machines."""
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def task_of(model: Any, apply: Any = None, **options: Any) -> Task:
    return Task("any", model, lambda: (X, X), losses.mean_squared_error, apply=apply, baselines=("tanh(x)",), **options)


@pytest.mark.parametrize("case", APPLIES)
def test_transforms_around_the_model_do_not_reach_its_initial_weights(case: str):
    model, apply = APPLIES[case]
    task, act = task_of(model, apply), activation("tanh(x)")
    variables = build_model(task, act, X)[1]
    expected = model(act).init(jax.random.key(0), X)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    jax.tree.map(same_but_for_rounding, variables, expected)
    assert apply_model(task, model(act), variables, X).shape == (6, 4)


def test_a_task_whose_apply_scans_is_checked_and_its_spectra_are_right():
    task = task_of(Net, scanned)
    assert check_task(task).parameters == 76
    model, variables = build_model(task, activation("tanh(x)"), X)
    fast = eigenvalues(model, variables, X, X, loss=task.loss, apply=scanned)
    slow = reference(model, variables, X, X, loss=task.loss, apply=unrolled)
    for path, values in fast.items():
        np.testing.assert_allclose(values, slow[path], atol=1e-5 * slow[path].max())
        assert slow[path].max() > 0


def test_weights_of_the_users_own():
    halves = task_of(Net, init=lambda m, key, x: jax.tree.map(lambda w: 0.5 * w, m.init(key, x)))
    mine, theirs = (build_model(task, activation("tanh(x)"), X)[1] for task in (halves, task_of(Net)))
    jax.tree.map(lambda a, b: same_but_for_rounding(a, 0.5 * b), mine, theirs)
    assert check_task(halves).parameters == 76
    # An apply that looks into the variables needs them, or an `init` that does not ask it.
    looking = task_of(Net, lambda m, v, x: m.apply({"params": v["params"]}, x))
    with pytest.raises(TaskError, match=r"apply raised KeyError: 'params' \(.*line \d+\); .* give Task\(init=…\)"):
        check_task(looking)
    assert check_task(task_of(Net, looking.apply, init=lambda m, key, x: m.init(key, x))).parameters == 76


@pytest.mark.parametrize(
    ("init", "said"),
    [
        (lambda m, key, x: None, "init must return the variables of the model"),
        (lambda m, key, x: {}, "init must return the variables of the model"),
        (lambda m, key: m.init(key, X), "init raised TypeError"),
        (lambda m, key, x: 1 / 0, "init raised ZeroDivisionError"),
    ],
)
def test_an_init_that_cannot_be_used_is_told_in_one_line(init: Any, said: str):
    with pytest.raises(TaskError) as caught:
        check_task(task_of(Net, init=init))
    assert said in str(caught.value) and "\n" not in str(caught.value)
