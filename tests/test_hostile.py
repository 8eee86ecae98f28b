"""What lies in a database is data: nothing of it is executed, and what is damaged is named and left as it was."""

from __future__ import annotations

import ast
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

import aqx
from aqx.errors import AqxError, InputError, StoreError
from aqx.search import Study
from aqx.store import Database, list_trials

PACKAGE = Path(aqx.__file__).parent


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    operators = ["sin", "tanh", "relu", "square", "add", "mul"]
    return toy.candidates(tmp_path / "toy.duckdb", ["binary(unary(x),unary(x))"], operators)


def test_a_stored_embedding_is_never_unpickled(path: Path, tmp_path: Path):
    Study(path, toy.task).suggest()
    archive = io.BytesIO()
    np.savez(archive, odd=np.array([Bomb(tmp_path / "exploded")], dtype=object))
    for content in (archive.getvalue(), pickle.dumps(Bomb(tmp_path / "exploded")), b"PK\x03\x04 torn", b"\0"):
        with Database(path).transaction() as con:
            con.execute("UPDATE embeddings SET loadings = ?", [content])
        with pytest.raises(StoreError, match="an embedding that is not aqx's own"):
            Study(path, toy.task).suggest()
    assert not (tmp_path / "exploded").exists()


def test_names_in_a_database_are_parsed_and_never_evaluated(path: Path, tmp_path: Path):
    with Database(path).transaction() as con:
        con.execute("UPDATE class_info SET name = ?", [f"__import__('os').system('touch {tmp_path}/exploded')"])
    study = Study(path, toy.make_task(name="named", baselines=()))
    trial = study.ask()
    with pytest.raises(InputError):
        _ = trial.activation
    assert not (tmp_path / "exploded").exists()


def test_only_these_modules_unpickle_or_execute():
    """A task file is the user's own code, and workers are sent their work by the process that started them."""
    allowed = {("training", "run.py", "pickle.loads"), ("tasks", "task_file.py", "exec")}
    found = set()
    for source in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("eval", "exec", "pickle.load", "pickle.loads", "os.system", "joblib.load"):
                    found.add((source.parent.name, source.name, called))
                assert not any(
                    k.arg in ("allow_pickle", "shell") and ast.unparse(k.value) == "True" for k in node.keywords
                )
    assert found == allowed


NASTY = [
    "it's",
    "'; DROP TABLE trials; --",
    'a "b" {c}',
    "ünï→💡",
    "nul\0byte",
    "k" * 1_000_000,
    "val_acc ",
    "trial",
    "self",
]


@pytest.mark.parametrize("key", NASTY, ids=lambda key: key[:12])
def test_any_metric_of_any_name_is_kept(path: Path, key: str):
    study = Study(path, toy.make_task(name="keys", baselines=()), surrogate="random")
    for value in ("text", [1.5, float("nan")], float("inf"), np.float32(2), None, True, "x" * 1_000_000):
        with study.trial() as trial:
            trial.metrics[key] = value
            trial.report(val_acc=0.5)
        kept = study.records()[-1].metrics[key]
        assert kept == value or np.isnan(kept[1])
    assert len(study.records()) == 7


def test_metrics_that_cannot_be_kept_fail_the_trial_and_no_other(path: Path):
    study = Study(path, toy.make_task(name="objects", baselines=()), surrogate="random")
    for value in (object(), {"nested": 1}, {1, 2}, b"bytes", 1j):
        with (
            pytest.raises(InputError, match="must be a number, string, boolean, None or a list"),
            study.trial() as trial,
        ):
            trial.report(val_acc=0.5, note=value)
    with pytest.raises(ZeroDivisionError), study.trial() as trial:
        trial.report(note=object())
        1 / 0  # noqa: B018
    assert study.records()[-1].reason == "ZeroDivisionError: division by zero"
    for value in ("high", [0.5], None):
        with pytest.raises(InputError, match="is not a number"), study.trial() as trial:
            trial.report(val_acc=value)
    assert [record.status for record in study.records()] == ["failed"] * 9


CRASH = """
import os, sys
from aqx.store import Database, claim, finish
db = Database(sys.argv[1])
claim(db, 1, class_id=None, name="f(x)", seed=0, lease_seconds=60)
with db.transaction() as con:
    con.execute("UPDATE trials SET status = 'done', objective = 0.5")
    con.execute("COMMIT")
    os._exit(9)  # what was committed lies in the write-ahead log alone
"""


def test_what_a_crash_left_in_the_write_ahead_log_is_there(path: Path):
    assert subprocess.run([sys.executable, "-c", CRASH, path]).returncode == 9
    assert path.with_name(path.name + ".wal").exists()
    assert [row.objective for row in list_trials(Database(path), 1)] == [0.5]


@pytest.mark.parametrize("log", [b"", b"\0" * 100, b"not a log"], ids=["empty", "zeros", "text"])
def test_a_foreign_write_ahead_log_costs_no_result(path: Path, log: bytes):
    study = Study(path, toy.task)
    study.tell(study.ask(), val_acc=0.5)
    before = path.read_bytes()
    wal = path.with_name(path.name + ".wal")
    wal.write_bytes(log)
    try:
        records = Study(path, toy.task).records()
    except AqxError as error:
        assert str(path) in str(error) and path.read_bytes() == before
        wal.unlink()
        records = Study(path, toy.task).records()
    assert [record.objective for record in records] == [0.5]


@pytest.mark.parametrize("name", ["null\0byte", "half\ud800", "long" * 2000], ids=lambda name: name[:5])
def test_what_no_file_can_be_called_is_named(name: str, tmp_path: Path):
    with pytest.raises(StoreError) as error:
        Database(str(tmp_path / name), create=True)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
