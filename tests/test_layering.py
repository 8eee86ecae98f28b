"""The house keeps its shape: who imports whom, one home per dependency, and what may lie at the top."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aqx

PACKAGE = Path(aqx.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A room imports what stands beside it, and whatever those may.
ROOMS: dict[str, tuple[str, ...]] = {
    "text": (),
    "stopping": (),
    "errors": ("stopping",),
    "machine": (),
    "pallas": (),  # whether kernels compile for the GPU
    "lazy": (),
    "duration": ("errors",),
    "writing": ("errors",),
    "numerics": ("errors",),  # the precise forms behind the table of operators, and the integrals of a normalisation
    "plane": (),  # points of N(0, I₂) for functions of two inputs
    "metrics": ("errors", "text"),
    "objective": ("errors",),
    "losses": ("errors",),
    "operators": ("errors", "numerics"),
    "constants": ("errors",),
    "tree": ("operators", "constants"),
    "kernel": ("tree", "pallas"),  # one GPU kernel for every function of a shape
    "simplify": ("tree",),  # the simplest equal name, for people to read
    "learnable": ("tree",),
    "activation": ("kernel", "numerics", "learnable"),
    "linen": ("activation",),
    "nnx": ("activation",),
    "space": ("tree",),
    "evaluation": ("activation", "space", "plane"),
    "store": ("errors", "metrics", "writing", "lazy"),
    "costs": ("evaluation", "store", "machine"),
    "enumeration": ("evaluation", "store"),
    "surrogate": ("errors", "machine", "plane"),
    "fisher": ("errors", "losses", "pallas"),  # for any Flax model: it knows no task, no database, no activation
    "population": ("activation", "machine"),
    "tasks": ("lazy", "linen", "population", "losses", "objective", "duration", "writing"),
    "candidates": ("evaluation", "store", "surrogate"),
    "spectra": ("fisher", "tasks", "candidates", "enumeration", "machine"),
    "training": ("tasks", "machine", "metrics"),
    "search": ("lazy", "candidates", "costs", "enumeration", "spectra", "training", "simplify"),
    "benchmark": ("search",),
    "optuna": ("candidates", "enumeration", "tasks"),
    "export": ("tree",),
    "report": ("search", "export"),
    "doctor": ("search", "kernel"),
    "cli": ("benchmark", "doctor", "report"),
}
# The room outside of which a library is not imported; `datasets` of scikit-learn only holds data, and tasks use it.
HOMES: dict[str, tuple[str, ...]] = {
    "duckdb": ("store",),
    "_duckdb": ("store",),
    "fcntl": ("store", "writing"),
    "pyarrow": ("store",),
    "umap": ("surrogate",),
    "pynndescent": ("surrogate",),
    "sklearn": ("surrogate",),
    "sklearn.datasets": ("tasks",),
    "mnist1d": ("tasks",),
    "matplotlib": ("report",),
    "plotly": ("report",),
    "torch": ("export",),
    "keras": ("export",),
    "optuna": ("optuna",),
    "click": ("cli",),
    "rich": ("cli", "search"),
}
TOP = {"aqx", "tests", "scripts", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}


def room_of(source: Path) -> str:
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


def may_import(room: str) -> set[str]:
    """The room itself, what it lists, and what those may."""
    return {room}.union(*(may_import(other) for other in ROOMS[room]))


def imports_of(text: str) -> set[str]:
    """Dotted names of everything imported anywhere in a source, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the room; write aqx.…"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def outside_homes(room: str, imports: set[str]) -> list[str]:
    """Imports of libraries whose home is another room; of nested names the longest that has a home decides."""
    found = []
    for name in sorted(imports):
        homes = [home for home in HOMES if name == home or name.startswith(home + ".")]
        if homes and room not in HOMES[max(homes, key=len)]:
            found.append(name)
    return found


def beyond_rooms(room: str, imports: set[str]) -> list[str]:
    """Imports of rooms that this room may not know."""
    rooms = {name: name.split(".")[1] for name in imports if name.startswith("aqx.")}
    return sorted(name for name, other in rooms.items() if other not in may_import(room))


def test_every_source_has_a_room():
    assert {room_of(source) for source in SOURCES} <= {*ROOMS, "__init__", "__main__"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(source: Path):
    room, imports = room_of(source), imports_of(source.read_text())
    if room in ROOMS:
        assert not beyond_rooms(room, imports)
        assert "aqx" not in imports, "import the room, not the whole package"
    else:
        assert not any(name.startswith("aqx.cli") for name in imports) or room == "__main__", "nothing imports cli"
    assert not outside_homes(room, imports)


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("store", "from aqx.tree import parse"),
        ("tree", "import aqx.space"),
        ("search", "from aqx import cli"),
        ("fisher", "def f():\n    import duckdb"),
        ("tasks", "from sklearn import tree"),
        ("surrogate", "from sklearn.datasets import load_digits"),
        ("search", "from optuna.samplers import BaseSampler"),
        ("search", "from aqx.optuna import AqxSampler"),
    ],
)
def test_a_wrong_import_is_seen(room: str, text: str):
    imports = imports_of(text)
    assert beyond_rooms(room, imports) or outside_homes(room, imports)


def files_imported(source: Path) -> set[Path]:
    """The package's files that a source imports, inside functions and for types alone too."""
    found: set[Path] = set()
    for name in imports_of(source.read_text()):
        parts = name.split(".")
        for length in range(len(parts), 1, -1):  # a name may be a file, or what stands in one
            path = PACKAGE.joinpath(*parts[1:length])
            file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
            if parts[0] == "aqx" and file.exists():
                found.add(file)
                break
    return found - {source}


def circle_among(imports: dict[Path, set[Path]]) -> list[Path]:
    """Files that import each other in a circle, and what lies between circles; none where there is no circle."""
    left = dict(imports)
    while True:
        wanted = set[Path]().union(*left.values())
        ends = [file for file, others in left.items() if not others & left.keys() or file not in wanted]
        if not ends:
            return sorted(left)
        for file in ends:
            del left[file]


def test_no_files_import_each_other_in_a_circle():
    assert not circle_among({source: files_imported(source) for source in SOURCES})


def test_a_circle_is_seen():
    a, b, c = map(Path, "abc")
    assert circle_among({a: {b}, b: {c}, c: {a}}) == [a, b, c]
    assert not circle_among({a: {b}, b: {c}, c: set()})


def test_importing_aqx_is_light():
    heavy = "flax optax umap sklearn scipy numba pandas matplotlib plotly optuna distributed torch click rich mnist1d"
    code = f"import sys, aqx; print([m for m in {heavy.split()} if m in sys.modules])"
    code += "\nfrom jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert printed.stdout.split("\n")[:2] == ["[]", "False"]


def tracked_files() -> list[Path]:
    """What git tracks or would; every file outside of hidden and generated folders where this is no git checkout."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return [ROOT / name for name in listed if (ROOT / name).is_file()]
    made = re.compile(r"\.venv|__pycache__|\.egg-info|_cache|\.hypothesis|build|dist")
    paths = (path for path in ROOT.rglob("*") if not made.search(str(path.relative_to(ROOT))))
    return [path for path in paths if path.is_file()]


def test_top_level_holds_nothing_else():
    top = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert {name for name in top if not name.startswith(".")} <= TOP


def test_files_hold_no_machine_paths_or_registry_hosts():
    # Written in pieces, so that this file does not hold what it looks for.
    bad = re.compile(
        "|".join(["/ro" + "ot/", "/ho" + "me/", "/Us" + "ers/", "/op" + "t/", "py" + r"pi\.org", "pythonho" + "sted"])
    )
    found = []
    for path in tracked_files():
        text = path.read_text(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in bad.finditer(text)]
    assert not found
