"""The command line: what it prints, and that every mistake of a user is one clear line and exit code 2."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import duckdb
import numpy as np
import pytest
from cli_helpers import aqx_command, check_error
from click.testing import CliRunner

import aqx
from aqx.cli import main, options
from aqx.cli.commands import _OTHERS, SECTIONS, keep_compiled_programs
from aqx.cli.screen import duration, plain, plain_lines
from aqx.surrogate import PRESETS
from aqx.tasks.loading import BUILT_IN

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(aqx.__file__).parent.parent
TASK = '''
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
import aqx
from aqx import losses

def build_model(act):
    return nn.Sequential([nn.Dense(4), act, nn.Dense(3)])

def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 5)).astype("float32"), rng.integers(0, 3, 16)

def train(act, seed):
    """A stand-in for training: how near the function is to the softplus, and luck."""
    x = np.linspace(-2, 2, 9, dtype="float32")
    error = float(jnp.mean(jnp.abs(act(x) - np.log1p(np.exp(x)))))
    return {"val_acc": 1 / (1 + error) + 0.001 * np.random.default_rng(seed).normal()}

task = aqx.Task("toy", build_model, batch=batch, loss=losses.softmax_cross_entropy, train=train,
                baselines=("relu(x)", "tanh(x)"))
'''


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(TASK)
    return path


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "filled.duckdb"
    result = aqx_command("enumerate", path, "--schema", "unary(x)", "--quiet")
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def copied(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(filled, tmp_path / "copied.duckdb"))


# --- mistakes


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("rellu(x)", "did you mean relu"),
        ("add(x)", "add takes 2 arguments, found 1"),
        ("relu(x,x)", "relu takes 1 argument, found 2"),
        ("relu(x", "expected ',' or ')', found the end"),
        ("relu(x))", "left over"),
        ("", "expected x or an operator, found the end"),
        ("relu(" * 10_000 + "x" + ")" * 10_000, "more than the 10,000 allowed"),
        ("abs(" * 1_000 + "x" + ")" * 1_000, "nested deeper than the 64 levels allowed"),
        ("relu(\N{SNOWMAN})", "unexpected character"),
    ],
    ids=["unknown", "few", "many", "open", "closed", "empty", "long", "deep", "strange"],
)
def test_names_that_do_not_parse(name: str, word: str):
    check_error(aqx_command("show", name), word, lines=3)


def test_schema_with_an_unknown_kind(db_path: Path):
    check_error(aqx_command("enumerate", db_path, "--schema", "ternary(x)"), "ternary", lines=3)
    assert not db_path.exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["enumerate", "x.duckdb"], "one of --space, --schema and --fn"),
        (["enumerate", "x.duckdb", "--space", "paper", "--fn", "relu(x)"], "one of --space, --schema and --fn"),
        (["enumerate", "x.duckdb", "--space", "act_bench", "--operators", "paper"], "--operators goes with"),
        (["enumerate", "x.duckdb", "--space", "papper"], "papper"),
        (["enumerate", "x.duckdb", "--fn", "relu(x)", "--points", "many"], "--points"),
        (["search", "x.duckdb"], "--task"),
        (["enumarate"], "enumarate"),
        (["eigs", "x.duckdb", "--task", "mnist1d", "--limits", "1"], "--limits"),
        (["eigs", "x.duckdb", "--task", "mnist1d", "--priority", "best"], "--priority"),
    ],
)
def test_usage(arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    check_error(aqx_command(*arguments), word, "--help")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "name", "word"),
    [
        (None, "task", "does not exist"),
        ("1 / 0", "task", "ZeroDivisionError"),
        (TASK, "tusk", "tusk"),
        (TASK + "\ntask = 3", "task", "int"),
        (
            TASK.replace("def batch():", "def batch():\n    return np.full((16, 5), np.nan), np.zeros(16, int)"),
            "task",
            "nan",
        ),
        (TASK.replace("losses.softmax_cross_entropy", "lambda o, y: o.sum()"), "task", "per example"),
        (TASK.replace("nn.Dense(4)", "nn.Dense('four')"), "task", "build_model"),
    ],
    ids=["missing", "raises", "no name", "no task", "nan", "loss", "model"],
)
@pytest.mark.parametrize("command", ["check", "eigs"])
def test_task_files_that_cannot_be_used(source, name, word, command, tmp_path: Path, filled: Path):
    path = tmp_path / "broken.py"
    if source:
        path.write_text(source)
    db = shutil.copy(filled, tmp_path / "copy.duckdb")
    arguments = ["task", "check"] if command == "check" else ["eigs", db, "--limit", "2", "--quiet", "--task"]
    check_error(aqx_command(*arguments, f"{path}:{name}"), word)


def test_unknown_built_in_task():
    check_error(aqx_command("task", "check", "mnist2d"), "mnist2d", "mnist1d")


def _text(path: Path) -> None:
    path.write_text("no database" * 1000)


def _foreign(path: Path) -> None:
    with duckdb.connect(str(path)) as con:
        con.execute("CREATE TABLE mine (x INT)")


def _newer(path: Path) -> None:
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (_text, "not a database"),
        (_foreign, "not one of aqx"),
        (_newer, "newer"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), "truncated"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
        (lambda path: path.unlink(), "does not exist"),
    ],
    ids=["text", "foreign", "newer", "truncated", "folder", "missing"],
)
@pytest.mark.parametrize("command", ["summary", "enumerate"])
def test_files_that_are_no_database(spoil, word, command, tmp_path: Path, filled: Path):
    path = tmp_path / "spoiled.duckdb"
    if spoil is not _foreign:
        shutil.copy(filled, path)
    spoil(path)
    if command == "enumerate" and not path.exists():
        return  # it makes one
    before = path.read_bytes() if path.is_file() else None
    arguments = ["summary", path] if command == "summary" else ["enumerate", path, "--schema", "unary(x)", "-q"]
    check_error(aqx_command(*arguments), word)
    assert before is None or path.read_bytes() == before


def test_read_only_folder():
    """As a user who may not write there; root may write anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        # Everything is imported first, as the other user may not be able to read this Python.
        code = (
            "import os, sys, aqx.enumeration, aqx.store, aqx.space, rich.progress, click.testing\n"
            "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            f"from aqx.cli import main; main(['enumerate', {folder + '/new.duckdb'!r}, '--fn', 'relu(x)', '-q'])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert "may not be written" in done.stderr


def test_no_room_on_disk(tmp_path: Path):
    mount = f"mount -t tmpfs -o size=3m none {tmp_path}"
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("no small file system can be made here")
    again = f'{sys.executable} -m aqx summary "$DB" --json'
    script = f'{mount}; {sys.executable} -m aqx enumerate "$DB" --space act_bench -q; echo "exit $?"; {again}'
    environment = {**os.environ, "DB": str(tmp_path / "full.duckdb")}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stdout.startswith("exit 2\n"), done.stderr + done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "no room left" in done.stderr
    assert json.loads(done.stdout.removeprefix("exit 2\n"))[0]["functions"] >= 0


def test_interrupt_is_one_line(db_path: Path):
    code = (
        "import os, signal, aqx.enumeration\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits that it is ignored
        "def enumerate_space(*_, **__): os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)\n"
        "aqx.enumeration.enumerate_space = enumerate_space\n"
        f"from aqx.cli import main; main(['enumerate', {str(db_path)!r}, '--space', 'paper'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.strip() == "interrupted; what is stored stays, and the same command goes on from there"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aqx.search.describe", lambda *_: 1 / 0)
    assert isinstance(aqx_command("show", "relu(x)").exception, ZeroDivisionError)


# --- what it does


def test_a_sample(db_path: Path):
    schema = "binary(unary(unary(unary(x))),unary(unary(unary(x))))"
    for seed, added in ((5, 30), (5, 0), (6, 30)):
        result = aqx_command("enumerate", db_path, "--schema", schema, "--sample", "30", "--seed", str(seed), "-q")
        assert "30 functions enumerated" in result.stdout and f"{added} functions," in result.stdout, result.output


def test_the_whole_way(task_file: Path, db_path: Path):
    task = f"{task_file}:task"
    result = aqx_command("enumerate", db_path, "--schema", "unary(x)", "--fn", "max(x,tanh(x))")
    check_error(result, "one of")
    result = aqx_command("enumerate", db_path, "--schema", "unary(x)")
    assert result.exit_code == 0 and "27 functions" in result.stdout, result.output
    assert "enumerate: 27 of 27" in result.stderr
    again = aqx_command("enumerate", db_path, "--schema", "unary(x)", "--quiet")
    assert "0 functions, 0 classes" in again.stdout and again.stderr == ""
    result = aqx_command("eigs", db_path, "--task", task, "--limit", "2", "--priority", "predicted", "--quiet")
    assert result.exit_code == 0 and "2 spectra computed" in result.stdout, result.output
    assert result.stderr == "too few results to predict from; the simplest classes come first\n"
    assert aqx_command("eigs", db_path, "--task", task, "--quiet").exit_code == 0
    assert aqx_command("eigs", db_path, "--task", task, "--check", "--names", "tanh(x)").exit_code == 0

    suggested = aqx_command("suggest", db_path, "--task", task, "-n", "3", "--json")
    assert len(json.loads(suggested.stdout)) == 3, suggested.output
    result = aqx_command("search", db_path, "--task", task, "--budget", "6", "--spectra", "0", "--quiet")
    assert result.exit_code == 0, result.output
    assert "classes left out of the search: 2 constant" in result.stdout
    result = aqx_command("tell", db_path, "--task", task, "mul(x,sigmoid(x))", "val_acc=0.25")
    assert result.exit_code == 0, result.output

    # More functions, of which the most promising get their spectra now.
    assert aqx_command("enumerate", db_path, "--schema", "binary(x,unary(x))", "--quiet").exit_code == 0
    study = aqx.Study(db_path, task)
    wanted = study.most_promising()
    result = aqx_command("eigs", db_path, "--task", task, "--limit", "5", "--priority", "predicted", "--quiet")
    assert result.stderr == "" and "5 spectra computed" in result.stdout, result.output
    assert set(wanted) - set(aqx.Study(db_path, task).most_promising()) == set(wanted[:5])

    (summary,) = json.loads(aqx_command("summary", db_path, "--json").stdout)
    assert summary["task"] == "toy" and summary["functions"] == 27 + 7 * 27
    assert summary["done"] + summary["failed"] == 6 + 2 + 1 and summary["running"] == 0
    assert aqx_command("summary", db_path, "--task", "toy").exit_code == 0
    check_error(aqx_command("summary", db_path, "--task", "other"), "other")

    best = json.loads(aqx_command("top", db_path, "--task", task, "-n", "1", "--json").stdout)[0]
    assert best["name"] == summary["best"]
    shown = aqx_command("show", best["name"], db_path)
    assert shown.exit_code == 0 and "toy" in shown.stdout and "flags  finite" in shown.stdout

    confirmed = aqx_command("confirm", db_path, "--task", task, "--top", "1", "--seeds", "3", "--json", "--quiet")
    rows = json.loads(confirmed.stdout)
    assert {"relu(x)", "tanh(x)"} < {row["name"] for row in rows}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)


def test_one_of_several_processes_needs_all_three_options(db_path: Path):
    result = aqx_command("eigs", db_path, "--task", "mnist1d", "--processes", "2")
    check_error(result, "coordinator, processes and process go together")


@pytest.mark.slow
def test_a_second_run_finds_the_compiled_programs(task_file: Path, db_path: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    assert aqx_command("enumerate", db_path, "--schema", "unary(x)", "--quiet").exit_code == 0

    def run(name: str) -> set[Path]:
        shutil.copy(db_path, tmp_path / name)
        command = [sys.executable, "-m", "aqx", "eigs", str(tmp_path / name), "--task", f"{task_file}:task"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return {path for path in cache.rglob("*-cache") if path.is_file()}

    first = run("first.duckdb")
    assert any("spectra" in path.name for path in first)
    assert run("second.duckdb") == first


def test_of_the_compiled_programs_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AQX_CACHE", str(tmp_path))
    for name in ("JAX_COMPILATION_CACHE_DIR", *_OTHERS):
        monkeypatch.setenv(name, "")  # so that it is as before, in the end
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "jax", raising=False)  # which keeps its settings
    monkeypatch.setattr("aqx.cli.commands._KEPT_BYTES", 250)
    keep_compiled_programs()
    (folder,) = tmp_path.iterdir()
    assert [file.name for file in folder.iterdir()] == ["looked"]

    def left() -> list[str]:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        keep_compiled_programs()
        return sorted(file.name for file in folder.glob("*-cache"))

    for age, name in enumerate(("d", "b", "a", "c")):
        (folder / f"{name}-cache").write_bytes(bytes(100))
        os.utime(folder / f"{name}-cache", (0, time.time() - 3600 * age))
    assert left() == ["a-cache", "b-cache", "c-cache", "d-cache"]  # looked at today
    os.utime(folder / "looked", (0, 0))
    assert left() == ["b-cache", "d-cache"]


def test_show_without_a_database():
    result = aqx_command("show", "max(relu(x), cosh(elu(x)))")
    start = "max(relu(x),cosh(elu(x)))\n  size   4\n  shape  binary(unary(x),unary(unary(x)))\n  class  "
    assert result.stdout.startswith(start)


def test_show_lists_equal_functions(db_path: Path):
    aqx_command("enumerate", db_path, "--schema", "unary(unary(x))", "--quiet")
    known = json.loads(aqx_command("show", "negative(negative(x))", db_path, "--json").stdout)
    assert known["simplest"] == "arcsinh(sinh(x))"
    assert "identity(identity(x))" in known["equal"] and known["flags"]["affine"]
    assert "  equal  identity(identity(x))\n" in aqx_command("show", "max(x,x)", db_path).stdout
    assert "  not in " in aqx_command("show", "max(x,mish(x))", db_path).stdout


@pytest.mark.parametrize("metric", ["=", "val_acc=", "val_acc=high"])
def test_tell_wants_numbers(metric: str, filled: Path, task_file: Path):
    result = aqx_command("tell", filled, "--task", f"{task_file}:task", "relu(x)", metric)
    check_error(result, metric, "METRIC=NUMBER")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["relu(x)"], "METRIC=NUMBER"),
        (["relu(x)", "tanh(x)", "val_acc=1"], "a function's NAME"),
        (["val_acc=1"], "a function's NAME"),
        (["--trial", "1", "relu(x)", "val_acc=1"], "or --trial ID instead"),
        (["--trial", "1"], "--failed REASON"),
        (["--trial", "1", "val_acc=1", "--failed", "boom"], "--failed REASON"),
        (["relu(x)", "--failed", "boom"], "--trial with --failed"),
        (["--trial", "1", "val_acc=1", "--seed", "3"], "--seed belongs to a NAME"),
        (["--trial", "1", "val_acc=1"], "trial_id 1 is not in this database"),
    ],
)
def test_tell_names_what_is_missing(words: list[str], said: str, copied: Path, task_file: Path):
    check_error(aqx_command("tell", copied, "--task", f"{task_file}:task", *words), said)


def test_a_script_in_another_framework_takes_part(copied: Path, task_file: Path):
    """What a PyTorch or Keras script does: claim, train, tell; and what a user does when something went wrong."""
    here = [copied, "--task", f"{task_file}:task"]
    name, trial, seed = aqx_command("claim", *here).stdout.split()
    assert (name, trial) == ("relu(x)", "1") and int(seed) >= 0
    claimed = json.loads(aqx_command("claim", *here, "--json").stdout)
    assert (claimed["name"], claimed["trial"]) == ("tanh(x)", 2)
    assert aqx_command("tell", *here, "--trial", 1, "val_acc=0.25", "loss=2").stdout.endswith("as trial 1: done\n")
    assert aqx_command("tell", *here, "--trial", 2, "--failed", "out of memory").stdout.endswith("trial 2: failed\n")
    check_error(aqx_command("tell", *here, "--trial", 1, "val_acc=0.5"), "trial 1 (relu(x)) is done already")
    listed = json.loads(aqx_command("trials", *here, "--json").stdout)
    assert [(row["status"], row["objective"], row["reason"]) for row in listed] == [
        ("done", 0.25, None),
        ("failed", None, "out of memory"),
    ]
    assert "tanh(x)" in aqx_command("trials", *here, "--status", "failed").stdout
    assert "relu(x)" not in aqx_command("trials", *here, "--status", "failed").stdout
    assert aqx_command("retry", *here).stdout == "1 queued; the next search or claim takes them first: tanh(x)\n"
    assert aqx_command("claim", *here).stdout.split()[:2] == ["tanh(x)", "3"]
    check_error(aqx_command("retry", *here, "--trial", 3), "trial 3 (tanh(x)) is running itself")
    check_error(aqx_command("reset", *here), "would delete 1 results; add --yes")
    assert aqx_command("reset", *here, "--keep-done").stdout == "1 trials deleted\n"
    assert aqx_command("reset", *here, "--yes").stdout == "1 trials deleted\n"
    assert [row["status"] for row in json.loads(aqx_command("trials", *here, "--json").stdout)] == ["running"]
    assert aqx_command("claim", *here).stdout.split()[:2] == ["relu(x)", "4"]


def test_an_answer_with_a_token_lands_on_its_own_claim_alone(copied: Path, task_file: Path, tmp_path: Path):
    here = [copied, "--task", f"{task_file}:task"]
    shutil.copy(copied, tmp_path / "before.duckdb")
    name, trial, _, token = aqx_command("claim", *here, "--token").stdout.split()
    shutil.copy(tmp_path / "before.duckdb", copied)  # restored
    assert aqx_command("claim", *here).stdout.split()[:2] == [name, trial]
    check_error(
        aqx_command("tell", *here, "--trial", trial, "--token", token, "val_acc=0.5"),
        f"trial {trial} ({name}) was not claimed with token '{token}'",
    )
    check_error(
        aqx_command("tell", *here, "--trial", trial, "--token", "x", "--failed", "no"), "not claimed with token"
    )
    check_error(aqx_command("tell", *here, "--token", "x", "relu(x)", "val_acc=0.5"), "--token belongs to --trial")
    claimed = json.loads(aqx_command("claim", *here, "--json").stdout)
    right = ["--trial", claimed["trial"], "--token", claimed["token"], "val_acc=0.5"]
    assert aqx_command("tell", *here, *right).stdout.endswith(": done\n")
    assert aqx_command("tell", *here, "--trial", trial, "val_acc=0.5").stdout.endswith(": done\n"), (
        "without is as before"
    )


# --- help and completion


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command that does something."""
    found = []
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


def example_lines(text: str) -> list[str]:
    """The lines of a help text that call aqx, without what explains them."""
    return [re.split("  +", line.strip())[0] for line in text.splitlines() if line.startswith("  ") and "aqx " in line]


def check_parses(line: str) -> None:
    """What click makes of a command line, without running it."""
    words = shlex.split(line.partition(" > ")[0].removesuffix(')"').partition('<<<"$(')[2] or line.partition(" > ")[0])
    assert words.pop(0) == "aqx", line
    command: click.Command = main
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context("aqx", words)


def test_help_lists_every_command_in_its_section():
    text = aqx_command("--help").stdout
    assert {name for names in SECTIONS.values() for name in names} == set(main.commands)
    places = [text.index(f"\n{heading}:") for heading in SECTIONS]
    assert places == sorted(places)
    for name in main.commands:
        assert f"\n  {name} " in text
    cut = {line.split()[0] for line in text.splitlines() if line.endswith("...")}
    assert cut <= {"Usage:"}, "a summary is too long for its line"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_says_what_a_command_needs_and_shows_it(words: tuple[str, ...]):
    text = aqx_command(*words, "--help").stdout
    lines = [line for line in example_lines(text) if "aqx " + " ".join(words) in line]
    assert lines, "no example"
    for line in lines:
        check_parses(line)
    if " DB " in text.splitlines()[0]:
        assert "\n  Needs " in text


def test_the_whole_way_in_the_help_parses():
    lines = example_lines(aqx_command("--help").stdout)
    assert [line.split()[1] for line in lines] == ("task enumerate eigs search confirm top show export report".split())
    for line in lines:
        check_parses(line)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["enumarate"], "Did you mean 'enumerate'?"),
        (["bench", "buld"], "Did you mean 'build'?"),
        (["search", "x.duckdb", "--task", "mnist1d", "--budgte", "3"], "--budget"),
    ],
)
def test_what_is_mistyped_gets_a_suggestion(words: list[str], said: str):
    check_error(aqx_command(*words), said)


@pytest.mark.parametrize("command", ["search", "suggest", "eigs"])
def test_an_empty_database_says_how_to_fill_it(command: str, db_path: Path, task_file: Path):
    aqx.store.Database(db_path, create=True)
    result = aqx_command(command, db_path, "--task", f"{task_file}:task")
    check_error(result, "holds no functions yet", f"aqx enumerate {db_path} --space act_bench")


def test_nothing_trained_says_how_to_search(filled: Path, task_file: Path):
    result = aqx_command("top", filled, "--task", f"{task_file}:task")
    assert result.stderr == f"nothing has been trained yet; do so: aqx search {filled} --task {task_file}:task\n"


def completed(*words: str) -> list[str]:
    """What the Tab key offers after these words, as click's script for bash asks for it."""
    result = CliRunner().invoke(
        main,
        env={
            "_AQX_COMPLETE": "bash_complete",
            "COMP_WORDS": shlex.join(["aqx", *words]),
            "COMP_CWORD": str(len(words)),
        },
    )
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_tab_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("import aqx\ntask = aqx.Task('a')\nother = Task('b')\nx = 1\n")
    Path("tricky.py").write_text("def (")
    Path("folder.py").mkdir()
    assert completed("sea") == ["plain,search"]
    assert "plain,--budget" in completed("search", "x.duckdb", "--")
    assert completed("search", "fou") == completed("doctor", "fou") == ["file,fou"]
    assert completed("search", "x", "--surrogate", "p") == ["plain,paper"]
    offered = [word.removeprefix("plain,") for word in completed("search", "x", "--task", "")]
    assert offered == ["train.py:task", "train.py:other", "tricky.py"] or {*offered} == {
        *BUILT_IN,
        "train.py:task",
        "train.py:other",
        "tricky.py",
    }
    assert completed("task", "check", "train.py:o") == ["plain,train.py:other"]
    assert completed("search", "x", "--task", "nowhere/") == ["file,nowhere/"]


def test_tab_knows_what_there_is():
    assert options.built_in_tasks() == list(BUILT_IN)
    assert options.preset_names() == list(PRESETS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str):
    result = aqx_command("completion", shell)
    assert result.exit_code == 0 and f"_AQX_COMPLETE={shell}_complete" in result.stdout
    assert result.stderr.startswith(f"to have it in every {shell}, save it: aqx completion {shell} > ~/")
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=result.stdout, text=True).returncode == 0


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_with_the_script(tmp_path: Path):
    """The script itself: bash calls its function as the Tab key does."""
    program = tmp_path / "aqx"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m aqx "$@"\n')
    program.chmod(0o755)
    asks = '\nCOMP_WORDS=(aqx sum); COMP_CWORD=1\n_aqx_completion aqx; echo "${COMPREPLY[@]}"\n'
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = aqx_command("completion", "bash").stdout + asks
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == "summary\n", done.stderr


def test_version():
    assert aqx_command("--version").stdout == f"aqx, version {aqx.__version__}\n"


@pytest.mark.parametrize("charset", ["ascii", "latin-1"])
def test_what_the_encoding_lacks_is_no_traceback(charset: str):
    result = CliRunner(charset=charset).invoke(main, ["tell", "--help"])
    assert result.exit_code == 0 and "METRIC=NUMBER" in result.stdout


# --- progress


def test_plain_progress_is_no_flood(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0] + [i * 0.1 for i in range(1, 201)])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = plain_lines("eigs")
    for done in range(1, 201):
        progress(1000 + done, 1200, "fitting")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("eigs: 1,05") and "left, fitting" in lines[0]
    assert lines[-1] == "eigs: 1,200 of 1,200, 9.9/s, fitting"


def test_durations_and_json():
    assert duration(61.2) == "1 min 2 s" and duration(0.1) == "1 s"
    assert plain({"a": (1, float("nan")), "b": Path("x")}) == {"a": [1, None], "b": "x"}
    assert plain([np.int64(3), np.float32("inf"), np.array([1.5, np.nan]), np.bool_(True)]) == [
        3,
        None,
        [1.5, None],
        True,
    ]
