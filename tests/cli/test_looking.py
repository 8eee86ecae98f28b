"""Who only looks, and who fails, changes nothing; which task is meant where none is named; tasks that go."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_helpers import aqx_command, check_error
from toy import candidates, make_task

import aqx
from aqx.cli.options import task_of
from aqx.spectra import compute_spectra
from aqx.store import Database, list_tasks
from aqx.store.health import check_file
from aqx.store.tasks import find_task, register_task, remove_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")

BROKEN = """
import aqx

def train(act, seed):
    return {"val_acc": 0.5}

def build_model(act):
    raise RuntimeError("no model")

task = aqx.Task("broken", build_model, batch=lambda: None, loss=aqx.losses.mean_squared_error, train=train)
"""


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A database with candidates, in which one task has a result."""
    path = candidates(tmp_path / "found.duckdb", ["unary(x)"], ["tanh", "erf", "sigmoid", "square"])
    aqx.Study(path, make_task()).add("tanh(x)", val_acc=0.6)
    return path


def tasks_in(path: Path) -> list[str]:
    return [row.name for row in list_tasks(Database(path))]


LOOKING = {
    "top": ["top", "DB", "--task", "sine"],
    "trials": ["trials", "DB", "--task", "sine"],
    "suggest": ["suggest", "DB", "--task", "sine"],
    "retry": ["retry", "DB", "--task", "sine"],
    "reset": ["reset", "DB", "--task", "sine", "--yes"],
    "reset of spectra": ["reset", "DB", "--task", "sine", "--spectra"],
}
FAILING = {
    "nothing to confirm": ["confirm", "DB", "--task", "sine"],
    "no such trial": ["retry", "DB", "--task", "sine", "--trial", "99"],
    "no such claim": ["tell", "DB", "--task", "sine", "--trial", "99", "test_error=1"],
    "not the objective": ["tell", "DB", "--task", "sine", "relu(x)", "accuracy=1"],
    "no function": ["tell", "DB", "--task", "sine", "nope(x)", "val_error=1"],
    "too large a seed": ["tell", "DB", "--task", "sine", "relu(x)", "val_error=1", "--seed", str(2**63)],
    "no file": ["import", "DB", "missing.csv", "--task", "sine"],
    "a broken model's spectra": ["eigs", "DB", "--task", "broken.py:task"],
    "no such name": ["eigs", "DB", "--task", "sine", "--names", "nope(x)"],
}


@pytest.mark.parametrize("words", LOOKING.values(), ids=LOOKING)
def test_looking_stores_no_task(filled: Path, words: list[str]):
    result = aqx_command(*(str(filled) if word == "DB" else word for word in words))
    assert result.exit_code == 0, result.output
    assert tasks_in(filled) == ["toy"]


@pytest.mark.parametrize("words", FAILING.values(), ids=FAILING)
def test_a_command_that_fails_stores_no_task(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text(BROKEN)
    result = aqx_command(*(str(filled) if word == "DB" else word for word in words))
    assert result.exit_code == 2, result.output
    assert tasks_in(filled) == ["toy"]


def test_the_first_claim_or_result_stores_the_task(filled: Path):
    task = make_task(name="other")
    study = aqx.Study(filled, task, enter=False)
    assert (study.best(), study.top(), study.records(), len(study.suggest(2))) == (None, [], [], 2)
    assert tasks_in(filled) == ["toy"]
    trial = study.ask()
    assert tasks_in(filled) == ["toy", "other"]
    study.tell(trial, val_acc=0.5)
    assert study.best().name == "relu(x)"
    third = aqx.Study(filled, make_task(name="third"), enter=False)
    third.add("erf(x)", val_acc=0.5)
    assert tasks_in(filled)[-1] == "third" and third.best().name == "erf(x)"


def test_what_another_process_stores_meanwhile_is_seen(filled: Path):
    looking = aqx.Study(filled, make_task(name="other"), enter=False)
    assert looking.records() == []
    aqx.Study(filled, make_task(name="other")).add("erf(x)", val_acc=0.5)
    assert [record.name for record in looking.records()] == ["erf(x)"]


def test_without_a_name_it_is_the_only_task_with_trials(filled: Path, tmp_path: Path):
    for command in (["top"], ["trials"], ["tell", "relu(x)", "val_acc=0.5"], ["retry"]):
        assert aqx_command(command[0], filled, *command[1:]).exit_code == 0
    register_task(Database(filled), "empty", make_task(name="empty").identity())
    assert "tanh(x)" in aqx_command("top", filled).stdout
    assert aqx_command("report", filled, "-o", tmp_path / "report.html").exit_code == 0
    assert aqx_command("plot", filled, "timeline", "-o", tmp_path / "a.svg").exit_code == 2  # there is none to draw
    aqx.Study(filled, make_task(name="second")).add("tanh(x)", val_acc=0.6)
    check_error(aqx_command("top", filled), "which task? ", "toy, empty, second", "--task")
    assert "tanh(x)" in aqx_command("top", filled, "--task", "second").stdout


def test_an_empty_database_has_no_task_to_take(tmp_path: Path):
    path = candidates(tmp_path / "new.duckdb", ["unary(x)"], ["tanh"])
    for command in ("top", "trials", "suggest"):
        check_error(aqx_command(command, path), "which task?", "none yet", "--task")


def test_tasks_are_listed_and_removed(filled: Path):
    register_task(Database(filled), "tried", make_task(name="tried").identity())
    listed = aqx_command("task", "list", filled).stdout
    assert "toy" in listed and "tried" in listed
    check_error(aqx_command("task", "remove", filled, "--task", "tried"), "--yes")
    check_error(aqx_command("task", "remove", filled, "nope", "--yes"), "'nope' is not in", "toy, tried")
    check_error(aqx_command("task", "remove", filled, "--yes"), "NAME")
    assert aqx_command("task", "remove", filled, "tried", "--yes").exit_code == 0
    check_error(aqx_command("task", "remove", filled, "--task", "toy", "--yes"), "1 results", "--results")
    assert tasks_in(filled) == ["toy"]
    result = aqx_command("task", "remove", filled, "--task", "toy", "--yes", "--results")
    assert "with 1 trials" in result.stdout
    assert tasks_in(filled) == [] and check_file(filled).problems == []


def test_a_task_goes_with_all_that_is_stored_of_it(filled: Path):
    db = Database(filled)
    study = aqx.Study(db, make_task(name="described"), seed=3)
    compute_spectra(db, study.task)
    study.search(3, spectra=0)
    aqx.Study(db, make_task()).suggest(1)
    kept = find_task(db, "toy")
    counts = remove_task(db, "described", with_results=True)
    assert counts["spectra"] > 0 and counts["trials"] == 5
    with db.read() as con:
        tables = con.execute(
            "SELECT table_name FROM duckdb_columns() WHERE database_name = 'aqx' AND column_name = 'task_id'"
        ).fetchall()
        left = {table: con.execute(f"SELECT DISTINCT task_id FROM {table}").fetchall() for (table,) in tables}
    assert len(left) >= 7 and all({task for (task,) in ids} <= {kept.task_id} for ids in left.values()), left
    assert check_file(filled).problems == []
    # Its number is not given to another task, and who holds it still cannot write under it.
    assert register_task(db, "new", make_task(name="new").identity()) > study.ledger.task.task_id
    with pytest.raises(aqx.errors.StoreError, match="removed"):
        study.ask()
    with pytest.raises(aqx.errors.StoreError, match="removed"):
        study.add("erf(x)", val_acc=0.1)


def test_a_task_with_running_trials_stays(filled: Path):
    aqx.Study(filled, make_task()).ask()
    check_error(aqx_command("task", "remove", filled, "toy", "--yes", "--results"), "1 running")
    assert tasks_in(filled) == ["toy"]


def test_a_stored_name_finds_the_code_where_it_was(tmp_path: Path):
    path = candidates(
        tmp_path / "found.duckdb", ["unary(x)"], ["tanh", "erf", "sigmoid", "square", "cosh", "arctan", "swish"]
    )
    file = tmp_path / "mine.py"
    file.write_text("from toy import make_task\ntask = make_task(name='mine', baselines=('erf(x)', 'tanh(x)'))\n")
    assert aqx_command("search", path, "--task", f"{file}:task", "--budget", "1", "--spectra", "0").exit_code == 0
    assert aqx_command("search", path, "--budget", "2", "--task", "mine", "--spectra", "0").exit_code == 0
    assert len(aqx.search.load_results(path, "mine").trials) == 4
    # Where it has gone, all that needs no code goes on.
    file.unlink()
    assert aqx_command("claim", path).stdout.split()[0] != "relu(x)"
    assert aqx_command("suggest", path, "-n", "1").exit_code == 0
    assert aqx_command("tell", path, "square(x)", "val_acc=0.3").exit_code == 0
    check_error(aqx_command("search", path, "--budget", "9"), "the code of task 'mine' is not here", str(file))
    check_error(aqx_command("eigs", path), "the code of task 'mine' is not here", "--task FILE.py:NAME")


@pytest.mark.parametrize("reference", ["text", "sine+layer"])
def test_the_code_of_a_built_in_task_is_found_by_the_name_that_the_database_has(filled: Path, reference: str):
    study = aqx.Study(filled, reference)
    name = study.task.name
    found = task_of(filled, name)
    assert (found.name, found.learnable) == (name, study.task.learnable) and found.train is not None
    assert task_of(filled, name, "left").identity() == found.identity()


def test_the_baselines_of_a_task_without_its_code_are_those_it_had(tmp_path: Path):
    path = candidates(tmp_path / "found.duckdb", ["unary(x)"], ["tanh", "erf"])
    study = aqx.Study(path, make_task(name="notebook", baselines=("erf(x)", "tanh(x)")))
    study.tell(study.ask(), val_acc=0.1)
    assert aqx_command("claim", path, "--task", "notebook").stdout.split()[0] == "tanh(x)"
