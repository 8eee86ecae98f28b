"""What bench_gpu's stage `programs` tells of a compiled program, and that aqx's own compile for an H100."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
HAS_COMPILER = importlib.util.find_spec("jax_plugins") is not None and any(
    importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13)
)

# Three kernels in a loop of 10 turns and one before it. A turn reads x whole and a row of it, writes y and a row of y.
TEXT = """HloModule program

%add_one (x.1: f32[8,16]) -> f32[8,16] {
  %x.1 = f32[8,16]{1,0} parameter(0)
  ROOT %y.1 = f32[8,16]{1,0} add(%x.1, %x.1)
}

%row_of (x.2: f32[8,16], i.2: s32[]) -> f32[1,16] {
  %x.2 = f32[8,16]{1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  ROOT %row.2 = f32[1,16]{1,0} dynamic-slice(%x.2, %i.2, %i.2), dynamic_slice_sizes={1,16}
}

%put_row (y.3: f32[8,16], row.3: f32[1,16], i.3: s32[]) -> f32[8,16] {
  %y.3 = f32[8,16]{1,0} parameter(0)
  %row.3 = f32[1,16]{1,0} parameter(1)
  %i.3 = s32[] parameter(2)
  ROOT %put.3 = f32[8,16]{1,0} dynamic-update-slice(%y.3, %row.3, %i.3, %i.3)
}

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %state = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%state), index=1
  %y = f32[8,16]{1,0} fusion(%x), kind=kLoop, calls=%add_one, metadata={op_name="jit(f)/add"}
  %started = ((f32[8,16]{1,0}, s32[]), f32[1,16]{1,0}, u32[]) fusion-start(%x, %i), kind=kLoop, calls=%row_of
  %row = f32[1,16]{1,0} fusion-done(%started)
  %put = f32[8,16]{1,0} fusion(%y, %row, %i), kind=kLoop, calls=%put_row
  ROOT %next = (s32[], f32[8,16]{1,0}) tuple(%i, %put)
}

ENTRY %main (start: bf16[8,16]) -> f32[8,16] {
  %start = bf16[8,16]{1,0} parameter(0)
  %wide = f32[8,16]{1,0} convert(%start)
  %zero = s32[] constant(0)
  %both = (s32[], f32[8,16]{1,0}) tuple(%zero, %wide)
  %loop = (s32[], f32[8,16]{1,0}) while(%both), body=%body, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %end = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_work_counts_what_loops_repeat_and_of_slices_the_slice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import _h100

    whole, row, number = 4 * 8 * 16, 4 * 16, 4
    turn = (whole + whole) + (row + number + row) + (row + number + row)
    assert _h100.work(TEXT) == _h100.Work(kernels=4, launches=31, bytes=10 * turn + whole // 2 + whole)


def programs(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPTS / "bench_gpu.py"), "--here", "programs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(HAS_COMPILER, reason="JAX's CUDA plugin is installed")
def test_without_the_compiler_the_stage_says_what_to_install():
    assert "pip install 'jax[cuda13]'" in programs()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="needs JAX's CUDA plugin: pip install 'jax[cuda13]'")
def test_kernels_spectra_and_populations_compile_for_an_h100():
    printed = programs("--small")
    for what in ("mul(swish(x),y)", "8 spectra", "mnist1d: 8 trained together"):
        assert what in printed
