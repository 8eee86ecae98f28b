"""A function as source of a framework, which runs without aqx."""

from __future__ import annotations

import builtins
import keyword
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aqx.errors import InputError
from aqx.export.extract import Library
from aqx.export.forms import FORMS, LIBRARIES, Language
from aqx.export.formula import formula, latex
from aqx.export.writer import Text, Writer
from aqx.tree import Tree, is_number, parse


@dataclass(frozen=True)
class _Target:
    """A framework: how its operators are written, where its helpers are, and the lines around a function's body.

    In `frame`, {name} is the function's or class's name and {body} its statements.
    """

    language: Language
    library: Library
    frame: str
    name: str = "Activation"
    imports: Mapping[str, str] = field(default_factory=dict)


_NUMERICS = Library(tuple(f"numerics/{name}.py" for name in ("derivative", "exponential", "algebraic", "special")))
_KERAS = Library(("export/library/for_keras.py",), typed=False)
_TORCH = Library(
    ("export/library/for_keras.py", "export/library/for_torch.py"), {"ops": "torch", "Tensor": "torch.Tensor"}
)
_NUMPY = Library(("export/library/for_numpy.py",))
_NUMPY_FUNCTION = """\
@np.errstate(all="ignore")
def {name}(x):
    {doc}
    x = np.asarray(x)
    x = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)
    {body}
"""
_JAX_FUNCTION = """\
def {name}(x):
    {doc}
    x = jnp.asarray(x)
    {body}
"""
_FLAX_MODULE = """\
class {name}(MODULE):
    {doc}

    def __call__(self, x):
        x = jnp.asarray(x)
        {body}
"""
_TORCH_MODULE = """\
class {name}(torch.nn.Module):
    {doc}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        {body}
"""
_KERAS_LAYER = """\
@keras.saving.register_keras_serializable(package="aqx")
class {name}(keras.layers.Layer):
    {doc}

    def call(self, x):
        {body}

    def compute_output_shape(self, input_shape):
        return input_shape
"""
# Of two inputs, which broadcast and promote: lines of these frames, and what stands in their place.
_OF_TWO: dict[Language, dict[str, str]] = {
    "numpy": {
        "def {name}(x):": "def {name}(x, y):",
        "    x = np.asarray(x)": "    x, y = np.broadcast_arrays(x, y)",
        "    x = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)": (
            "    dtype = np.result_type(x, y)\n"
            "    dtype = dtype if np.issubdtype(dtype, np.floating) else np.float64\n"
            "    x, y = x.astype(dtype), y.astype(dtype)"
        ),
    },
    "jax": {
        "(x):": "(x, y):",
        "(self, x):": "(self, x, y):",
        "x = jnp.asarray(x)": "x, y = jnp.broadcast_arrays(*(jnp.asarray(z, jnp.result_type(x, y)) for z in (x, y)))",
    },
    "torch": {
        "(self, x: torch.Tensor)": "(self, x: torch.Tensor, y: torch.Tensor)",
        "        {body}": (
            "        dtype = torch.promote_types(x.dtype, y.dtype)\n"
            "        x, y = torch.broadcast_tensors(x.to(dtype), y.to(dtype))\n"
            "        {body}"
        ),
    },
    "keras": {
        "def call(self, x):\n": (
            "def call(self, x, y):\n        x, y = x + ops.zeros_like(y), y + ops.zeros_like(x)\n"
        ),
        "def compute_output_shape(self, input_shape):\n        return input_shape": (
            "def compute_output_shape(self, x_shape, y_shape):\n"
            "        return ops.add(keras.KerasTensor(x_shape), keras.KerasTensor(y_shape)).shape"
        ),
    },
}
_SOURCES: dict[str, _Target] = {
    "jax": _Target("jax", _NUMERICS, _JAX_FUNCTION, "activation"),
    "flax-linen": _Target(
        "jax", _NUMERICS, _FLAX_MODULE.replace("MODULE", "nn.Module"), imports={"nn": "from flax import linen as nn"}
    ),
    "flax-nnx": _Target(
        "jax", _NUMERICS, _FLAX_MODULE.replace("MODULE", "nnx.Module"), imports={"nnx": "from flax import nnx"}
    ),
    "torch": _Target("torch", _TORCH, _TORCH_MODULE),
    "keras": _Target("keras", _KERAS, _KERAS_LAYER, imports={"keras": "import keras"}),
    "numpy": _Target("numpy", _NUMPY, _NUMPY_FUNCTION, "activation"),
}
TARGETS: tuple[str, ...] = (*_SOURCES, "latex")
# The longest argument that stays in its place, beside no other and beside one: lines fit, and nesting, which Python
# limits, is bounded.
_LONGEST = {1: 68, 2: 40}


def source(function: str | Tree, to: str, name: str | None = None) -> str:
    """Write a function as source that imports nothing but the framework.

    Values and derivatives are those of aqx's operators. The NumPy source has values alone.

    Args:
        function: a name, such as `max(relu(x),cosh(elu(x)))`, or a `Tree`.
        to: one of `TARGETS`. jax, numpy: a function of x, or of x and y; flax-linen, flax-nnx, torch: a module; keras:
            a layer, for every backend of Keras; latex: the formula.
        name: of the function or class; default activation or Activation. For latex, the formula becomes name(x) = ….

    Returns:
        The text of a file.

    Raises:
        InputError: the target is unknown, or the name is none that a function may have there.
        ParseError: the function's name does not parse.
        UnsupportedError: an operator was registered by the user.

    Example:
        >>> from aqx.export import source
        >>> text = source("max(relu(x),tanh(x))", "torch", name="MaxReluTanh")
        >>> text.splitlines()[-1].strip()
        'return torch.maximum(torch.relu(x), _tanh(x))'
    """
    if to not in TARGETS:
        raise InputError(f"to={to!r} is not a target of export; give one of {', '.join(TARGETS)}")
    tree = parse(function)
    if name is not None:
        _check_name(name)
    if to == "latex":
        inputs = "x" if tree.inputs == 1 else "x, y"
        head = rf"\mathrm{{{name}}}\left({inputs}\right) = ".replace("_", r"\_") if name else ""
        return f"{head}{latex(tree)}\n"
    target = _SOURCES[to]
    return _assemble(tree, target, name or target.name)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(f"name={name!r} cannot name a function in Python; give an identifier, such as my_activation")


def _assemble(tree: Tree, target: _Target, name: str) -> str:
    short = formula(tree)
    summary = f"Compute {short} elementwise." if len(short) <= 80 else "Compute the function named at the top."
    frame = target.frame
    for line, other in _OF_TWO[target.language].items() if tree.inputs == 2 else ():
        frame = frame.replace(line, other)
    code = _framed(frame, name, f'"""{summary}"""', _statements(tree, target.language))
    imports, helpers = target.library.needed(code)
    imports |= target.imports
    if name in {*imports, *vars(builtins)}.union(*(helper.names for helper in helpers)):
        raise InputError(f"name={name!r} has a meaning in the exported source; give another, such as my_activation")
    named = textwrap.fill(f"Its name in aqx: {tree}", 118, initial_indent="# ", subsequent_indent="# ")
    text = f'"""An activation function found by aqx."""\n\n{named}\n\n{_sorted(imports.values())}\n'
    before = None
    for helper in helpers:
        apart = helper.is_function or (before is not None and before.is_function)
        text += "\n" * (2 if apart else before is None) + f"{helper.text}\n"
        before = helper
    return f"{text}\n\n{code}"


def _statements(tree: Tree, language: Language) -> list[str]:
    """The body of a function of x: assignments of local names, and the return of the tree's value."""
    writer = _BodyWriter(tree, language)
    result = writer.write(tree)
    return [*writer.assignments, f"return {result}"]


class _BodyWriter(Writer):
    """Writes statements: long parts get names, and what occurs twice is computed once."""

    def __init__(self, tree: Tree, language: Language):
        super().__init__(language)
        self.assignments: list[str] = []
        uses = Counter(arg for node in {tree, *tree.nodes} for arg in node.args)
        self.shared = {tree for tree, count in uses.items() if count > 1 and tree.args}

    def whole(self, tree: Tree, text: Text) -> Text:
        return self.named(text) if tree in self.shared and not text.text.isidentifier() else text

    def number(self, text: str) -> Text:
        # A framework's functions take arrays, and values keep the dtype of x.
        dtype = ", jnp.result_type(x, float)" if self.language == "jax" else ""
        return Text(f"{LIBRARIES[self.language]}.full_like(x, {text}{dtype})")

    def operation(self, tree: Tree, args: list[Text]) -> Text:
        numbers = [is_number(arg.name) for arg in tree.args]
        # Beside an array, an operator of Python's takes a number as it is.
        if (
            sum(numbers) == 1 < len(args)
            and tree.name in FORMS
            and "(" not in FORMS[tree.name].written_in(self.language)[1]
        ):
            at = numbers.index(True)
            args[at] = super().number(tree.args[at].name)
        return super().operation(tree, [self.short(arg, len(args)) for arg in args])

    def part(self, text: Text) -> Text:
        return self.short(text, 2)

    def short(self, text: Text, beside: int) -> Text:
        return self.named(text) if len(text.text) > _LONGEST[min(beside, 2)] else text

    def named(self, text: Text) -> Text:
        name = f"y{len(self.assignments) + 1}"
        self.assignments.append(f"{name} = {text}")
        return Text(name)


def _framed(frame: str, name: str, doc: str, body: list[str]) -> str:
    lines = []
    for line in frame.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        filled = [indent + text for text in body] if line.strip() == "{body}" else [line.format(name=name, doc=doc)]
        lines += filled
    return "\n".join(lines) + "\n"


def _sorted(imports: Iterable[str]) -> str:
    """Write import statements as isort does: the standard library first, then `import …`, then `from … import …`."""
    by_section: tuple[list[str], ...] = [], [], []
    for line in sorted(imports, key=lambda line: (line.startswith("from"), line)):
        module = line.split()[1].partition(".")[0]
        by_section[0 if module == "__future__" else 1 if module in sys.stdlib_module_names else 2].append(line)
    return "\n\n".join("\n".join(lines) for lines in by_section if lines)
