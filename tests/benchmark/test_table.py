"""Tables of results: what is written is read again, from Parquet and CSV, ours and other people's."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from aqx.benchmark import ResultTable, load_table, save_table
from aqx.errors import InputError, StoreError
from aqx.store import files

TABLE = ResultTable(
    ("relu(x)", "max(x,zero(x))", 'a,"b"\n'),
    np.array([0, 3, 2**62]),
    {"val_acc": np.array([0.1 + 0.2, np.nan, 1e-300]), "val_loss": np.array([np.inf, -np.inf, 0.0])},
    (None, "diverged", None),
)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_what_is_written_is_read_again(tmp_path: Path, ending: str):
    save_table(tmp_path / f"table.{ending}", TABLE)
    read = load_table(tmp_path / f"table.{ending}")
    assert (read.names, read.reasons) == (TABLE.names, TABLE.reasons)
    assert (read.seeds == TABLE.seeds).all()
    assert list(read.metrics) == list(TABLE.metrics)
    for name, values in TABLE.metrics.items():
        np.testing.assert_array_equal(read.metrics[name], values)
    assert [path.name for path in tmp_path.iterdir()] == [f"table.{ending}"]


def test_a_foreign_csv(tmp_path: Path):
    path = tmp_path / "foreign.CSV"
    path.write_text("epoch,name,acc,loss,comment\n1,relu(x),0.5,Infinity,fine\n2,tanh(x),,NaN,\n")
    table = load_table(path)
    assert table.names == ("relu(x)", "tanh(x)")
    assert list(table.metrics) == ["epoch", "acc", "loss"]
    np.testing.assert_array_equal(table.metrics["acc"], [0.5, np.nan])
    np.testing.assert_array_equal(table.metrics["loss"], [np.inf, np.nan])
    assert table.reasons == (None, None)
    assert table.seeds.tolist() == [0, 0]


FORMULAS = ("=1+2", "+x", "-x", "@SUM(A1)", "'=1", "''@x", "\tx", "'plain", "plain", "-0.5", '=HYPERLINK("a")')


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_no_text_is_a_formula_and_all_is_read_again(tmp_path: Path, ending: str):
    """A spreadsheet computes what begins with =, +, - or @, also a link that sends what is in other cells."""
    rows = len(FORMULAS)
    metrics = {"=metric": np.full(rows, -0.5), "@loss": np.zeros(rows), "'-x": np.ones(rows)}
    table = ResultTable(("relu(x)",) * rows, np.arange(-3, rows - 3), metrics, FORMULAS, "=task")
    save_table(tmp_path / f"table.{ending}", table)
    read = load_table(tmp_path / f"table.{ending}")
    assert (read.reasons, list(read.metrics), read.task) == (FORMULAS, list(metrics), "=task")
    assert read.seeds.tolist() == table.seeds.tolist() and read.metrics["=metric"].tolist() == [-0.5] * rows
    if ending == "csv":
        with open(tmp_path / "table.csv", newline="") as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        assert {cell for cell in cells if cell[:1] in tuple("=+-@\t\r")} == {"-3", "-2", "-1", "-0.5"}, "numbers alone"


def test_lines_within_cells_at_any_place_of_a_large_file(tmp_path: Path):
    """Files are read in blocks of a megabyte, one of which ends within a cell."""
    rows = 30_000
    reasons = tuple(f"{row}\n" + "why\n" * 12 for row in range(rows))
    table = ResultTable(("relu(x)",) * rows, np.arange(rows), {"val_acc": np.zeros(rows)}, reasons)
    save_table(tmp_path / "table.csv", table)
    read = load_table(tmp_path / "table.csv")
    assert read.reasons == reasons and read.seeds.tolist() == list(range(rows))


def test_a_foreign_parquet_of_float32_and_integers(tmp_path: Path):
    path = tmp_path / "foreign.parquet"
    columns = {"name": ["x"], "acc": pa.array([0.5], pa.float32()), "n": pa.array([None], pa.int8()), "when": ["now"]}
    parquet.write_table(pa.table(columns), path)
    table = load_table(path)
    np.testing.assert_array_equal(table.metrics["acc"], [0.5])
    np.testing.assert_array_equal(table.metrics["n"], [np.nan])
    assert set(table.metrics) == {"acc", "n"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("table.json", "{}", "neither Parquet nor CSV"),
        ("absent.csv", None, "does not exist"),
        ("table.csv", "function,acc\nx,1\n", "no column name; it has function, acc"),
        ("table.csv", "name,comment\nx,good\n", "no metric"),
    ],
)
def test_what_is_no_table_gets_one_line(tmp_path: Path, name: str, text: str | None, message: str):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_table(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff" * 100, b"PAR1" + b"\x00" * 20, b"name,\x80\nx,1\n", b"name,a,a\nx,1,2\n"]
)
def test_a_broken_file_gets_one_line(tmp_path: Path, ending: str, content: bytes):
    path = tmp_path / f"broken.{ending}"
    path.write_bytes(content)
    with pytest.raises((InputError, StoreError)) as error:
        load_table(path)
    assert "\n" not in str(error.value)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "table.csv"
    save_table(path, TABLE)
    before = path.read_bytes()
    with pytest.raises(InputError, match="length"):
        files.write_table(path, {"name": ["x"], "acc": [0.5, 0.6]})
    with pytest.raises(StoreError, match="cannot be written"):
        save_table(tmp_path / "no" / "folder.csv", TABLE)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["table.csv"]
