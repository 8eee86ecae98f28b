"""Names on demand are those that type checkers see, and a light import stays light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import aqx

PACKAGE = Path(aqx.__file__).parent
LAZY = [path for path in sorted(PACKAGE.rglob("__init__.py")) if "on_demand(" in path.read_text()]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("source", LAZY, ids=lambda path: path.parent.name)
def test_names_on_demand_are_those_that_type_checkers_see(source: Path):
    parts = source.parent.relative_to(PACKAGE.parent).parts
    package = importlib.import_module(".".join(parts))
    checked: dict[str, str] = {}
    eager: set[str] = set()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.If):
            for inner in node.body:
                assert isinstance(inner, ast.ImportFrom)
                checked |= {alias.name: str(inner.module) for alias in inner.names}
        elif isinstance(node, ast.ImportFrom):
            eager |= {alias.name for alias in node.names}
    modules = {name for name, home in checked.items() if home == package.__name__}
    assert {name: home for name, home in checked.items() if name not in modules} == package._homes
    assert sorted(package.__all__) == package.__all__
    assert {*checked} <= {*package.__all__} <= {*checked, *eager}
    for name, home in checked.items():
        defined = importlib.import_module(home)
        assert getattr(package, name) is getattr(defined, name)


@pytest.mark.parametrize(
    "first",
    ["import aqx", "import aqx.activation", "import aqx.search", "from aqx import activation", "from aqx import *"],
)
def test_a_function_in_a_file_of_its_name_stays_the_function(first: str):
    assert run(f"{first}\nimport aqx\nprint(callable(aqx.activation), aqx.activation('relu(x)')(-1.0))") == "True 0.0"


def test_what_is_not_there_is_not_there():
    assert run("import aqx\nprint(hasattr(aqx, 'studdy'), hasattr(aqx, '_homes2'))") == "False False"
    with pytest.raises(AttributeError, match="module 'aqx' has no attribute 'studdy'"):
        aqx.studdy  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'studdy' from 'aqx'"):
        from aqx import studdy  # noqa: F401


def test_names_are_listed_and_modules_are_found_before_they_are_imported():
    said = run("import aqx, sys\nprint(set(aqx.__all__) - set(dir(aqx)), 'jax' in sys.modules)\naqx.store, aqx.export")
    assert said == "{'fisher', 'losses'} False" or said == "{'losses', 'fisher'} False"


@pytest.mark.parametrize("statement", ["import aqx", "import aqx.cli", "import aqx.tree, aqx.space", "aqx.parse('x')"])
def test_what_needs_no_jax_does_not_import_it(statement: str):
    heavy = "jax numpy flax rich duckdb sklearn pyarrow jaxtyping click".split()
    if "cli" in statement:
        heavy.remove("click")
    code = f"import sys, aqx\n{statement}\nprint([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]"


def test_names_and_kinds_of_operators_need_no_jax():
    code = (
        "import pickle, sys\n"
        "from aqx.operators import operator_names, operator_table\n"
        "from aqx.space import Space\n"
        "table = operator_table()\n"
        "print(len(table.by_kind['unary']), table.opcodes['max'], len(Space.paper()), len(operator_names('paper')))\n"
        "assert pickle.loads(pickle.dumps(table)) is table\n"
        "print('jax' in sys.modules, float(table.by_name['relu'].fn(-1.0)), 'jax' in sys.modules)"
    )
    assert run(code) == "43 5 1023516 38\nFalse 0.0 True"
