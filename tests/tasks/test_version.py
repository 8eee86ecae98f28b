"""The version of a task's code: it changes with what a training depends on, and with nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aqx.errors import TaskError
from aqx.tasks import Task, load_task
from aqx.tasks.version import version_of_task

SOURCE = '''
import functools
import aqx
from helper import width

RATE = 3e-3  # of the optimizer
SETTINGS = {"steps": 10}
SETTINGS.update(decay=0.1)
verbose = True
accuracy = "a name that train has of its own"


def scale(x):
    return x * RATE


@functools.cache
def data():
    return [1.0], [0]


def build_model(act):
    return act, width


def train(act, seed):
    """Train."""
    accuracy = scale(SETTINGS["steps"])
    return {"val_acc": accuracy}


def show(record):
    print(record, verbose)


task = aqx.Task("versioned", build_model, batch=data, loss=lambda out, y: out, train=train, baselines=("relu(x)",))

if __name__ == "__main__":
    RATE = 7
    study = aqx.Study("x.duckdb", task)
'''
HELPER = "width = 64\n"
SAME = {
    "a comment": ("# of the optimizer", "# of Adam"),
    "a comment of its own line": ("def scale", "# scales\n\n\ndef scale"),
    "a function that is not used": ("print(record, verbose)", "print(record)"),
    "a name that only looks like it": ('"a name that train has of its own"', "5"),
    "what runs as a script alone": ("RATE = 7", "RATE = 8"),
    "the baselines": ('("relu(x)",)', '("relu(x)", "tanh(x)")'),
    "how the task is written": ("batch=data, loss", "batch=data,\n   loss"),
}
OTHER = {
    "a constant": ("RATE = 3e-3", "RATE = 1e-1"),
    "a function of a function": ("x * RATE", "x + RATE"),
    "the training": ('"val_acc": accuracy', '"val_acc": -accuracy'),
    "the model": ("act, width", "act, 2 * width"),
    "the data": ("[1.0], [0]", "[2.0], [0]"),
    "the loss in the task": ("lambda out, y: out", "lambda out, y: -out"),
    "what an update changes": ("decay=0.1", "decay=0.2"),
}


def version(folder: Path, source: str = SOURCE, helper: str = HELPER) -> str | None:
    """The version as a new process has it."""
    folder.mkdir(exist_ok=True)
    (folder / "helper.py").write_text(helper)
    (folder / "versioned.py").write_text(source)
    sys.modules.pop("helper", None)
    return version_of_task(load_task(f"{folder / 'versioned.py'}:task"))


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_a_training_does_not_depend_on_leaves_it(tmp_path: Path, change: tuple[str, str]):
    assert SOURCE.replace(*change) != SOURCE
    assert version(tmp_path, SOURCE.replace(*change)) == version(tmp_path)


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_what_a_training_depends_on_changes_it(tmp_path: Path, change: tuple[str, str]):
    assert version(tmp_path, SOURCE.replace(*change)) != version(tmp_path)


def test_a_file_beside_it_counts(tmp_path: Path):
    assert version(tmp_path / "a", helper="width = 32\n") != version(tmp_path / "b")
    assert version(tmp_path / "c", helper="width = 64  # wide\n\n# units\n") == version(tmp_path / "b")


def test_it_is_the_same_in_the_script_itself_and_in_another_folder(tmp_path: Path):
    telling = SOURCE.replace('study = aqx.Study("x.duckdb", task)', "from aqx.tasks.version import version_of_task")
    telling += "    print(version_of_task(task))\n"
    here = version(tmp_path / "a", telling)
    assert here == version(tmp_path / "b", telling)
    run = subprocess.run([sys.executable, tmp_path / "a" / "versioned.py"], capture_output=True, text=True)
    assert run.stdout.strip() == here, run.stderr


def test_a_given_version_is_the_version(tmp_path: Path):
    given = SOURCE.replace("baselines=", "version=2, baselines=")
    assert version(tmp_path, given) == version(tmp_path, given.replace("3e-3", "1e-1")) == "2"
    with pytest.raises(TaskError, match="version"):
        Task("x", lambda act: act, batch=lambda: 0, loss=lambda out, y: out, version=" ")


def test_built_in_tasks_have_none():
    assert version_of_task(load_task("sine")) is None
