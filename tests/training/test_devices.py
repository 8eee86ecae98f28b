"""Which GPU each worker process sees, and that it sees it before anything of its own runs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aqx.training.processes import WorkerPool, gpu_shares

ROOT = Path(__file__).parents[2]
NAMES = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE", "PJRT_NPROC")


def seen() -> tuple[int, dict[str, str]]:
    """This process and its settings; slow enough that every worker gets a job."""
    time.sleep(1)
    return os.getpid(), {name: os.environ[name] for name in NAMES if name in os.environ}


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def workers_see(workers: int) -> dict[int, dict[str, str]]:
    with WorkerPool(workers) as pool:
        futures = [pool.submit(seen) for _ in range(workers)]
        return dict(future.result() for future in futures)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """As on a machine with these; JAX itself is not started in the workers."""

    def set_to(names: str) -> None:
        monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)

    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return set_to


def test_each_worker_has_a_gpu_of_its_own(gpus, caplog: pytest.LogCaptureFixture):
    gpus("3,MIG-5678")
    caplog.set_level(logging.INFO, "aqx")
    found = workers_see(2)
    assert sorted(settings["CUDA_VISIBLE_DEVICES"] for settings in found.values()) == ["3", "MIG-5678"]
    assert all("XLA_PYTHON_CLIENT_MEM_FRACTION" not in settings for settings in found.values())
    assert {settings["XLA_PYTHON_CLIENT_PREALLOCATE"] for settings in found.values()} == {"false"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,MIG-5678" and os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert "worker 1 of 2: CUDA_VISIBLE_DEVICES=3" in caplog.text
    assert "worker 2 of 2: CUDA_VISIBLE_DEVICES=MIG-5678" in caplog.text


def test_a_replaced_worker_has_the_gpu_of_the_one_that_died(gpus):
    gpus("5,7")
    with WorkerPool(2) as pool:
        for future in [pool.submit(end), pool.submit(end)]:
            assert future.exception() is not None
        found = [future.result()[1]["CUDA_VISIBLE_DEVICES"] for future in [pool.submit(seen), pool.submit(seen)]]
    assert sorted(found) == ["5", "7"]


def test_without_gpus_nothing_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # which JAX_PLATFORMS=cpu makes of no account
    (settings,) = workers_see(1).values()
    assert settings["CUDA_VISIBLE_DEVICES"] == "0,1" and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in settings
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ


@pytest.mark.parametrize(
    ("workers", "listed", "environment", "expected"),
    [
        (3, "0 1", {}, [("0", "0.45"), ("1", None), ("0", "0.45")]),
        (6, "a b", {}, [("a", "0.3"), ("b", "0.3")] * 3),
        (3, "0", {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".2"}, [("0", None)] * 3),
        (3, "0", {"XLA_CLIENT_MEM_FRACTION": ".2"}, [("0", None)] * 3),
        (1, "0 1", {}, [("0", None)]),
        (2, "", {}, [(None, None)] * 2),
    ],
)
def test_shares_are_fair(workers: int, listed: str, environment: dict[str, str], expected: list):
    shares = gpu_shares(workers, listed.split(), environment)
    assert [tuple(share.get(name) for name in NAMES[:2]) for share in shares] == expected


EARLY = """
import os
import sys
SEEN = os.environ.get("CUDA_VISIBLE_DEVICES")  # as a script sees it that computes while it is imported
from aqx.training.processes import WorkerPool

def early():
    return SEEN

if __name__ == "__main__":
    with WorkerPool(2) as pool:
        print(sorted(future.result() for future in [pool.submit(early), pool.submit(early)]), SEEN)
        from jax._src import xla_bridge
        print(xla_bridge.backends_are_initialized())
"""


def test_a_main_module_sees_it_while_it_is_imported(tmp_path: Path):
    script = tmp_path / "early.py"
    script.write_text(EARLY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cuda,cpu", "CUDA_VISIBLE_DEVICES": "4,6"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['4', '6'] 4,6", "False"]
