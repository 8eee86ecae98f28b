"""Trainings elsewhere: executors whose workers die, clusters, preempted jobs, other frameworks' scripts."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import toy
from training_helpers import deadly_task, trained

from aqx.errors import InputError, TaskError
from aqx.search import RetryPolicy, Study
from aqx.training.processes import WorkerPool, run_each

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["sin", "tanh", "relu", "square", "identity", "negative", "add", "mul", "sub"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(toy.__file__).parent), str(Path.cwd())]))
    return toy.candidates(tmp_path / "toy.duckdb", ["unary(x)", "binary(unary(x),unary(x))"], OPERATORS)


def statuses(study: Study) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in study.records():
        found.setdefault(record.name, []).append(record.status)
    return found


def test_a_worker_that_dies_costs_its_own_training_which_is_tried_once_more(path: Path, tmp_path: Path):
    study = Study(path, deadly_task(tmp_path, once=("tanh(x)",), baselines=("relu(x)", "tanh(x)", "sin(x)")))
    study.search(budget=3, spectra=0, workers=2)
    found = statuses(study)
    assert found.pop("tanh(x)") == ["stale", "done"]
    assert len(found) == 5 and set(map(tuple, found.values())) == {("done",)}
    assert Counter(trained(tmp_path)) == dict.fromkeys(found, 1) | {"tanh(x)": 2}
    assert "BrokenProcessPool" in str(study.records()[1].reason)


def test_a_function_that_kills_its_worker_twice_is_given_up_and_the_search_learns(path: Path, tmp_path: Path):
    study = Study(path, deadly_task(tmp_path, always=("tanh(x)",), baselines=("relu(x)", "tanh(x)")))
    study.search(budget=3, spectra=0, workers=2)
    assert statuses(study)["tanh(x)"] == ["stale", "stale"]
    assert len(statuses(study)) == 5 and trained(tmp_path).count("tanh(x)") == 2
    (queued,) = study.retry()
    assert (queued.name, queued.status) == ("tanh(x)", "queued")
    study.search(budget=3, spectra=0, workers=2)
    assert trained(tmp_path).count("tanh(x)") == 4, "asked for once more, it is lost twice again"


@pytest.mark.slow
def test_without_retries_a_lost_training_is_given_up_at_once(path: Path, tmp_path: Path):
    task = deadly_task(tmp_path, always=("tanh(x)",), baselines=("relu(x)", "tanh(x)"))
    Study(path, task, retry=RetryPolicy(lost=0)).search(budget=1, spectra=0, workers=2)
    assert trained(tmp_path).count("tanh(x)") == 1


def test_failures_are_retried_where_the_policy_says_so(path: Path):
    attempts: list[str] = []

    def train(act, seed):
        attempts.append(act.name)
        if len(attempts) == 1:
            raise RuntimeError("out of memory")
        return {"val_acc": 0.5}

    study = Study(path, toy.make_task(name="flaky", train=train, baselines=("relu(x)",)), retry=RetryPolicy(failed=1))
    study.search(budget=0, spectra=0)
    assert statuses(study) == {"relu(x)": ["failed", "done"]} and attempts == ["relu(x)"] * 2
    with pytest.raises(InputError, match="failed=-1 is not a number of retries"):
        RetryPolicy(failed=-1)


@pytest.mark.slow
def test_confirmations_that_are_lost_are_tried_once_more(path: Path, tmp_path: Path):
    task = deadly_task(tmp_path, always=("sin(x)",), baselines=("relu(x)", "sin(x)"))
    study = Study(path, task)
    for name in ("tanh(x)", "relu(x)"):
        study.add(name, val_acc=float(len(name)))
    result = study.confirm(top=1, seeds=2, workers=2)
    assert {row.name: (row.seeds, row.failed) for row in result.rows} == {
        "tanh(x)": (2, 0),
        "relu(x)": (2, 0),
        "sin(x)": (0, 2),
    }
    assert trained(tmp_path).count("sin(x)") == 4


@pytest.mark.slow
def test_when_every_worker_dies_the_search_says_so(path: Path, tmp_path: Path):
    names = tuple(f"{name}(x)" for name in OPERATORS[:6])
    study = Study(path, deadly_task(tmp_path, always=names, baselines=names))
    with pytest.raises(TaskError, match="10 trainings in a row were lost, the last by BrokenProcessPool"):
        study.search(budget=3, spectra=0, workers=2)
    assert not any(record.status == "running" for record in study.records())


def test_a_broken_executor_is_named_and_a_new_one_goes_on(path: Path, tmp_path: Path):
    study = Study(path, deadly_task(tmp_path, once=("tanh(x)",), baselines=("relu(x)", "tanh(x)", "sin(x)")))
    with pytest.raises(TaskError, match="the executor takes no more work"):
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
            study.search(budget=3, spectra=0, executor=executor)
    assert not any(record.status == "running" for record in study.records())
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        study.search(budget=3, spectra=0, executor=executor)
    assert len(statuses(study)) == 6 and all(found[-1] == "done" for found in statuses(study).values())


def test_a_task_that_changed_on_its_way_ends_the_search(path: Path, tmp_path: Path):
    task = deadly_task(tmp_path)
    study = Study(path, task)
    (tmp_path / "deadly.py").write_text("# another file now\n")
    with pytest.raises(TaskError, match="has changed since this work was started"):
        study.search(budget=1, spectra=0, workers=2)
    assert [record.status for record in study.records()] == ["queued"] * len(study.records())


class Elsewhere(Executor):
    """Does the work in this process, through pickle; what `answer` makes of a result comes back."""

    def __init__(self, answer):
        self.answer = answer

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        try:
            fn, args = pickle.loads(pickle.dumps((fn, args)))
            future.set_result(self.answer(fn(*args)))
        except Exception as error:
            future.set_exception(error)
        return future


def test_a_result_that_was_told_meanwhile_stays(path: Path, caplog: pytest.LogCaptureFixture):
    study = Study(path, toy.make_task(name="told", baselines=("relu(x)",)))

    def tell_first(outcome):
        study.tell(1, val_acc=0.25)
        return outcome

    toy.told = study.task  # type: ignore[attr-defined]
    try:
        study.search(budget=0, spectra=0, executor=Elsewhere(tell_first))
    finally:
        del toy.told  # type: ignore[attr-defined]
    assert study.records()[0].objective == 0.25 and "done already" in caplog.text


def test_a_task_that_does_not_pickle_may_run_where_none_is_needed_and_is_named_elsewhere(path: Path):
    class Here(Executor):
        def submit(self, fn, /, *args, **kwargs):
            future: Future = Future()
            future.set_result(fn(*args, **kwargs))
            return future

    study = Study(path, toy.make_task(name="local", train=lambda act, seed: {"val_acc": 0.5}, baselines=("relu(x)",)))
    study.search(budget=1, spectra=0, executor=Here())
    assert len(study.records()) == 2
    with pytest.raises(TaskError, match="cannot be sent to another process"):
        study.search(budget=2, spectra=0, workers=2)
    assert study.records()[-1].status == "queued"


def test_the_record_says_where_and_with_what(path: Path):
    study = Study(path, toy.task)
    study.search(budget=1, spectra=0, executor=Elsewhere(lambda outcome: outcome))
    with study.trial() as trial:
        trial.report(val_acc=0.1)
    for record in study.records():
        assert {"aqx", "jax", "flax", "numpy", "python", "host", "device"} <= set(record.environment)
        assert record.seconds > 0 and record.worker and record.finished_at >= record.started_at


DASK = """
import sys
from distributed import Client, LocalCluster
from aqx.search import Study

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            Study(sys.argv[1], sys.argv[2]).search(budget=4, spectra=0, executor=client.get_executor(), workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("retries", [3, 0])
def test_a_dask_cluster_that_loses_a_worker(path: Path, tmp_path: Path, retries: int):
    """With retries of its own Dask runs the task again; without, its error is what aqx sees, and retries."""
    pytest.importorskip("distributed")
    deadly_task(tmp_path, once=("tanh(x)",), baselines=("relu(x)", "tanh(x)"))
    script = tmp_path / "cluster.py"
    script.write_text(DASK)
    done = subprocess.run(
        [sys.executable, script, path, f"{tmp_path}/deadly.py:task"],
        env=os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(retries), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    study = Study(path, f"{tmp_path}/deadly.py:task")
    found = statuses(study)
    assert found.pop("tanh(x)") == (["done"] if retries else ["stale", "done"])
    assert len(found) == 5 and set(map(tuple, found.values())) == {("done",)}
    assert trained(tmp_path).count("tanh(x)") == 2
    pids = {line.split()[0] for line in (tmp_path / "trained.log").read_text().splitlines()}
    assert len(pids) >= 2


PREEMPTED = """
import sys, time, toy
from aqx.search import Study
study = Study(sys.argv[1], toy.task)
with study.trial() as trial:
    print(trial.name, flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_preempted_job_gives_its_claim_back_at_once(path: Path, number: int):
    command = [sys.executable, "-c", PREEMPTED, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as job:
        assert job.stdout and job.stdout.readline().strip() == b"relu(x)"
        job.send_signal(number)
        assert job.wait(30) == (143 if number == signal.SIGTERM else -signal.SIGINT)
    study = Study(path, toy.task)
    assert [record.status for record in study.records()] == ["queued"]
    assert study.ask().id == 1


def test_a_handler_of_the_users_own_stays(path: Path):
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with Study(path, toy.task).trial() as trial:
            os.kill(os.getpid(), signal.SIGTERM)
            trial.report(val_acc=0.5)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM] and Study(path, toy.task).best().objective == 0.5


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


@pytest.mark.slow
def test_the_pool_replaces_what_dies():
    ended = {number: future for (number,), future in run_each(2, die, [(number,) for number in range(7)])}
    assert {number: future.result() for number, future in ended.items() if number != 3} == {
        number: number * number for number in range(7) if number != 3
    }
    assert ended[3].exception() is not None
    with WorkerPool(1) as pool:
        assert pool.submit(die, 3).exception() is not None and pool.submit(die, 2).result() == 4
        idle = pool.submit(os.getpid).result()
        os.kill(idle, signal.SIGKILL)
        time.sleep(0.5)
        assert pool.submit(die, 2).result() == 4


class Submitit(ThreadPoolExecutor):
    """As in the README: each thread waits for one job of the scheduler."""

    def __init__(self, jobs: Executor, workers: int):
        super().__init__(workers)
        self.jobs = jobs

    def submit(self, fn, /, *args, **kwargs):
        return super().submit(lambda: self.jobs.submit(fn, *args, **kwargs).result())


@pytest.mark.slow
def test_jobs_of_a_scheduler_one_of_which_dies(path: Path, tmp_path: Path):
    submitit = pytest.importorskip("submitit")
    study = Study(path, deadly_task(tmp_path, once=("tanh(x)",), baselines=("relu(x)", "tanh(x)")))
    jobs = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    with Submitit(jobs, 2) as executor:
        study.search(budget=2, spectra=0, executor=executor)
    found = statuses(study)
    assert found.pop("tanh(x)") == ["stale", "done"]
    assert len(found) == 3 and set(map(tuple, found.values())) == {("done",)}
