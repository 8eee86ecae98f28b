"""The task on text: what it reads, what its model costs, and that it learns."""

from __future__ import annotations

import math
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqx.activation import activation, stack
from aqx.errors import InputError, TaskError
from aqx.spectra.naming import Namer
from aqx.tasks import builtin_tasks, load_task
from aqx.tasks.builtin import corpus
from aqx.tasks.builtin.models.gpt import GPT, feed_forward_width
from aqx.tasks.builtin.text import text_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXT = "".join(f"line {number} of a text\n" for number in range(3000))
SMALL = {"width": 8, "depth": 2, "heads": 2, "context": 8, "steps": 30, "batch": 8}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_text_is_the_library_of_this_python_unless_a_file_is_named(file: Path, monkeypatch: pytest.MonkeyPatch):
    assert "text" in builtin_tasks(files=True) and "text" not in builtin_tasks(downloads=True)
    monkeypatch.delenv("AQX_TEXT", raising=False)
    task = load_task("text")
    assert task.name == "text-python" + ".".join(map(str, sys.version_info[:3]))
    assert (task.objective, task.direction) == ("val_bpb", "minimize")
    x, y = task.batch()
    assert x.shape == y.shape == (32, 64) and (x[:, 1:] == y[:, :-1]).all()
    assert b"import" in bytes(corpus.read_corpus(None, 1).train.tobytes())
    assert pickle.loads(pickle.dumps(task)) is task
    monkeypatch.setenv("AQX_TEXT", str(file))
    assert load_task("text").name == "text-notes"
    assert bytes(load_task("text").batch()[0][0].astype(np.uint8)).decode() == TEXT[:64]


def test_parts_are_all_of_the_text_and_none_twice(file: Path):
    parts = corpus.read_corpus(str(file), 10)
    assert sum(map(len, parts)) == len(TEXT)
    assert all(len(part) >= 0.05 * len(TEXT) for part in parts)
    np.testing.assert_array_equal(
        np.sort(np.concatenate(parts)), np.sort(np.frombuffer(TEXT.encode(), np.uint8)), "no byte is lost"
    )


def test_a_folder_is_its_files_in_order(tmp_path: Path):
    (tmp_path / "b").mkdir()
    for name, text in (("b/two.txt", "zwei" * 40), ("a.txt", "eins" * 40), (".hidden", "no" * 40)):
        (tmp_path / name).write_text(text)
    (tmp_path / "picture.bin").write_bytes(b"\xff\xfe\0" * 100)
    parts = corpus.read_corpus(str(tmp_path), 4)
    assert sum(map(len, parts)) == 321 and parts.train.tobytes().startswith(b"eins")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere", "cannot be read: No such file"),
        (lambda folder: _written(folder / "bin", b"\xff\xfe\0"), "is not UTF-8 text"),
        (lambda folder: _written(folder / "short", b"a"), "too few for a context"),
        (lambda folder: folder, "is a folder without a UTF-8 file"),
    ],
)
def test_what_is_no_text_is_said(tmp_path: Path, make, words: str):
    with pytest.raises(TaskError, match=words) as caught:
        text_task(make(tmp_path), name="no").batch()
    assert "\n" not in str(caught.value)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"width": 0}, "width=0"), ({"layers": 3}, "layers is no setting"), ({"heads": 5}, "heads=5 does not divide")],
)
def test_wrong_settings_are_named(settings: dict, words: str):
    with pytest.raises(InputError, match=words):
        text_task("notes.txt", **settings)


@pytest.mark.parametrize("width", [32, 64, 96, 128, 768])
def test_gated_and_plain_units_have_as_many_weights_and_multiplications(width: int):
    plain, gated = (
        inputs * width * feed_forward_width(width, inputs) + feed_forward_width(width, inputs) * width
        for inputs in (1, 2)
    )
    assert abs(gated / plain - 1) < 0.02


def test_a_position_sees_none_after_it_and_all_before():
    model = GPT(jax.nn.gelu, context=8, width=8, depth=2, heads=2)
    x = jnp.arange(8)[None] + 65
    variables = model.init(jax.random.key(0), x)

    def outputs(table):
        return model.apply(_with_table(variables, table), x)[0].sum(-1)

    seen = jax.jit(jax.jacobian(outputs))(variables["params"]["position"])
    depends = np.abs(seen).sum(-1) > 1e-12  # [position of the output, position of the input]
    np.testing.assert_array_equal(depends, np.tril(np.ones((8, 8), bool)))


def _with_table(variables, table):
    return {"params": {**variables["params"], "position": table}}


def test_it_learns_and_members_of_a_population_are_as_alone(file: Path):
    task = text_task(file, **SMALL | {"rate": 2e-2, "steps": 60})
    acts = Namer(["tanh", "relu"])(["tanh(x)", "relu(x)"])
    together = task.train_many(stack(acts), [0, 1])
    assert set(together) == {"train_bpb", "val_bpb", "test_bpb"}
    assert (together["val_bpb"] < 7).all() and (together["val_bpb"] > 1).all(), "8 bits are chance"
    alone = task.train(acts[1], 1)
    np.testing.assert_allclose(together["val_bpb"][1], alone["val_bpb"], rtol=1e-3)
    assert math.isfinite(alone["test_bpb"])


def test_what_diverges_is_nan(file: Path):
    task = text_task(file, **SMALL | {"rate": 1e6, "steps": 5})
    act = Namer(["exp"])(["exp(exp(exp(x)))"])[0]
    assert all(math.isnan(value) for value in task.train(act, 0).values())


@pytest.mark.slow
def test_normalised_layers_and_the_tied_table_are_left_out_of_spectra_and_named(file: Path):
    from aqx import fisher

    task = text_task(file, **SMALL)
    x, _ = task.batch()
    model = task.build_model(activation("gelu(x)"))
    found = fisher.coverage(model, model.init(jax.random.key(0), x), x)
    assert any("attend" in part.reason for part in found.left_out)
    assert sum("Dense" in key for key in found.weights) == 4
