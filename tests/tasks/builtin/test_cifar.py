"""CIFAR as published, made small: archives that are whole, damaged and hostile; the tasks on them; their training."""

from __future__ import annotations

import io
import math
import pickle
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aqx.activation import activation
from aqx.errors import InputError, TaskError
from aqx.tasks import builtin_tasks, load_task
from aqx.tasks.builtin import cifar_files, image_training
from aqx.tasks.builtin.cifar import MODELS, cifar_task, load_split
from aqx.tasks.builtin.cifar_files import load_cifar
from aqx.tasks.builtin.cifar_pickle import read_batch
from aqx.tasks.builtin.image_training import ImageRecipe, ImageSplit, train_image_classifier

ROWS = {10: (8, 6), 100: (30, 10)}  # images in each file, in place of 10,000 and 50,000
INSIDE = {
    (10, "python"): "cifar-10-batches-py",
    (10, "binary"): "cifar-10-batches-bin",
    (100, "python"): "cifar-100-python",
    (100, "binary"): "cifar-100-binary",
}
FORMS = [(classes, form, packed) for classes, form in INSIDE for packed in (True, False)]


def python2(value: Any) -> bytes:
    """Opcodes with which Python 2's cPickle wrote these files (protocol 2): text as byte strings, arrays by NumPy 1."""
    if isinstance(value, bytes):
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(part) for pair in value.items() for part in pair) + b"u"
    shape = b"".join(map(python2, value.shape)) + b"\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + python2(value.tobytes()) + b"tb"


def published(classes: int) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Pixels [N, 3072] and labels of each file, by name."""
    generator = np.random.default_rng(classes)
    train, test = ROWS[classes]
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if classes == 10 else ["train", "test"]
    return {
        name: (
            generator.integers(0, 256, (test if name == names[-1] else train, 3072), dtype=np.uint8),
            generator.integers(0, classes, test if name == names[-1] else train).tolist(),
        )
        for name in names
    }


def pickled(classes: int, pixels: np.ndarray, labels: list[int]) -> bytes:
    batch: dict[bytes, Any] = {b"batch_label": b"training batch 1 of 5"}
    batch |= {b"labels": labels} if classes == 10 else {b"fine_labels": labels, b"coarse_labels": [19] * len(labels)}
    batch |= {b"data": pixels, b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * len(labels)}
    return b"\x80\x02" + python2(batch) + b"."


def records(classes: int, pixels: np.ndarray, labels: list[int]) -> bytes:
    coarse = b"" if classes == 10 else b"\x13"
    return b"".join(coarse + bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True))


def files_of(classes: int, form: str) -> dict[str, bytes]:
    write, suffix = (pickled, "") if form == "python" else (records, ".bin")
    return {f"{name}{suffix}": write(classes, *rows) for name, rows in published(classes).items()}


def put(folder: Path, classes: int, form: str, packed: bool, files: dict[str, bytes]) -> Path:
    """Write the files as an archive or as the folder that comes out of it."""
    inside = INSIDE[classes, form]
    if packed:
        path = folder / f"cifar-{classes}-{form}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(directory := tarfile.TarInfo(inside))
            directory.type = tarfile.DIRTYPE
            for name, content in {**files, "readme.html": b"<p>"}.items():
                member = tarfile.TarInfo(f"{inside}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path
    (folder / inside).mkdir()
    for name, content in files.items():
        (folder / inside / name).write_bytes(content)
    return folder / inside


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cifar_files, "ROWS", ROWS)
    monkeypatch.delenv("AQX_CIFAR", raising=False)


def message(call: Callable[[], Any], kind: type[Exception] = TaskError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("classes", "form", "packed"), FORMS)
def test_every_published_form_gives_the_same_images(classes: int, form: str, packed: bool, tmp_path: Path):
    path = put(tmp_path, classes, form, packed, files_of(classes, form))
    images = load_cifar(tmp_path, classes)
    *train, test = published(classes).values()
    x, y = np.concatenate([pixels for pixels, _ in train]), [label for _, labels in train for label in labels]
    assert images.x.shape == (len(x), 32, 32, 3) and images.x.dtype == np.uint8 and images.y.dtype == np.int32
    assert images.y.tolist() == y and images.y_test.tolist() == test[1]
    for channel, row, column in ((0, 0, 0), (0, 3, 17), (1, 31, 0), (2, 5, 31)):
        at = 1024 * channel + 32 * row + column  # as the web page says: a channel after the other, row by row
        np.testing.assert_array_equal(images.x[:, row, column, channel], x[:, at])
        np.testing.assert_array_equal(images.x_test[:, row, column, channel], test[0][:, at])
    assert load_cifar(tmp_path, classes).x is images.x, "read once per process"
    with pytest.raises(ValueError, match="read-only"):
        images.x[0] = 0
    if not packed:
        assert load_cifar(path, classes).y.tolist() == y, "the unpacked folder itself will do"


def test_a_pickle_by_python_3_reads_too():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    batch = read_batch(pickle.dumps({b"data": pixels, "labels": [1, 2], b"name": b"\xff"}, protocol=2))
    np.testing.assert_array_equal(batch.pop("data"), pixels)
    assert batch == {"labels": [1, 2], "name": b"\xff"}
    fortran = np.asfortranarray(pixels)
    np.testing.assert_array_equal(read_batch(pickle.dumps({b"data": fortran}, protocol=2))["data"], pixels)


class Runs:
    """A pickle that runs a command when loaded."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({b"data": Runs(exec, "import os; os.mkdir('hacked')")}, protocol=2), "names __builtin__.exec"),
        (pickle.dumps({b"data": Runs(Path.mkdir, Path("hacked"))}, protocol=2), "names"),
        (pickle.dumps({b"data": np.arange(3.0)}, protocol=2), "something else than bytes"),
        (pickle.dumps({b"data": np.array([print], object)}, protocol=2), "names __builtin__.print"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.", "codec 'zlib'"),
        # A state for the stand-ins themselves, which must not be able to change them.
        (b"\x80\x02c_codecs\nencode\n}U\x07__new__K\x01sb.", "TypeError"),
        (b"\x80\x02cnumpy\ndtype\n}U\x08__init__K\x01sb.", "TypeError"),
        (b"\x80\x02cnumpy\nndarray\n)R}U\x06pixelsK\x01sb.", "ValueError"),
        (pickle.dumps([1, 2], protocol=2), "no dict but a list"),
        (pickle.dumps({b"data": 1}, protocol=2)[:-3], "no CIFAR batch"),
        (b"", "no CIFAR batch"),
        (b"<html>not found</html>", "no CIFAR batch"),
    ],
)
def test_a_hostile_or_damaged_pickle_runs_nothing(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, 10, "python", False, files_of(10, "python") | {"data_batch_3": content})
    text = message(lambda: load_cifar(tmp_path))
    assert said in text and "data_batch_3 in" in text and "download it again" in text
    assert not (tmp_path / "hacked").exists()
    assert load_cifar_after(tmp_path), "the reader works as before"


def load_cifar_after(folder: Path) -> bool:
    (folder / INSIDE[10, "python"] / "data_batch_3").write_bytes(files_of(10, "python")["data_batch_3"])
    return load_cifar(folder).y.tolist() == [
        label for _, labels in list(published(10).values())[:-1] for label in labels
    ]


def pickled_with(**changes: Any) -> bytes:
    pixels, labels = published(10)["data_batch_2"]
    return pickled(10, changes.get("pixels", pixels), changes.get("labels", labels))


@pytest.mark.parametrize(
    ("classes", "form", "name", "content", "said"),
    [
        (
            10,
            "python",
            "data_batch_2",
            pickled_with(pixels=np.zeros((7, 3072), np.uint8)),
            "shape (8, 3072) and are of",
        ),
        (10, "python", "data_batch_2", pickled_with(pixels=np.zeros((8, 9), np.uint8)), "of shape (8, 9)"),
        (10, "python", "data_batch_2", pickled_with(pixels=[1]), "are a list"),
        (10, "python", "data_batch_2", pickled_with(labels=[0] * 7), "a list of 8 integers"),
        (10, "python", "data_batch_2", pickled_with(labels=[b"0"] * 8), "a list of 8 integers"),
        (10, "python", "data_batch_2", pickled_with(labels=[10] * 8), "a class outside 0 … 9"),
        (10, "python", "data_batch_2", pickled_with(labels=[-1] * 8), "a class outside 0 … 9"),
        (100, "python", "test", files_of(10, "python")["test_batch"], "data must be bytes of shape (10, 3072)"),
        (10, "binary", "test_batch.bin", b"\x01" * 3073 * 5, "has 15,365 bytes, not 18,438"),
        (10, "binary", "test_batch.bin", b"\x0a" * 3073 * 6, "has class 10 outside 0 … 9"),
        (100, "binary", "test.bin", b"\x64" * 3074 * 10, "has class 100 outside 0 … 99"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_files_of_the_wrong_content(
    classes: int, form: str, name: str, content: bytes, said: str, packed: bool, tmp_path: Path
):
    path = put(tmp_path, classes, form, packed, files_of(classes, form) | {name: content})
    text = message(lambda: load_cifar(tmp_path, classes))
    assert said in text and f"{name} in {path}" in text


@pytest.mark.parametrize(("classes", "form", "packed"), FORMS)
def test_a_missing_file_is_named(classes: int, form: str, packed: bool, tmp_path: Path):
    files = files_of(classes, form)
    last = list(files)[-1]
    del files[last]
    path = put(tmp_path, classes, form, packed, files)
    text = message(lambda: load_cifar(tmp_path, classes))
    assert str(path) in text and f"lacks {'' if not packed else INSIDE[classes, form] + '/'}{last}" in text


@pytest.mark.parametrize("kept", [0, 5, 0.3, 0.99])
def test_a_truncated_archive(kept: float, tmp_path: Path):
    path = put(tmp_path, 10, "python", True, files_of(10, "python"))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    text = message(lambda: load_cifar(tmp_path))
    assert str(path) in text and "download it again" in text


def test_links_and_huge_members_of_an_archive_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    secret = tmp_path / "secret"
    secret.write_bytes(files_of(10, "binary")["test_batch.bin"])
    path = tmp_path / "cifar-10-binary.tar.gz"
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files_of(10, "binary").items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                if name == "test_batch.bin":
                    member.type, member.linkname = kind, str(secret)
                    content = b""
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        assert "lacks cifar-10-batches-bin/test_batch.bin" in message(lambda: load_cifar(tmp_path))
    put(tmp_path, 10, "binary", True, files_of(10, "binary"))
    monkeypatch.setattr(cifar_files, "LARGEST", 1000)
    assert "bytes, which no CIFAR file has" in message(lambda: load_cifar(tmp_path))


@pytest.mark.parametrize("name", sorted(set(builtin_tasks(downloads=True)) - set(builtin_tasks())))
def test_without_data_a_task_says_what_to_get(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    classes = 100 if "100" in name else 10
    wanted = [f"cifar-{classes}-python.tar.gz", f"cifar-{classes}-binary.tar.gz", "AQX_CIFAR"]
    text = message(lambda: load_task(name))
    assert all(part in text for part in wanted)
    monkeypatch.setenv("AQX_CIFAR", str(tmp_path / "nowhere"))
    assert f"{tmp_path}/nowhere does not exist" in message(lambda: load_task(name))
    other = 110 - classes
    put(tmp_path, other, "binary", False, files_of(other, "binary"))
    monkeypatch.setenv("AQX_CIFAR", str(tmp_path))
    text = message(lambda: load_task(name))
    assert f"folder {tmp_path} holds no CIFAR-{classes}" in text and wanted[0] in text
    put(tmp_path, classes, "binary", False, files_of(classes, "binary"))
    task = load_task(name)
    assert task.name == name and pickle.loads(pickle.dumps(task)) is task and len(pickle.dumps(task)) < 200
    x, y = task.batch()
    assert x.shape[1:] == (32, 32, 3) and x.dtype == np.float32 and len(x) == len(y)
    np.testing.assert_array_equal(y, load_split(tmp_path, classes).y[: len(y)])


def test_a_task_travels_by_name_and_a_changed_copy_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, 10, "binary", False, files_of(10, "binary"))
    monkeypatch.setenv("AQX_CIFAR", str(tmp_path))
    task = load_task("cifar10-vit")
    pickled_task, copy = pickle.dumps(task), replace(task, seed=1)
    monkeypatch.delenv("AQX_CIFAR")
    assert pickle.loads(pickled_task) is task, "a worker looks for the data when it needs them"
    assert "no module or file holds it" in message(lambda: pickle.dumps(copy))
    assert "no module or file holds it" in message(lambda: pickle.dumps(cifar_task("vit")))


def test_names_of_tasks():
    downloads = {f"cifar{classes}-{model}" for classes in (10, 100) for model in MODELS}
    assert set(builtin_tasks(downloads=True)) == {*builtin_tasks(), *downloads}
    text = message(lambda: load_task("cifar10-resnet-56"))
    assert "did you mean cifar10-resnet56?" in text and all(name in text for name in downloads)


def test_importing_aqx_imports_no_cifar():
    code = "import sys, aqx, aqx.tasks; aqx.tasks.builtin_tasks(downloads=True); print([m for m in sys.modules if "
    code += "'cifar' in m or m.startswith('aqx.tasks.builtin.models')])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "resnet"}, "model='resnet' is unknown; give one of all-cnn-c, resnet56, mobilevit, vit"),
        ({"classes": 20}, "classes=20 is not a CIFAR"),
        ({"epochs": 0}, "epochs=0 is not a number of epochs"),
        ({"batch": True}, "batch=True is not"),
    ],
)
def test_arguments_that_are_wrong(arguments: dict[str, Any], said: str):
    assert said in message(lambda: cifar_task(**{"model": "vit", **arguments}), InputError)


def test_the_split(tmp_path: Path):
    put(tmp_path, 10, "python", True, files_of(10, "python"))
    split, images = load_split(tmp_path), load_cifar(tmp_path)
    assert [len(part) for part in split[:6]] == [36, 36, 4, 4, 6, 6]
    rows = [np.column_stack([x.reshape(len(x), -1), y]) for x, y in (split[:2], split[2:4], (images.x, images.y))]
    together = np.concatenate(rows[:2])
    np.testing.assert_array_equal(together[np.lexsort(together.T)], rows[2][np.lexsort(rows[2].T)])
    assert (rows[0] != rows[2][: len(rows[0])]).any(), "drawn, and not the first ones"
    np.testing.assert_array_equal(split.x_test, images.x_test)
    standard = image_training.standardise(split.x, split.mean, split.deviation)
    np.testing.assert_allclose(standard.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std((0, 1, 2)), 1, rtol=1e-4)


def test_augmented_images_are_shifted_and_mirrored():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(40, 6, 7, 3)), jnp.float32)
    augmented = np.asarray(image_training.augment(jax.random.key(1), images))
    border = image_training.BORDER
    padded = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
    seen = []
    for image, source in zip(augmented, padded, strict=True):
        crops = {
            (i, j, mirrored): source[i : i + 6, j : j + 7][:, :: -1 if mirrored else 1]
            for i in range(2 * border + 1)
            for j in range(2 * border + 1)
            for mirrored in (False, True)
        }
        seen += [key for key, crop in crops.items() if (image == crop).all()]
    assert len(seen) >= 40 and len(set(seen)) > 25, "each is one of them, and they differ"
    assert {key[2] for key in seen} == {False, True} and {key[0] for key in seen} == set(range(2 * border + 1))


class Small(nn.Module):
    """With all that a model can have: running statistics, dropout, and an activation."""

    act: Any

    @nn.compact
    def __call__(self, x, train: bool = False):
        hidden = nn.Conv(8, (3, 3), strides=2)(x)
        hidden = self.act(nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden))
        hidden = nn.Dropout(0.1, deterministic=not train)(hidden.mean((1, 2)))
        return nn.Dense(4)(hidden)


def coloured(rows: int) -> ImageSplit:
    """Images whose class is a colour, under noise."""
    generator = np.random.default_rng(3)
    y = np.arange(rows, dtype=np.int32) % 4
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [130, 130, 130]])
    x = np.clip(colours[y][:, None, None] + generator.normal(0, 30, (rows, 12, 12, 3)), 0, 255).astype(np.uint8)
    mean, deviation = np.full(3, 0.45, np.float32), np.full(3, 0.25, np.float32)
    a, b = rows // 2, 3 * rows // 4
    return ImageSplit(x[:a], y[:a], x[a:b], y[a:b], x[b:], y[b:], mean, deviation)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns_and_compiles_once_for_a_shape(optimizer: Any):
    data, recipe = coloured(200), ImageRecipe(optimizer, 0.02 if optimizer == "adamw" else 0.2, 5e-4, 12, 25)
    programs: list[Any] = [image_training._step, image_training._evaluate]
    before = [program._cache_size() for program in programs]

    def trained(name: str, seed: int) -> dict[str, float]:
        return train_image_classifier(Small, activation(name), data, seed, recipe)

    metrics = trained("sub(tanh(x),zero(x))", 5)
    assert set(metrics) == {f"{part}_{name}" for part in ("train", "val", "test") for name in ("acc", "loss")}
    assert metrics["val_acc"] > 0.9 and metrics["test_acc"] > 0.9 and metrics["val_loss"] < math.log(4) / 2
    assert trained("sub(tanh(x),zero(x))", 5) == metrics, "deterministic by seed"
    assert trained("sub(tanh(x),zero(x))", 6) != metrics != trained("add(swish(x),zero(x))", 5)
    diverged = trained("div(zero(x),zero(x))", 5)
    assert set(diverged) == set(metrics) and all(map(math.isnan, diverged.values()))
    after = [program._cache_size() for program in programs]
    assert after[0] == before[0] + 1 and after[1] <= before[1] + 1, "which does not depend on the recipe"


@pytest.mark.slow
def test_a_task_trains_on_a_small_archive(tmp_path: Path):
    generator, files = np.random.default_rng(0), {}
    for name, (pixels, labels) in published(10).items():
        # The class is a shade of red: something to learn from 36 images.
        labels = [2 * (label % 5) for label in labels]
        pixels[:, :1024] = np.clip(
            28 * np.array(labels)[:, None] + generator.normal(0, 10, (len(labels), 1024)), 0, 255
        )
        files[f"{name}.bin"] = records(10, pixels, labels)
    put(tmp_path, 10, "binary", True, files)
    task: Any = cifar_task("vit", folder=tmp_path, epochs=12, batch=12)
    metrics = task.train(activation("relu(x)"), 0)
    assert set(metrics) == {f"{part}_{name}" for part in ("train", "val", "test") for name in ("acc", "loss")}
    assert all(map(math.isfinite, metrics.values())), metrics
    assert metrics["train_loss"] < 0.6 * math.log(10), metrics
