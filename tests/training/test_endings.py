"""Whatever a training raises is its own failure; only Ctrl-C and SIGTERM end more than that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import toy

from aqx.benchmark.build import build_table
from aqx.benchmark.table import load_table
from aqx.errors import TaskError, one_line, traceback_of
from aqx.search import Study
from aqx.space import Space
from aqx.stopping import Terminated, is_stop, stoppable
from aqx.tasks import check_task, load_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["sin", "tanh", "relu", "square", "identity", "negative", "add", "mul", "sub"]

SOURCE = """
import sys
import toy
from aqx.tasks import Task, losses


class Own(BaseException):
    pass


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class Leaves(Exception):
    def __str__(self):
        sys.exit(0)


RAISED = {
    "relu(x)": lambda: SystemExit(0),
    "tanh(x)": lambda: SystemExit("enough"),
    "sin(x)": lambda: Own("mine"),
    "square(x)": lambda: GeneratorExit(),
    "negative(x)": lambda: Mute(),
    "identity(x)": lambda: Leaves(),
}


def train(act, seed):
    if act.name in RAISED:
        raise RAISED[act.name]()
    return {"val_acc": 0.5}


def train_many(acts, seeds):
    sys.exit(0)


BASELINES = (*RAISED, "mul(tanh(x),sin(x))")
task = Task("exits", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, baselines=BASELINES)
many = Task(
    "many", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, train_many=train_many, baselines=BASELINES
)
"""

REASONS = {
    "relu(x)": "SystemExit: 0",
    "tanh(x)": "SystemExit: enough",
    "sin(x)": "Own: mine",
    "square(x)": "GeneratorExit",
    "negative(x)": "Mute, whose message cannot be had (RuntimeError)",
    "identity(x)": "Leaves, whose message cannot be had (SystemExit)",
    "mul(tanh(x),sin(x))": None,
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(toy.__file__).parent), str(Path.cwd())]))
    (tmp_path / "exits.py").write_text(SOURCE)
    return toy.candidates(tmp_path / "toy.duckdb", ["unary(x)", "binary(unary(x),unary(x))"], OPERATORS)


def reasons(study: Study) -> dict[str, str | None]:
    return {record.name: record.reason for record in study.records() if record.name in REASONS}


@pytest.mark.parametrize("name", ["task", "many"])
def test_what_a_training_raises_is_its_reason_and_the_search_goes_on(path: Path, name: str):
    study = Study(path, f"{path.parent}/exits.py:{name}")
    study.search(budget=1, spectra=0, together=4 if name == "many" else 1)
    assert reasons(study) == REASONS
    assert [record.status for record in study.records("search")] == ["done"]
    assert all("Traceback" in str(r.metrics["traceback"]) for r in study.records(status="failed"))


def test_also_in_threads_and_in_worker_processes(path: Path):
    for number, where in enumerate([{"executor": ThreadPoolExecutor(2)}, {"workers": 2}]):
        database = toy.candidates(path.with_name(f"{number}.duckdb"), ["unary(x)"], OPERATORS)
        study = Study(database, f"{path.parent}/exits.py:task")
        study.search(budget=0, spectra=0, **where)
        assert reasons(study) == REASONS


def test_also_in_a_block(path: Path):
    study = Study(path, toy.make_task(name="block"))
    for error in (SystemExit(0), GeneratorExit(), BaseException("mine")):
        with pytest.raises(type(error)), study.trial():
            raise error
    assert [(r.status, r.reason) for r in study.records()] == [
        ("failed", "SystemExit: 0"),
        ("failed", "GeneratorExit"),
        ("failed", "BaseException: mine"),
    ]


def test_also_in_a_confirmation_and_in_a_table(path: Path):
    task = load_task(f"{path.parent}/exits.py:task")
    study = Study(path, task)
    study.add("add(sin(x),tanh(x))", val_acc=0.9)
    rows = {row.name: row for row in study.confirm(top=1, seeds=2).rows}
    assert {name: row.failed for name, row in rows.items()} == {
        name: 0 if reason is None else 2 for name, reason in {**REASONS, "add(sin(x),tanh(x))": None}.items()
    }
    build_table(task, Space(list(REASONS)), path.with_name("table.csv"), workers=1)
    table = load_table(path.with_name("table.csv"))
    assert dict(zip(table.names, table.reasons, strict=True)) == REASONS


def test_a_worker_that_is_lost_by_an_odd_exception_is_lost_alone(path: Path):
    """Dask's futures raise asyncio's CancelledError, which is no Exception."""

    class Cancelled(BaseException):
        pass

    class Cancelling(ThreadPoolExecutor):
        sent = 0

        def submit(self, fn, /, *args, **kwargs):
            self.sent += 1
            if self.sent > 1:
                return super().submit(fn, *args, **kwargs)
            future: Future = Future()
            future.set_exception(Cancelled("by the scheduler"))
            return future

    study = Study(path, toy.task)
    study.search(budget=0, spectra=0, executor=Cancelling(1))
    assert [(r.name, r.status) for r in study.records()] == [
        ("relu(x)", "stale"),
        ("relu(x)", "done"),
        ("tanh(x)", "done"),
    ]
    assert study.records()[0].reason == "lost with its worker (Cancelled: by the scheduler)"


def test_a_model_that_exits_has_no_spectra_and_is_searched_all_the_same(path: Path, caplog: pytest.LogCaptureFixture):
    def build_model(act):
        sys.exit(0)

    task = toy.make_task(name="model exits")
    object.__setattr__(task, "build_model", build_model)
    assert len(Study(path, task).search(budget=8)) == 10
    assert sum("goes on without" in message for message in caplog.messages) == 1
    with pytest.raises(TaskError, match="build_model raised SystemExit: 0"):
        check_task(task)


@pytest.mark.parametrize("where", ["import", "factory"])
def test_a_task_file_that_exits_is_named(tmp_path: Path, where: str):
    body = "raise GeneratorExit" if where == "import" else "def task():\n    raise GeneratorExit"
    (tmp_path / "gone.py").write_text(body)
    with pytest.raises(TaskError, match="gone.py raised GeneratorExit"):
        load_task(f"{tmp_path}/gone.py:task")


def test_a_command_never_ends_with_0_by_the_users_code(path: Path):
    code = "import sys\nfrom aqx.cli import main, options\noptions.check_filled = lambda db: sys.exit(0)\nmain()"
    code = code.replace("options.check", "import aqx.cli.searching as s\ns.check")
    words = ["search", path, "--task", "mnist1d", "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the task's code called sys.exit(0); let it raise an error, or return\n",
    )


def test_messages_that_cannot_be_had_or_have_no_end():
    class Mute(Exception):
        def __str__(self):
            raise GeneratorExit

    assert one_line(Mute()) == "Mute, whose message cannot be had (GeneratorExit)"
    assert "Mute" in traceback_of(Mute())
    assert len(one_line(ValueError("x" * 10**7))) == 1000
    with pytest.raises(KeyboardInterrupt):
        one_line(type("Interrupted", (Exception,), {"__str__": lambda self: signal.raise_signal(signal.SIGINT)})())


# --- what does stop


def test_signals_end_the_block_whatever_becomes_of_them():
    for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
        with pytest.raises(kind), stoppable():
            try:
                signal.raise_signal(number)
            except BaseException as error:
                assert is_stop(error) and is_stop(ValueError())
                raise RuntimeError("Query interrupted") from None  # as DuckDB does
        assert not is_stop(ValueError()) and not is_stop(SystemExit(0))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_own_decides_what_stops(path: Path):
    class Preempted(BaseException):
        pass

    def preempt(*_):
        raise Preempted

    before = signal.signal(signal.SIGUSR1, preempt)
    study = Study(path, toy.make_task(name="preempted"))
    try:
        with pytest.raises(Preempted), study.trial():
            signal.raise_signal(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is preempt
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [record.status for record in study.records()] == ["queued"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_swallows_the_signal_keeps_its_result_and_the_search_stops(path: Path, number: int):
    def train(act, seed):
        try:
            signal.raise_signal(number)
        except BaseException:
            return {"val_acc": 0.5}
        raise AssertionError("no signal came")

    study = Study(path, toy.make_task(name="swallows", train=train))
    with pytest.raises((KeyboardInterrupt, Terminated)):
        study.search(budget=3, spectra=0)
    assert [record.status for record in study.records()] == ["done"]
