"""`aqx doctor`: what is wrong is found and said in one line, and the file it looks at stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
import store_helpers
import toy
from click.testing import CliRunner, Result

from aqx import doctor
from aqx.cli import main
from aqx.doctor import Requirement, diagnose, nvidia_gpus
from aqx.errors import InputError
from aqx.machine import free_memory
from aqx.search import Study
from aqx.store import Database, add_spectra, functions, health, schema
from aqx.store.health import check_file

HEADERS, BLOCK = 3 * 4096, 262_144  # of a DuckDB file
FOREIGN_CLASS = "'00000000-0000-0000-0000-000000000001'"


def aqx_doctor(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["doctor", "--quiet", *map(str, arguments)])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def state(path: Path) -> tuple[bytes, int, int]:
    return hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns, path.stat().st_size


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that holds some of everything: functions, spectra, trials, an embedding."""
    schemas = ["unary(x)", "unary(unary(x))"]
    path = toy.candidates(tmp_path_factory.mktemp("doctor") / "toy.duckdb", schemas, ["relu", "tanh", "abs"])
    study = Study(path, toy.task, surrogate="random")
    ids = list(functions.candidate_names(study.db))[:3]
    add_spectra(study.db, study.task_id, ids, np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32))
    for name in ("relu(x)", "tanh(x)", "abs(x)"):
        study.add(name, val_acc=0.5)
    study.suggest(1)
    return path


@pytest.fixture
def copied(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(filled, tmp_path / "copied.duckdb"))


def change(path: Path, *statements: str) -> None:
    with duckdb.connect(str(path)) as con:
        for statement in statements:
            con.execute(statement)


# --- a healthy file


def test_a_healthy_file(copied: Path):
    before = state(copied)
    result = aqx_doctor(copied, "--json")
    seen = json.loads(result.stdout)
    assert (result.exit_code, seen["healthy"], seen["problems"], seen["notes"]) == (0, True, [], [])
    assert seen["file"]["counts"] == {
        "functions": 12,
        "classes": seen["file"]["counts"]["classes"],
        "spectra": 3,
        "trials": 3,
        "ended": 3,
        "embeddings": 1,
    }
    assert seen["file"]["schema_version"] == schema.current_version() and seen["file"]["tasks"] == ["toy"]
    assert state(copied) == before
    assert {path.name for path in copied.parent.iterdir()} <= {"copied.duckdb", "copied.duckdb.lock"}


def test_what_is_printed(copied: Path):
    text = aqx_doctor(copied).stdout
    for start in ("versions   python 3.", "devices    cpu:0", "memory     ", "disk       ", "tasks      toy"):
        assert f"\n{start}" in f"\n{text}", text
    assert text.endswith("\nall is well\n")


def test_a_quick_look_leaves_out_the_devices(copied: Path):
    whole, quick = (json.loads(aqx_doctor(copied, "--json", *option).stdout) for option in ([], ["--quick"]))
    assert quick["devices"] is None and whole["devices"] and quick["file"] == whole["file"]
    assert {key for key in whole if whole[key] != quick[key]} <= {
        "devices",
        "gpus",
        "traced",
        "memory_bytes",
        "disk_bytes",
    }
    assert "devices    not looked at\n" in aqx_doctor("--quick").stdout
    result = aqx_doctor("--quick", "--task", "sine")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "--task" in result.stderr
    with pytest.raises(InputError, match="leave out one of the two"):
        diagnose(task="sine", quick=True)


def test_it_says_how_far_it_is(copied: Path):
    seen: list[tuple[int, int, str]] = []
    check_file(copied, lambda *at: seen.append(at))
    done, totals, notes = zip(*seen, strict=True)
    assert list(done) == sorted(done) and done[-1] == totals[-1] and len(set(totals)) == 1
    assert {"reading functions", "reading class_outputs", "reading trials"} <= set(notes)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_a_reader_who_may_not_write(copied: Path):
    code = """
import os, sys
from aqx.store.health import check_file
from aqx.store.schema import _schema_sql
_schema_sql()  # the other user may not reach this Python's own files
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(check_file(sys.argv[1]).problems)
"""
    Path(str(copied) + ".lock").unlink(missing_ok=True)
    with store_helpers.as_nobody(copied.parent):
        copied.chmod(0o444)
        assert store_helpers.run_python(code, str(copied)).stdout == "[]\n"


# --- files that cannot be used


def _newer(path: Path) -> None:
    change(path, "UPDATE meta SET value = '999' WHERE key = 'schema_version'")


def _foreign(path: Path) -> None:
    path.unlink()
    change(path, "CREATE TABLE mine (x INT)")


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "is truncated"),
    "a few bytes": (lambda path: os.truncate(path, 100), "is truncated"),
    "text": (lambda path: path.write_text("no database" * 1000), "not a database"),
    "empty": (lambda path: path.write_bytes(b""), "not a database"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "missing": (lambda path: path.unlink(), "does not exist"),
    "newer": (_newer, "written by a newer aqx"),
    "foreign": (_foreign, "not one of aqx"),
    "tables gone": (lambda path: change(path, "DROP TABLE trials; DROP TABLE tasks"), "tasks, trials missing from its"),
    "column gone": (lambda path: change(path, "ALTER TABLE trials DROP COLUMN seconds"), "trials.seconds missing"),
    "another type": (lambda path: change(path, "ALTER TABLE spectra ALTER features TYPE VARCHAR"), "cannot be read"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILED.values(), ids=SPOILED)
def test_files_that_cannot_be_used(spoil: Callable[[Path], object], words: str, copied: Path):
    spoil(copied)
    before = state(copied) if copied.is_file() else None
    result = aqx_doctor(copied, "--json")
    seen = json.loads(result.stdout)
    assert result.exit_code == 1 and not seen["healthy"], seen["file"]
    (problem,) = seen["problems"]
    assert words in problem and "\n" not in problem
    assert aqx_doctor(copied).stdout.endswith(f"problem: {problem}\n1 problem(s) found\n")
    assert (state(copied) if copied.is_file() else None) == before


def used_blocks(path: Path) -> set[int]:
    """Blocks that hold columns, as DuckDB itself lists them."""
    with duckdb.connect(str(path), read_only=True) as con:
        tables = con.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        found = {
            block
            for table in tables
            for block in con.execute("SELECT block_id FROM pragma_storage_info(?)", table)
            .fetchnumpy()["block_id"]
            .tolist()
        }
    return {block for block in found if block >= 0}


def test_a_flipped_bit_is_found_wherever_something_is_stored(copied: Path):
    blocks, whole = used_blocks(copied), copied.read_bytes()
    assert len(blocks) > 3
    chance = random.Random(0)
    places = [HEADERS + block * BLOCK + chance.randrange(BLOCK) for block in sorted(blocks)]
    for place in places:
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << chance.randrange(8)
        copied.write_bytes(spoiled)
        before = state(copied)
        (problem,) = check_file(copied).problems
        assert "damaged" in problem and "\n" not in problem, place
        assert state(copied) == before


# --- tables that do not agree


RELATIONS = {
    "functions of no class": f"INSERT INTO functions VALUES ('cosh(x)', {FOREIGN_CLASS}, 1)",
    "names stored twice": "INSERT INTO functions SELECT * FROM functions WHERE name = 'relu(relu(x))'",
    "classes stored twice": "INSERT INTO class_info SELECT * FROM class_info LIMIT 1",
    "classes whose own name": "UPDATE class_info SET name = 'cosh(x)' WHERE name = 'abs(tanh(x))'",
    "finite classes without outputs": "DELETE FROM class_outputs WHERE rowid = 0",
    "outputs of classes that are not finite": "UPDATE class_info SET finite = false WHERE name = 'abs(tanh(x))'",
    "outputs stored twice": "INSERT INTO class_outputs SELECT * FROM class_outputs LIMIT 1",
    "outputs that are not finite": (
        "CREATE TEMP TABLE bad AS "
        "SELECT class_id, list_transform(outputs, lambda v: 'inf'::FLOAT)::FLOAT[32] AS outputs "
        "FROM class_outputs LIMIT 1; "
        "DELETE FROM class_outputs WHERE class_id IN (SELECT class_id FROM bad); "
        "INSERT INTO class_outputs SELECT * FROM bad"
    ),
    "tasks of one name": "INSERT INTO tasks SELECT 2, name, identity, spectra_form, created_at FROM tasks",
    "spectra of tasks": "UPDATE spectra SET task_id = 7",
    "spectra of classes": f"UPDATE spectra SET class_id = {FOREIGN_CLASS} WHERE rowid = 0",
    "spectra stored twice": "INSERT INTO spectra SELECT * FROM spectra LIMIT 1",
    "spectra of tasks with two subjects": (
        "INSERT INTO subjects SELECT range, task_id, NULL, true, created_at FROM tasks, range(98, 100)"
    ),
    "subjects of spectra of tasks": "INSERT INTO subjects SELECT 99, 7, NULL, false, created_at FROM tasks",
    "spectra of tasks set aside": (
        "INSERT INTO spectra_aside SELECT 99, class_id, status, reason, features, created_at FROM spectra"
    ),
    "spectra that are neither": "UPDATE spectra SET status = 'invalid' WHERE rowid = 0",
    "whose spectra differ in length": (
        "CREATE TEMP TABLE bad AS FROM spectra LIMIT 1; "
        "DELETE FROM spectra WHERE class_id IN (SELECT class_id FROM bad); "
        "INSERT INTO spectra SELECT task_id, class_id, status, reason, features[1:3], created_at FROM bad"
    ),
    "trials of tasks": "UPDATE trials SET task_id = 7 WHERE trial_id = 1",
    "under another class": "UPDATE trials SET name = 'abs(tanh(x))' WHERE trial_id = 1",
    "trials with one number": "UPDATE trials SET trial_id = 1",
    "a state that aqx does not know": "UPDATE trials SET status = 'resting' WHERE trial_id = 1",
    "done without a result": "UPDATE trials SET objective = NULL WHERE trial_id = 1",
    "embeddings of tasks": "UPDATE embeddings SET task_id = 7",
    "embeddings without rows": "DELETE FROM embedding_rows",
    "rows of embeddings that": "UPDATE embeddings SET embedding_id = 99",
    "rows of embeddings of classes": (
        f"INSERT INTO embedding_rows SELECT embedding_id, {FOREIGN_CLASS}, has_spectrum, coordinates "
        "FROM embedding_rows LIMIT 1"
    ),
    "the points of its outputs are missing": "DELETE FROM meta WHERE key = 'points'",
}


@pytest.mark.parametrize(("words", "statement"), RELATIONS.items())
def test_what_must_hold_between_tables(words: str, statement: str, copied: Path):
    change(copied, statement)
    problems = check_file(copied).problems
    assert any(words in problem for problem in problems), problems


def test_every_relation_has_a_test():
    for relation in health._RELATIONS:
        assert any(words in relation for words in RELATIONS), relation


def test_what_is_no_fault_is_a_note(copied: Path):
    study = Study(copied, toy.task, surrogate="random")
    study.add("swish(x)", val_acc=0.5)  # never enumerated
    study.ask()
    change(
        copied,
        "UPDATE trials SET expires_at = '2020-01-01' WHERE status = 'running'",
        f"INSERT INTO spectra_claims VALUES (1, {FOREIGN_CLASS}, 'somebody', '2020-01-01')",
    )
    result = aqx_doctor(copied, "--json")
    notes = " ".join(json.loads(result.stdout)["notes"])
    assert result.exit_code == 0, result.stdout
    for words in ("1 trials are stale", "1 claims of spectra have lapsed", "1 trials are of functions that were never"):
        assert words in notes


def test_only_what_waits_to_be_done_again_is_stale(copied: Path):
    """A trial that was lost stays in the table as it is, whatever comes of its function later."""
    study = Study(copied, toy.make_task(name="stale", baselines=()), surrogate="random")
    trials = [study.ask() for _ in range(5)]
    change(copied, "UPDATE trials SET expires_at = '2020-01-01' WHERE status = 'running'")
    assert _stale_of(copied) == 5
    again = {trial.name: trial for trial in (study.ask() for _ in range(4))}  # lost ones first
    assert set(again) < {trial.name for trial in trials} and _stale_of(copied) == 1
    first, second, third, fourth = again.values()
    study.tell(first, val_acc=0.5)
    study.fail(second, "boom")
    assert _stale_of(copied) == 1
    change(copied, f"UPDATE trials SET expires_at = '2020-01-01' WHERE trial_id = {third.id}")
    assert _stale_of(copied) == 2
    study.retry(third.id)
    assert _stale_of(copied) == 1
    study.tell(trials[[trial.name for trial in trials].index(fourth.name)], val_acc=0.5)  # late, but there
    study.tell(next(trial for trial in trials if trial.name not in again), val_acc=0.5)
    assert _stale_of(copied) == 0


def _stale_of(path: Path) -> int:
    notes = [note for note in check_file(path).notes if " trials are stale" in note]
    return int(notes[0].split()[0]) if notes else 0


def test_a_lapsed_claim_of_a_spectrum_that_came_since_is_no_note(copied: Path):
    change(copied, "INSERT INTO spectra_claims SELECT task_id, class_id, 'somebody', '2020-01-01' FROM spectra LIMIT 1")
    assert not [note for note in check_file(copied).notes if "claims of spectra" in note]


def test_an_older_file_stays_old(copied: Path):
    change(copied, "UPDATE meta SET value = '3' WHERE key = 'schema_version'")
    before = state(copied)
    result = aqx_doctor(copied, "--json")
    seen = json.loads(result.stdout)
    assert result.exit_code == 0 and seen["file"]["schema_version"] == 3
    assert "the next command brings it forward" in seen["notes"][0]
    assert state(copied) == before


def test_a_log_that_a_killed_process_left(copied: Path):
    code = """
import os, sys
from aqx.store import Database
from aqx.store.connection import duckdb
con = duckdb.connect(sys.argv[1])
con.execute("SET checkpoint_threshold = '1GB'; INSERT INTO meta VALUES ('mark', '1')")
os.kill(os.getpid(), 9)
"""
    store_helpers.run_python(code, str(copied), check=False)
    log = Path(str(copied) + ".wal")
    assert log.stat().st_size > 0
    before = state(copied), state(log)
    found = check_file(copied)
    assert found.log_bytes == log.stat().st_size and not found.problems
    assert "the next transaction tidies up" in found.notes[0]
    assert (state(copied), state(log)) == before


def test_who_holds_the_lock(copied: Path):
    code = """
import sys
from aqx.store import Database
with Database(sys.argv[1]).transaction() as con:
    print("held", flush=True)
    sys.stdin.read()
"""
    with store_helpers.start_python(code, str(copied)) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        found = check_file(copied, lock_seconds=0.2)
        (problem,) = found.problems
        assert "stayed locked by another process" in problem
        if Path("/proc/locks").exists():
            assert any(holder.startswith(f"{process.pid}: ") for holder in found.holders)
            assert f"held by {process.pid}: " in problem


def test_a_file_on_a_network(copied: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "network_file_system", lambda path: "nfs4")
    found = check_file(copied)
    assert found.file_system == "nfs4" and "let one machine alone open it" in found.notes[0] and not found.problems


# --- the machine


def test_versions_are_those_that_are_imported():
    import flax
    import jax

    versions = diagnose().versions
    for name, module in (("jax", jax), ("flax", flax), ("numpy", np), ("duckdb", duckdb)):
        assert versions[name] == module.__version__
    assert None not in versions.values()


def test_a_library_that_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch):
    version = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: {"jax": "0.1", "duckdb": None}.get(name, version(name)))
    problems = " | ".join(diagnose().problems)
    assert "jax is 0.1, too old; pip install -U 'jax>=" in problems
    assert "duckdb is not installed; pip install -U 'duckdb>=" in problems
    text = aqx_doctor().stdout
    assert "duckdb MISSING" in text and "2 problem(s) found" in text


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        ("numpy>=2.2", Requirement("numpy", frozenset(), "2.2", None)),
        ('jax[cuda12]; extra == "cuda"', Requirement("jax", frozenset({"cuda12"}), None, "cuda")),
        ("a-b[c, d]<=3,>=2.0 ; (x == 'y') and extra == 'e-f'", Requirement("a-b", frozenset({"c", "d"}), "2.0", "e-f")),
    ],
)
def test_requirements_are_read(text: str, requirement: Requirement):
    assert Requirement.of(text) == requirement


def test_requirements_that_are_met():
    assert not Requirement.of("numpy>=1").is_missing()
    assert not Requirement.of(f"numpy>={doctor.version_of('numpy')}").is_missing()
    assert Requirement.of("numpy>=1000").is_missing() and Requirement.of("no-such-package").is_missing()
    assert Requirement.of("jaxtyping>=0").is_missing() is False
    assert doctor._numbers("2.0") == doctor._numbers("2") and doctor._numbers("0.10.1rc1") > doctor._numbers("0.9")


class Device:
    def __init__(self, platform: str):
        self.platform, self.id, self.device_kind = platform, 0, platform


@pytest.mark.parametrize(
    ("gpus", "platforms", "setting", "problem", "note"),
    [
        ([], ["cpu"], None, "", ""),
        (["H100"], ["cpu"], None, "1 NVIDIA GPU here, but JAX sees only cpu:0 cpu: pip install 'aqx[cuda]'", ""),
        (["H100", "H100"], ["cpu"], "cpu", "", "2 NVIDIA GPUs not used, as JAX_PLATFORMS=cpu may say so"),
        (["H100"], ["gpu"], None, "", ""),
    ],
    ids=["none", "unseen", "hidden", "used"],
)
def test_gpus(gpus, platforms, setting, problem, note, monkeypatch: pytest.MonkeyPatch):
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    if setting:
        monkeypatch.setenv("JAX_PLATFORMS", setting)
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: gpus)
    monkeypatch.setattr("jax.devices", lambda: list(map(Device, platforms)))
    seen = diagnose()
    assert [text for text in seen.problems if "NVIDIA" in text] == ([problem] if problem else [])
    assert [text for text in seen.notes if "NVIDIA" in text] == ([note] if note else [])
    assert seen.devices == [f"{platform}:0 {platform}" for platform in platforms]


def test_no_device_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setattr("jax.devices", fail)
    (problem,) = diagnose().problems
    assert problem.startswith("JAX finds no device (Unable to initialize backend 'cuda'); unset JAX_PLATFORMS")


def test_gpus_as_the_driver_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i, model in enumerate(["NVIDIA H100 80GB HBM3", "Tesla T4"]):
        (tmp_path / f"driver/0000:0{i}:00.0").mkdir(parents=True)
        (tmp_path / f"driver/0000:0{i}:00.0/information").write_text(f"Model: \t\t {model}\nIRQ:   16\n")
    assert nvidia_gpus(str(tmp_path / "driver")) == ["NVIDIA H100 80GB HBM3", "Tesla T4"]
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert nvidia_gpus(str(tmp_path / "nothing")) == ["NVIDIA A100-SXM4-40GB"]


def test_memory_is_what_is_left_of_the_smaller_limit(tmp_path: Path):
    system = tmp_path / "meminfo"
    system.write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    group = tmp_path / "cgroup"
    assert free_memory(str(system), str(group)) == 8_000_000 * 1024
    group.mkdir()
    for name, text in (
        ("memory.max", "max"),
        ("memory.current", "500"),
        ("memory.stat", "anon 1\ninactive_file 100\n"),
    ):
        (group / name).write_text(text + "\n")
    assert free_memory(str(system), str(group)) == 8_000_000 * 1024
    (group / "memory.max").write_text("3000\n")
    assert free_memory(str(system), str(group)) == 3000 - 500 + 100
    assert free_memory(str(tmp_path / "none"), str(tmp_path / "none")) is None


def test_little_room(copied: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "free_memory", lambda: 2**20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 2**20))
    seen = diagnose(copied)
    assert "only 1 MiB of memory are free" in seen.notes
    assert any("only 1 MiB are free on the disk" in problem for problem in seen.problems)


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/proc/aqx")
    assert any("compiled programs cannot be kept in /proc/aqx" in note for note in diagnose().notes)


# --- a task


def test_a_task_is_tried(tmp_path: Path):
    file = tmp_path / "small.py"
    file.write_text("import toy\ntask = toy.make_task(baselines=('relu(x)',))\n")
    seen = diagnose(task=f"{file}:task")
    assert seen.task == "toy: Flax Linen, 43 parameters, maximize val_acc" and seen.healthy


def test_a_task_that_cannot_be_used(tmp_path: Path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    result = aqx_doctor("--task", f"{file}:task")
    assert result.exit_code == 1 and f"problem: task {file}:task: " in result.stdout
    assert "ZeroDivisionError" in result.stdout and "Traceback" not in result.output


def test_a_task_that_the_database_knows_otherwise(copied: Path, tmp_path: Path):
    file = tmp_path / "changed.py"
    file.write_text("import toy\ntask = toy.make_task(direction='minimize')\nother = toy.make_task(name='new')\n")
    before = state(copied)
    (problem,) = diagnose(copied, f"{file}:task").problems
    assert "direction (stored 'maximize', now 'minimize')" in problem
    seen = diagnose(copied, f"{file}:other")
    assert seen.healthy and any("task new is new to" in note for note in seen.notes)
    assert state(copied) == before


def test_looking_takes_no_longer_than_it_must(copied: Path):
    """The database is open to others again when the command ends."""
    check_file(copied)
    started = time.monotonic()
    with Database(copied, timeout=1).transaction() as con:
        con.execute("SELECT 1")
    assert time.monotonic() - started < 1
