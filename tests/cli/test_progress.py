"""Every long command says how far it is, --quiet silences it, --json leaves nothing but JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import aqx
from aqx.cli import main, screen

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(aqx.__file__).parent.parent
# A task that prints wherever it can, which must not end up among results.
NOISY = """
import os
import toy
from aqx.tasks import Task, losses

print("noise at import")


def train(act, seed):
    print("noise in training")
    os.system("echo noise of a child")
    return {"val_acc": float(len(act.name)) + seed % 7}


task = Task("noisy", toy.Net, toy.batch, losses.softmax_cross_entropy, train=train, baselines=("relu(x)", "tanh(x)"))
"""


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task, a searched database, and files to import."""
    folder = tmp_path_factory.mktemp("progress")
    (folder / "noisy.py").write_text(NOISY)
    (folder / "table.csv").write_text("name,seed,val_acc\nabs(x),0,0.5\nexp(x),0,0.25\ntanh(x),0,0.75\nerf(x),0,0.5\n")
    entry = {"Validation Accuracy": 0.5, "Equivalent Activation Functions": []}
    (folder / "bench.json").write_text(json.dumps({"relu(x)": entry, "tanh(x)": entry}))
    task = f"{folder / 'noisy.py'}:task"
    run("enumerate", folder / "found.duckdb", "--schema", "unary(x)", "--quiet")
    run("eigs", folder / "found.duckdb", "--task", task, "--limit", "2", "--quiet")
    options = ["--budget", "2", "--spectra", "0", "--surrogate", "random", "--quiet"]
    run("search", folder / "found.duckdb", "--task", task, *options)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TASK = ["--task", "noisy.py:task"]
SEARCH = ["search", "found.duckdb", *TASK, "--budget", "4", "--spectra", "0", "--surrogate", "random"]
# The command, how its progress begins, and how many steps there are in the end.
LONG = {
    "enumerate": (["enumerate", "found.duckdb", "--schema", "binary(x,unary(x))"], "enumerate", 189),
    "eigs": (["eigs", "found.duckdb", *TASK, "--limit", "3"], "eigs", 3),
    "search": (SEARCH, "search", 6),
    "search in processes": ([*SEARCH, "--workers", "2"], "search", 6),
    "confirm": (["confirm", "found.duckdb", *TASK, "--top", "1", "--seeds", "2"], "confirm", 6),
    "import": (["import", "found.duckdb", "table.csv", *TASK], "import", 4),
    "task check": (["task", "check", "noisy.py:task", "--train"], "training with relu(x)", 1),
    "bench build": (
        ["bench", "build", *TASK, "--fn", "relu(x)", "--fn", "erf(x)", "--out", "out.csv", "--workers", "1"],
        "bench build",
        2,
    ),
    "bench import": (["bench", "import", "bench.json", "--out", "out.csv"], "import", None),
    "bench replay": (
        ["bench", "replay", *TASK, "--table", "table.csv", "--policy", "random", "--seeds", "2"]
        + ["--evaluations", "3", "--start", "2"],
        "searches",
        2,
    ),
    "doctor": (["doctor", "found.duckdb"], "doctor", None),
}
SLOW = {"search in processes", "bench replay"}
CASES = [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in LONG.items()]


@pytest.mark.parametrize(("command", "label", "steps"), CASES)
def test_long_commands(
    command: list[str],
    label: str,
    steps: int | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(screen, "PLAIN_SECONDS", 0.0)
    shutil.copy("found.duckdb", "again.duckdb")
    result = run(*command, "--json")
    json.loads(result.stdout)
    lines = re.findall(rf"^{re.escape(label)}: ([\d,]*\d) of ([\d,]*\d)", result.stderr, re.M)
    assert lines and lines[-1][0] == lines[-1][1], result.stderr
    assert steps is None or lines[-1] == (str(steps), str(steps))
    printed = capfd.readouterr()
    assert printed.out == "", "a child process printed to stdout"
    if label not in ("enumerate", "import", "doctor"):
        assert "noise" in result.stderr + printed.err

    with contextlib.suppress(FileNotFoundError):
        os.remove("out.csv")
    shutil.copy("again.duckdb", "found.duckdb")
    quiet = run(*command, "--quiet")
    assert quiet.stdout and f"{label}: " not in quiet.stderr and " of " not in quiet.stderr.replace("candidates of", "")


SHORT = {
    "suggest": ["suggest", "found.duckdb", *TASK, "--surrogate", "random"],
    "summary": ["summary", "found.duckdb"],
    "top": ["top", "found.duckdb", *TASK],
    "show": ["show", "relu(x)", "found.duckdb"],
    "claim": ["claim", "found.duckdb", *TASK, "--surrogate", "random"],
    "tell": ["tell", "found.duckdb", *TASK, "erf(x)", "val_acc=0.5"],
    "trials": ["trials", "found.duckdb", *TASK],
    "retry": ["retry", "found.duckdb", *TASK, "--trial", "1"],
    "reset": ["reset", "found.duckdb", *TASK, "--keep-done"],
    "eigs --check": ["eigs", "found.duckdb", *TASK, "--check", "--names", "tanh(x)"],
    "task check": ["task", "check", "noisy.py:task"],
}


@pytest.mark.parametrize("command", SHORT.values(), ids=SHORT)
def test_nothing_but_json(command: list[str], folder: Path, capfd: pytest.CaptureFixture[str]):
    found = json.loads(run(*command, "--json").stdout)
    assert found
    assert capfd.readouterr().out == ""


def test_what_json_says(folder: Path):
    """The same as the text says, by names that scripts may rely on."""
    added = json.loads(run("enumerate", "new.duckdb", "--schema", "unary(x)", "--json", "-q").stdout)
    assert (added["functions"], added["added_functions"]) == (27, 27)
    again = run("enumerate", "new.duckdb", "--schema", "unary(x)", "-q").stdout
    assert "27 functions enumerated" in again and "0 functions, 0 classes" in again
    found = json.loads(run(*SEARCH, "--json", "-q").stdout)
    assert (found["finished"], found["failed"], found["metric"]) == (2, 0, "val_acc")
    best = json.loads(run("top", "found.duckdb", *TASK, "-n", "1", "--json").stdout)[0]
    assert (best["name"], best["objective"]) == (found["best"]["name"], found["best"]["objective"])
    read = json.loads(run("import", "found.duckdb", "table.csv", *TASK, "--json", "-q").stdout)
    assert (read["added"], read["failed"], read["unreadable"]) == (4, 0, [])
    told = json.loads(run("tell", "found.duckdb", *TASK, "erf(x)", "val_acc=0.5", "--json").stdout)
    assert (told["name"], told["status"], told["objective"]) == ("erf(x)", "done", 0.5)
    queued = json.loads(run("retry", "found.duckdb", *TASK, "--trial", "1", "--json").stdout)["queued"]
    assert [trial["status"] for trial in queued] == ["queued"]
    assert json.loads(run("reset", "found.duckdb", *TASK, "--keep-done", "--json").stdout) == {"deleted": 1}


def test_a_claim_is_three_words_whatever_the_task_prints(folder: Path):
    name, trial, seed = run("claim", "found.duckdb", *TASK, "--surrogate", "random").stdout.split()
    assert trial.isdigit() and seed.isdigit() and aqx.parse(name)


# --- a terminal


def in_terminal(*command: str, columns: int = 100) -> tuple[str, str]:
    """Run a command with a terminal as its stderr; return what it showed there and its stdout."""
    terminal, other_end = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-m", "aqx", *command],
        stdout=subprocess.PIPE,
        stderr=other_end,
        cwd=ROOT,
        env=environment,
        text=True,
    ) as process:
        os.close(other_end)
        shown, until = b"", time.monotonic() + 120
        while time.monotonic() < until:
            if not select.select([terminal], [], [], 0.2)[0] and process.poll() is not None:
                break
            try:
                part = os.read(terminal, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.stdout is not None
        printed = process.stdout.read()
    os.close(terminal)
    assert process.returncode == 0, shown
    return shown.decode(), printed


def test_a_bar_on_a_terminal(db_path: Path):
    shown, printed = in_terminal("enumerate", str(db_path), "--schema", "unary(unary(x))", "--json")
    assert "\x1b[" in shown and "729/729" in shown and "━" in shown
    assert re.search(r"\d+ classes", shown)
    assert json.loads(printed)["functions"] == 729
    shown, printed = in_terminal("enumerate", str(db_path), "--schema", "unary(unary(x))", "--quiet")
    assert shown == "" and "729 functions enumerated" in printed
