"""What an installation brings, and that the scripts set themselves up."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import aqx

PACKAGE = Path(aqx.__file__).parent
ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SCRIPTS = [ROOT / ".ci" / "run", *(path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file())]


def run(*command: str | Path, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **kwargs)


def test_version_is_said_once():
    assert aqx.__version__ == PROJECT["version"]
    if "aqx" in {name for names in metadata.packages_distributions().values() for name in names}:
        assert metadata.version("aqx") == PROJECT["version"]
    assert re.search(
        r"^## \[(Unreleased|" + re.escape(PROJECT["version"]) + r")\]", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_package_data_is_listed(tmp_path: Path):
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["aqx"]
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data == {path for pattern in listed for path in PACKAGE.glob(pattern)}
    assert PACKAGE / "py.typed" in data


@pytest.mark.parametrize("extra", ["bench", "cluster", "cuda", "cuda13", "optuna", "report", "test", "test-slow"])
def test_extra_exists(extra: str):
    assert EXTRAS[extra]


def test_what_the_tests_need_is_installed_with_them():
    """The tests run with all that aqx can use but the GPU and the benchmarks' rivals."""
    test = {re.split(r"[><=\[]", need)[0] for need in EXTRAS["test"]}
    for extra in ("cluster", "optuna", "report"):
        assert {re.split(r"[><=\[]", need)[0] for need in EXTRAS[extra]} <= test
    assert "aqx[test]" in EXTRAS["test-slow"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of, as building leaves files behind."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(PACKAGE, copy / "aqx", ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    built = run(sys.executable, "-c", build, cwd=copy)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_whole_package(wheel: Path):
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"aqx/py.typed", "aqx/store/schema.sql"} <= held


def test_what_jax_needs_to_bound_its_cache_comes_along():
    """aqx bounds its own folder; of a bound that a user sets JAX keeps account by filelock, or keeps nothing at all."""
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" in (PACKAGE / "cli" / "commands.py").read_text()
    assert any(name.startswith("filelock") for name in PROJECT["dependencies"])


def test_wheel_says_what_it_is(wheel: Path):
    assert wheel.name == f"aqx-{PROJECT['version']}-py3-none-any.whl"
    archive, info = zipfile.ZipFile(wheel), f"aqx-{PROJECT['version']}.dist-info"
    assert "aqx = aqx.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    headers = archive.read(f"{info}/METADATA").decode().splitlines()
    assert f"Requires-Python: {PROJECT['requires-python']}" in headers
    assert {f"Provides-Extra: {extra}" for extra in EXTRAS} <= set(headers)
    assert f"{info}/licenses/LICENSE" in archive.namelist()


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path):
    """Installed by pip into a folder of its own, with the libraries of this environment, and no checkout in sight."""
    if run(sys.executable, "-m", "pip", "--version").returncode:
        pytest.skip("this environment has no pip of its own")
    site = tmp_path / "site"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    installed = run(sys.executable, "-m", "pip", *install)
    assert installed.returncode == 0, installed.stderr
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def aqx_command(*arguments: str) -> str:
        done = run(sys.executable, site / "bin" / "aqx", *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(sys.executable, "-c", "import aqx; print(aqx.__file__)", cwd=tmp_path, env=environment)
    assert where.stdout.strip() == str(site / "aqx" / "__init__.py")
    assert aqx_command("--version").split()[-1] == PROJECT["version"]
    aqx_command("enumerate", "w.duckdb", "--fn", "relu(x)", "--fn", "swish(x)", "--fn", "sin(x)", "--fn", "tanh(x)")
    aqx_command("eigs", "w.duckdb", "--task", "sine", "--limit", "3")
    aqx_command("search", "w.duckdb", "--task", "sine", "--budget", "2")
    top = json.loads(aqx_command("top", "w.duckdb", "--task", "sine", "--json"))
    assert len(top) >= 2 and all(trial["objective"] > 0 for trial in top)


@pytest.mark.parametrize(
    "script", [s for s in SCRIPTS if s.suffix != ".py" and not s.name.startswith("_")], ids=lambda s: s.name
)
def test_scripts_are_executable(script: Path):
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env ")


@pytest.mark.parametrize("script", [s for s in SCRIPTS if "bash" in s.read_text()[:20]], ids=lambda s: s.name)
def test_bash_parses(script: Path):
    assert run("bash", "-n", script).returncode == 0


@pytest.mark.parametrize("name", ["enumerate", "eigs"])
def test_thin_scripts_are_the_command(name: str, tmp_path: Path):
    """From another folder, through a symbolic link, by an environment's python3 where the checkout has none."""
    (tmp_path / name).symlink_to(ROOT / "scripts" / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run(tmp_path / name, "--help", cwd=tmp_path, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: aqx {name} ")


def test_an_old_python_is_refused_clearly(tmp_path: Path):
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\ncase "$2" in *exit*) exit 1 ;; *) echo 3.10 ;; esac\n')
    old.chmod(0o755)
    done = run(ROOT / "scripts" / "test", env={**os.environ, "PYTHON": str(old)})
    assert done.returncode == 2
    assert done.stderr == f"test: '{old}' is Python 3.10, and aqx needs 3.11 or newer; set PYTHON to one\n"


def test_a_missing_python_is_refused_clearly():
    done = run(ROOT / "scripts" / "demo", env={**os.environ, "PYTHON": "python-that-is-not"})
    assert done.returncode == 2
    assert done.stderr == "demo: cannot run 'python-that-is-not'; set PYTHON to a Python 3.11 or newer\n"


@pytest.mark.parametrize(("arguments", "line"), [(["--tusk"], "unknown argument"), (["--task"], "needs a value")])
def test_demo_refuses_clearly(arguments: list[str], line: str):
    done = run(ROOT / "scripts" / "demo", *arguments)
    assert done.returncode == 2
    assert line in done.stderr and done.stderr.count("\n") == 1
