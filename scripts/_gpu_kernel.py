"""The kernel of traced activations: right against float64, then its time beside that of the closed-over function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _gpu import Row
from _models import MLP
from _timing import seconds
from flax import linen as nn

import aqx
from aqx.enumeration import sample_points
from aqx.evaluation import Batch, Family, evaluate_family, fingerprints
from aqx.operators import SETS, operator_table
from aqx.tasks.builtin.models import AllCNNC
from aqx.tree import parse_schema

FAMILY = Family(parse_schema("binary(unary(x),unary(x))"), SETS["paper"])
FUNCTIONS = ("add(swish(x),tanh(x))", "max(relu(x),identity(x))", "mul(erf(x),arcsinh(x))")


def main(small: bool) -> Iterator[Row]:
    """Check classes, values and slopes; then measure a tensor, a stack and All-CNN-C's step."""
    yield Row("act_bench's classes, and its values beside the CPU's", check_classes(jax.devices()[0]))
    yield Row("traced values and slopes beside float64's, every operator", check_operators())
    shape = (64, 64) if small else (128, 32, 32, 96)
    for name in FUNCTIONS:
        yield Row(f"{name}, value and gradient of {np.prod(shape):,} elements", tensor(name, shape))
    # A CPU takes half a minute to compile All-CNN-C.
    model, title, shape = (MLP, "an MLP", (64, 64)) if small else (AllCNNC, "All-CNN-C", (128, 32, 32, 3))
    for name in FUNCTIONS[:2]:
        yield Row(f"{name}, one step of {title} on {shape[0]} examples", step_times(name, model, shape))
    yield from stacks(small)


def check_classes(device: Any) -> dict[str, float | int]:
    """Return how many functions have the class they have on the CPU, and how far their values are at most."""
    batch = Batch.of_trees(list(aqx.Space.act_bench()))
    points = sample_points(256, "stratified")
    classes, values = [], []
    for each in (jax.devices("cpu")[0], device):
        with jax.default_device(each):
            classes.append(fingerprints(batch).ids)
            values.append(np.asarray(evaluate_family(FAMILY, jnp.asarray(points), jnp.empty((len(batch), 256)))))
    assert (classes[0] == classes[1]).all(), f"classes on {device} differ from the CPU's"
    slow, fast = values
    finite = np.isfinite(slow)
    assert (finite == np.isfinite(fast)).mean() > 0.999, f"functions overflow elsewhere on {device}"
    finite &= np.isfinite(fast)
    slow, fast = slow[finite], fast[finite]
    return {"functions": FAMILY.size, "apart": float((np.abs(slow - fast) / (1 + np.abs(slow))).max())}


def check_operators() -> dict[str, float]:
    """Return how far the traced operators, value and slope, are from float64's on the CPU, in units of float32."""
    x = np.concatenate([np.linspace(-30, 30, 1601), np.linspace(-3, 3, 801)]).astype(np.float32)
    traced = jax.jit(lambda act, x: jax.jvp(act, (x,), (jnp.ones_like(x),)))
    worst = 0.0
    for operator in operator_table().by_kind["unary"]:
        act = aqx.activation(f"{operator.name}(x)")
        got = [np.asarray(each, np.float64) for each in traced(act, x)]
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            true = [np.asarray(each) for each in jax.jvp(act, (jnp.float64(x),), (jnp.ones_like(x, jnp.float64),))]
        for order, (g, t) in enumerate(zip(got, true, strict=True)):
            with np.errstate(over="ignore"):
                fits = np.isfinite(np.float32(t)) & (np.abs(t) > 1e-37)
            scale = np.maximum(np.abs(t[fits]), 0.125 if order else 0).astype(np.float32)
            off = np.abs(g[fits] - t[fits]) / np.spacing(scale)
            assert off.max(initial=0) <= 32, f"{operator.name}, order {order}: off by {off.max():.0f} ulp"
            worst = max(worst, off.max(initial=0))
    return {"worst_ulp": float(worst)}


def _median_ms(f, *args) -> float:
    """Time of one call among ten that the device is given at once, so that it never waits for Python."""
    jax.block_until_ready(f(*args))
    return 1e2 * seconds(lambda: jax.block_until_ready([f(*args) for _ in range(10)]), 7)


def tensor(name: str, shape: tuple[int, ...]) -> dict[str, float]:
    """Return the time of value and gradient, closed over and traced."""
    act = aqx.activation(name)
    x = jax.random.normal(jax.random.key(0), shape)

    def pulled(act, x):
        y, pullback = jax.vjp(act, x)
        return y, pullback(y)[0]

    closed = _median_ms(jax.jit(functools.partial(pulled, act)), x)
    traced = _median_ms(jax.jit(pulled), act, x)
    return {"closed_over_ms": closed, "traced_ms": traced, "ratio": traced / closed}


def stacks(small: bool) -> Iterator[Row]:
    """Measure a stack of functions, value and slope, beside the same functions one after another."""
    names = [str(tree) for tree in aqx.Space.act_bench()]
    np.random.default_rng(0).shuffle(names)
    for count, size in ((4, 256),) if small else ((64, 196_608), (256, 20_480)):
        stacked = aqx.stack([aqx.activation(name) for name in names[:count]])
        x = jax.random.normal(jax.random.key(0), (count, size))

        def slopes(act, x):
            return jax.jvp(act, (x,), (jnp.ones_like(x),))

        stack_ms = _median_ms(jax.jit(jax.vmap(slopes)), stacked, x)
        loop_ms = _median_ms(jax.jit(lambda acts, x: jax.lax.map(lambda each: slopes(*each), (acts, x))), stacked, x)
        figures = {"vmap_ms": stack_ms, "map_ms": loop_ms, "GB_per_s": 12e-6 * count * size / stack_ms}
        yield Row(f"{count} functions × {size:,} elements, value and slope", figures)


def step_times(name: str, model: Callable[..., nn.Module], shape: tuple[int, ...]) -> dict[str, float]:
    """Return the time of one step of gradient descent, closed over and traced."""
    act = aqx.activation(name)
    x = jax.random.normal(jax.random.key(0), shape)
    y = jnp.arange(len(x)) % 10
    variables = model(nn.relu).init(jax.random.key(0), x[:1])

    def step(act, variables):
        def loss(variables):
            logits: Any = model(act).apply(variables, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return jax.tree.map(lambda w, g: w - 1e-3 * g, variables, jax.grad(loss)(variables))

    closed = _median_ms(jax.jit(functools.partial(step, act)), variables)
    traced = _median_ms(jax.jit(step), act, variables)
    return {"closed_over_ms": closed, "traced_ms": traced, "ratio": traced / closed}
