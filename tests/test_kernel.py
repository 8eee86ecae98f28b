"""The GPU kernel: it lowers for CUDA, and Pallas' interpreter finds in it what the switch and the oracles say."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from operator_oracles import UNARY
from test_operators import CROSSING, assert_right, points, representable, truth

import aqx
from aqx import kernel, operators, pallas
from aqx.activation import Activation, activation, stack
from aqx.errors import InputError
from aqx.kernel import form
from aqx.kernel.portable import evaluate, unportable
from aqx.numerics import elementary
from aqx.operators import OperatorTable, operator_table

FEW = ("relu", "exp", "tanh", "swish", "add", "mul", "sum_n", "max_n")
SHAPES = [
    "unary(x)",
    "unary(unary(unary(x)))",
    "binary(x,x)",
    "binary(x,unary(x))",
    "binary(unary(x),unary(x))",
    "n-ary(x)",
    "n-ary(unary(x),unary(x),unary(x))",
    "unary(binary(unary(unary(x)),n-ary(x,unary(x),x)))",
]


@pytest.fixture(autouse=True)
def _quick(quick_to_compile) -> None:
    pass


@pytest.fixture
def few_operators() -> None:
    """A table of eight operators, which compiles in a fraction of the time; `conftest.py` puts the full one back."""
    put_in_force(*FEW)


few = pytest.mark.usefixtures("few_operators")


def put_in_force(*names: str) -> None:
    table = operator_table()
    operators._in_force = OperatorTable(tuple(table.by_name[name] for name in names))


def example(shape: str, unary: str = "tanh") -> Activation:
    return activation(shape.replace("unary", unary).replace("binary", "mul").replace("n-ary", "sum_n"))


def normals(*shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


def pulled(act: Activation, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Value, and gradient of the squares' sum."""
    y, pullback = jax.vjp(act, x)
    return y, pullback(2 * y)[0]


def by(which: kernel.form.Form, function: Callable, *args):
    """What a function returns whose activations are traced in one form."""
    with kernel.forced(which):
        return jax.jit(lambda *args: function(*args))(*args)


def assert_same(function: Callable, *args, rtol: float = 3e-6, atol: float = 1e-6) -> None:
    """The interpreted kernel and the switch agree, in shapes and dtypes too."""
    want, got = (by(which, function, *args) for which in ("switch", "interpreted"))
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(np.asarray(b, float), np.asarray(a, float), rtol=rtol, atol=atol)


# It lowers for CUDA


@contextlib.contextmanager
def as_if_on_a_gpu() -> Iterator[None]:
    """From jax 0.12 on, Pallas lowers for no device but a known one."""
    try:
        device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    except (AttributeError, TypeError):
        yield
        return
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        yield


def lowered(function: Callable, *args, platform: str = "cuda") -> str:
    with kernel.forced("kernel"), as_if_on_a_gpu():
        return jax.jit(lambda *args: function(*args)).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def three_orders(act: Activation, x: jax.Array):
    slope = jax.grad(lambda x: act(x).sum())
    return act(x), slope(x), jax.jvp(slope, (x,), (x,))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", operator_table().by_name)
def test_every_operator_lowers_for_cuda(name: str, dtype: str):
    kind = operator_table().by_name[name].kind
    put_in_force(name)
    argument = {"unary": "x", "binary": "x,x", "n-ary": "x,x,x"}[kind]
    with jax.enable_x64(dtype == "float64"):
        text = lowered(three_orders, activation(f"{name}({argument})"), jax.ShapeDtypeStruct((5,), dtype))
    for program in ("aqx_values_0", "aqx_values_1", "aqx_values_2"):
        assert program in text and "triton" in text


@few
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_lowers_for_cuda(shape: str, dtype: str):
    assert lowered(pulled, example(shape), jax.ShapeDtypeStruct((2, 3, 700), dtype)).count("triton") == 1


@few
@pytest.mark.parametrize(
    ("axes", "shape"), [((0, 0), (3, 700)), ((0, 1), (50, 3, 7)), ((0, 2), (50, 7, 3)), ((0, None), (9,))]
)
def test_a_stack_is_one_kernel(axes: tuple[int, int | None], shape: tuple[int, ...]):
    stacked = stack([activation(f"{name}(x)") for name in FEW[:3]])
    out = axes[1] or 0  # where the kernel leaves the functions' axis
    text = lowered(jax.vmap(lambda act, x: act(x), axes, out), stacked, jax.ShapeDtypeStruct(shape, "float32"))
    assert text.count("triton") == 1 and not re.search(r"stablehlo.transpose.*f32", text)
    with_slope = lowered(jax.vmap(pulled, axes), stacked, jax.ShapeDtypeStruct(shape, "float32"))
    assert "stablehlo.case" not in with_slope and with_slope.count("triton") == 1


@few
@pytest.mark.parametrize("channels", [(), (7,)])
def test_constants_and_their_derivatives_are_one_kernel(channels: tuple[int, ...]):
    act, x = activation("mul(0.5,tanh(mul(2.0,x)))"), jax.ShapeDtypeStruct((5, 7), "float32")
    numbers = [jax.ShapeDtypeStruct(channels, "float32")] * 2

    def learnt(act: Activation, numbers: list[jax.Array], x: jax.Array):
        return jax.grad(lambda numbers, x: act.applied(x, numbers).sum(), (0, 1))(numbers, x)

    text = lowered(learnt, act, numbers, x)
    assert text.count("triton") == 1 and "stablehlo.case" not in text
    stacked = stack([act, activation("mul(3.0,exp(mul(-1.0,x)))")])
    many = [jax.ShapeDtypeStruct((2, *channels), "float32")] * 2
    text = lowered(jax.vmap(learnt, (0, 0, None)), stacked, many, x)
    assert text.count("triton") == 1 and "stablehlo.case" not in text


def test_the_full_table_lowers_for_cuda_and_elsewhere_is_a_switch():
    act, x = activation("max(swish(x),erf(x))"), jax.ShapeDtypeStruct((1025,), "float32")
    assert "stablehlo.case" not in lowered(pulled, act, x)
    text = lowered(pulled, act, x, platform="cpu")
    assert "triton" not in text and "stablehlo.case" in text


@few
def test_sites_of_one_shape_share_a_kernel():
    text = lowered(lambda act, x: act(act(act(x))), activation("tanh(x)"), jax.ShapeDtypeStruct((4, 4), "float32"))
    assert text.count("triton") == 1


# Values


CHANGED = {"erf", "erfc", "gelu", "gaussian", "bessel_i0e", "bessel_i1e"}  # what has other forms in the kernel


@cache
def all_operators(which: kernel.form.Form, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes of all unary operators at many points: [operators, points] each, from one program."""
    stacked = stack([activation(f"{operator.name}(x)") for operator in operator_table().by_kind["unary"]])
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(points(np.dtype(dtype).type))
        slopes = jax.vmap(lambda act, x: jax.jvp(act, (x,), (jnp.ones_like(x),)), (0, None))
        return tuple(map(np.asarray, by(which, slopes, stacked, x)))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", UNARY)
def test_every_operator_is_right(name: str, dtype: str):
    index = operator_table().opcodes[name]
    got, slopes = (each[index] for each in all_operators("interpreted", dtype))
    x = points(np.dtype(dtype).type)
    true, true_slopes = zip(*(truth(name, t) for t in x.tolist()), strict=True)
    assert_right(name, got, true, x, np.zeros(len(x)))
    keep = np.array([representable(value, np.dtype(dtype).type) for value in true])
    floor = np.where((np.abs(x) < 3) & (name in CROSSING), 1 / 8, 0)[keep]
    assert_right(f"d {name}", slopes[keep], [t for t, k in zip(true_slopes, keep, strict=True) if k], x[keep], floor)


@pytest.mark.parametrize("name", sorted(set(UNARY) - CHANGED))
def test_every_operator_is_that_of_the_switch_to_the_bit(name: str):
    """Operation by operation: XLA joins products and sums of a whole program, and not always the same ones."""
    fn, x = operator_table().by_name[name].fn, jnp.asarray(points(np.float32))

    def value_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(fn, (x,), (jnp.ones_like(x),))

    program = jax.make_jaxpr(value_and_slope)(x)
    with jax.disable_jit():
        for got, want in zip(evaluate(program, x), value_and_slope(x), strict=True):
            np.testing.assert_array_equal(got, want)


@few
@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_the_composition(shape: str, dtype: str):
    act, x = example(shape), normals(7, dtype=dtype)
    assert_same(pulled, act, x, rtol=2 * float(jnp.finfo(dtype).eps))
    concrete = jax.jit(lambda x: pulled(act, x))(x)
    for got, want in zip(by("interpreted", pulled, act, x), concrete, strict=True):
        assert got.dtype == want.dtype == dtype
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(got, float), np.asarray(want, float), rtol=4 * eps, atol=4 * eps)


@few
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1023,), (1024,), (1025,), (3, 5, 7, 11)])
def test_every_size(shape: tuple[int, ...]):
    assert_same(pulled, activation("mul(exp(x),tanh(x))"), normals(*shape))


@few
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float64(dtype: str):
    act, x = activation("mul(exp(x),tanh(x))", normalize=True), normals(9, dtype=dtype)
    assert_same(pulled, act, x, rtol=4 * float(jnp.finfo(dtype).eps), atol=1e-7 if dtype == "float32" else 1e-15)


@few
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_normalized(dtype: str):
    act, x = activation("swish(tanh(x))", normalize=True), normals(40, dtype=dtype)
    assert_same(pulled, act, x, rtol=2 * float(jnp.finfo(dtype).eps))

    def by_constants(act: Activation, x: jax.Array):
        value = lambda act: (jax.grad(lambda x: act(x).sum())(x) + act(x)).sum()  # noqa: E731
        return jax.grad(value, allow_int=True)(act).constants

    if dtype == "float32":
        assert_same(by_constants, act, x, rtol=1e-5)
        acts = stack([act, activation("tanh(swish(x))", normalize=True)])
        assert_same(jax.vmap(by_constants, (0, None)), acts, x, rtol=1e-5)


def test_nan_stays_nan():
    """Triton's own max and min drop it; max and its kin must not, in value nor slope."""
    x = jnp.asarray([np.nan, 1.0], jnp.float32)
    for name in ("relu(x)", "relu6(x)", "hard_tanh(x)", "max(x,x)", "min(x,x)", "max_n(x,x)", "min_n(x,x)", "erf(x)"):
        program = jax.make_jaxpr(activation(name))(x)
        assert unportable(program) is None
        rewritten = jax.make_jaxpr(partial(evaluate, program))(x)
        assert not {"max", "min", "clamp", "erf"} & {eqn.primitive.name for eqn in rewritten.eqns}
        assert np.isnan(evaluate(program, x)[0]).tolist() == [True, False]


@pytest.mark.parametrize("name", ["erf", "erfc"])
def test_forms_of_primitives_are_right(name: str):
    x = points(np.float32)
    true = [truth(name, t)[0] for t in x.tolist()]
    assert_right(name, np.asarray(jax.jit(getattr(elementary, name))(x)), true, x, np.zeros(len(x)))


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 11), ("float32", 3), ("float64", 25)])
def test_rounded_mantissas(dtype: str, bits: int):
    with jax.enable_x64(True):
        x = np.concatenate([np.random.default_rng(0).normal(size=500), [0, 1, 1.9999999, -7.9999999]]).astype(dtype)
        got = np.asarray(elementary.round_mantissa(jnp.asarray(x), bits))
        assert (np.abs(got - x) <= np.spacing(np.abs(x)) * 2.0 ** (np.finfo(dtype).nmant - bits - 1)).all()
        np.testing.assert_array_equal(np.asarray(elementary.round_mantissa(jnp.asarray(got), bits)), got)
        assert np.isnan(elementary.round_mantissa(jnp.asarray([np.nan], dtype), bits)[0])
        want = np.asarray(jax.lax.reduce_precision(jnp.asarray(x), int(np.finfo(dtype).nexp), bits))
        assert (got == want).mean() > 0.9, "ties alone go elsewhere"


# Transformations


ACTS = ("add(relu(x),exp(x))", "mul(tanh(x),swish(x))", "mul(exp(x),tanh(x))")
OVER = {
    "functions": (((0, None),), (7,)),
    "elements": (((None, 0),), (4, 7)),
    "elements on the last axis": (((None, 1),), (7, 4)),
    "both": (((0, 0),), (3, 7)),
    "both, the functions on the last axis": (((0, 2),), (4, 2, 3)),
    "both, the functions between": (((0, 1),), (4, 3, 300)),
    "elements, then functions": (((0, None), (None, 0)), (4, 7)),
    "functions, then elements": (((None, 0), (0, None)), (4, 7)),
    "both, then elements": (((None, 0), (0, 0)), (3, 2, 7)),
    "both, elements first": (((0, 0), (None, 1)), (3, 2, 7)),
    "functions twice": (((0, None), (0, None)), (7,)),
    "functions twice, elements once": (((0, None), (0, 0)), (2, 7)),
    "functions twice, elements within": (((0, 0), (0, None)), (3, 7)),
    "both twice": (((0, 0), (0, 0)), (2, 3, 7)),
    "both twice, from the end": (((0, 1), (0, 2)), (4, 3, 2)),
}


@few
@pytest.mark.parametrize("over", OVER)
def test_vmap(over: str):
    (*inner, outer), shape = OVER[over][0], OVER[over][1]
    axes = [*inner, outer]
    acts = stack([activation(name) for name in ACTS])
    if "twice" in over:
        acts = jax.tree.map(lambda *leaves: np.stack(leaves), acts, stack([activation(name) for name in ACTS[::-1]]))
    elif all(act is None for act, _ in axes):
        acts = activation(ACTS[1])
    function = pulled
    for each in axes:
        function = jax.vmap(function, each)
    assert_same(function, acts, normals(*shape))


@few
def test_derivatives_of_every_mode_and_order():
    def derivatives(act: Activation, x: jax.Array):
        grad, forward = jax.grad(act), jax.jacfwd(act)
        return (
            grad(x),
            forward(x),
            jax.hessian(act)(x),
            jax.grad(grad)(x),
            jax.jacfwd(forward)(x),
            jax.grad(jax.grad(grad))(x),
        )

    assert_same(derivatives, activation("mul(tanh(x),swish(x))"), jnp.float32(0.3), rtol=1e-5)
    acts = stack([activation(name) for name in ACTS])
    assert_same(jax.vmap(lambda act, x: (jax.hessian(act)(x), jax.grad(act)(x)), (0, None)), acts, jnp.float32(0.3))


@few
def test_jacobians():
    act, x = activation("mul(tanh(x),swish(x))"), normals(3)
    assert_same(lambda act, x: (jax.jacfwd(act)(x), jax.jacrev(act)(x), jax.jacfwd(jax.jacrev(act))(x)), act, x)
    acts = stack([activation(name) for name in ACTS])
    assert_same(jax.vmap(lambda act, x: (jax.jacfwd(act)(x), jax.jacrev(act)(x)), (0, None)), acts, x)


@few
def test_backward_pass_keeps_the_slope_alone():
    with kernel.forced("interpreted"):
        traced = jax.jit(lambda act, x: jax.vjp(act, x)[1])(activation("add(relu(x),swish(x))"), normals(50))
    assert [leaf.shape for leaf in jax.tree.leaves(traced) if leaf.shape == (50,)] == [(50,)]


@few
def test_scan_and_remat():
    acts, x = stack([activation(f"{name}(x)") for name in ("relu", "tanh", "swish")]), normals(9)

    def loss(acts: Activation, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, act: (jax.checkpoint(lambda x: act(x) + x)(x), None), x, acts)[0].sum()

    assert_same(jax.value_and_grad(loss, 1), acts, x)


@few
def test_without_jit():
    acts, x = stack([activation(f"{name}(x)") for name in ("relu", "tanh")]), normals(5)
    with kernel.forced("interpreted"):
        got = jax.vmap(lambda act: pulled(act, x))(acts)
    np.testing.assert_allclose(got[0], [np.maximum(x, 0), np.tanh(x)], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(got[1][1], 2 * np.tanh(x) / np.cosh(x) ** 2, rtol=1e-5)


class Layer(nn.Module):
    act: Activation

    @nn.compact
    def __call__(self, x):
        return self.act(nn.Dense(3)(x))


@few
def test_linen_vmap():
    acts, x = stack([activation(f"{name}(x)") for name in ("relu", "tanh")]), normals(2, 4, 3)

    def outputs(acts: Activation, x: jax.Array):
        models = nn.vmap(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0)(
            act=activation("relu(x)")
        )
        variables = models.init(jax.random.key(0), x)
        return jax.vmap(lambda act, v, x: Layer(act).apply(v, x), (0, {"params": {"Dense_0": 0}}, 0))(
            acts, variables, x
        )

    assert_same(outputs, acts, x)

    def one_function(act: Activation, x: jax.Array):
        models = nn.vmap(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0)(act=act)
        return models.init_with_output(jax.random.key(0), x)

    assert_same(one_function, activation("tanh(x)"), x)


@few
def test_nnx_vmap():
    acts, x = stack([activation(f"{name}(x)") for name in ("relu", "tanh")]), normals(4, 3)

    def outputs(acts: Activation, x: jax.Array):
        @nnx.vmap(in_axes=(0, None, 0))
        def run(act: Activation, x: jax.Array, key: jax.Array):
            return act(nnx.Linear(3, 3, rngs=nnx.Rngs(key))(x))

        return run(acts, x, jax.random.split(jax.random.key(0), 2))

    assert_same(outputs, acts, x)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, aqx
from aqx import kernel, operators
from aqx.operators import OperatorTable, operator_table
from jax.sharding import PartitionSpec as P
table = operator_table()
operators._in_force = OperatorTable(tuple(table.by_name[name] for name in ("relu", "tanh", "exp", "add")))
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
acts = aqx.stack([aqx.activation(f"{name}(x)") for name in ("relu", "tanh", "exp", "tanh")])
x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)

def slopes(act, x):
    y, pullback = jax.vjp(act, x)
    return y, pullback(y)[0]

one, split, whole = aqx.activation("add(tanh(x),exp(x))"), P("d"), P()

def over(function, *specs, out=split, **checks):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, **checks))

def total(act, x):
    return jax.lax.psum(act(x).sum(), "d")

with kernel.forced("switch"):
    want = jax.vmap(slopes, (0, None))(acts, x), slopes(one, x), one(x).sum()
with kernel.forced("interpreted"):  # by an interpreter that mixes what varies over the mesh with what does not
    functions = over(jax.vmap(slopes, (0, None)), split, whole, check_vma=False)(acts, x)
    examples = over(slopes, whole, split, check_vma=False)(one, x)
    sums = over(total, whole, split, out=whole, check_vma=False)(one, x)
for a, b in zip(jax.tree.leaves(want), jax.tree.leaves((functions, examples, sums)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
# Split by XLA itself, a program takes the switch, which it can split; a kernel it would compute whole everywhere.
sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, P("d")))
with kernel.forced("kernel"):
    traced = jax.jit(lambda act, x: act(x)).trace(one, sharded)
assert "triton" not in traced.lower(lowering_platforms=("cuda",)).as_text()
print("same")
"""


def test_the_first_function_may_be_met_inside_of_a_shard_map(monkeypatch: pytest.MonkeyPatch):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    everywhere, act = jax.sharding.PartitionSpec(), activation("pow(x,x)")
    specs = {"mesh": mesh, "in_specs": (everywhere, everywhere), "out_specs": everywhere, "check_vma": False}
    form._is_portable.cache_clear()
    with kernel.forced("kernel"):
        traced = jax.make_jaxpr(jax.shard_map(lambda act, x: act(x), **specs))(act, jnp.ones(4))
    assert "aqx_values" in str(traced)

    pallas.trouble.cache_clear()
    monkeypatch.setattr(pallas, "_tried", lambda: str(jax.sharding.get_abstract_mesh().axis_names))
    jax.make_jaxpr(jax.shard_map(lambda act, x: act(x), **specs))(act, jnp.ones(4))
    told = kernel.reason()
    pallas.trouble.cache_clear()
    assert told == "()"


def test_sharded_over_devices():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}

    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert printed.stdout.strip() == "same", printed.stderr[-3000:]


# Which form


def test_a_cpu_has_the_switch_and_its_program_is_unchanged():
    act, x = activation("add(relu(x),swish(x))"), normals(5)
    assert kernel.form_in_use() == "switch" and kernel.reason() == "no CUDA device"

    def program() -> str:
        return str(jax.make_jaxpr(lambda act, x: pulled(act, x))(act, x))

    assert "aqx_" not in program() and "pallas" not in program()
    with kernel.forced("switch"):
        want = program()
    with kernel.forced("kernel"):
        assert "aqx_values" in program()
    assert program() == want


@few
@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda x: jnp.sort(x.reshape(-1)).reshape(x.shape), "sort|reshape|iota"),
        (lambda x: jax.lax.lgamma(x), "lgamma"),
        (lambda x: jnp.sin(x.astype(jnp.float16)).astype(x.dtype), "float16"),
        (lambda x: x + jnp.asarray([1.0, 2.0, 3.0])[0], "slice|squeeze|array constant"),
    ],
)
def test_what_has_no_kernel_takes_the_switch(fn: Callable, why: str, caplog: pytest.LogCaptureFixture):
    aqx.register("mine", fn, "unary")
    x = normals(4)
    with caplog.at_level(logging.DEBUG, "aqx.kernel"), kernel.forced("kernel"):
        jaxpr = str(jax.make_jaxpr(lambda act, x: act(x))(activation("add(mine(x),x)"), x))
        assert "aqx_values" not in jaxpr
        assert "aqx_values" in str(jax.make_jaxpr(lambda act, x: act(x))(activation("add(x,x)"), x)), "its shape alone"
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert re.search(f"mine has no form of .*({why})", record.message)


@few
def test_a_registered_operator_has_a_kernel_too():
    aqx.register("mine", lambda x: jax.scipy.special.erf(jnp.maximum(x, 0)) + jnp.where(x > 0, x, 0.5 * x), "unary")
    act, x = activation("add(mine(x),x)"), normals(40)
    assert_same(pulled, act, x, rtol=1e-5)
    assert lowered(pulled, act, x).count("triton") == 1


def test_a_form_that_is_none_is_refused():
    with pytest.raises(ValueError, match="form='gpu' is not a form of a traced activation"), kernel.forced("gpu"):
        pass


def test_pallas_that_fails_means_the_switch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def fail(device: jax.Device) -> None:
        raise NotImplementedError("no Triton here\nand more")

    monkeypatch.setattr(pallas, "_compile_a_small_one", fail)
    monkeypatch.setattr(jax, "devices", lambda platform: [None])
    pallas.trouble.cache_clear()
    try:
        assert kernel.form_in_use() == "switch"
        assert kernel.reason() == "Pallas does not compile for this device (NotImplementedError: no Triton here)"
    finally:
        pallas.trouble.cache_clear()
    monkeypatch.undo()
    assert kernel.reason() == "no CUDA device"


def test_stacks_are_still_not_called():
    with kernel.forced("interpreted"), pytest.raises(InputError, match="stack; call jax.vmap"):
        stack([activation("relu(x)")] * 2)(1.0)
