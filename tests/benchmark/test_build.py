"""Tables are built by real processes, some of which are killed; what came out once is never trained again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy

from aqx.benchmark import build_table, load_table
from aqx.errors import InputError, TaskError
from aqx.population import unstack
from aqx.space import Space
from aqx.tasks import load_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SPACE = Space(["unary(x)", "unary(unary(x))"], ["sin", "relu", "exp", "square", "zero", "reciprocal"])


def train(act, seed: int) -> dict[str, float]:
    """Give numbers that depend on the function and the seed, without JAX; what has exp in it crashes."""
    if "exp(" in act.name:
        raise FloatingPointError("overflow in exp")
    return {"val_acc": 1 / len(act.name) + seed, "val_loss": float("inf") if act.name == "sin(x)" else 0.0}


def train_many(acts, seeds) -> dict[str, np.ndarray]:
    """Give the numbers of `train`; nan where that crashes."""
    found = [train_or_nan(unstack(acts, row), seed) for row, seed in enumerate(seeds.tolist())]
    return {name: np.array([metrics[name] for metrics in found]) for name in found[0]}


def train_or_nan(act, seed: int) -> dict[str, float]:
    return dict.fromkeys(("val_acc", "val_loss"), np.nan) if "exp(" in act.name else train(act, seed)


TOY = toy.make_task(train=train)
TOGETHER = toy.make_task(name="together", train=train_or_nan, train_many=train_many)


# exp raises, square kills its process; every training leaves a line in a log.
TASK = """
import os, time
import toy
from test_build import train as give
LOG = os.environ["TRAINED"]

def train(act, seed):
    with open(LOG, "a") as log:
        log.write(f"{act.name} {seed} {os.getpid()}\\n")
    time.sleep(float(os.environ.get("SLEEP", "0")))
    if act.name == "square(relu(x))":
        os._exit(7)
    return give(act, seed)

task = toy.make_task(name="logged", train=train)
"""
MANY = """

def train_many(acts, seeds):
    import numpy as np
    from aqx.population import unstack
    found = [train(unstack(acts, row), seed)["val_acc"] for row, seed in enumerate(seeds.tolist())]
    return {"val_acc": np.array(found)}

many = toy.make_task(name="logged", train=None, train_many=train_many)
"""


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINED", str(tmp_path / "trained.log"))
    path = tmp_path / "logged.py"
    path.write_text(TASK + MANY)
    return path


def trained(folder: Path) -> list[str]:
    return [line.rsplit(" ", 1)[0] for line in (folder / "trained.log").read_text().splitlines()]


def test_every_class_is_trained_once_and_a_failure_says_why(tmp_path: Path):
    out = tmp_path / "table.parquet"
    seen = []
    report = build_table(
        TOY, SPACE, out, seeds=2, workers=1, progress=lambda done, total, note: seen.append((done, total))
    )
    table = load_table(out)
    names = set(table.names)
    assert "sin(x)" in names and "sin(sin(x))" in names
    assert "zero(x)" not in names and "reciprocal(relu(x))" not in names  # constant, not finite
    assert len(table) == report.rows == report.trained == 2 * report.classes == 2 * len(names)
    assert seen[0] == (0, len(table)) and seen[-1] == (len(table), len(table))
    raised = np.array(["exp(" in name for name in table.names])
    assert {table.reasons[row] for row in np.flatnonzero(raised)} == {"FloatingPointError: overflow in exp"}
    assert {table.reasons[row] for row in np.flatnonzero(~raised)} == {None}
    rows = zip(table.names, table.seeds.tolist(), strict=True)
    expected = [np.nan if "exp(" in name else 1 / len(name) + seed for name, seed in rows]
    np.testing.assert_array_equal(table.metrics["val_acc"], expected)
    assert np.isfinite(expected).sum() > 10
    assert np.isinf(table.metrics["val_loss"]).sum() == 2
    assert table.task == "toy"
    assert not (tmp_path / "table.parquet.partial").exists()


def test_a_table_is_extended_and_nothing_is_trained_again(tmp_path: Path, task_file: Path):
    task, out = load_task(f"{task_file}:task"), tmp_path / "table.csv"
    space = Space(["unary(x)"], ["sin", "relu", "tanh"])
    build_table(task, space, out, workers=1)
    build_table(task, space, out, workers=1)
    build_table(task, Space(["unary(x)"], ["sin", "cos"]), out, seeds=2, workers=1)
    assert sorted(trained(tmp_path)) == sorted(
        ["sin(x) 0", "relu(x) 0", "tanh(x) 0", "sin(x) 1", "cos(x) 0", "cos(x) 1"]
    )
    assert len(load_table(out)) == 6
    before = out.read_bytes()
    with pytest.raises(InputError, match="holds results of task 'logged'; give another file"):
        build_table(TOY, space, out, workers=1)
    assert out.read_bytes() == before


@pytest.mark.slow
def test_a_training_that_kills_its_process_costs_itself_alone(tmp_path: Path, task_file: Path):
    out = tmp_path / "table.parquet"
    build_table(load_task(f"{task_file}:task"), SPACE, out, workers=2)
    table = load_table(out)
    reasons = dict(zip(table.names, table.reasons, strict=True))
    assert reasons.pop("square(relu(x))") == "the training's process died"
    assert {reason for name, reason in reasons.items() if "exp(" not in name} == {None}
    assert len(set(table.names)) == len(table)


@pytest.mark.parametrize("together", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_killed_it_goes_on_from_there_and_leaves_no_process(tmp_path: Path, task_file: Path, together: int):
    out = tmp_path / "table.parquet"
    partial = tmp_path / "table.parquet.partial"
    task = f"{task_file}:{'task' if together == 1 else 'many'}"
    call = [sys.executable, "-m", "aqx", "bench", "build", "--task", task, "--out", str(out)]
    call += ["--schema", "binary(x,unary(x))", "--operators", "extended", "--sample", "40", "--quiet"]
    call += ["--workers", "2"] if together == 1 else ["--together", "5"]
    environment = {
        **os.environ,
        "SLEEP": "0.2",
        "PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path]),
    }
    process = subprocess.Popen(call, env=environment)
    while not partial.exists() or partial.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = {int(line.rsplit(" ", 1)[1]) for line in (tmp_path / "trained.log").read_text().splitlines()}
    for worker in workers:
        wait_until_gone(worker)
    with open(partial, "a") as file:
        file.write('{"task": "logged", "na')  # as if killed while writing
    kept = {json.loads(line)["name"] for line in partial.read_text().splitlines()[:-1]}
    known = len(trained(tmp_path))
    subprocess.run(call, env=environment | {"SLEEP": "0"}, check=True)
    lines = trained(tmp_path)[known:]
    again = {line.split(" ")[0] for line in lines}
    table = load_table(out)
    assert len(kept) >= 3 and not kept & again
    assert len(table) == len(set(table.names)) == len(kept) + len(again)
    assert together > 1 or len(again) == len(lines), "of a piece that raises, some are trained twice"
    assert not partial.exists()


def rows_of(path: Path) -> dict[tuple[str, int], list[float]]:
    table = load_table(path)
    values = np.column_stack([table.metrics[name] for name in sorted(table.metrics)])
    return dict(zip(zip(table.names, table.seeds.tolist(), strict=True), values.tolist(), strict=True))


def test_together_as_one_by_one(tmp_path: Path):
    one, many = tmp_path / "one.parquet", tmp_path / "many.parquet"
    seen = []
    report = build_table(
        TOGETHER, SPACE, many, seeds=2, together=6, progress=lambda done, total, note: seen.append((done, total, note))
    )
    assert report == build_table(TOGETHER, SPACE, one, seeds=2, workers=1)
    assert repr(rows_of(one)) == repr({key: rows_of(many)[key] for key in rows_of(one)}), "nan among them"
    assert load_table(many).reasons == (None,) * report.rows
    crashes = sum("exp(" in name for name, _ in rows_of(one))
    assert report.failed == crashes > 0 and seen[-1] == (report.rows, report.rows, f"{crashes} failed")


def test_pieces_are_of_one_shape_and_seed_and_bounded(tmp_path: Path):
    calls = []

    def log_many(acts, seeds):
        calls.append((acts.shape, *set(seeds.tolist()), len(seeds)))
        return train_many(acts, seeds)

    task = toy.make_task(name="pieces", train_many=log_many)
    report = build_table(task, SPACE, tmp_path / "table.csv", seeds=2, together=8)
    unary = sum(shape == "unary(x)" and seed == 0 and size for shape, seed, size in calls)
    twice = report.classes - unary
    sizes = [size for shape, seed, size in calls if shape == "unary(unary(x))" and seed == 1]
    assert sum(sizes) == twice and len(sizes) == -(-twice // 8) and max(sizes) - min(sizes) < len(sizes)
    assert len(calls) == 2 * (len(sizes) + 1) and max(size for *_, size in calls) <= 8


def test_one_that_breaks_its_piece_is_found(tmp_path: Path):
    def broken_many(acts, seeds):
        if any("exp(" in unstack(acts, row).name for row in range(len(seeds))):
            raise FloatingPointError("somebody overflows")
        return train_many(acts, seeds)

    task = toy.make_task(name="broken", train=train, train_many=broken_many)
    build_table(task, SPACE, tmp_path / "many.parquet", together=4)
    build_table(TOY, SPACE, tmp_path / "one.parquet", workers=1)
    many, one = load_table(tmp_path / "many.parquet"), load_table(tmp_path / "one.parquet")
    assert dict(zip(many.names, many.reasons, strict=True)) == dict(zip(one.names, one.reasons, strict=True))
    assert repr(sorted(rows_of(tmp_path / "many.parquet").items())) == repr(
        sorted(rows_of(tmp_path / "one.parquet").items())
    )


@pytest.mark.parametrize(
    ("task", "backend", "workers", "expected"),
    [
        (TOGETHER, "gpu", None, True),
        (TOGETHER, "cpu", None, False),
        (TOGETHER, "gpu", 1, False),
        (TOY, "gpu", 1, False),
    ],
)
def test_the_default_is_together_on_a_gpu(task, backend, workers, expected: bool, tmp_path: Path, monkeypatch):
    seen = []
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setattr("aqx.benchmark.build.cores", lambda: 1)
    monkeypatch.setattr("aqx.training.run._together", lambda task, acts, seeds: seen.append(len(seeds)) or 1 / 0)
    build_table(task, SPACE, tmp_path / "table.csv", workers=workers)
    assert bool(seen) == expected


def wait_until_gone(process: int) -> None:
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        if "\nState:\tZ" in Path(f"/proc/{process}/status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"worker {process} outlives the process that started it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"workers": 0}, "workers=0"),
        ({"together": 0}, "together=0"),
        ({"together": 2, "workers": 1, "task": TOGETHER}, "together=2 and workers=1 exclude each other"),
        ({"together": 2}, "no train_many"),
        ({"out": "table.txt"}, "neither Parquet nor CSV"),
        ({"task": toy.make_task(train=None)}, "no train function"),
    ],
)
def test_what_cannot_be_used_gets_one_line(tmp_path: Path, changes: dict, message: str):
    arguments = {"task": TOY, "space": SPACE, "out": "table.csv"} | changes
    arguments["out"] = tmp_path / arguments["out"]
    with pytest.raises(InputError, match=message):
        build_table(**arguments)


def test_a_task_that_always_raises_is_told_soon(tmp_path: Path):
    def broken(act, seed):
        raise RuntimeError("no data")

    space = Space(["unary(x)"], "extended")
    with pytest.raises(TaskError, match="each of the first 20 trainings failed, the last by RuntimeError: no data"):
        build_table(toy.make_task(train=broken), space, tmp_path / "table.csv", workers=1)
