"""Members of a population: as alone, whatever the chunks, the devices and the neighbours are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aqx
from aqx.errors import InputError
from aqx.population import _Population, members, population, shape_of, stack_of, unstack
from aqx.tree import parse

ROOT = Path(__file__).parents[1]
ROOM: Any = sys.modules["aqx.population"]  # the package's attribute of this name is the function

pytestmark = pytest.mark.usefixtures("quick_to_compile")
NAMES = ["add(relu(x),tanh(x))", "mul(sigmoid(x),identity(x))", "max(sin(x),square(x))", "sub(cos(x),erf(x))"]
NAMES += ["mul(tanh(x),abs(x))", "add(swish(x),cos(x))", "min(relu(x),sin(x))"]
DATA = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def stack(names=NAMES):
    return aqx.stack([aqx.activation(name) for name in names])


def fit(act, seed):
    """Fit a few weights by gradient descent: a training in small."""
    weights = jax.random.normal(jax.random.key(seed), (3, 4)) * 0.3

    def loss(weights):
        return jnp.mean((act(jnp.asarray(DATA) @ weights).sum(-1) - 1) ** 2)

    def step(state, _):
        weights, _ = state
        value, gradient = jax.value_and_grad(loss)(weights)
        return (weights - 0.05 * gradient, value), None

    (weights, value), _ = jax.lax.scan(step, (weights, 0.0), None, length=20)
    return {"loss": value, "size": jnp.abs(weights).max(), "steps": jnp.int32(20)}


FIT = jax.jit(fit, static_argnums=0)


def alone(names, seeds):
    """Each by itself, closed over: no switch, no vmap, no map."""
    found = [FIT(aqx.activation(name), np.uint32(seed)) for name, seed in zip(names, seeds, strict=True)]
    return {metric: np.array([float(each[metric]) for each in found]) for metric in found[0]}


def score(act, seed):
    """What compiles sooner, for what is not about training."""
    return {"value": act(seed.astype(jnp.float32))}


SCORED = {"value": np.array([float(aqx.activation(name)(2.0)) for name in NAMES])}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for metric, values in expected.items():
        np.testing.assert_allclose(found[metric], values, rtol=2e-5, err_msg=metric)


@pytest.mark.parametrize(
    "seeds",
    [pytest.param([3] * 7, marks=pytest.mark.slow), [0, 1, 2**32 - 1, 1, 2**40 + 1, 5, 6]],
    ids=["same", "own"],
)
def test_a_member_is_as_alone(seeds: list[int]):
    expected = alone(NAMES, [seed % 2**32 for seed in seeds])
    assert_equal(population(fit)(stack(), seeds), expected)
    assert_equal(population(fit, width=3)(stack(), np.array(seeds)), expected)


@pytest.mark.parametrize("own", [False, True])
def test_vmapped_as_on_a_gpu_a_member_is_as_alone(own: bool, monkeypatch: pytest.MonkeyPatch):
    seeds = list(range(7)) if own else [2] * 7
    monkeypatch.setattr(ROOM, "_one_by_one", lambda device: False)
    assert_equal(population(fit)(stack(), seeds), alone(NAMES, seeds))


@pytest.mark.parametrize("together", [pytest.param(False, marks=pytest.mark.slow), True])
def test_nan_stays_where_it_is(together: bool, monkeypatch: pytest.MonkeyPatch):
    if together:
        monkeypatch.setattr(ROOM, "_one_by_one", lambda device: False)
    names = [NAMES[0], "div(one(x),zero(x))", NAMES[1], "pow(negative(x),reciprocal(x))"]
    found = population(fit, width=4)(stack(names), [0] * 4)
    assert np.isfinite(found["loss"]).tolist() == [True, False, True, False]
    expected = alone(names, [0] * 4)
    np.testing.assert_allclose(found["loss"][::2], expected["loss"][::2], rtol=2e-5)


def test_what_needs_the_host_is_prepared_once_per_seed():
    calls = []

    def prepare(seed: int) -> dict[str, np.ndarray]:
        calls.append(seed)
        return {"order": np.random.default_rng(seed).permutation(16).astype(np.int32)}

    def first(act, prepared):
        return {"first": act(jnp.asarray(DATA)[prepared["order"][:4]]).sum()}

    seeds = [5, 5, 9, 5, 9, 5, 2**60]
    expected = [
        float(aqx.activation(name)(DATA[np.random.default_rng(seed).permutation(16)[:4]]).sum())
        for name, seed in zip(NAMES, seeds, strict=True)
    ]
    found = population(first, prepare=prepare, width=7)(stack(), seeds)
    np.testing.assert_allclose(found["first"], expected, rtol=1e-5)
    assert calls == [5, 9, 2**60]
    calls.clear()
    population(first, prepare=prepare, width=7)(stack(), [4] * 7)
    assert calls == [4]


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch):
    """Widths of the chunks that are run, and those of the programs that are compiled."""
    ran: list[int] = []
    compiled: list[int] = []
    run, compile_ = _Population._run, _Population._compile

    def running(self, key, width, *rest):
        ran.append(width)
        return run(self, key, width, *rest)

    def compiling(self, *args):
        compiled.append(len(args[-1][0]))
        return compile_(self, *args)

    monkeypatch.setattr(_Population, "_run", running)
    monkeypatch.setattr(_Population, "_compile", compiling)
    return ran, compiled


def test_one_program_serves_all_chunks_of_a_shape(widths: tuple[list[int], list[int]]):
    ran, compiled = widths
    train_many = population(score, width=3)
    assert len(train_many(stack(), [2] * 7)["value"]) == 7
    assert ran == [3, 3, 3] and compiled == [3], "the last is filled up"
    train_many(stack(NAMES[:4]), [1] * 4)
    assert ran[3:] == [3, 3] and compiled == [3], "by a program that is there"
    train_many(aqx.stack([aqx.activation("sin(x)")] * 2), [1] * 2)
    assert ran[5:] == [2] and compiled == [3, 2], "another shape"
    train_many(aqx.stack([aqx.activation("cos(x)")] * 3), [1] * 3)
    assert compiled == [3, 2, 3], "a wider one"
    train_many(aqx.stack([aqx.activation("cos(x)")]), [1])
    assert compiled == [3, 2, 3] and ran[-1] == 2


def test_chunks_share_out_evenly(widths: tuple[list[int], list[int]]):
    ran, _ = widths
    population(score, width=6)(stack(), [2] * 7)
    assert ran == [4, 4], "not 6 and 1 filled up to 6"


@pytest.mark.parametrize("said", ["RESOURCE_EXHAUSTED: Out of memory, 9 bytes", "INTERNAL: no"])
def test_out_of_memory_halves_and_is_remembered(said: str, widths: tuple[list[int], list[int]], monkeypatch):
    ran, compiled = widths
    run = _Population._run

    def short_of_memory(self, key, width, *rest):
        if width > 2:
            ran.append(-width)
            raise jax.errors.JaxRuntimeError(said)
        return run(self, key, width, *rest)

    monkeypatch.setattr(_Population, "_run", short_of_memory)
    train_many = population(score, width=7)
    if "INTERNAL" in said:
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            train_many(stack(), [2] * 7)
        return
    assert_equal(train_many(stack(), [2] * 7), SCORED)
    assert ran == [-7, -4, 2, 2, 2, 2]
    before = len(ran)
    train_many(stack(), [2] * 7)
    assert ran[before:] == [2, 2, 2, 2], "what did not fit is not tried again"


def test_a_program_too_large_for_the_memory_is_not_run(widths: tuple[list[int], list[int]], monkeypatch):
    ran, compiled = widths

    class Small:
        """The device, with a memory that holds two members and not four."""

        def memory_stats(self):
            return {"bytes_limit": 2_000, "bytes_in_use": 1_000}

    class Compiled:
        def __init__(self, width):
            self.width = width

        def memory_analysis(self):
            needs = {"temp_size_in_bytes": 450 * self.width, "output_size_in_bytes": 0, "argument_size_in_bytes": 0}
            return type("Needs", (), needs)

    check: Any = ROOM._check_memory
    monkeypatch.setattr(ROOM, "_check_memory", lambda program, device: check(Compiled(compiled[-1]), Small()))
    assert_equal(population(score, width=7)(stack(), [2] * 7), SCORED)
    assert compiled == [7, 2], "3,150 bytes in 1,000: a quarter of the members"


def test_a_member_that_never_fits_says_so(monkeypatch: pytest.MonkeyPatch):
    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(_Population, "_run", full)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        population(score, width=4)(stack(), [2] * 7)


def test_data_are_no_constants_of_the_program():
    data = np.random.default_rng(1).normal(size=(300, 300)).astype(np.float32)
    train_many: Any = population(lambda act, seed: {"mean": act(jnp.asarray(data)).mean()})
    found = train_many(stack(["sin(x)"]), [0])["mean"][0]
    assert found == pytest.approx(float(np.sin(data).mean()), rel=1e-4)
    ((program,),) = (programs.values() for programs in train_many._programs.values())
    assert program.run.memory_analysis().argument_size_in_bytes >= data.nbytes


def test_a_function_without_operators():
    acts = aqx.stack([aqx.activation("x")] * 3)
    found = population(lambda act, seed: {"value": act(jnp.float32(seed))}, width=2)(acts, [1, 2, 3])
    assert found["value"].tolist() == [1, 2, 3]


def test_members_can_be_had_back():
    assert [unstack(stack(), row) for row in range(7)] == [aqx.activation(name) for name in NAMES]
    normal = [aqx.activation(name, normalize=True) for name in NAMES[:2]]
    assert [unstack(aqx.stack(normal), row) for row in range(2)] == normal
    assert members(stack(NAMES[:2]), np.array([2**63, 1], np.uint64)) == [2**63, 1]


def test_a_stack_is_made_of_names():
    names = [name for name in map(str, aqx.Space.paper().sample(300, 3)) if parse(name).shape.startswith("n-ary")]
    made, expected = stack_of(names), aqx.stack([aqx.activation(name) for name in names])
    assert (made.schema, made.table, len(names) > 10) == (expected.schema, expected.table, True)
    np.testing.assert_array_equal(np.stack(made.opcodes), np.stack(expected.opcodes))
    assert made.opcodes[0].dtype == expected.opcodes[0].dtype
    spaced = stack_of(["relu( x )", "abs(x)"])
    assert [unstack(spaced, row).name for row in (0, 1)] == ["relu(x)", "abs(x)"]
    for wrong in (["relu(x)", "rleu(x)"], ["relu(x"], ["relu(y)"], ["relu(x)", "relu(relu(x))"], [], ["relu(x))"]):
        with pytest.raises(InputError):
            stack_of(wrong)


@pytest.mark.parametrize("name", [str(tree) for tree in aqx.Space.paper().sample(12, 1)])
def test_shapes_are_those_of_the_trees(name: str):
    assert shape_of(name) == (parse(name).shape, [node.name for node in parse(name).nodes])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: population(fit, width=0), "width=0"),
        (lambda: population(fit)(aqx.activation("relu(x)"), [0]), "is not a stack"),
        (lambda: population(fit)(stack(), [0]), "has 1 for 7 activations"),
        (lambda: population(fit)(stack(), np.array(0)), "give K integers"),
        (lambda: population(fit)(stack(), np.full(7, 0.5)), "give K integers"),
        (lambda: population(fit)(stack(), [0] * 6 + [-1]), "one ≥ 0 for each"),
        (
            lambda: population(fit)(aqx.stack([aqx.activation("x")]), []),
            "has 0 for 0 activations; give one ≥ 0 for each",
        ),
        (lambda: population(lambda act, seed: act(1.0))(stack(), [0] * 7), "must return {metric: scalar}"),
        (lambda: population(lambda act, seed: {"a": act(DATA)})(stack(), [0] * 7), "'a' has the shape (16, 3)"),
        (
            lambda: population(lambda act, p: {"a": p.sum()}, prepare=lambda s: np.zeros(s), width=7)(
                stack(), [*range(7)]
            ),
            "different shapes",
        ),
    ],
)
def test_what_cannot_be_used_gets_one_line(call, said: str):
    with pytest.raises(InputError) as caught:
        call()
    assert said in str(caught.value) and "\n" not in str(caught.value)


EIGHT = """
import sys, json
import jax, numpy as np
assert jax.device_count() == 8
from aqx import population as make
import aqx
import test_population as t
if sys.argv[1] == "vmap":
    sys.modules["aqx.population"]._one_by_one = lambda device: False
ran = []
run = t._Population._run
def running(self, key, width, *rest):
    ran.append(width)
    return run(self, key, width, *rest)
t._Population._run = running
names = (t.NAMES * 3)[:19]
train_many = aqx.population(t.fit, width=None if sys.argv[1] == "map" else 16)
found = [{k: v.tolist() for k, v in train_many(t.stack(names), seeds).items()} for seeds in ([1] * 19, list(range(19)))]
print(json.dumps([found, ran]))
"""


@pytest.mark.parametrize("way", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_eight_devices_share_the_members(way: str):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT), *sys.path])
    done = subprocess.run([sys.executable, "-c", EIGHT, way], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, ran = json.loads(done.stdout)
    assert ran == ([8, 8, 8] if way == "map" else [16, 16]) * 2
    names = (NAMES * 3)[:19]
    for values, seeds in zip(found, ([1] * 19, list(range(19))), strict=True):
        assert_equal(values, alone(names, seeds))
