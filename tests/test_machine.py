"""Which GPUs a process may use, by what containers, SLURM, CUDA's own variable and nvidia-smi say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aqx.machine import gpu_ids, nvidia_smi

TWO = """GPU 0: NVIDIA H200 (UUID: GPU-aaaaaaaa-1111)
GPU 1: NVIDIA H200 (UUID: GPU-bbbbbbbb-2222)
"""
SLICED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaaaaaa-1111)
  MIG 3g.20gb     Device  0: (UUID: MIG-cccccccc-3333)
  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-aaaaaaaa-1111/1/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbbbbbb-2222)
"""


def smi(folder: Path, printed: str | None, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
    """Put an nvidia-smi that prints this before all others, or leave none on the path."""
    path = folder / "bin"
    path.mkdir()
    if printed is not None:
        (path / "listed").write_text(printed)
        (path / "nvidia-smi").write_text(f"#!/bin/sh\n/bin/cat {path}/listed; exit {code}\n")
        (path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(path))


@pytest.mark.parametrize(
    ("variables", "listed", "expected"),
    [
        ({}, TWO, ["GPU-aaaaaaaa-1111", "GPU-bbbbbbbb-2222"]),
        ({}, SLICED, ["MIG-cccccccc-3333", "MIG-GPU-aaaaaaaa-1111/1/0", "GPU-bbbbbbbb-2222"]),
        ({}, None, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, TWO, ["2", "0"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1234, MIG-5678"}, TWO, ["GPU-1234", "MIG-5678"]),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, TWO, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, TWO, []),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, TWO, []),
        ({"CUDA_VISIBLE_DEVICES": "3", "NVIDIA_VISIBLE_DEVICES": "void"}, None, ["3"]),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, None, ["0", "1", "2"]),
        ({"NVIDIA_VISIBLE_DEVICES": "4,7"}, None, ["0", "1"]),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, TWO, ["GPU-aaaaaaaa-1111", "GPU-bbbbbbbb-2222"]),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, TWO, []),
        ({"SLURM_JOB_GPUS": "2,4-6"}, None, ["2", "4", "5", "6"]),
        ({"SLURM_JOB_GPUS": "2,4", "SLURM_STEP_GPUS": "4"}, None, ["4"]),
        ({"SLURM_JOB_GPUS": "2,4", "CUDA_VISIBLE_DEVICES": "0,1"}, None, ["0", "1"]),
        ({"JAX_PLATFORMS": "cpu"}, TWO, []),
        ({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}, TWO, []),
        ({"JAX_PLATFORMS": "cuda,cpu"}, TWO, ["GPU-aaaaaaaa-1111", "GPU-bbbbbbbb-2222"]),
        ({"JAX_PLATFORMS": "", "JAX_PLATFORM_NAME": "gpu", "CUDA_VISIBLE_DEVICES": "0"}, None, ["0"]),
    ],
)
def test_gpus(variables, listed, expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smi(tmp_path, listed, monkeypatch)
    for number in range(3):
        (tmp_path / f"driver/0000:0{number}:00.0").mkdir(parents=True)
        (tmp_path / f"driver/0000:0{number}:00.0/information").write_text("Model: Tesla T4\n")
    assert gpu_ids(variables, str(tmp_path / "driver")) == expected


def test_a_machine_without_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smi(tmp_path, "No devices were found\n", monkeypatch, code=6)
    assert nvidia_smi() == "" and gpu_ids({}, str(tmp_path / "nothing")) == []
    assert os.environ["JAX_PLATFORMS"] == "cpu" and gpu_ids() == []
