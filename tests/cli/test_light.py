"""Commands that need no JAX do not import it: they would take six times as long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aqx
from aqx.search import Study
from aqx.space import Space

ROOT = Path(aqx.__file__).parent.parent
# It cannot be run: what it says must be read.
TASK = """
import aqx
raise RuntimeError("this file was run")
task = aqx.Task("toy", build_model, batch, loss=loss, objective="val_acc", baselines=("relu(x)",))
"""
# `jax` fails to be imported, so that no command can do it in a process of its own either.
CODE = """
import sys
sys.modules["jax"] = None
from aqx.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = ["jax", "flax", "umap", "sklearn"]
    if sys.argv[1] in ("summary", "top", "trials", "tell", "completion", "--help", "--version"):
        heavy += ["numpy", "jaxtyping", "pyarrow", "duckdb", "statistics"]
    imported = [name for name in heavy if sys.modules.get(name)]
    assert not imported, imported
"""


def run(*arguments: str | Path, code: str = CODE, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with trials of a task of a file, which stands beside it, and of a built-in one."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "toy.py").write_text(TASK)
    path = folder / "light.duckdb"
    aqx.enumeration.enumerate_space(aqx.store.Database(path, create=True), Space("unary(x)", ["relu", "tanh", "abs"]))
    task = aqx.Task("toy", build_model=print, batch=print, loss=print, baselines=("relu(x)",))
    for study in (Study(path, task), Study(path, "sine")):
        study.add("tanh(x)", **{study.task.objective: 0.75})
        study.ask()
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "Find better activation functions"),
        (["--version"], f"aqx, version {aqx.__version__}"),
        (["search", "--help"], "Train baselines and suggestions"),
        (["summary", "DB"], "toy"),
        (["summary", "DB", "--task", "sine", "--json"], '"best": "tanh(x)"'),
        (["top", "DB", "--task", "FILE:task"], "tanh(x)"),
        (["top", "DB", "--task", "toy"], "tanh(x)"),
        (["top", "DB", "--task", "sine", "--json"], '"objective": 0.75'),
        (["trials", "DB", "--task", "FILE:task"], "running"),
        (["trials", "DB", "--task", "sine", "--status", "done", "--json"], '"status": "done"'),
        (["tell", "DB", "--task", "FILE:task", "abs(x)", "val_acc=0.5"], "recorded abs(x) as trial 5: done"),
        (["tell", "DB", "--task", "FILE:task", "--trial", "2", "val_acc=0.5"], "recorded relu(x) as trial 2: done"),
        (["tell", "DB", "--task", "sine", "--trial", "4", "--failed", "boom"], "as trial 4: failed"),
        *((["export", "max(relu(x),erf(x))", "--to", target], "x") for target in ("torch", "jax", "latex")),
        (["completion", "bash"], "_AQX_COMPLETE=bash_complete"),
        (["doctor", "DB", "--quick", "--quiet"], "all is well"),
    ],
    ids=lambda value: " ".join(value).replace("FILE", "").replace("DB", "") if isinstance(value, list) else "",
)
def test_no_jax_is_imported(words: list[str], said: str, searched: Path, tmp_path: Path):
    db, file = shutil.copy(searched, tmp_path / "copy.duckdb"), searched.parent / "toy.py"
    done = run(*(word.replace("DB", str(db)).replace("FILE", str(file)) for word in words))
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("aqx sea", "plain,search"),
        ("aqx top x --task dig", "plain,digits"),
        ("aqx search x --surrogate p", "plain,paper"),
    ],
)
def test_no_jax_is_imported_by_the_tab_key(words: str, offered: str):
    asked = {"_AQX_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = run(**asked)
    assert offered in done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["top", "MISSING", "--task", "sine"], "does not exist"),
        (["tell", "DB", "--task", "toy", "abs(x)", "loss=1"], "val_acc is missing from the metrics"),
        (["tell", "DB", "--task", "toy", "rellu(x)", "val_acc=1"], "did you mean relu"),
        (["tell", "DB", "--task", "toy", "--trial", "9", "val_acc=1"], "trial_id 9 is not in this database"),
        (["summary", "DB", "--task", "tot"], "'tot'"),
    ],
)
def test_mistakes_need_none_either(words: list[str], said: str, searched: Path):
    done = run(*(word.replace("DB", str(searched)) for word in words))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: "), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("name", ["task", "other"])
def test_a_file_is_run_where_its_text_does_not_say_what_the_database_holds(name: str, searched: Path, tmp_path: Path):
    (tmp_path / "toy.py").write_text(TASK.replace("val_acc", "loss"))
    done = run("top", searched, "--task", f"{tmp_path / 'toy.py'}:{name}", code=CODE.replace('sys.modules["jax"]', "x"))
    assert done.stderr.startswith("error: task file") and "RuntimeError: this file was run (line 3)" in done.stderr
