"""Results of other programs: Act-Bench's JSON and AQuaSurF's SQLite, whole, broken and hostile."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import aqx
from aqx import losses
from aqx.benchmark import act_bench, import_results, load_table, read_act_bench, read_aquasurf
from aqx.benchmark.act_bench import METRICS
from aqx.cli import main
from aqx.errors import AqxError, InputError, StoreError
from aqx.store import Database, list_trials

ROOT = Path(aqx.__file__).parent.parent
CURVE = [[i / 7 for i in range(10_000)], []]
EQUAL = "Equivalent Activation Functions"
# Members as they are written, and what the table says of val_acc, val_loss and runtime.
MEMBERS: list[tuple[str, str, list[float]]] = [
    ("relu(x)", '{"Validation Accuracy": 0.9, "Validation Loss": 0.25, "Runtime (s)": 12}', [0.9, 0.25, 12]),
    ("tanh(x)", '{"Validation Accuracy": NaN, "Validation Loss": Infinity, "Runtime (s)": 1e3}', [np.nan, np.inf, 1e3]),
    ("elu(x)", '{"Validation Accuracy": null, "Validation Loss": -Infinity}', [np.nan, -np.inf, np.nan]),
    ("selu(x)", '{"Validation Accuracy": [0.1, [0.2, 0.3]], "Validation Loss": []}', [0.3, np.nan, np.nan]),
    ("abs(x)", '{"Validation Accuracy": "0.5", "Validation Loss": "NaN", "Runtime (s)": {}}', [0.5, np.nan, np.nan]),
    ('ünï→💡 \\" \\ud83d\\ude00 \t', '{"Validation Loss": ' + "9" * 5000 + "}", [np.nan, np.inf, np.nan]),
    ("what(x)", f'{{"Fisher log eigenvalue CDF": {json.dumps(CURVE)}, "{EQUAL}": ["x", "é"]}}', [np.nan] * 3),
    ("? ", '{"Test Loss": "high", "Other": [{"a": [null, true]}], "' + EQUAL + '": "x"}', [np.nan] * 3),
    ("relu(x)", '{"Validation Accuracy": 0.8, "Validation Loss": 0.5, "Runtime (s)": 3}', [0.8, 0.5, 3]),
]


def act_bench_text(members: list[tuple[str, str, list[float]]], space: str = "") -> str:
    items = [f'{space}"{name}"{space}:{space}{body}{space}' for name, body, _ in members]
    return f"{space}{{{','.join(items)}{space}}}{space}"


def cli(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# --- Act-Bench


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("space", ["", " \r\n\t"], ids=["dense", "spaced"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "BOM"])
def test_act_bench(chunk: int, space: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(act_bench, "_CHUNK", chunk)
    path = tmp_path / "act-bench.json"
    path.write_text(start + act_bench_text(MEMBERS, space), encoding="utf-8")
    found = read_act_bench(path)
    assert found.table.names[0] == "relu(x)" and found.table.names[5] == 'ünï→💡 " 😀 \t'
    assert len(found.table) == 8 and found.equivalents == 3
    assert list(found.table.metrics) == ["val_acc", "val_loss", "test_loss", "runtime"]
    expected = np.array([values for *_, values in [MEMBERS[-1], *MEMBERS[1:-1]]])
    for column, name in enumerate(["val_acc", "val_loss", "runtime"]):
        np.testing.assert_array_equal(found.table.metrics[name], expected[:, column])


def test_what_a_name_cannot_hold_becomes_a_question_mark(tmp_path: Path):
    path = tmp_path / "act-bench.json"
    path.write_text('{"a\\ud800": {"Test Loss": 1}}')
    assert read_act_bench(path).table.names == ("a?",)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_bench_import(ending: str, tmp_path: Path):
    path, out = tmp_path / "act-bench.json", tmp_path / f"table.{ending}"
    path.write_text(act_bench_text(MEMBERS), encoding="utf-8")
    result = cli("bench", "import", path, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("8 functions written to ") and "3 equivalent names left out" in result.stdout
    assert "1 of 1" in result.stderr
    written, read = load_table(out), read_act_bench(path).table
    assert written.names == read.names
    for name, values in read.metrics.items():
        np.testing.assert_array_equal(written.metrics[name], values)


GOOD = '"relu(x)": {"Test Loss": 1}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON object, at byte 0"),
        ("[1]", "is no JSON object"),
        ("null", "is no JSON object"),
        ("{}", "holds no functions"),
        ('{"relu(x)": {}}', "1 members, none with a number"),
        ('{"relu(x)": 0.5}', "the results of 'relu(x)' are no object, at byte 12"),
        ('{"relu(x)": }', "are no object"),
        ("{relu(x): {}}", "expected a function's name in quotes, at byte 1"),
        (f"{{{GOOD}", "the file ends too early, at byte 28, after 1 functions"),
        (f"{{{GOOD},", "the file ends too early"),
        (f"{{{GOOD}, }}", "expected a function's name"),
        (f"{{{GOOD}, ", "the file ends too early"),
        (f'{{{GOOD}, "elu', "the file ends too early"),
        (f'{{{GOOD}, "elu(x)"', "the file ends too early"),
        (f'{{{GOOD}, "elu(x)": {{"Test Loss": 0.', "the file ends too early"),
        (f'{{{GOOD}, "elu(x)": {{"Test Loss": Nope, {" " * 99}', "broken JSON (Expecting value), at byte 54, after 1"),
        (f'{{{GOOD} "elu(x)": {{}}}}', "expected ',' or '}' after a function"),
        (f"{{{GOOD}}} {{", "something follows the end of the object, at byte 30"),
        (f'{{"é": {{}}, "x": {{"a": {"[" * 100_000}', "nested too deeply, at byte 16, after 1 functions"),
        (f'{{{GOOD}, "x": {{"a": "\\q {" " * 99}"}}}}', "broken JSON (Invalid"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_broken_act_bench_files(text: str, message: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(act_bench, "_CHUNK", chunk)
    path = tmp_path / "act-bench.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_act_bench(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_not_utf8(tmp_path: Path):
    path = tmp_path / "act-bench.json"
    path.write_bytes(f"{{{GOOD}, ".encode() + b'"\xff')
    with pytest.raises(InputError, match="not UTF-8 near byte 31"):
        read_act_bench(path)


def test_a_string_without_end_takes_no_more_memory_than_a_function_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(act_bench, "_MOST", 1 << 21)
    path = tmp_path / "act-bench.json"
    path.write_text(f'{{{GOOD}, "elu(x)": {{"' + "y" * (8 << 20))
    with pytest.raises(InputError, match="one function takes more than 2 MB, at byte 40, after 1 functions"):
        read_act_bench(path)


@pytest.mark.slow
def test_a_large_file_is_streamed(tmp_path: Path):
    path = tmp_path / "act-bench.json"
    body = {name: i / 7 for i, name in enumerate(METRICS)} | {"Fisher log eigenvalue CDF": CURVE}
    text = json.dumps(body)
    n_functions = (60 << 20) // len(text) + 1
    with open(path, "w") as file:
        for i in range(n_functions):
            file.write(f'{"," if i else "{"}"f{i}": {text}')
        file.write("}")
    assert path.stat().st_size >= 60 << 20
    code = (
        "import resource, sys; from aqx.benchmark import read_act_bench\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); table = read_act_bench(sys.argv[1]).table; print(len(table), peak() - before)"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    functions, kilobytes = map(int, done.stdout.split())
    assert functions == n_functions
    assert kilobytes < 16 << 10


# --- AQuaSurF

COLUMNS = ("fn_name", "fn_outputs", "fisher_eigs", "status", "train_acc", "train_loss", "val_acc", "val_loss")
COLUMNS += ("test_acc", "test_loss", "runtime")


def make_aquasurf(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> Path:
    path.unlink(missing_ok=True)
    con = sqlite3.connect(path)
    con.execute(f"CREATE TABLE activation_functions ({', '.join(columns)})")
    lists = {"fn_outputs": str(CURVE[0][:300]), "fisher_eigs": "__import__('os').abort()", "status": "done"}
    con.executemany(
        f"INSERT INTO activation_functions VALUES ({', '.join('?' * len(columns))})",
        [[{**lists, **row}.get(column) for column in columns] for row in rows],
    )
    con.commit()
    con.close()
    return path


ROWS = [
    {"fn_name": "relu(x)", "val_acc": 0.9, "val_loss": 0.2, "test_acc": 0.8, "runtime": 12},
    {"fn_name": "max(x, zero(x))", "val_acc": 0.9, "val_loss": 0.2, "test_acc": 0.8, "runtime": 13},  # relu(x) again
    {"fn_name": "tanh(x)", "val_acc": "0.5", "val_loss": float("nan"), "status": 3},
    {"fn_name": "elu(x)", "val_acc": "nan", "val_loss": 1e999},
    {"fn_name": "selu(x)", "val_loss": 0.75, "status": "failed"},  # its accuracy was nan, which SQLite lacks
    {"fn_name": "abs(x)", "val_acc": struct.pack("<f", 0.625)},  # a numpy.float32
    {"fn_name": "swish(x)", "status": "queued"},
    {"fn_name": "erf(x)", "train_acc": 0.5, "test_acc": 0.5, "val_acc": "", "runtime": 3},
    {"fn_name": "what(x)", "val_acc": 0.1},
    {"fn_name": "__import__('os').abort()", "val_acc": 0.1},
    {"fn_name": "relu(x", "val_acc": 0.1},
    {"fn_name": "ünï→💡\n\x1b[0m", "val_acc": 0.1},
    {"fn_name": None, "val_acc": 0.1},
]


def study_of(path: Path, objective: str = "val_acc") -> aqx.Study:
    def unused(*_: Any) -> Any:
        raise AssertionError("an import needs no model")

    task = aqx.Task("toy", unused, batch=unused, loss=losses.softmax_cross_entropy, objective=objective)
    return aqx.Study(path, task)


def test_aquasurf(tmp_path: Path, db_path: Path):
    path = make_aquasurf(tmp_path / "old #1?.db", ROWS)
    path.chmod(0o444)
    before = path.read_bytes()
    study = study_of(db_path)
    report = import_results(study, path)
    assert (report.added, report.failed, report.known, report.untrained) == (6, 2, 0, 2)
    assert report.unreadable == ("what(x)", "__import__('os').abort()", "relu(x", "ünï→💡\n\x1b[0m", "None")
    records = study.records("added")
    assert [(record.id, record.name, record.status, record.objective) for record in records] == [
        (1, "relu(x)", "done", 0.9),
        (2, "max(x,zero(x))", "done", 0.9),
        (3, "tanh(x)", "done", 0.5),
        (4, "elu(x)", "failed", None),
        (5, "selu(x)", "failed", None),
        (6, "abs(x)", "done", 0.625),
    ]
    assert records[0].metrics == {"val_acc": 0.9, "val_loss": 0.2, "test_acc": 0.8, "runtime": 12}
    assert records[0].class_id == records[1].class_id == study.class_id("relu(x)")
    assert math.isnan(records[3].metrics["val_acc"]) and records[3].metrics["val_loss"] == math.inf
    assert records[3].reason == records[4].reason == "objective is nan"
    assert study.best() == records[0]

    assert import_results(study, path).added == 0
    # A name and its results decide, not the file or the order of its rows.
    more = make_aquasurf(tmp_path / "more.db", [{"fn_name": "tanh(x)", "val_acc": 0.75}, *reversed(ROWS)])
    report = import_results(study_of(db_path), more)
    assert (report.added, report.failed, report.known) == (1, 0, 6)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {path.name, more.name, "test.duckdb", "test.duckdb.lock"}


def test_added_results_equal_those_of_add(tmp_path: Path, db_path: Path):
    one_by_one, at_once = study_of(tmp_path / "one.duckdb"), study_of(db_path)
    results = {"relu(x)": 0.5, "add(x,x)": 0.25, "tanh(x)": math.nan, "elu(x)": -math.inf}
    for name, value in results.items():
        one_by_one.add(name, val_acc=value)
    import_results(
        at_once, make_aquasurf(tmp_path / "old.db", [{"fn_name": n, "val_acc": str(v)} for n, v in results.items()])
    )
    for one, other in zip(one_by_one.records(), at_once.records(), strict=True):
        for field in ("id", "name", "class_id", "seed", "purpose", "status", "objective", "metrics", "reason"):
            np.testing.assert_equal(getattr(one, field), getattr(other, field))


def test_results_of_another_task_purpose_or_seed_are_others(tmp_path: Path, db_path: Path):
    study = study_of(db_path)
    trial = study.ask()
    study.tell(trial, val_acc=0.5)
    table = tmp_path / "table.csv"
    table.write_text(
        f"name,seed,val_acc,reason\n{trial.name},{trial.seed},0.5,\n{trial.name},1,0.5,\n"
        f"{trial.name},1,0.5,\nelu(x),0,0.5,out of memory\n"
    )
    report = import_results(study, table)
    assert (report.added, report.failed, report.known, report.repeated) == (3, 1, 1, 1)
    assert study.records()[-1].reason == "out of memory" and study.records()[-1].objective is None
    other = aqx.Study(db_path, "mnist1d")
    assert import_results(other, table).added == 3


SEEDS = """name,seed,val_acc
relu(x),0,0.5
relu(x),1,0.5
relu(x),2,0.5
tanh(x),,0.25
"""


def test_one_odd_seed_changes_no_other(tmp_path: Path, db_path: Path):
    """As numbers such a column is one of floats, in which the others' seeds were lost."""
    table = tmp_path / "table.csv"
    table.write_text(
        f"{SEEDS}elu(x),3.0,0.5\nelu(x),1.5,0.5\nelu(x),{2**64},0.5\n\n"
        f'"what(\nx)",4,0.5\nelu(x),{2**63 - 1},0.5\nelu(x),{-(2**63)},0.5\nelu(x),{2**63},0.5\n'
        "elu(x),1e3,0.5\nelu(x),1e999999999,0.5\nelu(x),inf,0.5\nelu(x),five,0.5\nelu(x), 7 ,0.5\nrelu(x),2.0,0.5\n"
    )
    study = study_of(db_path)
    report = import_results(study, table)
    assert (report.added, report.failed, report.known, report.repeated) == (9, 0, 1, 1)
    expected = [("relu(x)", 0), ("relu(x)", 1), ("relu(x)", 2), ("tanh(x)", 0), ("elu(x)", 3), ("elu(x)", 2**63 - 1)]
    expected += [("elu(x)", -(2**63)), ("elu(x)", 1000), ("elu(x)", 7)]
    assert [(record.name, record.seed) for record in study.records()] == expected
    assert [(row.place, row.name) for row in report.refused] == [
        ("line 7", "elu(x)"), ("line 8", "elu(x)"), ("line 14", "elu(x)"), ("line 16", "elu(x)"), ("line 17", "elu(x)"),
        ("line 18", "elu(x)"), ("line 10", "what(\nx)"),
    ]  # fmt: skip
    assert report.refused[0].reason == "seed '1.5' is no whole number of 64 bits"
    assert "cannot parse" in report.refused[-1].reason and report.unreadable == ("what(\nx)",)
    again = import_results(study, table)
    assert (again.added, again.known, again.repeated, again.refused) == (0, 10, 1, report.refused)
    with pytest.raises(InputError, match="line 7: seed '1.5' is no whole number of 64 bits, and 5 more rows"):
        load_table(table)


@pytest.mark.parametrize(
    ("seeds", "kept", "refused"),
    [
        (pa.array([0, 1, None], pa.int64()), [0, 1, 0], []),
        (pa.array([0, 2**63 + 1, 7], pa.uint64()), [0, 7], ["row 2"]),
        (pa.array([0.0, 3.5, float("nan")]), [0, 0], ["row 2"]),
        (pa.array(["4", "x", ""]), [4, 0], ["row 2"]),
        (pa.array([True, None, None]), [0, 0], ["row 1"]),
        (pa.array([[1, 2], [3, 4], None]), [0], ["row 1", "row 2"]),
    ],
    ids=["blank", "uint64", "floats", "text", "booleans", "lists"],
)
def test_seeds_of_any_type(tmp_path: Path, db_path: Path, seeds: pa.Array, kept: list[int], refused: list[str]):
    path = tmp_path / "table.parquet"
    parquet.write_table(pa.table({"name": ["relu(x)", "tanh(x)", "elu(x)"], "seed": seeds, "val_acc": [0.5] * 3}), path)
    study = study_of(db_path)
    report = import_results(study, path)
    assert [record.seed for record in study.records()] == kept
    assert [row.place for row in report.refused] == refused


def test_rows_are_counted_across_transactions(tmp_path: Path, db_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aqx.benchmark.importing.CHUNK", 2)
    table = tmp_path / "table.csv"
    table.write_text("name,seed,val_acc\n" + "relu(x),1,0.5\ntanh(x),1,0.5\nrelu(x),1,0.25\n" * 3)
    study = study_of(db_path)
    report = import_results(study, table)
    assert (report.added, report.known, report.repeated) == (3, 6, 6) and len(study.records()) == 3
    report = import_results(study, table)
    assert (report.added, report.known, report.repeated) == (0, 9, 6)


def test_the_command_counts_what_was_added_merged_and_refused(tmp_path: Path, db_path: Path):
    study_of(db_path)
    table = tmp_path / "table.csv"
    table.write_text(SEEDS + "elu(x),1.5,0.5\n" * 7 + "tanh(x),0,0.25\n")
    result = cli("import", db_path, table, "--task", "mnist1d", "--quiet")
    assert result.exit_code == 0 and result.stdout == (
        "4 results added, 0 of them failed; merged, as name, seed and metrics are the same: 0 with what was there "
        "already, 1 with earlier rows; 7 refused, 0 functions are not trained yet\n"
    )
    lines = result.stderr.splitlines()
    assert lines[0] == "refused: line 6: seed '1.5' is no whole number of 64 bits"
    assert len(lines) == 6 and lines[-1] == "and 2 more; --json lists all"
    known = json.loads(cli("import", db_path, table, "--task", "mnist1d", "--quiet", "--json").stdout)
    assert (known["added"], known["known"], known["repeated"], len(known["refused"])) == (0, 5, 1, 7)
    assert known["refused"][6] == {"place": "line 12", "name": "elu(x)", "reason": lines[0].partition("6: ")[2]}


def test_text_among_the_objectives_numbers_is_named(tmp_path: Path, db_path: Path):
    table = tmp_path / "table.csv"
    table.write_text("name,val_acc,val_loss\nrelu(x),n/a,1\ntanh(x),0.5,2\n")
    with pytest.raises(InputError, match="val_acc has text in it, so it is no metric: .*has the metrics val_loss"):
        import_results(study_of(db_path), table)


def test_results_are_imported_after_a_reset(tmp_path: Path, db_path: Path):
    """Numbers of removed trials are not used again; looking them up must not keep the table busy."""
    study = aqx.Study(db_path, "mnist1d")
    study.retry(study.add("relu(x)", val_acc=0.5).id)
    study.reset(keep_done=True)
    file = tmp_path / "results.csv"
    file.write_text("name,val_acc\ntanh(x),0.5\n")
    assert import_results(study, file).added == 1
    assert [record.id for record in study.records()] == [1, 3]


def test_stored_functions_keep_their_class(tmp_path: Path, db_path: Path):
    """Even where another version of jax would compute another one."""
    study = study_of(db_path)
    other = "00000000-0000-0000-0000-000000000001"
    with Database(db_path).transaction() as con:
        con.execute("INSERT INTO functions VALUES ('relu(x)', ?, 1)", [other])
        con.execute("INSERT INTO class_info (class_id, name, size) VALUES (?, 'relu(x)', 1)", [other])
    import_results(study, make_aquasurf(tmp_path / "old.db", ROWS[:2]))
    classes = [row.class_id for row in list_trials(study.db, study.task_id)]
    assert classes == [other, study.class_id("max(x,zero(x))")]


def test_a_loss_as_objective(tmp_path: Path, db_path: Path):
    report = import_results(study_of(db_path, "val_loss"), make_aquasurf(tmp_path / "old.db", ROWS[:9]))
    assert (report.added, report.failed, report.untrained) == (6, 3, 2)


def test_few_columns_in_any_case(tmp_path: Path):
    rows = [{"FN_NAME": "relu(x)", "Val_Acc": 0.5, "other": 1}, {"FN_NAME": "x"}]
    path = make_aquasurf(tmp_path / "old.db", rows, ("other", "Val_Acc", "FN_NAME"))
    found = read_aquasurf(path, "val_acc")
    assert found.table.names == ("relu(x)",) and found.untrained == 1
    assert {name: values.tolist() for name, values in found.table.metrics.items()} == {"val_acc": [0.5]}


def test_an_import_of_each_format(tmp_path: Path, db_path: Path):
    study_of(db_path)
    table = tmp_path / "table.CSV"
    table.write_text("name,val_acc\nrelu(x),0.5\n")
    members = tmp_path / "act-bench.json"
    members.write_text(act_bench_text(MEMBERS), encoding="utf-8")
    old = make_aquasurf(tmp_path / "old.sqlite", ROWS)
    task = ["--task", "mnist1d"]
    for path, expected in (
        (table, "1 results added, 0 of them failed"),
        (members, "5 results added, 2 of them"),
        (old, "6 results added"),
    ):
        result = cli("import", db_path, path, *task)
        assert result.exit_code == 0 and expected in result.stdout, result.output
        again = cli("import", db_path, path, *task, "--quiet")
        assert again.stdout.startswith("0 results added"), again.output
    assert result.stdout == (
        "6 results added, 2 of them failed; merged, as name, seed and metrics are the same: 0 with what was there "
        "already, 0 with earlier rows; 5 refused, 2 functions are not trained yet\n"
    )
    assert "merged, as name, seed and metrics are the same: 6 with what was there already, 0 with" in again.stdout
    lines = again.stderr.splitlines()
    assert lines[0] == "refused: cannot parse function name 'what(x)': unknown operator 'what' (at position 0)"
    assert len(lines) == 5 and all(line.startswith("refused: cannot parse function name ") for line in lines)
    for line, name in zip(lines[1:3], ("__import__('os').abort()", "relu(x"), strict=True):
        assert repr(name) in line


def _wrong_table(path: Path) -> None:
    path.unlink()
    con = sqlite3.connect(path)
    con.execute("CREATE TABLE other (fn_name)")
    con.commit()
    con.close()


def _view(path: Path) -> None:
    con = sqlite3.connect(path)
    con.execute("ALTER TABLE activation_functions RENAME TO other")
    con.execute("CREATE VIEW activation_functions AS SELECT * FROM other")
    con.commit()
    con.close()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: (path.unlink(), path.mkdir()), "is no file"),
        (lambda path: path.write_bytes(b""), "no database of SQLite, no JSON object"),
        (lambda path: path.write_text("hello"), "no database of SQLite, no JSON object"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "cannot be read as an SQLite database"),
        (lambda path: os.truncate(path, 8192), "cannot be read as an SQLite database"),
        (_wrong_table, "no table activation_functions"),
        (_view, "no table activation_functions"),
        (lambda path: make_aquasurf(path, [], ("fn_name", "test_acc")), "val_acc is missing from table"),
        (lambda path: make_aquasurf(path, [], ("val_acc",)), "fn_name is missing from table"),
        (lambda path: make_aquasurf(path, ROWS[6:7] + [{"val_loss": 0.5}]), "val_acc has no number"),
        (lambda path: path.write_text(f"{{{GOOD}}}"), "val_acc is missing: file="),
        (lambda path: path.write_text(f"{{{GOOD}"), "the file ends too early"),
    ],
)
def test_files_that_cannot_be_imported(spoil, word: str, tmp_path: Path, db_path: Path):
    path = make_aquasurf(tmp_path / "old.db", ROWS)
    spoil(path)
    study = study_of(db_path)
    with pytest.raises(AqxError, match=word) as error:
        import_results(study, path)
    assert "\n" not in str(error.value)
    assert study.records() == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["bench", "import", "absent.json", "--out", "table.csv"], "does not exist"),
        (["bench", "import", "broken.json", "--out", "table.csv"], "is no Act-Bench file"),
        (["bench", "import", "absent.json", "--out", "table.xls"], "neither Parquet nor CSV"),
        (["bench", "import", "absent.json"], "--out"),
        (["import", "absent.duckdb", "broken.json", "--task", "mnist1d"], "does not exist"),
        (["import", "absent.duckdb", "broken.json"], "--task"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text(f"{{{GOOD}, nonsense")
    result = cli(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    errors = [line for line in result.stderr.splitlines() if not line.startswith("import: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and word in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["broken.json"]


# --- whatever a file holds, nothing but an AqxError leaves

SMALL = [member for member in MEMBERS if len(member[1]) < 200]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid file of each kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_aquasurf(folder / "valid.sqlite", ROWS[:4])
    (folder / "valid.json").write_text(act_bench_text(SMALL), encoding="utf-8")
    (folder / "valid.csv").write_text("name,val_acc\nrelu(x),0.5\n")
    return folder


@given(
    kind=st.sampled_from(["json", "sqlite", "csv"]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 9), st.binary(max_size=6)), max_size=4),
    end=st.floats(0.2, 2),
    random=st.none() | st.binary(max_size=200),
)
def test_nothing_but_an_aqx_error_leaves(originals: Path, kind: str, edits, end: float, random: bytes | None):
    valid = (originals / f"valid.{kind}").read_bytes()
    data = bytearray(valid if random is None else valid[:16] + random)
    for at, length, new in edits:
        start = int(at * len(data))
        data[start : start + length] = new
    path = originals / f"mutated.{kind}"
    path.write_bytes(data[: int(end * len(data))])
    try:
        if kind == "json":
            read_act_bench(path)
        elif kind == "sqlite":
            read_aquasurf(path, "val_acc")
        else:
            load_table(path)
    except (InputError, StoreError) as error:
        assert "\n" not in str(error)
