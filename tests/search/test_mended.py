"""What somebody has mended works by the same call: a training that raised, a script, an operator of another meaning."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import pytest
import toy

import aqx
from aqx import Study
from aqx.doctor import diagnose
from aqx.errors import StoreError, TaskError
from aqx.spectra import compute_spectra
from aqx.training.processes import WorkerPool

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return toy.candidates(tmp_path / "found.duckdb", ["unary(x)"], ["relu", "tanh", "sin", "abs"])


def test_baselines_that_all_failed_are_tried_again_by_the_next_call(path: Path, caplog: pytest.LogCaptureFixture):
    trained: list[str] = []

    def broken(act, seed):
        trained.append(act.name)
        raise NameError("name 'optimiser' is not defined")

    for _ in range(2):  # each of them is tried once by each call, and nothing else
        with pytest.raises(TaskError, match=r"every baseline of task 'toy' failed; .*; the same call tries them again"):
            Study(path, toy.make_task(train=broken)).search(budget=2, spectra=0)
    assert trained == ["relu(x)", "tanh(x)"] * 2
    assert sum("failed before; they are tried again" in message for message in caplog.messages) == 1
    records = Study(path, toy.task).search(budget=2, spectra=0)
    assert [(record.name, record.status) for record in records[:2]] == [("relu(x)", "done"), ("tanh(x)", "done")]
    assert len(records) == 4 and len(Study(path, toy.task).search(budget=2, spectra=0)) == 0


def test_an_operator_of_another_meaning_is_refused_everywhere(tmp_path: Path):
    path = tmp_path / "found.duckdb"
    aqx.register("wave", lambda x: jnp.sin(3 * x), "unary")
    toy.candidates(path, ["unary(x)"], ["relu", "tanh", "wave"])
    study = Study(path, toy.task)
    study.add("relu(x)", val_acc=0.5)
    aqx.register("wave", lambda x: jnp.cos(3 * x), "unary")
    for call in (
        lambda: Study(path, toy.task),
        study.ask,
        lambda: study.search(budget=1),
        lambda: study.confirm(top=1, seeds=2),
        lambda: compute_spectra(path, toy.task),
        lambda: toy.candidates(path, ["unary(x)"], ["wave"]),
    ):
        with pytest.raises(StoreError, match="was filled with another operator 'wave' than the one registered now"):
            call()
    assert any("another operator 'wave'" in problem for problem in diagnose(path).problems)
    assert [record.name for record in study.records()] == ["relu(x)"]


def test_a_worker_that_imports_the_script_starts_no_workers(monkeypatch: pytest.MonkeyPatch, path: Path):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(TaskError, match='if __name__ == "__main__":'):
        WorkerPool(2)
    study = Study(path, toy.task)
    with pytest.raises(TaskError, match='if __name__ == "__main__":'):
        study.search(budget=1, spectra=0, workers=2)
    assert not study.records()


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so_and_nothing_is_burned(path: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(toy.__file__).parent)!r})
        import aqx, toy
        aqx.Study({str(path)!r}, toy.task).search(budget=1, spectra=0, workers=2)
        """)
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 1 and 'if __name__ == "__main__":' in ran.stderr.strip().splitlines()[-1], ran.stderr
    study = Study(path, toy.task)
    assert {record.status for record in study.records()} <= {"queued"}
    assert len(study.search(budget=1, spectra=0)) == 3
