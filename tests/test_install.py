"""An editable installation that no folder shadows, and messages that name what can be installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import aqx
from aqx.machine import install_command

PACKAGE = Path(aqx.__file__).parent
ROOT = PACKAGE.parent
EXTRAS = ("distributed", "submitit", "playwright", "wandb", "mlflow", "torch", "matplotlib", "optuna", "pyoperon")
HELP = """
import contextlib, io, json, runpy, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {extras!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
sys.path.insert(0, {folder!r})
said = {{}}
for script in {scripts!r}:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            print(end.code, file=out)
        except Exception as error:
            print(repr(error), file=out)
    said[script] = out.getvalue()
print(json.dumps(said))
"""
ASK = "import aqx\nprint(aqx.__file__)\nprint(aqx.parse('relu(x)'))\n"


def run(*command: str | Path, **settings) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a folder that is called as the package is, beside a script."""
    root = tmp_path / "home" / "aqx"
    shutil.copytree(PACKAGE, root / "aqx", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    (root.parent / "script.py").write_text(ASK)
    return root


def test_a_script_beside_the_checkout_gets_the_package(checkout: Path, tmp_path: Path):
    build = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    run(sys.executable, "-c", build, cwd=checkout)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    script = checkout.parent / "script.py"
    # As an environment does with its own folder of packages, after Python has put the script's folder first.
    # This checkout may be installed so itself, and is put aside.
    start = f"import runpy, site, sys; sys.path = [path for path in sys.path if path != {str(ROOT)!r}]; "
    start += f"sys.path.insert(0, {str(script.parent)!r}); site.addsitedir({str(site)!r}); "
    start += f"runpy.run_path({str(script)!r})"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    lines = run(sys.executable, "-c", start, cwd=tmp_path, env=environment).splitlines()
    assert lines == [str(checkout / "aqx" / "__init__.py"), "relu(x)"]


@pytest.mark.slow
def test_pip_installs_it_so(checkout: Path, tmp_path: Path):
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this environment has no pip of its own")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    libraries = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-packages" in path)}
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--editable", checkout]
    run(sys.executable, "-m", "pip", "--python", python, *install, env=libraries)
    lines = run(python, checkout.parent / "script.py", cwd=tmp_path, env=libraries).splitlines()
    assert lines == [str(checkout / "aqx" / "__init__.py"), "relu(x)"]


def test_the_report_is_part_of_aqx():
    """The demo and the README end with `aqx report`, and `scripts/demo` installs no extra."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(need.startswith("plotly") for need in needed)


def test_what_is_said_to_install_can_be_installed():
    """Where aqx is on no index, an extra is installed by the checkout's path."""
    assert install_command("report").endswith(f", from this checkout pip install -e '{ROOT}[report]'")
    told = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.md"), ROOT / "README.md"]
    by_name = {path.name for path in told if "pip install 'aqx[" in path.read_text()}
    assert by_name <= {"machine.py", "doctor.py"}  # the doctor's note has the path, too
    assert not any("pip install aqx" in path.read_text() for path in told)


SCRIPTS = [
    path for path in sorted((ROOT / "scripts").glob("[!_]*.py")) if "ArgumentParser" in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each script says of itself, and how it ends, where only aqx's own dependencies can be imported."""
    code = HELP.format(extras=EXTRAS, scripts=list(map(str, SCRIPTS)), folder=str(ROOT / "scripts"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return json.loads(run(sys.executable, "-c", code, cwd=tmp_path_factory.mktemp("help"), env=environment))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_needs_no_more_than_aqx(script: Path, helps: dict[str, str]):
    """`--help` of every script works where nothing but aqx's own dependencies is installed."""
    assert helps[str(script)].startswith("usage:") and helps[str(script)].endswith("\n0\n"), helps[str(script)]
