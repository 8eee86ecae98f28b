"""Check this machine's GPU against its CPU and float64, then measure: kernel, population, spectra, first minute.

scripts/bench_gpu [--only kernel population spectra demo programs] [--small]

Each stage is a process of its own with its own time limit, prints a row of a Markdown table whenever one is measured,
and says in the end whether it was right. Where JAX finds no GPU, the stages run on the CPU with small sizes. The stage
`programs`, which runs when it is asked for, compiles for an H100 on any machine that has JAX's CUDA plugin.

A stage is a file `scripts/_gpu_<stage>.py` with one function

    def main(small: bool) -> Iterator[Row]     # `from _gpu import Row`

that first checks its answers (an AssertionError fails the stage) and yields a `Row(what, figures)` at a time, each as
soon as it is measured. `small` asks for sizes that a CPU does in well under half a minute. It warms up before it
measures, waits for the device, repeats, and takes the median (`from _timing import seconds`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# Seconds for each stage; eight minutes altogether for those that run unasked.
STAGES = {"kernel": 80, "population": 130, "spectra": 190, "demo": 80}
ON_DEMAND = {"programs": 480}
_FIGURES = "figures: "


def run_here(stage: str, small: bool) -> None:
    """Run a stage in this process: a row per line, then all figures as one line of JSON."""
    sys.path.insert(0, str(Path(__file__).parent))
    if stage in ON_DEMAND:
        os.environ["JAX_PLATFORMS"] = "cpu"  # it only compiles, and JAX's CUDA plugin then looks for no GPU
    from _gpu import device_name, on_gpu

    print(f"\n### {stage} on {device_name()}\n\n| what | figures |\n|---|---|", flush=True)
    figures = {}
    for row in importlib.import_module(f"_gpu_{stage}").main(small or not on_gpu() and stage in STAGES):
        print(f"| {row} |", flush=True)
        figures[row.what] = row.figures
    print(f"\n{_FIGURES}{json.dumps({'stage': stage, 'device': device_name(), **figures})}", flush=True)


def run(stage: str, small: bool, limit: float) -> str | None:
    """Run a stage in a process of its own, and return what went wrong with it, if anything."""
    command = [sys.executable, __file__, "--here", stage, *["--small"] * small]
    # A session of its own, so that what a stage started ends with it.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(reason, KeyboardInterrupt):
            raise
        return f"took longer than its {limit:.0f} s"
    return f"ended with code {code}" if code else None


def main() -> int:
    """Run the stages one after another, and say which took how long and which failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    limits = STAGES | ON_DEMAND
    shown = ", ".join(limits)
    parser.add_argument("--only", nargs="+", choices=limits, default=list(STAGES), metavar="STAGE", help=shown)
    parser.add_argument("--small", action="store_true", help="the small sizes, on a GPU too")
    parser.add_argument("--here", choices=limits, metavar="STAGE", help="run one stage in this process, with no limit")
    args = parser.parse_args()
    if args.here:
        run_here(args.here, args.small)
        return 0
    failed = 0
    for stage in args.only:
        started = time.perf_counter()
        trouble = run(stage, args.small, limits[stage])
        failed += trouble is not None
        print(f"\n{stage}: {trouble or 'done'} ({time.perf_counter() - started:.0f} s)", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
