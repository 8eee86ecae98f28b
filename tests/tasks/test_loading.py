"""From a reference to a task: files that are right and files that are wrong, and the way through a pickle."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aqx
from aqx import Study, spectra
from aqx.benchmark import build_table
from aqx.errors import TaskError
from aqx.spectra import compute_runs, compute_spectra
from aqx.store import Database
from aqx.tasks import Task, builtin_tasks, check_task, load_task

ROOT = Path(__file__).parents[2]
FILE = """
import aqx
from sizes import WIDTH
from flax import linen as nn

def build_model(act):
    return nn.Sequential([nn.Dense(WIDTH), act, nn.Dense(2)])

def batch():
    from sizes import rows
    return rows()

task = aqx.Task("mine", build_model, batch, aqx.losses.softmax_cross_entropy)
other = aqx.Task("other", build_model, batch, aqx.losses.softmax_cross_entropy, seed=1)
number = 3

def make():
    return aqx.Task("made", build_model, batch, aqx.losses.softmax_cross_entropy)

def wrong():
    return 3

def needs(width):
    return task

def breaks():
    raise KeyError("nothing\\nhere")
"""
SIZES = "import numpy as np\nWIDTH = 7\ndef rows():\n    return np.ones((4, 3)), np.zeros(4, int)\n"


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "my task.py"
    path.write_text(FILE)
    (tmp_path / "sizes.py").write_text(SIZES)
    sys.modules.pop("sizes", None)
    return path


@pytest.fixture(autouse=True)
def _same_import_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def message(reference: str) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(reference)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_task_of_a_file(task_file: Path, monkeypatch: pytest.MonkeyPatch):
    before = list(sys.path)
    task = load_task(f"{task_file}:task")
    assert isinstance(task, Task) and task.name == "mine"
    assert sys.path[: len(before)] == before, "the file's folder may only come last, where it shadows nothing"
    assert task.batch()[0].shape == (4, 3), "imports inside functions find the file's siblings"
    monkeypatch.chdir(task_file.parent)
    assert load_task("my task.py:task") is task
    assert load_task("./my task.py:other").seed == 1


def test_a_function_that_makes_a_task(task_file: Path):
    task = load_task(f"{task_file}:make")
    assert task.name == "made" and load_task(f"{task_file}:make") is task
    assert pickle.loads(pickle.dumps(task)) is task


def test_a_changed_file_is_imported_again(task_file: Path):
    before = load_task(f"{task_file}:task")
    task_file.write_text(FILE.replace('"mine"', '"renamed"'))
    assert load_task(f"{task_file}:task").name == "renamed" and before.name == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tsak", ["has no 'tsak'", "it has task, other"]),
        ("", ["has no ''", "it has task, other"]),
        ("number", ["'number'", "is of type int, not an aqx.Task"]),
        ("aqx", ["is of type module, not an aqx.Task"]),
        ("wrong", ["wrong()", "returned a value of type int"]),
        ("needs", ["'needs'", "needs arguments"]),
        ("breaks", ["breaks()", "raised KeyError: 'nothing", "(line 27)"]),
    ],
)
def test_names_that_are_no_task(task_file: Path, name: str, said: list[str]):
    text = message(f"{task_file}:{name}")
    assert str(task_file) in text and all(part in text for part in said), text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import aqx\n\nx = 1 / 0\n", ["raised ZeroDivisionError: division by zero (line 3)"]),
        ("def f():\n    raise OSError('gone')\n\nf()\n", ["raised OSError: gone (line 2)"]),
        ("import aqx\ntask = aqx.Task(\n", ["raised SyntaxError", "(line 2)"]),
        ("import nowhere_to_be_found\n", ["raised ModuleNotFoundError", "nowhere_to_be_found", "(line 1)"]),
        ("import sys\nsys.exit(3)\n", ["raised SystemExit: 3 (line 2)"]),
        ("raise ValueError\n", ["raised ValueError (line 1)"]),
        ("x = 'a\0b'\n", ["raised"]),
        ("import aqx\ntask = aqx.Task('', id, id, id)\n", ["raised TaskError: name=''", "(line 2)"]),
        ("x = 1\n", ["has no 'task'; it binds no Task"]),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, source: str, said: list[str]):
    path = tmp_path / "bad.py"
    path.write_text(source)
    text = message(f"{path}:task")
    assert str(path) in text and all(part in text for part in said), text
    assert not any(name.startswith("_aqx_task_bad") for name in sys.modules) or "has no" in text


def test_references_that_are_none(tmp_path: Path, task_file: Path):
    assert "does not exist" in message(f"{tmp_path}/missing.py:task")
    (tmp_path / "folder.py").mkdir()
    assert "cannot be read" in message(f"{tmp_path}/folder.py:task")
    assert f"add the task's name, as in {task_file}:task" in message(str(task_file))
    assert "did you mean mnist1d?" in message("mnst1d")
    assert all(name in message("") for name in ("digits", "mnist1d"))
    assert "FILE.py:NAME" in message(f"{tmp_path}/task.txt:task")


@pytest.mark.parametrize("name", builtin_tasks())
def test_built_in_tasks_pickle_by_name(name: str):
    task = load_task(name)
    assert task.name == name and pickle.loads(pickle.dumps(task)) is task
    assert len(pickle.dumps(task)) < 200


def test_a_file_that_binds_a_built_in_task_does_not_take_its_place(tmp_path: Path):
    file = tmp_path / "borrowed.py"
    file.write_text("from aqx.tasks import load_task\n\ntask = load_task('sine')\n")
    task = load_task(f"{file}:task")
    file.unlink()
    assert task is load_task("sine") and str(tmp_path).encode() not in pickle.dumps(task)


def test_a_pickle_in_another_process(task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tasks = [load_task("my task.py:task"), load_task("my task.py:make"), load_task("digits")]
    (tmp_path / "tasks.pickle").write_bytes(pickle.dumps(tasks))
    code = """
import pathlib, pickle, sys
content = pathlib.Path(sys.argv[1]).read_bytes()
tasks = pickle.loads(content)
assert pickle.loads(content)[0] is tasks[0], "imported once"
print([task.name for task in tasks], tasks[0].batch()[0].shape, pickle.dumps(tasks) == content)
"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "tasks.pickle")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
    assert printed.stdout == "['mine', 'made', 'digits'] (4, 3) True\n", printed.stderr


def test_a_changed_file_is_refused_by_a_pickle(task_file: Path):
    content = pickle.dumps(load_task(f"{task_file}:task"))
    task_file.write_text(FILE + "\n# changed\n")
    with pytest.raises(TaskError, match="has changed since this work was started") as caught:
        pickle.loads(content)
    assert "\n" not in str(caught.value)
    task_file.unlink()
    with pytest.raises(TaskError, match="does not exist"):
        pickle.loads(content)


def test_a_task_that_was_not_asked_for_by_name_pickles_too(task_file: Path):
    task = load_task(f"{task_file}:task")
    other = vars(sys.modules[task.build_model.__module__])["other"]
    assert pickle.loads(pickle.dumps(other)) is other


def test_a_task_of_an_importable_module(tmp_path: Path, task_file: Path):
    module = tmp_path / "importable_tasks.py"
    module.write_text(FILE)
    sys.path.insert(0, str(tmp_path))
    try:
        import importable_tasks  # type: ignore[import-not-found]

        assert pickle.loads(pickle.dumps(importable_tasks.other)) is importable_tasks.other
        content = pickle.dumps(importable_tasks.task)
        del importable_tasks.task
        with pytest.raises(TaskError, match="module importable_tasks does not hold it"):
            pickle.loads(content)
    finally:
        sys.modules.pop("importable_tasks", None)


def test_a_task_that_nothing_holds_cannot_be_pickled(task_file: Path):
    import dataclasses

    changed = dataclasses.replace(load_task(f"{task_file}:task"), seed=5)
    with pytest.raises(TaskError, match="no module or file holds it; bind it to a name") as caught:
        pickle.dumps(changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "use",
    [
        lambda task, db: check_task(task),
        lambda task, db: Study(db, task),
        lambda task, db: compute_spectra(db, task),
        lambda task, db: compute_runs(db, task),
        lambda task, db: spectra.check(task, ["relu(x)"]),
        lambda task, db: build_table(task, aqx.Space("unary(x)"), db.path.with_name("table.csv")),
    ],
    ids=["check_task", "Study", "compute_spectra", "compute_runs", "check", "build_table"],
)
def test_what_takes_a_task_takes_its_reference(use: Callable[[Any, Database], object], db_path: Path):
    db = Database(db_path, create=True)
    for wrong, said in (("mnist", "mnist1d"), (5, "type int"), (Task, "type type"), (None, "type NoneType")):
        with pytest.raises(TaskError, match=said) as error:
            use(wrong, db)
        assert "\n" not in str(error.value)
    referred: list[str] = []

    def seen(reference: str) -> Task:
        referred.append(reference)
        raise TaskError("seen")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TaskError, match="seen"):
        patch.setattr("aqx.tasks.loading.load_task", seen)
        use("sine", db)
    assert referred == ["sine"]
