"""The tasks on Fashion-MNIST: what is refused of its files, how rows are divided, and a training where they are."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

from aqx.activation import activation
from aqx.errors import InputError, TaskError
from aqx.tasks import builtin_tasks, load_task
from aqx.tasks.builtin import fashion, fashion_files
from aqx.tasks.builtin.fashion import fashion_task, load_split
from aqx.tasks.builtin.fashion_files import FILES, find_fashion, read_fashion

SMALL = {"train": 300, "t10k": 40}


def idx(array: np.ndarray) -> bytes:
    """The format, from its description: two zeros, 8 for bytes, the number of axes, their lengths, the bytes."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set whose every image tells its number and class by its first pixels."""
    monkeypatch.setattr(fashion_files, "ROWS", SMALL)
    monkeypatch.setattr(fashion, "VALIDATION_ROWS", 50)
    monkeypatch.delenv("AQX_FASHION", raising=False)
    for part, rows in SMALL.items():
        images = np.random.default_rng(0).integers(0, 256, (rows, 28, 28)).astype(np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.arange(rows) // 250, np.arange(rows) % 250
        classes = (np.arange(rows) % 10).astype(np.uint8)
        images[:, 0, 2] = classes
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(classes)))
    return tmp_path


def test_the_files_are_read_as_published(folder: Path):
    x, y, x_test, y_test = read_fashion(folder)
    assert x.shape == (300, 28, 28, 1) and x_test.shape == (40, 28, 28, 1)
    np.testing.assert_array_equal(x[:, 0, 2, 0], y)
    np.testing.assert_array_equal(x[:, 0, 0, 0].astype(int) * 250 + x[:, 0, 1, 0], np.arange(300))
    np.testing.assert_array_equal(x_test[:, 0, 2, 0], y_test)


def test_rows_are_in_one_part_only_and_few_on_request(folder: Path):
    data = load_split(folder)
    numbers = np.concatenate([part[:, 0, 0, 0].astype(int) * 250 + part[:, 0, 1, 0] for part in (data.x, data.x_val)])
    assert sorted(numbers) == list(range(300)) and len(data.x_val) == 50
    np.testing.assert_array_equal(data.x_val[:, 0, 2, 0], data.y_val)
    few = load_split(folder, 20)
    assert len(few.x) == 20 and len(few.x_val) == 50 and len(few.x_test) == 40
    pixels = data.x.astype(float) / 255
    np.testing.assert_allclose([data.mean[0], data.deviation[0]], [pixels.mean(), pixels.std()], rtol=1e-5)
    x, y = fashion_task("cnn", folder=folder).batch()
    assert x.shape == (64, 28, 28, 1) and x.dtype == np.float32 and abs(x.mean()) < 0.05
    np.testing.assert_array_equal(y, data.y[:64])


def test_a_task_travels_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AQX_FASHION", str(folder))
    for name in ("fashion-cnn", "fashion-resnet"):
        task = load_task(name)
        assert task.name == name and name in builtin_tasks(files=True)
        assert pickle.loads(pickle.dumps(task)) is task


def test_without_data_a_task_says_what_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fashion_files, "PACKAGE_FOLDER", tmp_path / "nowhere")
    monkeypatch.delenv("AQX_FASHION", raising=False)
    with pytest.raises(TaskError) as caught:
        load_task("fashion-cnn")
    assert all(word in str(caught.value) for word in (*FILES, "AQX_FASHION", "dataset-fashion-mnist"))
    monkeypatch.setenv("AQX_FASHION", str(tmp_path / "none"))
    with pytest.raises(TaskError, match="none does not exist"):
        load_task("fashion-cnn")
    with pytest.raises(TaskError, match=f"lacks {FILES[0]}"):
        find_fashion(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not the published file"),
        (b"no gzip", "cannot be read"),
        (gzip.compress(b"\0\0\x08\x03" + bytes(40)), "is not the published file of 300 rows"),
        (gzip.compress(bytes(10**7)), "is not the published file of 300 rows"),
    ],
    ids=["empty", "no gzip", "too few", "too many"],  # what gzip writes has the time in it
)
def test_what_is_damaged_is_refused_in_one_line(folder: Path, content: bytes, words: str):
    (folder / FILES[0]).write_bytes(content)
    with pytest.raises(TaskError, match=words) as caught:
        read_fashion(folder)
    assert FILES[0] in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_that_is_none_is_refused(folder: Path):
    (folder / FILES[1]).write_bytes(gzip.compress(idx(np.full(300, 10, np.uint8))))
    with pytest.raises(TaskError, match="has a class 10"):
        read_fashion(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"model": "vit"}, "model='vit' is unknown"), ({"model": "cnn", "rows": 0}, "rows=0 is not a number of rows")],
)
def test_wrong_arguments_are_named(arguments: dict, words: str):
    with pytest.raises(InputError, match=words):
        fashion_task(**arguments)


def test_the_models_are_small():
    x = jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32)
    for model, weights in (("cnn", 23_946), ("resnet", 75_002)):
        shapes = jax.eval_shape(fashion_task(model).build_model(activation("relu(x)")).init, jax.random.key(0), x)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == weights


@pytest.fixture
def published() -> Path:
    """The folder of the published files."""
    try:
        return find_fashion(None)
    except TaskError as error:
        pytest.skip(f"no Fashion-MNIST here: {error}")


def test_the_published_files_have_their_known_mean_and_classes(published: Path):
    x, y, x_test, y_test = read_fashion(published)
    assert x.shape == (60_000, 28, 28, 1) and x_test.shape == (10_000, 28, 28, 1)
    assert (np.bincount(y) == 6_000).all() and (np.bincount(y_test) == 1_000).all()
    pixels = np.bincount(x.ravel(), minlength=256) / x.size
    values = np.arange(256) / 255
    mean = (pixels * values).sum()
    assert round(float(mean), 4) == 0.2860 and round(float(np.sqrt((pixels * values**2).sum() - mean**2)), 4) == 0.3530


@pytest.mark.slow
def test_clothes_are_learnt(published: Path):
    task = fashion_task("cnn", folder=published, rows=4000, epochs=3)
    metrics = task.train(activation("relu(x)"), 0)
    assert 0.5 < metrics["val_acc"] < 0.95 and metrics["val_loss"] < 1.3
