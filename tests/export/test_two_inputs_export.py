"""Functions of two inputs as sources, formulas, maps."""

from __future__ import annotations

import numpy as np
import pytest
from cli_helpers import aqx_command
from operator_oracles import NUMPY

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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_torch_has_its_values_and_gradients(name: str):
    torch = pytest.importorskip("torch")
    import jax

    namespace: dict = {}
    exec(source(name, "torch"), namespace)
    module, act = namespace["Activation"](), aqx.activation(name)
    x, y = np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32)
    a, b = (torch.tensor(each, requires_grad=True) for each in (x, y))
    value = module(a, b)
    (value**2).sum().backward()
    np.testing.assert_allclose(value.detach().numpy(), act(x, y), rtol=1e-5, atol=1e-6)
    for got, wanted in zip((a, b), jax.grad(lambda x, y: (act(x, y) ** 2).sum(), (0, 1))(x, y), strict=True):
        found = np.zeros(7) if got.grad is None else got.grad.numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


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
