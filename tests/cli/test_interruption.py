"""Ctrl-C and SIGTERM at any moment: exit 130 or 143, one line, nothing lost, no crash."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy

from aqx.search import Study
from aqx.search.summary import summarize
from aqx.stopping import asked, stoppable

ROOT = Path(__file__).parent.parent.parent
OPERATORS = ["sin", "tanh", "relu", "square", "identity", "negative", "softsign", "erf", "add", "mul", "sub", "max"]
LINE = "what is stored stays, and the same command goes on from there\n"

SOURCE = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import linen, nnx
from aqx.tasks import Task, losses

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int32)


class Linen(linen.Module):
    act: object

    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(self.act(linen.Dense(8)(x)))


class NNX(nnx.Module):
    def __init__(self, act, rngs):
        self.act, self.one, self.two = act, nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.two(self.act(self.one(x)))


def accuracy(logits):
    return float((logits.argmax(1) == Y).mean())


def train_linen(act, seed):
    model = Linen(act)
    weights = model.init(jax.random.key(seed), X)
    loss = lambda weights: losses.softmax_cross_entropy(model.apply(weights, X), Y).mean()
    step = jax.jit(lambda weights: jax.tree.map(lambda w, g: w - 0.1 * g, weights, jax.grad(loss)(weights)))
    for _ in range(20):
        weights = step(weights)
    return {"val_acc": accuracy(model.apply(weights, X))}


def train_nnx(act, seed):
    model = NNX(act, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss = lambda model: losses.softmax_cross_entropy(model(X), Y).mean()
        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(20):
        step(model, optimizer)
    return {"val_acc": accuracy(model(X))}


def make(name, build, train):
    loss, baselines = losses.softmax_cross_entropy, ("relu(x)", "tanh(x)")
    return Task(name, build, lambda: (X, Y), loss, train=train, baselines=baselines)


linen_task = make("linen", Linen, train_linen)
nnx_task = make("nnx", NNX, train_nnx)
"""
READY = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
import aqx
print("ready", flush=True)
from aqx.__main__ import main
main()
"""


def stopped(words: list[str], seconds: float, number: int) -> tuple[int, str]:
    """Exit code and stderr of a command that is sent a signal so many seconds after it has begun."""
    with subprocess.Popen(
        [sys.executable, "-c", READY, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout and command.stdout.readline() == "ready\n"
        time.sleep(seconds)
        command.send_signal(number)
        _, said = command.communicate(timeout=120)
    return command.returncode, said


def check_interruptions(folder: Path, kind: str, moments: list[float], workers: int = 1) -> None:
    """Interrupt searches and enumerations at these moments, and see that what is left is whole and goes on."""
    (folder / "networks.py").write_text(SOURCE)
    path, task = folder / "found.duckdb", f"{folder}/networks.py:{kind}_task"
    toy.candidates(path, ["unary(unary(x))", "binary(unary(x),unary(x))"], OPERATORS)
    words = ["search", str(path), "--task", task, "--budget", "400", "--workers", str(workers), "--quiet"]
    results = 0
    for moment in moments:
        number = signal.SIGTERM if moment > 1 and random.random() < 0.2 else signal.SIGINT
        code, said = stopped(words, moment, number)
        how = "interrupted" if number == signal.SIGINT else "terminated"
        assert (code, said) == (128 + number, f"{how}; {LINE}") or moment < 1.0 and said == "interrupted\n", (
            f"{moment:.3f} s, {signal.Signals(number).name}: exit {code}, {said}"
        )
        (now,) = [row for row in summarize(path) if row.task == kind] or [None]
        if now is not None:
            assert now.done >= results and now.failed == now.running == now.stale == 0, f"{moment:.3f} s: {now}"
            results = now.done


@pytest.mark.parametrize("kind", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
def test_some_moments(tmp_path: Path, kind: str):
    check_interruptions(tmp_path, kind, [0.2, 4.0])


ENDLESS = """
import jax
import toy
from aqx.tasks import Task, losses


def train(act, seed):
    with open({folder!r} + "/begun", "w"):
        pass
    return {{"val_acc": float(jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, lambda i, y: act(y) + 1, x))(0.5))}}


task = Task("endless", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, baselines=("sin(x)",))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_in_the_middle_of_a_program_that_python_cannot_interrupt(tmp_path: Path, monkeypatch, number: int):
    """XLA runs a whole training; the claim is given back all the same."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(toy.__file__).parent), str(ROOT)]))
    (tmp_path / "endless.py").write_text(ENDLESS.format(folder=str(tmp_path)))
    path = toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], OPERATORS)
    task = f"{tmp_path}/endless.py:task"
    impatient = "import aqx.cli.interruption as patience\npatience.GRACE_SECONDS = 0.5\n"
    words = ["search", str(path), "--task", task, "--quiet"]
    with subprocess.Popen(
        [sys.executable, "-c", impatient + READY, *words], stderr=subprocess.PIPE, text=True
    ) as search:
        while not (tmp_path / "begun").exists() and search.poll() is None:
            time.sleep(0.05)
        time.sleep(1.0)  # to compile
        search.send_signal(number)
        _, said = search.communicate(timeout=60)
    how = "interrupted" if number == signal.SIGINT else "terminated"
    assert (search.returncode, said) == (128 + number, f"{how}; {LINE}")
    assert [record.status for record in Study(path, task).records()] == ["queued"]


def test_a_moment_that_must_not_be_torn_is_waited_for():
    """In a comparison the handler raises nothing; whoever sends the signal again is heard."""
    whole: list[bool] = []

    class Compared:
        def __eq__(self, other):
            signal.raise_signal(signal.SIGINT)
            whole.append(True)
            return True

    with pytest.raises(KeyboardInterrupt), stoppable(once=True):
        assert Compared() == Compared() and asked() is None and whole.pop()
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stoppable():
        assert Compared() == Compared()
    assert not whole


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [("linen", 1), ("nnx", 1), ("linen", 2)])
def test_any_moment(tmp_path: Path, kind: str, workers: int):
    check_interruptions(tmp_path, kind, [random.uniform(0, 12) for _ in range(30)], workers)
