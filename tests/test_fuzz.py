"""Random and mutated text through everything that reads text: whatever it is, only an AqxError leaves."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import aqx
from aqx.benchmark import import_results
from aqx.benchmark.table import ResultTable, load_table, save_table
from aqx.cli import main
from aqx.errors import AqxError
from aqx.search import Study
from aqx.tasks import load_task
from aqx.tree import parse

# How many of each: by default, and in the slow run (together more than 100,000).
SOME, ALL = 400, {"parse": 60_000, "space": 30_000, "command": 8_000, "import": 6_000}

NAMES = ["max(relu(x),cosh(elu(x)))", "mul(x,sigmoid(x))", "sum_n(relu(x),x,tanh(x))", "x", "unary(binary(unary(x),x))"]
PIECES = [
    *"(),x \0\n'\";{}[]\\é𝕏\u202e\ud800",
    "relu",
    "unary",
    "binary",
    "n-ary",
    "--",
    "1e999",
    "NaN",
    "-1",
    "%s",
    "../",
]
PIECES += ["$(x)", "__import__('os')", "(" * 300]
COMMANDS = [
    ["show", "*"],
    ["show", "*", "DB"],
    ["tell", "DB", "--task", "mnist1d", "*", "val_acc=0.5"],
    ["tell", "DB", "--task", "mnist1d", "relu(x)", "*"],
    ["tell", "DB", "--task", "mnist1d", "--trial", "*", "val_acc=1"],
    ["enumerate", "DB", "--schema", "*", "--sample", "*"],
    ["enumerate", "DB", "--fn", "*", "-q"],
    ["trials", "DB", "--task", "*"],
    ["trials", "DB", "--task", "mnist1d", "--status", "*"],
    ["retry", "DB", "--task", "mnist1d", "--trial", "*"],
    ["summary", "DB", "--task", "*"],
    ["summary", "*"],
    ["top", "DB", "--task", "mnist1d", "-n", "*"],
    ["import", "DB", "*", "--task", "mnist1d"],
    ["*", "DB"],
]


def count(what: str, everything: bool) -> int:
    return ALL[what] if everything else SOME


many = pytest.mark.parametrize(
    "everything", [pytest.param(False, id="some"), pytest.param(True, id="all", marks=pytest.mark.slow)]
)


def mutated(chance: random.Random, text: str) -> str:
    """The text after a few cuts, repetitions, swaps and foreign pieces; or nothing but pieces."""
    if chance.random() < 0.2:
        return "".join(chance.choices(PIECES, k=chance.randrange(12)))
    for _ in range(chance.randrange(1, 4)):
        a, b = sorted(chance.choices(range(len(text) + 1), k=2))
        text = chance.choice(
            [
                text[:a] + text[b:],
                text[:b] + text[a:],
                text[:a] + chance.choice(PIECES) + text[a:],
                text[:a] + chr(chance.randrange(0x2FF)) + text[b:],
                text.upper(),
            ]
        )[:4000]
    return text


def only_aqx_errors(run: Callable[[], object], text: object) -> bool:
    try:
        run()
    except AqxError:
        return False
    except Exception as error:
        raise AssertionError(f"{text!r} ends with {type(error).__name__}: {error}") from error
    return True


@many
def test_parse(everything: bool):
    chance, read = random.Random(1), 0
    for _ in range(count("parse", everything)):
        text = mutated(chance, chance.choice(NAMES))
        read += only_aqx_errors(lambda: parse(text), text)  # noqa: B023
    assert read > 0, "nothing that was tried parses: the mutations are too wild"


@many
def test_space(everything: bool):
    chance, read = random.Random(2), 0
    for _ in range(count("space", everything)):
        text = mutated(chance, chance.choice(NAMES))
        read += only_aqx_errors(lambda: len(aqx.Space([text]).schemas) if text else 0, text)  # noqa: B023
    assert read > 0


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "filled.duckdb"
    assert CliRunner().invoke(main, ["enumerate", str(path), "--fn", "relu(x)", "--fn", "tanh(x)", "-q"]).exit_code == 0
    return path


@many
def test_command_line(everything: bool, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chance = random.Random(3)
    db = shutil.copy(filled, tmp_path / "fuzz.duckdb")
    monkeypatch.chdir(tmp_path)
    for _ in range(count("command", everything) // (1 if everything else 4)):
        words = [
            mutated(chance, chance.choice([*NAMES, "mnist1d", "17", "done", "summary"])) if word == "*" else word
            for word in chance.choice(COMMANDS)
        ]
        words = [str(db) if word == "DB" else word for word in words]
        result = CliRunner().invoke(main, words)
        assert result.exit_code in (0, 2), (words, result.exception)
        assert isinstance(result.exception, SystemExit | None), (words, result.exception)
        assert "Traceback" not in result.output
    assert {path.name for path in tmp_path.iterdir()} <= {"fuzz.duckdb", "fuzz.duckdb.lock"}, "a word became a file"


def files(folder: Path) -> list[Path]:
    """One readable file of each kind that can be imported."""
    table = ResultTable(
        ("relu(x)", "tanh(x)"),
        np.array([0, 1]),
        {"val_acc": np.array([0.5, 0.25]), "val_loss": np.array([1.0, np.nan])},
        (None, "boom"),
        "mnist1d",
    )
    for name in ("table.parquet", "table.csv"):
        save_table(folder / name, table)
    entry = {"Validation Accuracy": 0.5, "Test Accuracy": float("nan"), "Equivalent Activation Functions": ["x"]}
    (folder / "bench.json").write_text(json.dumps({"relu(x)": entry, "tanh(x)": entry}))
    return sorted(folder.iterdir())


@many
def test_files_to_import(everything: bool, filled: Path, tmp_path: Path):
    chance = random.Random(4)
    originals = {file: file.read_bytes() for file in files(tmp_path)}
    study = Study(shutil.copy(filled, tmp_path / "fuzz.duckdb"), load_task("mnist1d"))
    for _ in range(count("import", everything) // (1 if everything else 4)):
        file, whole = chance.choice(list(originals.items()))
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            a, b = sorted(chance.choices(range(len(data) + 1), k=2))
            match chance.randrange(4):
                case 0:
                    del data[a : min(b, a + 40)]
                case 1:
                    data[a:a] = chance.randbytes(chance.randrange(8))
                case 2:
                    data[a:a] = chance.choice(PIECES).encode("utf-8", "surrogatepass")
                case 3 if len(data):
                    data[min(a, len(data) - 1)] = chance.randrange(256)
        broken = tmp_path / ("broken" + file.suffix)
        broken.write_bytes(data)
        only_aqx_errors(lambda: import_results(study, broken), bytes(data)[:200])  # noqa: B023
        if file.suffix != ".json":
            only_aqx_errors(lambda: load_table(broken), bytes(data)[:200])  # noqa: B023
