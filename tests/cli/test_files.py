"""The commands that write a file: in whole or not at all, and what is wrong is one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_helpers import aqx_command, check_error
from test_writing import no_room

import aqx
from aqx.enumeration import enumerate_space
from aqx.space import Space
from aqx.store import Database

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "found.duckdb"
    enumerate_space(Database(path, create=True), Space(["unary(x)"]), points=32)
    study = aqx.Study(path, "mnist1d")
    for number, name in enumerate(("relu(x)", "tanh(x)", "mul(x,tanh(x))")):
        study.add(name, val_acc=0.5 + 0.1 * number)
    return path


def act_bench(folder: Path) -> Path:
    path = folder / "bench.json"
    path.write_text(json.dumps({f"relu(mul(x,x{' ' * n}))": {"Validation Accuracy": n / 3000} for n in range(3000)}))
    return path


WRITE: dict[str, list[str]] = {
    "report": ["report", "DB", "-q", "-o", "OUT.html"],
    "plot": ["plot", "DB", "progress", "-q", "-o", "OUT.png"],
    "export": ["export", "max(relu(x),tanh(x))", "--to", "torch", "-o", "OUT.py"],
    "bench import": ["bench", "import", "FOLDER/bench.json", "-q", "--out", "OUT.csv"],
    "backup": ["backup", "DB", "OUT.duckdb", "--force", "-q"],
}


@pytest.fixture(params=WRITE)
def words(request: pytest.FixtureRequest, filled: Path, tmp_path: Path) -> list[str]:
    """A command whose last word with OUT in it is the file that it writes."""
    (tmp_path / "in").mkdir()
    act_bench(tmp_path / "in")
    known = {"DB": shutil.copy(filled, tmp_path / "in"), "FOLDER": tmp_path / "in"}
    words = WRITE[request.param]
    for name, value in known.items():
        words = [str(value) if word == name else word.replace(f"{name}/", f"{value}/") for word in words]
    return words


def with_out(words: list[str], out: Path) -> tuple[list[str], Path]:
    """The command with the file in this place, and the file."""
    (place,) = [out.with_name(word.replace("OUT", out.name)) for word in words if word.startswith("OUT")]
    return [str(place) if word.startswith("OUT") else word for word in words], place


@pytest.mark.usefixtures("quick_map")
def test_a_full_disk_leaves_the_old_file(words: list[str], tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    line, place = with_out(words, folder / "file")
    assert aqx_command(*line).exit_code == 0
    place.write_text("old")
    with no_room(512):
        result = aqx_command(*line)
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("error: "), result.output
    assert "cannot be written: File too large" in result.stderr and "Traceback" not in result.output
    assert place.read_text() == "old" and os.listdir(folder) == [place.name]


def test_where_nothing_can_be_written_is_one_line(words: list[str], tmp_path: Path):
    line, place = with_out(words, tmp_path / "out")
    place.mkdir()
    check_error(aqx_command(*line), place.name, "cannot be written: it is a folder")
    line, place = with_out(words, tmp_path / "no" / "out")
    check_error(aqx_command(*line), "no/out", "is not a folder")
    line, place = with_out(words, Path("/proc/out"))
    check_error(aqx_command(*line), "/proc/out", "cannot be written")
    line, place = with_out(words, tmp_path / "null\0byte")
    check_error(aqx_command(*line), "cannot be the name of a file")


def test_backup(filled: Path, tmp_path: Path):
    copy = tmp_path / "copy.duckdb"
    result = aqx_command("backup", filled, copy, "--quiet")
    assert result.exit_code == 0 and result.stdout.startswith(f"{copy}: ") and result.stdout.endswith(" MiB\n")
    check_error(aqx_command("backup", filled, copy, "--quiet"), "is there already", "--force")
    result = aqx_command("backup", filled, copy, "--force", "--json", "--quiet")
    assert json.loads(result.stdout) == {"path": str(copy), "bytes": copy.stat().st_size}
    assert aqx_command("doctor", copy, "--quick", "--quiet").exit_code == 0
    assert (
        aqx_command("top", copy, "--task", "mnist1d").stdout == aqx_command("top", filled, "--task", "mnist1d").stdout
    )


# --- paths that are odd

ODD = {"question": "a?b", "backslash": "a\\b", "not UTF-8": "a\udcffb", "long": "-" + "a" * 200}
ODD |= {"others": ' it\'s "b" *[a]* %41#&\n\x1b[31mü💡'}


@pytest.mark.usefixtures("quick_map")
@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_every_command_takes_an_odd_path_or_says_why_not(filled: Path, tmp_path: Path, name: str):
    folder = tmp_path / "x" / name
    folder.mkdir(parents=True)
    (folder / f"{name}.py").write_text("from aqx.tasks import load_task\ntask = load_task('mnist1d')\n")
    (folder / f"{name}.json").write_text('{"relu(x)": {"Validation Accuracy": 0.25}}')
    table = folder / f"{name}.csv"
    table.write_text("name,seed,val_acc\nrelu(x),1,0.5\n")
    inside = folder / f"{name}.duckdb"
    taken = not ({"?", "\\", "\udcff"} & set(name))
    shutil.copy(filled, inside)
    db = inside if taken else Path(shutil.copy(filled, tmp_path / "db.duckdb"))
    # What aqx itself reads and writes works under any name; DuckDB refuses some for a database.
    lines = [
        ["bench", "import", folder / f"{name}.json", "-q", "--out", folder / f"{name}.parquet"],
        ["import", db, table, "--task", "mnist1d", "-q"],
        ["import", db, folder / f"{name}.parquet", "--task", "mnist1d", "-q"],
        ["import", db, folder / f"{name}.json", "--task", "mnist1d", "-q"],
        ["export", "relu(x)", "--to", "torch", "-o", folder / f"out{name}.py"],
        ["plot", db, "progress", "-q", "-o", folder / f"{name}.svg"],
        ["report", db, "-q", "-o", folder / f"{name}.html"],
        ["tell", db, "--task", f"{folder / name}.py:task", "tanh(x)", "val_acc=0.5"],
    ]
    for line in lines:
        result = aqx_command(*line)
        assert result.exit_code == 0, (line, result.output, result.exception)
    databases = [
        ["summary", inside],
        ["top", inside, "--task", "mnist1d"],
        ["enumerate", inside, "--fn", "cosh(x)", "-q"],
    ]
    databases += [["enumerate", folder / f"new{name}.duckdb", "--fn", "relu(x)", "-q"], ["show", "relu(x)", inside]]
    databases += [["backup", db, folder / f"copy{name}.duckdb", "-q"], ["claim", inside, "--task", "mnist1d"]]
    for line in databases:
        before = inside.read_bytes()
        result = aqx_command(*line)
        if taken:
            assert result.exit_code == 0, (line, result.output, result.exception)
        else:
            check_error(result)
            assert inside.read_bytes() == before
    files = [name for _, _, names in os.walk(tmp_path) for name in names]
    assert not [name for name in files if name.endswith(".tmp")]
