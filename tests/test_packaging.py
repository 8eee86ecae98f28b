"""What an installation brings, and that the scripts set themselves up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import aqx

PACKAGE = Path(aqx.__file__).parent
ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
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
