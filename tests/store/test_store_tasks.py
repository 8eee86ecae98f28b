"""Tasks, their spectra and embeddings: stored once, and never mixed up."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from store_helpers import start_python

from aqx.errors import InputError, StoreError
from aqx.store import (
    Database,
    StoredEmbedding,
    add_spectra,
    claim_spectra,
    clock,
    count_spectra,
    find_embedding,
    find_task,
    invalid_spectra,
    list_tasks,
    load_embedding,
    load_spectra,
    register_task,
    release_spectra_claims,
    renew_spectra_claims,
    save_embedding,
    set_spectra_form,
    spectra_form,
)
from aqx.store.features import FeatureCounts

NASTY_NAMES = ["it's", 'say "x"', "a'; DROP TABLE tasks; --", "ünï→💡", "", "nul\0byte", "x" * 1_000_000]


@pytest.fixture
def db(db_path: Path) -> Database:
    return Database(db_path, create=True)


def ids(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(count)]


def add_classes(db: Database, rows: list[tuple[str, str, int, bool, bool, bool | None]]) -> None:
    """Rows of (class id, name, size, finite, finite at 0, constant); each class has a second name as well."""
    with db.transaction() as con:
        for class_id, name, size, *flags in rows:
            con.execute(
                "INSERT INTO class_info (class_id, name, size, finite, finite_at_0, constant) VALUES (?,?,?,?,?,?)",
                [class_id, name, size, *flags],
            )
            con.execute(
                "INSERT INTO functions VALUES ($1, $3, $4), ($2, $3, $4)", [name, f"twin {name}", class_id, size]
            )


def test_a_task_keeps_its_id_and_its_identity(db: Database):
    identity = {"name": "digits", "objective": "val_acc", "seed": 0, "lr": 0.1}
    assert register_task(db, "digits", identity) == 1
    assert register_task(db, "other", {}) == 2
    assert register_task(db, "digits", dict(reversed(identity.items()))) == 1
    with pytest.raises(StoreError) as error:
        register_task(db, "digits", identity | {"objective": "loss"})
    assert "objective (stored 'val_acc', now 'loss')" in str(error.value) and "another name" in str(error.value)
    assert "\n" not in str(error.value)
    task = find_task(db, "digits")
    assert task is not None and (task.task_id, task.identity, task.spectra_form) == (1, identity, None)
    assert find_task(db, "nobody") is None
    assert [task.name for task in list_tasks(db)] == ["digits", "other"]


@pytest.mark.parametrize("name", NASTY_NAMES, ids=lambda name: repr(name[:20]))
def test_any_name_is_data(db: Database, name: str):
    task_id = register_task(db, name, {"name": name, name: 1})
    task = find_task(db, name)
    assert task is not None and task.task_id == task_id and task.name == name
    number = save_embedding(db, task_id, name, 0, embedding(1))
    assert find_embedding(db, task_id, name, 0)[1] == number
    add_classes(db, [(ids(1)[0], name, 1, True, True, False)])
    assert claimed(db, task_id, names=[name]) == [(ids(1)[0], name)]


def test_the_form_of_spectra_is_set_once(db: Database):
    task_id = register_task(db, "digits", {})
    assert spectra_form(db, task_id) is None
    form = {"layers": ["Dense_0", "Dense_1"], "shares": [0.25, 0.75], "quantiles": 32, "fisher": "empirical"}
    set_spectra_form(db, task_id, form)
    set_spectra_form(db, task_id, form)
    assert spectra_form(db, task_id) == form
    with pytest.raises(StoreError, match=r"fisher \(stored 'empirical', now 'exact'\)") as error:
        set_spectra_form(db, task_id, form | {"fisher": "exact"})
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="form must hold"):
        set_spectra_form(db, register_task(db, "b", {}), {"a": float("nan")})
    with pytest.raises(InputError, match="task_id 9"):
        set_spectra_form(db, 9, form)
    with pytest.raises(InputError, match="task_id 9"):
        spectra_form(db, 9)


def test_spectra_come_back_as_they_were_and_a_class_has_one_per_task(db: Database):
    rng = np.random.default_rng(1)
    names, features = ids(7), rng.standard_normal((7, 5)).astype(np.float32)
    assert add_spectra(db, 1, names[:4], features[:4]) == 4
    assert add_spectra(db, 1, names[2:], -features[2:]) == 3  # overlaps: the first ones stay
    assert add_spectra(db, 1, names, features) == 0
    assert add_spectra(db, 2, [names[0], names[0]], features[1:3]) == 1
    expected = np.concatenate([features[:4], -features[4:]])
    found, matrix = load_spectra(db, 1)
    assert matrix.dtype == np.float32 and found.dtype == object
    order = np.argsort(names)
    assert found.tolist() == [names[i] for i in order]
    np.testing.assert_array_equal(matrix, expected[order])
    np.testing.assert_array_equal(load_spectra(db, 2)[1], features[1:2])
    assert add_spectra(db, 3, [], None) == 0
    assert [part.shape for part in load_spectra(db, 3)] == [(0,), (0, 0)]


def test_invalid_spectra_keep_their_reason_and_no_numbers(db: Database):
    names, features = ids(5), np.ones((5, 3), np.float32)
    features[1, 2], features[2, 0] = np.nan, np.inf
    assert add_spectra(db, 1, names, features, [None, None, "loss is inf", None, "it's\ud800"]) == 5
    assert invalid_spectra(db, 1) == {names[1]: "features are not finite", names[2]: "loss is inf", names[4]: "it's?"}
    assert count_spectra(db, 1) == {"valid": 2, "invalid": 3}
    assert set(load_spectra(db, 1)[0]) == {names[0], names[3]}
    assert add_spectra(db, 2, names[:2], None, ["a", "b"]) == 2
    assert count_spectra(db, 2) == {"valid": 0, "invalid": 2}
    with db.read() as con:
        assert con.execute("SELECT count(features) FROM spectra WHERE status = 'invalid'").fetchall() == [(0,)]


def test_spectra_that_do_not_fit_are_refused(db: Database):
    add_spectra(db, 1, ids(2), np.ones((2, 3), np.float32))
    with pytest.raises(StoreError, match="have 3 features, but 4 arrived"):
        add_spectra(db, 1, ids(2, 1), np.ones((2, 4), np.float32))
    assert add_spectra(db, 1, ids(1, 2), None, ["invalid ones have no length"]) == 1
    with pytest.raises(InputError, match="agree in length, but got 2, 3, 2"):
        add_spectra(db, 1, ids(2), np.ones((3, 3), np.float32))
    assert count_spectra(db, 1) == {"valid": 2, "invalid": 1}


def claimed(db: Database, task_id: int, worker: str = "one", limit: int = 9, **options) -> list[tuple[str, str]]:
    """What a claim of at most nine classes gives."""
    return claim_spectra(db, task_id, worker, limit=limit, lease_seconds=60, **options).classes


@pytest.fixture
def classes(db: Database) -> list[tuple[str, str]]:
    """The four classes that can be trained, simplest first; two others cannot."""
    a, b, c, d, e, f = ids(6)
    add_classes(
        db,
        [
            (a, "mul(x,x)", 2, True, True, False),
            (b, "abs(x)", 1, True, True, False),
            (c, "relu(x)", 1, True, True, False),
            (d, "one(x)", 1, True, True, True),
            (e, "exp(exp(x))", 2, False, True, False),
            (f, "reciprocal(x)", 1, True, False, False),
        ],
    )
    return [(b, "abs(x)"), (f, "reciprocal(x)"), (c, "relu(x)"), (a, "mul(x,x)")]


def test_classes_are_claimed_simplest_first_and_by_one_worker_each(db: Database, classes):
    assert claim_spectra(db, 1, "one", limit=0, lease_seconds=60).missing == 4
    assert claimed(db, 1, limit=1) == classes[:1]
    assert claimed(db, 1, "two", limit=2) == classes[1:3]
    assert claimed(db, 1, "one") == classes[3:]
    assert claimed(db, 1, "two") == []
    assert claimed(db, 2, "two") == classes  # another task's
    add_spectra(db, 1, [classes[1][0], classes[2][0]], np.ones((2, 3), np.float32), ["nan", None])
    rest = claim_spectra(db, 1, "three", limit=9, lease_seconds=60)
    assert (rest.classes, rest.missing) == ([], 2)
    release_spectra_claims(db, "one")
    assert claimed(db, 1, "three") == [classes[0], classes[3]]


def test_claims_take_the_wanted_classes_in_the_wanted_order(db: Database, classes):
    names = ["twin relu(x)", "one(x)", "nobody"]
    assert claim_spectra(db, 1, "one", limit=9, lease_seconds=60, names=names).missing == 1
    release_spectra_claims(db, "one")
    assert claimed(db, 1, names=[]) == []
    assert claimed(db, 1, limit=3, first=[classes[3][0], classes[1][0]]) == [classes[3], classes[1], classes[0]]


def test_a_claim_lapses_unless_it_is_renewed(db: Database, classes, monkeypatch: pytest.MonkeyPatch):
    now = clock.now()
    claimed(db, 1, "one", limit=1)
    claimed(db, 1, "two", limit=1)
    monkeypatch.setattr(clock, "now", lambda: now + timedelta(seconds=50))
    renew_spectra_claims(db, "two", 60)
    monkeypatch.setattr(clock, "now", lambda: now + timedelta(seconds=70))
    assert claimed(db, 1, "three") == [classes[0], *classes[2:]]
    # The late result is welcome, and nobody's claim is left.
    assert add_spectra(db, 1, [classes[0][0]], np.ones((1, 3), np.float32)) == 1
    assert claim_spectra(db, 1, "one", limit=0, lease_seconds=60).missing == 3


def test_the_view_of_classes_joins_outputs_where_there_are_some(db: Database):
    a, b = ids(2)
    add_classes(db, [(a, "relu(x)", 1, True, True, False), (b, "exp(exp(x))", 2, False, True, False)])
    with db.transaction() as con:
        con.execute("INSERT INTO class_outputs VALUES (?, [1, 2])", [a])
    with db.read() as con:
        rows = con.execute("SELECT class_id::VARCHAR, name, finite, outputs FROM classes ORDER BY name").fetchall()
    assert rows == [(b, "exp(exp(x))", False, None), (a, "relu(x)", True, [1.0, 2.0])]


def embedding(rows: int, columns: int = 2, classes: int = 1000, **loadings: np.ndarray) -> StoredEmbedding:
    rng = np.random.default_rng(rows)
    halves = rng.integers(2**64, size=(rows, 2), dtype=np.uint64)
    coordinates = rng.standard_normal((rows, columns)).astype(np.float32)
    return StoredEmbedding(FeatureCounts(classes, 7), halves, coordinates, rng.random(rows) < 0.5, loadings)


def test_an_embedding_replaces_the_earlier_one_of_its_task_preset_and_seed(db: Database):
    assert find_embedding(db, 1, "paper", 0) == (FeatureCounts(0, 0, 0), None, None)
    kept, numbers = {}, set()
    for step, (task_id, preset, seed, rows, columns) in enumerate(
        [
            (1, "paper", 0, 50, 2),
            (1, "other", 0, 3, 17),
            (2, "paper", 0, 4, 2),
            (1, "paper", 1, 5, 2),
            (1, "none", 0, 6, 0),
            (1, "paper", 0, 40_000, 3),
            (1, "paper", 0, 7, 2),
        ]
    ):
        saved = embedding(rows, columns, classes=1000 * 2**step, mean=np.arange(rows, dtype=np.float32))
        number = save_embedding(db, task_id, preset, seed, saved)
        kept[task_id, preset, seed] = number, saved
        numbers.add(number)
    assert len(numbers) == 7
    for key, (number, saved) in kept.items():
        assert find_embedding(db, *key)[1:] == (number, saved.fitted_to)
        found = load_embedding(db, number)
        assert found is not None and (found.embedding_id, found.fitted_to) == (number, saved.fitted_to)
        for name in ("ids", "coordinates", "has_spectrum"):
            np.testing.assert_array_equal(getattr(found, name), getattr(saved, name))
            assert getattr(found, name).dtype == getattr(saved, name).dtype
        np.testing.assert_array_equal(found.loadings["mean"], saved.loadings["mean"])
    assert all(load_embedding(db, gone) is None for gone in numbers - {number for number, _ in kept.values()})
    with db.read() as con:
        assert con.execute("SELECT count(*) FROM embedding_rows").fetchall() == [(25,)]


def test_an_embedding_that_is_not_due_stays(db: Database):
    first = save_embedding(db, 1, "paper", 0, embedding(5, classes=1000))
    assert save_embedding(db, 1, "paper", 0, embedding(6, classes=1100)) == first
    assert save_embedding(db, 1, "paper", 0, embedding(4, classes=900)) == first
    second = save_embedding(db, 1, "paper", 0, embedding(7, classes=1101))
    assert second != first and find_embedding(db, 1, "paper", 0)[1] == second


def test_embeddings_that_are_replaced_do_not_grow_the_file(db: Database):
    sizes = []
    for step in range(6):
        save_embedding(db, 1, "paper", 0, embedding(5000, classes=2**step))
        sizes.append(db.path.stat().st_size)
    assert sizes[-1] <= 2 * sizes[0]


SPECTRA = """
import sys, uuid
import numpy as np
from aqx.store import Database, add_spectra, register_task
db = Database(sys.argv[1])
task = register_task(db, "shared", {"seed": 0})
for start in range(0, 90, 10):
    names = [str(uuid.UUID(int=number)) for number in range(start, start + 20)]
    add_spectra(db, task, names, np.full((20, 4), int(sys.argv[2]), np.float32))
"""


def test_processes_that_add_the_same_spectra_leave_one_of_each(db: Database):
    with start_python(SPECTRA, str(db.path), "0") as first, start_python(SPECTRA, str(db.path), "1") as second:
        assert (first.wait(), second.wait()) == (0, 0)
    assert [task.name for task in list_tasks(db)] == ["shared"]
    found, matrix = load_spectra(db, 1)
    assert found.tolist() == [str(uuid.UUID(int=number)) for number in range(100)]
    assert (matrix == matrix[:, :1]).all()
