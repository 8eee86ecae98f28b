"""Check that every public name of aqx has its whole type, those of the command line aside; scripts/test runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The command line is no library, and what exported sources are cut from is never imported.
ASIDE = ("aqx.cli.", "aqx.export.library.")


def main() -> None:
    # pyright looks for its Python on PATH here, and does not see editable installations.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--verifytypes", "aqx", "--ignoreexternal", "--outputjson"],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"pyright did not report: {done.stdout[:500]}{done.stderr[-500:]}")
    symbols = [s for s in report["typeCompleteness"]["symbols"] if not f"{s['name']}.".startswith(ASIDE)]
    problems = [diagnostic["message"] for diagnostic in report["generalDiagnostics"]]
    for symbol in symbols:
        found = [d for d in symbol["diagnostics"] if d["severity"] == "error"]
        problems += [f"{d.get('file', '')}: {symbol['name']}: {d['message']}" for d in found]
    if problems or not symbols:
        sys.exit("\n".join([*problems, f"{len(problems)} public types of {len(symbols)} are not whole"]))
    print(f"{len(symbols)} public names have their whole types")


if __name__ == "__main__":
    main()
