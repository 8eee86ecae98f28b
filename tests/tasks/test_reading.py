"""What the text of a task file says is what the file makes; where it says too little, nothing is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from aqx.tasks import load_task
from aqx.tasks.loading import BUILT_IN
from aqx.tasks.reading import identity_in_source, tasks_in_source

PACKAGE = Path(__file__).parent.parent.parent / "aqx"
USUAL = "import aqx\ntask = aqx.Task('mine', print, print, print)"


@pytest.mark.parametrize(
    "source",
    [
        USUAL,
        "from aqx import Task\ntask = Task(name='mine', build_model=print, batch=print, loss=print, seed=7)",
        "from aqx.tasks import Task\ntask: Task = Task('mine', print, print, print, objective='r2')",
        "import aqx\nother = task = aqx.Task('mine', print, print, print, None, None, direction='minimize')",
        "import aqx as a\nimport aqx\nimport aqx.losses\ndef make():\n    return aqx.Task('x', 1, 2, 3)\n"
        + USUAL.partition("\n")[2],
    ],
)
def test_the_text_says_what_the_file_makes(source: str, tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(source)
    assert identity_in_source(f"{path}:task") == load_task(f"{path}:task").identity()


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_tasks_can_be_read(name: str):
    path = PACKAGE.parent / (BUILT_IN[name].replace(".", "/") + ".py")
    assert tasks_in_source(str(path)) == ["task"]
    assert identity_in_source(f"{path}:task") == load_task(name).identity()


@pytest.mark.parametrize(
    "source",
    [
        "import aqx\nNAME = 'mine'\ntask = aqx.Task(NAME, print, print, print)",
        "import aqx\ntask = aqx.Task('mine', print, print, print, seed=1 + 1)",
        "import aqx\ntask = aqx.Task('mine', print, print, print, seed=True)",
        "import aqx\ntask = aqx.Task('mine', **settings)",
        "import aqx\ntask = aqx.Task(*settings)",
        "import aqx\ntask = aqx.Task('mine', 1, 2, 3, 4, 5, 'r2')",
        "import aqx\ntask = aqx.Task()",
        USUAL + "\ntask = make()",
        USUAL + "\nif fast:\n    task = make()",
        USUAL + "\nfor task in tasks: pass",
        USUAL + "\nfrom elsewhere import *",
        USUAL + "\ndef task(): pass",
        "from elsewhere import aqx\ntask = aqx.Task('mine', print, print, print)",
        "import elsewhere as aqx\ntask = aqx.Task('mine', print, print, print)",
        "from elsewhere import Task\ntask = Task('mine', print, print, print)",
        "from aqx import Study as Task\ntask = Task('mine', print, print, print)",
        "from .aqx import Task\ntask = Task('mine', print, print, print)",
        "from aqx import Task\nclass Task(Task): pass\ntask = Task('mine', print, print, print)",
        "import aqx\ndef task():\n    return aqx.Task('mine', print, print, print)",
        "import aqx\ntask = make(aqx.Task('mine', print, print, print))",
        "import aqx\nif True:\n    task = aqx.Task('mine', print, print, print)",
        "def (",
        "",
    ],
)
def test_what_only_running_the_file_can_tell(source: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text(source)
    assert identity_in_source(f"{tmp_path / 'mine.py'}:task") is None


@pytest.mark.parametrize("reference", ["", "toy", "toy:task", ":task", "nowhere.py:task", "nowhere.py", ".:task"])
def test_what_is_no_file(reference: str):
    assert identity_in_source(reference) is None
    assert tasks_in_source(reference) == []
