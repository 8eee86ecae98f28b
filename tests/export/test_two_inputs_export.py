"""Functions of two inputs as sources, formulas, maps."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_helpers import aqx_command
from operator_oracles import NUMPY
from test_export import OPERATORS
from test_frameworks import keras, load, torch

import aqx
from aqx.export import formula, latex, source
from aqx.report.curves import curve
from aqx.tree import Tree, parse

pytestmark = pytest.mark.usefixtures("quick_to_compile")

NAMES = ["mul(swish(x),y)", "max(x,mul(0.5,y))", "relu(y)", "sum_n(x,y,1)"]


def by_numpy(tree: Tree, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if not tree.args:
        return {"x": x, "y": y}[tree.name] if tree.name in "xy" else np.full_like(x, float(tree.name))
    return NUMPY[tree.name](*(by_numpy(arg, x, y) for arg in tree.args))


@pytest.mark.parametrize("target", ["numpy", "jax"])
@pytest.mark.parametrize("name", NAMES)
def test_functions_broadcast_promote_and_have_its_values(target: str, name: str):
    namespace: dict = {}
    exec(source(name, target), namespace)
    x, y = np.linspace(-2, 2, 5, dtype=np.float32)[:, None], np.linspace(-1, 3, 3, dtype=np.float32)
    got = np.asarray(namespace["activation"](x, y))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, by_numpy(parse(name), x + 0 * y, y + 0 * x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["flax-linen", "flax-nnx"])
def test_modules_take_two(target: str):
    namespace: dict = {}
    exec(source("mul(swish(x),y)", target), namespace)
    module = namespace["Activation"]()
    x, y = np.float32([1.0, -1.0]), np.float32([2.0, 3.0])
    got = module.apply({}, x, y) if target == "flax-linen" else module(x, y)
    np.testing.assert_allclose(got, aqx.activation("mul(swish(x),y)")(x, y), rtol=1e-6)


@pytest.mark.parametrize("target", ["torch", "keras"])
def test_other_sources_compile_and_take_two(target: str):
    text = source("mul(swish(x),y)", target)
    compile(text, target, "exec")
    assert "y: torch.Tensor" in text if target == "torch" else "def call(self, x, y)" in text


# Every operator of several arguments; the grid has ties and zeros of both inputs.
OF_BOTH = [f"{name}(softplus(x),exp(y))" for name, kind in OPERATORS.items() if kind == "binary"]
OF_BOTH += [f"{name}(x,y,tanh(y))" for name, kind in OPERATORS.items() if kind == "n-ary"]
OF_BOTH += ["mul(gelu(x),y)", "max(x,y)", "min(y,x)", "mul(bessel_i1e(x),y)", "swish(y)"]
GRID = np.meshgrid(*[np.float32([-1.5, -0.25, 0, 0.5, 2])] * 2)
FRAMEWORKS = [pytest.param("torch", marks=pytest.mark.slow), pytest.param("keras", marks=pytest.mark.slow)]


def values_and_gradients(function, x, y) -> list[np.ndarray]:
    """Value and both partial derivatives, elementwise, by JAX."""
    value, pull = jax.vjp(function, x, y)
    return [np.asarray(each) for each in (value, *pull(jnp.ones_like(value)))]


def by_torch(module, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    a, b = (torch().tensor(each, requires_grad=True) for each in (x, y))
    value = module(a, b)
    slopes = torch().autograd.grad(value.sum(), (a, b), allow_unused=True)
    return [value.detach().numpy(), *(np.zeros_like(x) if one is None else one.numpy() for one in slopes)]


@pytest.mark.parametrize("target", FRAMEWORKS)
@pytest.mark.parametrize("name", NAMES + OF_BOTH)
def test_frameworks_have_its_values_and_gradients(target: str, name: str, tmp_path: Path):
    {"torch": torch, "keras": keras}[target]()
    module = load(source(name, target), tmp_path / "found.py").Activation()
    got = (by_torch if target == "torch" else values_and_gradients)(module, *GRID)
    for found, wanted in zip(got, values_and_gradients(aqx.activation(name), *GRID), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mul(swish(x),y)", "max(x,mul(0.5,y))", "pow(softplus(x),y)"])
def test_torch_compiles_it_and_differentiates_twice(name: str, tmp_path: Path):
    module = load(source(name, "torch"), tmp_path / "found.py").Activation()
    x, y = (torch().tensor(each) for each in GRID)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; it works all the same
        compiled = [torch().jit.script(module), torch().compile(module, backend="eager", fullgraph=True)]
        compiled.append(torch().export.export(module, (x, y)).module())
        for one in compiled:
            torch().testing.assert_close(one(x, y), module(x, y))
    assert module(x.to(torch().bfloat16), y.to(torch().bfloat16)).dtype == torch().bfloat16
    a, b = (torch().tensor(each, dtype=torch().float64, requires_grad=True) for each in ([0.3, -1.1], [0.7, 1.9]))
    assert torch().autograd.gradgradcheck(module, (a, b))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within Keras
def test_a_keras_model_with_a_gated_unit_is_saved_and_loaded(tmp_path: Path):
    layers = keras().layers
    module = load(source("mul(gelu(x),y)", "keras", name="Gate"), tmp_path / "found.py")
    given = layers.Input((3,))
    model = keras().Model(given, layers.Dense(2)(module.Gate()(layers.Dense(4)(given), layers.Dense(4)(given))))
    model.save(tmp_path / "model.keras")
    loaded = keras().saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_formulas():
    assert formula("mul(tanh(x),y)") == "tanh(x)·y"
    assert latex("max(x,y)") == r"\max\left(x, y\right)"
    assert source("mul(x,y)", "latex", name="gate").startswith(r"\mathrm{gate}\left(x, y\right) = ")


def test_show_draws_a_map_and_plots_leave_it_out():
    shown = aqx_command("show", "swiglu")
    assert shown.exit_code == 0 and "mul(swish(x),y)" in shown.output and "f(x, y) from" in shown.output
    assert aqx_command("show", "bilinear", "--json").exit_code == 0
    assert curve("mul(x,y)") is None and curve("relu(x)") is not None
    html = aqx.activation("mul(x,y)")._repr_html_()
    assert "f(x, y) = x·y" in html and "<rect" in html
