"""Spectra on many devices, in many processes, killed ones among them: always the rows of one device alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy

from aqx import fisher
from aqx.activation import activation
from aqx.enumeration import enumerate_space
from aqx.errors import InputError, TaskError
from aqx.fisher import spectrum
from aqx.space import Space
from aqx.spectra import engine as engine_room
from aqx.spectra.engine import Engine
from aqx.spectra.subject import prepare
from aqx.store import Database, claim_spectra, load_spectra

HERE = Path(__file__).parents[1]
RUN = """
import sys, time
import toy
from aqx import fisher

def slowly(done, total, note):
    print(done, total, flush=True)
    time.sleep(float(sys.argv[2]))

report = fisher.compute_spectra(sys.argv[1], toy.task, batch=4, lease_seconds=3, progress=slowly)
print("computed", report.computed)
"""


def start(code: str, *arguments: object, devices: int = 1) -> subprocess.Popen[str]:
    """A process of its own, as a user would start it."""
    environment = os.environ | {
        "PYTHONPATH": f"{HERE}:{HERE.parent}",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str]) -> str:
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return printed


@pytest.fixture(scope="module")
def enumerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with 24 classes of one shape."""
    path = tmp_path_factory.mktemp("sharing") / "enumerated.duckdb"
    enumerate_space(Database(path, create=True), Space(["unary(x)"]))
    return path


@pytest.fixture(scope="module")
def alone(enumerated: Path) -> tuple[np.ndarray, np.ndarray]:
    """The spectra that one device computes: class ids and features."""
    path = enumerated.with_name("alone.duckdb")
    shutil.copy(enumerated, path)
    report = fisher.compute_spectra(Database(path), toy.task)
    assert report.computed > 20
    return load_spectra(Database(path), 1)


def assert_same_rows(path: Path, alone: tuple[np.ndarray, np.ndarray]) -> None:
    ids, features = load_spectra(Database(path), 1)
    np.testing.assert_array_equal(ids, alone[0])
    # Another program for another number of devices may fuse, and so round, otherwise.
    np.testing.assert_allclose(features, alone[1], rtol=1e-4, atol=1e-5)


def test_eight_devices(enumerated: Path, alone, tmp_path: Path):
    path = tmp_path / "eight.duckdb"
    shutil.copy(enumerated, path)
    check = "import jax; assert jax.device_count() == 8\n"
    assert "computed" in output(start(check + RUN, path, 0, devices=8))
    assert_same_rows(path, alone)


@pytest.mark.slow
def test_two_processes_of_one_run(enumerated: Path, alone, tmp_path: Path):
    path = tmp_path / "two.duckdb"
    shutil.copy(enumerated, path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    join = "import sys; from aqx import fisher; fisher.connect(sys.argv[3], 2, int(sys.argv[4]))\n"
    # Process 1 never gets to see the database: process 0 alone reads and writes.
    second = start(join + RUN, tmp_path / "nowhere.duckdb", 0, f"localhost:{port}", 1)
    first = start(join + RUN, path, 0, f"localhost:{port}", 0)
    assert output(first).endswith(f"computed {len(alone[0])}\n") and output(second).endswith(
        f"computed {len(alone[0])}\n"
    )
    assert_same_rows(path, alone)


@pytest.mark.slow
def test_an_error_of_process_0_ends_all(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    join = "import sys; from aqx import fisher; fisher.connect(sys.argv[3], 2, int(sys.argv[4]))\n"
    processes = [start(join + RUN, tmp_path / "nowhere.duckdb", 0, f"localhost:{port}", i) for i in (0, 1)]
    printed, errors = processes[0].communicate(timeout=120)
    assert processes[0].returncode == 1 and "does not exist" in errors
    assert output(processes[1]).endswith("computed 0\n")


def test_four_processes_share_the_work_and_one_is_killed(enumerated: Path, alone, tmp_path: Path):
    path = tmp_path / "shared.duckdb"
    shutil.copy(enumerated, path)
    processes = [start(RUN, path, 0.5) for _ in range(4)]
    victim = processes[0]
    assert victim.stdout is not None
    committed = 0
    while not committed:  # it has stored a batch, and holds the next one claimed
        line = victim.stdout.readline()
        if not line:  # the others were quicker
            break
        committed = int(line.split()[0]) if line[0].isdigit() else 0
    victim.kill()
    victim.communicate()
    shares = [int(output(process).split()[-1]) for process in processes[1:]]
    assert_same_rows(path, alone)
    assert committed + sum(shares) == len(alone[0]), "a class was computed twice, or never"
    # What was claimed and lost is claimed no more.
    assert claim_spectra(Database(path), 1, "late", limit=9, lease_seconds=1).missing == 0


def test_what_others_compute_is_waited_for(enumerated: Path, alone, tmp_path: Path):
    path = tmp_path / "held.duckdb"
    shutil.copy(enumerated, path)
    # The task gets its id at the first call; it computes one class alone.
    assert fisher.compute_spectra(path, toy.task, limit=1).computed == 1
    held = claim_spectra(Database(path), 1, "dead", limit=5, lease_seconds=2)
    assert len(held.classes) == 5
    started = time.monotonic()
    assert fisher.compute_spectra(path, toy.task).computed == len(alone[0]) - 1
    assert time.monotonic() - started > 1
    assert_same_rows(path, alone)


def test_the_wanted_classes_come_first(enumerated: Path, alone, tmp_path: Path):
    path = tmp_path / "first.duckdb"
    shutil.copy(enumerated, path)
    wanted = [alone[0][3], alone[0][17], alone[0][11]]
    fisher.compute_spectra(path, toy.task, first=lambda: wanted, limit=2)
    assert sorted(load_spectra(Database(path), 1)[0]) == sorted(wanted[:2])
    fisher.compute_spectra(path, toy.task, first=wanted, batch=5)
    assert_same_rows(path, alone)


ACTS = [activation(name) for name in ("relu(x)", "tanh(x)", "erf(x)", "swish(x)", "softsign(x)", "elu(x)", "abs(x)")]


MANY_MATRICES = """
import flax.linen as nn, numpy as np
import aqx
from aqx.spectra.engine import Engine
from aqx.spectra.subject import prepare

class Model(nn.Module):
    act: object

    @nn.compact
    def __call__(self, x):
        x = self.act(nn.Conv(32, (3, 3), feature_group_count=32)(x))
        parts = dict(variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=4)
        return nn.Dense(3)(nn.vmap(nn.Dense, **parts)(32)(x.mean((1, 2))).mean(0))

x = np.random.default_rng(0).normal(size=(64, 8, 8, 32)).astype(np.float32)
subject = prepare(aqx.Task("many", Model, lambda: (x, np.arange(64) % 3), aqx.losses.softmax_cross_entropy))
with Engine(subject) as engine:
    engine.threads = 4
    print(len(engine.start([aqx.activation(name) for name in ("relu(x)", "tanh(x)")] * 100)().finite["loss"]))
"""


@pytest.mark.slow
def test_layers_of_many_factors_do_not_hang():
    # Batched calls of LAPACK in several programs at once wait for each other's threads: with those it hung every time.
    assert output(start(MANY_MATRICES)) == "200\n"


@pytest.mark.slow
def test_vmap_agrees_with_one_at_a_time():
    subject = prepare(toy.task)
    single, wide = (Engine(subject, width=width).start(ACTS)() for width in (1, 4))
    assert single.finite.keys() == wide.finite.keys()
    for key, pair in single.pairs.items():
        for one, many in zip(pair, wide.pairs[key], strict=True):
            np.testing.assert_allclose(many, one, atol=1e-5 * np.max(one))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """The engine follows the rules for a GPU, on the CPU."""
    monkeypatch.setattr(engine_room, "_on_cpu", lambda mesh: False)


@pytest.mark.usefixtures("as_on_a_gpu", "quick_to_compile")
@pytest.mark.parametrize("solve", [spectrum._by_bisection, partial(spectrum._by_kernels, interpret=True)])
def test_the_rules_of_a_gpu_give_the_rows_of_a_cpu(solve, enumerated: Path, alone, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(spectrum, "gpu_in_use", lambda: True)
    monkeypatch.setattr(spectrum, "_on_cpu", solve)
    monkeypatch.setattr(spectrum, "_BISECTED", 4)
    path = tmp_path / "gpu.duckdb"
    shutil.copy(enumerated, path)
    assert fisher.compute_spectra(path, toy.task).computed == len(alone[0])
    ids, features = load_spectra(Database(path), 1)
    np.testing.assert_array_equal(ids, alone[0])
    # Another routine rounds otherwise; next to the distance of two candidates that is nothing.
    distances = np.abs(alone[1][:, None] - alone[1][None]).sum(-1)[np.triu_indices(len(ids), 1)]
    assert np.abs(features - alone[1]).sum(-1).max() < 1e-2 * np.median(distances)


def free(monkeypatch: pytest.MonkeyPatch, engine_bytes: int) -> None:
    monkeypatch.setattr(engine_room, "free_memory", lambda: engine_bytes)


def test_the_width_is_what_the_memory_holds(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    subject = prepare(toy.task)
    each = subject.bytes_each
    # Values of 16 examples, and the matrices of two layers: a few kilobytes, told before anything is compiled.
    assert 1_000 < each < 100_000
    for room, width in ((2**40, 1024), (each * 5 * 100, 64), (each * 5 * 64, 64), (each * 5 * 63, 32), (1, 1)):
        free(monkeypatch, room)
        assert Engine(subject).width == width
    assert Engine(subject, width=5).width == 5


def test_a_program_that_will_not_fit_is_not_tried(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    """Each program takes a GPU a minute to compile: the next one is as narrow as the memory asks."""

    class Program:
        def __init__(self, width: int):
            self.width = width

        def memory_analysis(self) -> SimpleNamespace:
            return SimpleNamespace(temp_size_in_bytes=self.width * 2**20)

    widths: list[int] = []
    monkeypatch.setattr(Engine, "_compile", lambda self, _, width: widths.append(width) or Program(width))
    free(monkeypatch, 100 * 2**20)
    engine = Engine(prepare(toy.task), width=1024)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"RESOURCE_EXHAUSTED: 1024 candidates need 1,073,741,824 b"):
        engine.start([*ACTS * 128])
    engine.halve()
    assert engine.width == 64
    engine.halve()
    assert engine.width == 32 and widths == [1024]


def test_one_program_per_shape_as_wide_as_its_candidates(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    tried: list[int] = []

    class Program:
        """Its spectra are the candidates' first opcodes."""

        def __init__(self, engine: Engine):
            self.layers = engine.subject.probe.layers

        def memory_analysis(self) -> SimpleNamespace:
            return SimpleNamespace(temp_size_in_bytes=1)

        def __call__(self, acts, *_: object) -> tuple[np.ndarray, ...]:
            codes = np.float32(acts.opcodes[0] if acts.opcodes else [0])
            tried.append(len(codes))
            sizes = sum(int(np.prod(shape)) for layer in self.layers for shape in layer.eigenvalue_shapes)
            checked = np.ones((len(codes), 1 + 3 * len(self.layers)), bool)
            return np.repeat(codes[:, None], sizes, axis=1), checked, codes[:, None]

    monkeypatch.setattr(Engine, "_compile", lambda self, arguments, width: Program(self))
    free(monkeypatch, 2**40)
    engine = Engine(prepare(toy.task))
    assert engine.at_once == 1024

    def assert_computed(acts: list, widths: list[int]) -> None:
        tried.clear()
        spectra = engine.start(acts)()
        assert tried == widths
        expected = [act.opcodes[0] if act.opcodes else 0 for act in acts]
        assert spectra.features is not None and spectra.features[:, 0].tolist() == expected
        for of_A, of_G in spectra.pairs.values():
            assert of_A[:, 0, 0].tolist() == of_G[:, 0, -1].tolist() == expected
        assert spectra.reasons() == [None] * len(acts)

    pair = [activation("add(relu(x),tanh(x))")]
    assert_computed(ACTS, [8])
    assert_computed(ACTS[:1], [8])  # a program for more serves fewer
    assert_computed([*ACTS[:3], *pair, *ACTS], [8, 8, 1])  # each shape has its own width
    assert_computed([*pair, *ACTS * 9], [1, 64])  # many more candidates are worth a wider program
    assert_computed([*ACTS, activation("x")], [64, 1])  # x has no operator to stack
    engine.halve()
    assert engine.width == 32


def out_of_memory_beyond(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Have programs run out of memory where more than `most` candidates are computed at once; what was tried."""
    tried = []
    compiled = Engine._compile

    def compile_(self: Engine, arguments: tuple, width: int):
        program = compiled(self, arguments, width)

        class Program:
            memory_analysis = program.memory_analysis

            def __call__(self, *args: object):
                tried.append(args[0].opcodes[0].shape[0] if args[0].opcodes else 1)
                if tried[-1] > most:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")
                return program(*args)

        return Program()

    monkeypatch.setattr(Engine, "_compile", compile_)
    return tried


def test_out_of_memory_halves_and_goes_on(enumerated: Path, alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "memory.duckdb"
    shutil.copy(enumerated, path)
    tried = out_of_memory_beyond(monkeypatch, 2)
    made = engine_room.Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda self, subject: made(self, subject, width=8))
    monkeypatch.setattr(engine_room, "cores", lambda: 1)
    assert fisher.compute_spectra(path, toy.task).computed == len(alone[0])
    assert {8, 4, 2} <= set(tried)
    assert_same_rows(path, alone)


def test_out_of_memory_with_one_candidate_is_one_line(enumerated: Path, tmp_path: Path, monkeypatch):
    path = tmp_path / "memory.duckdb"
    shutil.copy(enumerated, path)
    out_of_memory_beyond(monkeypatch, 0)
    with pytest.raises(TaskError, match="does not fit into memory"):
        fisher.compute_spectra(path, toy.task)
    # Nothing stays claimed.
    assert len(claim_spectra(Database(path), 1, "next", limit=99, lease_seconds=1).classes) > 20


def test_joining_a_run_that_cannot_be_found_is_one_line():
    with pytest.raises(InputError, match="all three"):
        fisher.connect("localhost:1", 2)
    code = "import aqx\nfrom aqx import fisher\ntry: fisher.connect()\nexcept aqx.InputError as error: print(error)"
    printed = output(start(code))
    assert "could not join" in printed and printed.count("\n") == 1
