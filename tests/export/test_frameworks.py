"""Exported PyTorch and Keras sources, run: each operator's values and gradients against aqx's; kinks, ties, dtypes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_export import (
    ALL,
    OPERATORS,
    POINTS,
    TINY,
    WITH_NEW,
    add_new_operators,
    check_close,
    example,
    slope_with_new,
    value_with_new,
)

import aqx
from aqx.export import source

pytestmark = pytest.mark.slow

EPS = float(np.finfo("float32").eps)
# derivatives that cross 0: there an error counts in units of 1, of which the terms that cancel are
CROSSING = {"swish", "elish", "mish", "gelu", "bessel_i1e", "hard_swish"}
KINKS = [
    ("abs(x)", 0, 0),
    ("log1p_abs(x)", 0, 0),
    ("sqrt_abs(x)", 0, 0),
    ("bessel_i0e(x)", 0, 0),
    ("gaussian(x)", 0, 0),
    ("bessel_i1e(x)", 0, 0.5),
    ("relu(x)", 0, 0),
    ("relu_squared(x)", 0, 0),
    ("leakyrelu(x)", 0, 0.01),
    ("elu(x)", 0, 1),
    ("selu(x)", 0, 1.7580993408473766),
    ("elish(x)", 0, 0.5),
    ("softsign(x)", 0, 1),
    ("isru(x)", 0, 1),
    ("tanh(x)", 0, 1),
    ("relu6(x)", 0, 0),
    ("relu6(x)", 6, 0),
    ("hard_tanh(x)", 1, 0),
    ("hard_tanh(x)", -1, 0),
    ("hard_sigmoid(x)", 2.5, 0),
    ("hard_sigmoid(x)", -2.5, 0),
    ("hard_swish(x)", -3, 0),
    ("hard_swish(x)", 3, 1),
    # ties: half to each argument
    ("max(x,negative(x))", 0, 0),
    ("max(x,square(x))", 1, 1.5),
    ("min(x,square(x))", 1, 1.5),
    ("max_n(x,square(x),cube(x))", 1, 2.25),
    ("min_n(x,square(x),cube(x))", 1, 2.25),
    # pow: the partial by the exponent is 0 at base ≤ 0, that by the base is 0 at exponent 0
    ("pow(x,zero(x))", 0, 0),
    ("pow(x,zero(x))", 2, 0),
    ("pow(zero(x),relu(x))", 1, 0),
    ("pow(x,x)", -2, 0.25),
    ("pow(x,x)", 2, 4 * (1 + np.log(2))),
    ("pow(negative(square(x)),one(x))", 2, -4),
    # a branch not taken that overflows
    ("elu(square(x))", 1e4, 2e4),
    ("mul(relu(negative(x)),exp(negative(square(x))))", 20, 0),
    ("tanh(x)", 20, 4 * np.exp(-40.0)),
    ("expm1(x)", -20, np.exp(-20.0)),
    ("sigmoid(x)", 20, np.exp(-20.0)),
    ("softsign(x)", 1e4, 1 / 10001**2),
    ("isru(x)", 1e4, 1e-12),
]


def compare(value: np.ndarray, slope: np.ndarray, function: str, x: np.ndarray, name: str) -> None:
    """Both sides are right to 16 units in the last place, but for what cancels: sums, and derivatives that cross 0.

    There an error of a few units of the terms stays, of the size of 1; erf's own slope of PyTorch, XLA and Keras takes
    exp of a rounded x², which costs some units more. Where aqx's derivative is inf or nan, nothing is promised.
    """
    act = aqx.activation(function)
    want, pull = jax.vjp(act, jnp.asarray(x))
    want_slope = np.asarray(pull(jnp.ones_like(want))[0])
    assert value.dtype == np.float32
    loose = name in CROSSING or OPERATORS.get(name) != "unary"
    check_close(value, want, ulps=32, atol=4 * EPS if OPERATORS.get(name) != "unary" else 4 * TINY)
    finite = np.isfinite(want_slope)
    check_close(slope[finite], want_slope[finite], ulps=32, atol=8 * EPS if loose else 4 * TINY)


def load(text: str, file: Path) -> ModuleType:
    """Import a source as a file, as users do and as TorchScript needs it."""
    file.write_text(text, "utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- PyTorch


@cache
def torch() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch")


def by_torch(function: str, x: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative by PyTorch's autograd."""
    module = load(source(function, "torch"), folder / "found.py").Activation()
    inputs = torch().tensor(x, requires_grad=True)
    outputs = module(inputs)
    if not outputs.requires_grad:  # a constant
        return outputs.numpy(), np.zeros_like(x)
    (slopes,) = torch().autograd.grad(outputs.sum(), inputs)
    return outputs.detach().numpy(), slopes.numpy()


@pytest.mark.parametrize("name", ALL)
def test_torch_equals_aqx(name: str, tmp_path: Path):
    torch()
    compare(*by_torch(example(name), POINTS, tmp_path), example(name), POINTS, name)


@pytest.mark.parametrize(("function", "x", "slope"), KINKS)
def test_kinks_in_torch(function: str, x: float, slope: float, tmp_path: Path):
    torch()
    _, got = by_torch(function, np.float32([x]), tmp_path)
    np.testing.assert_allclose(got[0], slope, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_torch_compiles_and_keeps_the_dtype(name: str, tmp_path: Path):
    module = load(source(example(name), "torch"), tmp_path / "found.py").Activation()
    x = torch().tensor(POINTS[:20])
    want = module(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; it works all the same
        compiled = [torch().jit.script(module), torch().compile(module, backend="eager", fullgraph=True)]
        compiled.append(torch().export.export(module, (x,)).module())
        for one in compiled:
            torch().testing.assert_close(one(x), want, equal_nan=True)
    for dtype in ("float16", "bfloat16", "float64"):
        narrow = x.to(getattr(torch(), dtype))
        assert module(narrow).dtype == narrow.dtype


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "mish", "bessel_i1e", "isru", "squareplus", "gaussian"])
def test_second_derivatives_in_torch(name: str, tmp_path: Path):
    module = load(source(example(name), "torch"), tmp_path / "found.py").Activation()
    x = torch().linspace(-3.1, 3.2, 12, dtype=torch().float64, requires_grad=True)
    assert torch().autograd.gradgradcheck(module, (x,))


def test_new_operators_in_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch()
    add_new_operators(monkeypatch)
    x = np.linspace(-3, 3, 31)
    value, slope = by_torch(WITH_NEW, x, tmp_path)
    np.testing.assert_allclose(value, value_with_new(x), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(slope, slope_with_new(x), rtol=1e-9, atol=1e-15)


# --- Keras


@cache
def keras() -> ModuleType:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("keras")
    if module.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend here")
    return module


def by_keras(function: str, x: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative by Keras on JAX."""
    layer = load(source(function, "keras"), folder / "found.py").Activation()
    outputs, pull = jax.vjp(layer, jnp.asarray(x))
    return np.asarray(outputs), np.asarray(pull(jnp.ones_like(outputs))[0])


@pytest.mark.parametrize("name", ALL)
def test_keras_equals_aqx(name: str, tmp_path: Path):
    keras()
    compare(*by_keras(example(name), POINTS, tmp_path), example(name), POINTS, name)


@pytest.mark.parametrize(("function", "x", "slope"), KINKS)
def test_kinks_in_keras(function: str, x: float, slope: float, tmp_path: Path):
    keras()
    _, got = by_keras(function, np.float32([x]), tmp_path)
    np.testing.assert_allclose(got[0], slope, rtol=1e-5)


def test_new_operators_in_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keras()
    add_new_operators(monkeypatch)
    x = np.linspace(-3, 3, 31, dtype="float32")  # layers compute in float32
    value, slope = by_keras(WITH_NEW, x, tmp_path)
    np.testing.assert_allclose(value, value_with_new(x.astype("float64")), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slope, slope_with_new(x.astype("float64")), rtol=1e-5, atol=1e-5)


ON_TORCH = """
import json, sys
import numpy as np, torch, keras
assert keras.backend.backend() == "torch"
x, result = np.load("x.npy"), {}
for i, text in enumerate(json.load(open("sources.json"))):
    namespace = {}
    exec(text, namespace)
    inputs = torch.tensor(x, requires_grad=True)
    outputs = namespace["Activation"]()(inputs)
    slopes = torch.autograd.grad(outputs.sum(), inputs)[0] if outputs.requires_grad else torch.zeros_like(inputs)
    result[f"value{i}"], result[f"slope{i}"] = outputs.detach().numpy(), slopes.numpy()
np.savez("result.npz", **result)
"""


def test_keras_on_another_backend(tmp_path: Path):
    keras(), torch()
    np.save(tmp_path / "x.npy", POINTS)
    (tmp_path / "sources.json").write_text(json.dumps([source(example(name), "keras") for name in ALL]))
    environment = os.environ | {"KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-W", "ignore", "-c", ON_TORCH], cwd=tmp_path, env=environment, check=True)
    result = np.load(tmp_path / "result.npz")
    for i, name in enumerate(ALL):
        compare(result[f"value{i}"], result[f"slope{i}"], example(name), POINTS, name)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within Keras
def test_a_keras_model_with_it_is_saved_and_loaded(tmp_path: Path):
    layers = keras().layers
    module = load(source("max(gelu(x),bessel_i0e(x))", "keras", name="Found"), tmp_path / "found.py")
    model = keras().Sequential([layers.Input((3,)), layers.Dense(4), module.Found(), layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    loaded = keras().saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[1]) is module.Found
    x = POINTS[:30].reshape(10, 3)
    np.testing.assert_array_equal(loaded(x), model(x))


# --- apart from aqx


@pytest.mark.parametrize("target", ["torch", "keras"])
def test_sources_run_where_aqx_is_not(target: str, tmp_path: Path):
    {"torch": torch, "keras": keras}[target]()
    function = "add(gelu(x),bessel_i1e(pow(relu(x),mish(x))))"
    (tmp_path / "found.py").write_text(source(function, target), "utf-8")
    array = {"torch": "import torch; array = torch.tensor", "keras": "import numpy; array = numpy.float32"}[target]
    code = f"import sys; sys.modules['aqx'] = None; import found; {array}"
    code += "; print(*map(float, found.Activation()(array([-1.5, 0.0, 2.0]))))"
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    want = aqx.activation(function)(jnp.array([-1.5, 0.0, 2.0]))
    np.testing.assert_allclose(np.array(printed.stdout.split(), "float64"), want, rtol=1e-6)
