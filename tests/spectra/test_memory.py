"""How much memory a computation takes, told before it is compiled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from aqx.spectra import engine
from aqx.spectra.fisher_spectra import FISHER
from aqx.spectra.memory import peak_bytes
from aqx.spectra.subject import prepare
from aqx.tasks import load_task

X = jnp.zeros((256,), jnp.float32)
KILO = X.nbytes


def peak(f, *arguments) -> int:
    return peak_bytes(jax.make_jaxpr(f)(*arguments).jaxpr)


def test_values_live_until_their_last_use():
    def chain(x):
        for _ in range(9):
            x = x + 1
        return x

    assert peak(chain, X) == 2 * KILO  # the sum and what it is made of
    assert peak(lambda x: sum(jnp.split(jnp.sin(x)[None] * x[:4, None], 4)), X) >= 4 * KILO


def test_the_inside_of_calls_counts_and_branches_count_once():
    def branch(i, x):
        return jax.lax.switch(i, [lambda x: jnp.sin(jnp.cos(x)), jnp.sin, jnp.cos], x)

    inner = jax.jit(lambda x: (x[:, None] * x).sum(0))
    assert peak(inner, X) >= 256 * KILO
    assert peak(branch, 0, X) <= 3 * KILO
    assert peak(lambda x: jax.lax.scan(lambda y, _: (inner(y), None), x, None, length=5)[0], X) < 300 * KILO
    assert peak(lambda x: x, X) == 0


@pytest.mark.parametrize(("form", "width"), [("kernel", 8), ("switch", 4)])
def test_switches_on_a_gpu_are_left_more_room(form: str, width: int, monkeypatch: pytest.MonkeyPatch):
    subject = dataclasses.replace(prepare(load_task("mnist1d")), bytes_each=1000)
    monkeypatch.setattr(engine, "_on_cpu", lambda mesh: False)
    monkeypatch.setattr(engine, "form_in_use", lambda: form)
    monkeypatch.setattr(engine.Engine, "_free_memory", lambda self: 20_000)
    assert engine.Engine(subject, descriptor=FISHER).width == width
