"""Stored embeddings: reused, due after 10 % more features, joined by later classes, the same for every process."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import toy

from aqx import candidates
from aqx.candidates import Candidates, KnownSpectra
from aqx.enumeration import enumerate_space
from aqx.evaluation import class_id_of
from aqx.evaluation.class_ids import find_rows, halves, texts
from aqx.search import Study
from aqx.space import Space
from aqx.store import Database, add_spectra
from aqx.store.features import find_embedding, load_features
from aqx.store.functions import candidate_names, find_classes
from aqx.surrogate import PRESETS, Features, Preset, Projection, embed
from aqx.surrogate.models import nearest_neighbours
from aqx.tree import parse

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["sin", "tanh", "relu", "square", "exp", "identity", "negative", "add", "mul", "sub"]
ENSEMBLE = PRESETS["ensemble"]
# An embedding that no later candidate can join, as UMAP's.
FIXED = Preset("fixed", lambda features, seed, progress: np.float32(seed) + features.outputs[:, :2], nearest_neighbours)


@pytest.fixture
def db(tmp_path: Path) -> Database:
    db = Database(tmp_path / "toy.duckdb", create=True)
    enumerate_space(db, Space(["binary(unary(x),unary(x))"], OPERATORS), points=16)
    return db


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates each embedding was fitted to, in order."""
    sizes = []
    fit = candidates._fit

    def counted(rows, *rest):
        sizes.append(len(rows.ids))
        return fit(rows, *rest)

    monkeypatch.setattr(candidates, "_fit", counted)
    return sizes


def give_spectra(db: Database, count: int, start: int = 0) -> list[str]:
    """Store spectra of candidates, in the order of their ids, and return their ids."""
    table = candidates.of_database(db, 1, ENSEMBLE, 0)
    chosen = table.class_ids(np.arange(start, start + count))
    add_spectra(db, 1, chosen, np.random.default_rng(start).normal(size=(count, 6)).astype(np.float32))
    return chosen


def same(a: Candidates, b: Candidates) -> bool:
    """Whether two reads agree bit for bit."""
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name == "coordinates")
        for name in ("counts", "ids", "coordinates", "has_spectrum", "usable")
    )


def test_all_candidates_have_the_coordinates_of_their_features(db):
    give_spectra(db, 40)
    found = candidates.of_database(db, 1, ENSEMBLE, 0)
    rows = load_features(db, 1)
    assert (found.ids == rows.ids).all() and (np.diff(rows.ids[:, 0].astype(float)) > 0).all()
    expected = embed(Features(rows.names.tolist(), rows.outputs, rows.spectra, rows.points), "ensemble")
    np.testing.assert_array_equal(found.coordinates, expected)
    assert found.has_spectrum.sum() == 40 and found.usable.all()


def test_features_stand_in_the_rows_of_their_classes(db):
    chosen = give_spectra(db, 7, start=3)
    rows = load_features(db, 1)
    with db.read() as con:
        stored = con.execute(
            "SELECT class_id::VARCHAR, name, outputs, features FROM classes LEFT JOIN spectra USING (class_id) "
            "WHERE finite AND NOT constant ORDER BY class_id"
        ).fetchall()
    assert rows.names.tolist() == [name for _, name, _, _ in stored]
    np.testing.assert_array_equal(rows.outputs, np.array([outputs for _, _, outputs, _ in stored], np.float32))
    assert [class_id for class_id, _, _, features in stored if features] == chosen
    assert np.flatnonzero(np.isfinite(rows.spectra).all(axis=1)).tolist() == list(range(3, 10))
    np.testing.assert_array_equal(rows.spectra[3:10], np.array([row[3] for row in stored[3:10]], np.float32))


def same_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)


@pytest.mark.parametrize("preset", [ENSEMBLE, PRESETS["random"], FIXED], ids=lambda preset: preset.name)
def test_a_stored_embedding_is_reused(db, fits, preset):
    first = candidates.of_database(db, 1, preset, 0)
    again = candidates.of_database(Database(db.path), 1, preset, 0)
    assert len(first) > 50 and same(first, again) and fits == [len(first)]
    assert candidates.of_database(db, 1, preset, 0, before=again) is again


def test_seeds_matter_only_where_the_embedding_has_one(db, fits):
    assert same(candidates.of_database(db, 1, ENSEMBLE, 0), candidates.of_database(db, 1, ENSEMBLE, 1))
    assert len(fits) == 1
    zero, one = candidates.of_database(db, 1, FIXED, 0), candidates.of_database(db, 1, FIXED, 1)
    assert not same(zero, one) and same(candidates.of_database(db, 1, FIXED, 0), zero) and len(fits) == 3


def test_another_task_preset_or_form_has_its_own_embedding(db, fits):
    for task_id, preset in [(1, ENSEMBLE), (2, ENSEMBLE), (1, PRESETS["random"]), (1, replace(ENSEMBLE, form=99))] * 2:
        candidates.of_database(db, task_id, preset, 0)
    assert len(fits) == 4


def test_spectra_are_fitted_anew_after_a_tenth_more(db, fits):
    give_spectra(db, 20)
    before = candidates.of_database(db, 1, ENSEMBLE, 0)
    assert len(fits) == 2  # without spectra, and with 20
    give_spectra(db, 2, start=20)
    joined = candidates.of_database(db, 1, ENSEMBLE, 0, before)
    assert len(fits) == 2 and joined.has_spectrum.sum() == 22
    moved = ~same_rows(joined.coordinates, before.coordinates)
    assert np.flatnonzero(moved).tolist() == [20, 21]
    give_spectra(db, 1, start=22)
    candidates.of_database(db, 1, ENSEMBLE, 0, joined)
    assert len(fits) == 3


@pytest.mark.parametrize("preset", [ENSEMBLE, PRESETS["random"]], ids=lambda preset: preset.name)
def test_new_classes_join_before_the_fit_is_due(db, fits, preset):
    before = candidates.of_database(db, 1, preset, 0)
    enumerate_space(db, Space(["unary(unary(x))"], ["erf", "sigmoid"]))
    joined = candidates.of_database(db, 1, preset, 0, before)
    assert 0 < len(joined) - len(before) <= 4 and len(fits) == 1
    assert np.isfinite(joined.coordinates[:, : preset.outputs_alone]).all()
    at = joined.rows_of(before.class_ids(np.arange(len(before))))
    np.testing.assert_array_equal(joined.coordinates[at], before.coordinates)
    assert same(joined, candidates.of_database(Database(db.path), 1, preset, 0))


def test_many_new_classes_make_the_fit_due(db, fits):
    before = candidates.of_database(db, 1, ENSEMBLE, 0)
    enumerate_space(db, Space(["unary(unary(x))"], ["erf", "sigmoid", "swish", "softplus", "elu", "arctan", "cosh"]))
    after = candidates.of_database(db, 1, ENSEMBLE, 0, before)
    assert fits == [len(before), len(after)] and len(after) > len(before)
    with db.read() as con:  # the earlier one has gone
        assert con.execute("SELECT count(*) FROM embedding_rows").fetchall() == [(len(after),)]


def test_where_the_embedding_is_no_projection_new_classes_wait(db, fits):
    before = candidates.of_database(db, 1, FIXED, 0)
    enumerate_space(db, Space(["unary(unary(x))"], ["erf", "sigmoid"]))
    add_spectra(db, 1, before.class_ids(np.array([0])), None, ["broken"])
    joined = candidates.of_database(db, 1, FIXED, 0, before)
    waiting = ~np.isfinite(joined.coordinates).all(axis=1)
    assert waiting.sum() == len(joined) - len(before) > 0 and len(fits) == 1
    np.testing.assert_array_equal(joined.coordinates[~waiting], before.coordinates)


def test_a_class_that_breaks_the_model_is_not_usable(db, fits):
    before = candidates.of_database(db, 1, ENSEMBLE, 0)
    broken = before.class_ids(np.array([5]))
    add_spectra(db, 1, broken, None, ["loss is nan"])
    after = candidates.of_database(db, 1, ENSEMBLE, 0, before)
    assert np.flatnonzero(~after.usable).tolist() == [5] and len(fits) == 1


def test_a_process_goes_on_with_what_another_has_stored_meanwhile(db, monkeypatch):
    """The second fits as well, but a little later and to another place: the first one's stays."""
    monkeypatch.setattr("aqx.store.connection._WORK_WAIT", 0.1)  # for the other process, which waits for this one
    shapes = ENSEMBLE.embed
    assert isinstance(shapes, Projection)
    found = []

    def overtaken(features):
        if not found:
            found.append(candidates.of_database(Database(db.path), 1, ENSEMBLE, 0))
        return shapes.fit(features)

    shifted = Projection(overtaken, lambda *given: shapes.project(*given) + np.float32(1))
    assert same(candidates.of_database(db, 1, replace(ENSEMBLE, embed=shifted), 0), found[0])


def test_an_embedding_that_another_process_fits_anew_is_taken_over(db, fits):
    before = candidates.of_database(db, 1, ENSEMBLE, 0)
    with db.transaction() as con:
        con.execute("DELETE FROM embeddings; DELETE FROM embedding_rows")
    other = candidates.of_database(Database(db.path), 1, ENSEMBLE, 0)
    after = candidates.of_database(db, 1, ENSEMBLE, 0, before)
    assert after is not before and after.stored.embedding_id == other.stored.embedding_id > before.stored.embedding_id
    assert len(fits) == 2


def test_processes_that_start_at_once_agree_and_one_of_them_fits(db, fits):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: candidates.of_database(Database(db.path), 1, ENSEMBLE, 0), range(4)))
    assert all(same(found[0], other) for other in found)
    assert len({other.stored.embedding_id for other in found}) == 1 and len(fits) == 1


def test_suggestions_are_the_same_from_a_fresh_and_a_stored_embedding(db):
    study = Study(db, toy.task)
    rows = load_features(db, study.task_id)
    for number, name in enumerate(rows.names[:: len(rows.names) // 12]):
        study.add(str(name), val_acc=float(np.sin(number)))
    first = study.suggest(n=3)
    assert Study(db.path, toy.task).suggest(n=3) == study.suggest(n=3) == first
    with db.transaction() as con:
        con.execute("DELETE FROM embeddings; DELETE FROM embedding_rows")
    assert Study(db.path, toy.task).suggest(n=3) == first


def test_a_class_enumerated_since_is_suggested(db, fits):
    """Every other candidate has a result, so that only the newcomers are left."""
    study = Study(db, toy.task)
    for baseline in toy.task.baselines:
        study.add(baseline, val_acc=0.5)
    for name in load_features(db, study.task_id).names.tolist()[::10]:
        study.add(name, val_acc=0.5)
    study.suggest()
    table = study.queue._candidates(study.ledger.snapshot())
    add_spectra(db, study.task_id, table.class_ids(np.arange(len(table))), None, ["broken"] * len(table))
    enumerate_space(db, Space(["unary(unary(x))"], ["erf", "sigmoid"]))
    assert len(fits) == 1
    assert study.suggest()[0].name.split("(")[0] in ("erf", "sigmoid")
    assert len(fits) == 1


def test_the_number_of_an_embedding_is_what_the_store_says(db):
    found = candidates.of_database(db, 1, ENSEMBLE, 0)
    counts, number, fitted_to = find_embedding(db, 1, f"ensemble/{ENSEMBLE.form}", 0)
    assert (counts, number) == (found.counts, found.stored.embedding_id)
    assert fitted_to is not None and fitted_to[:2] == counts[:2]


def test_functions_are_described_alike_with_and_without_a_database(db):
    described = give_spectra(db, 30)[::2]
    (broken,) = candidates.of_database(db, 1, ENSEMBLE, 0).class_ids(np.array([40]))
    add_spectra(db, 1, [broken], None, ["loss is nan"])
    name_of = candidate_names(db)
    wanted = [*described, *list(name_of)[50:60]]  # in an order of their own
    names = [name_of[class_id] for class_id in reversed(wanted)]
    untrained = [name_of[broken], "sub(tanh(x),tanh(x))", "exp(exp(exp(exp(exp(x)))))"]
    trees = [parse(name) for name in [*names, *untrained, f"max({names[3]},{names[3]})"]]
    points = load_features(db, 1).points
    found, rows = candidates.of_names(trees, points, KnownSpectra.of_task(db, 1))
    assert rows.tolist() == [*range(len(names)), -1, -1, -1, 3]
    assert texts(found.ids) == wanted[::-1] and found.features.names == tuple(names) and found.usable.all()
    stored = candidates.of_classes(db, 1, wanted)
    at = [texts(stored.ids).index(class_id) for class_id in wanted[::-1]]
    np.testing.assert_allclose(found.features.outputs, stored.features.outputs[at], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.features.spectra, stored.features.spectra[at])
    np.testing.assert_array_equal(found.features.points, stored.features.points)
    assert found.features.has_spectrum.sum() == len(described)


def test_some_classes_as_the_database_knows_them(db):
    chosen, rows = give_spectra(db, 9)[::3], load_features(db, 1)
    everything = candidates.of_database(db, 1, ENSEMBLE, 0).class_ids(np.arange(len(rows.ids)))
    add_spectra(db, 1, everything[20:21], None, ["loss is nan"])
    constant, _, is_constant = find_classes(db, ["sub(tanh(x),tanh(x))"])["sub(tanh(x),tanh(x))"]
    assert is_constant
    wanted = [everything[70], constant, everything[20], *reversed(chosen), "00000000-0000-0000-0000-000000000001"]
    found = candidates.of_classes(db, 1, wanted)
    assert texts(found.ids) == [everything[row] for row in (0, 3, 6, 20, 70)]
    assert found.features.names == tuple(rows.names[[0, 3, 6, 20, 70]])
    np.testing.assert_array_equal(found.features.outputs, rows.outputs[[0, 3, 6, 20, 70]])
    assert found.features.has_spectrum.tolist() == [True, True, True, False, False]
    assert found.usable.tolist() == [True, True, True, False, True]


def test_without_any_spectrum_there_are_none(db):
    known = KnownSpectra.of_task(db, 1)
    found, _ = candidates.of_names([parse("tanh(x)")], np.linspace(-1, 1, 5, dtype=np.float32), known)
    assert found.features.spectra.shape == (1, 0) and not found.features.has_spectrum.any()
    give_spectra(db, 1)
    found, rows = candidates.of_names([parse("one(x)")], np.ones(3, np.float32), KnownSpectra.of_task(db, 1))
    assert len(found) == 0 and rows.tolist() == [-1]


def test_the_class_of_many_functions_is_that_of_each(db):
    """Some are stored, some are not, one comes twice, and one is stored under a class that nothing computes."""
    other = "00000000-0000-0000-0000-000000000001"
    with db.transaction() as con:
        con.execute("INSERT INTO functions VALUES ('softplus(x)', ?, 1)", [other])
        con.execute("INSERT INTO class_info (class_id, name, size) VALUES (?, 'softplus(x)', 1)", [other])
    names = ["add(sin(x),tanh(x))", "erf(x)", "softplus(x)", "max(erf(x),erf(x))", "erf(x)", "mul(exp(x),relu(x))"]
    trees = [parse(name) for name in names]
    assert candidates.class_ids(db, trees) == [class_id_of(trees[0]), class_id_of(trees[1]), other] + [
        class_id_of(tree) for tree in trees[3:]
    ]


def test_ids_are_the_same_as_halves_and_as_text():
    ids = np.array([[0, 1], [2**64 - 1, 2**63], [2**63, 0]], np.uint64)
    as_text = [str(UUID(bytes=row.astype(">u8").tobytes())) for row in ids]
    assert texts(ids) == as_text
    np.testing.assert_array_equal(halves(as_text), ids)
    assert halves([]).shape == (0, 2) and texts(ids[:0]) == []


def test_rows_are_found_by_both_halves_of_an_id():
    ids = np.array([[1, 5], [7, 0], [7, 3], [7, 9], [2**64 - 1, 2**64 - 1]], np.uint64)
    wanted = np.array([[7, 9], [7, 4], [0, 0], [2**64 - 1, 2**64 - 1], [7, 0], [1, 6], [7, 3]], np.uint64)
    assert find_rows(ids, wanted).tolist() == [3, -1, -1, 4, 1, -1, 2]
    assert find_rows(ids[:0], wanted).tolist() == [-1] * 7
    assert find_rows(ids, wanted[:0]).tolist() == []
