"""What the report shows, before anything is drawn: against brute force, the study itself, and hostile strings."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from toy import candidates, make_task

import aqx
from aqx.cli import main
from aqx.cli.report import FIGURES as OFFERED
from aqx.errors import InputError
from aqx.report import FIGURES, Panel, draw_panels, reproduce, write_figure, write_report
from aqx.report.curves import POINTS, curve, curves_of_best
from aqx.report.overview import best_so_far, expected_best
from aqx.report.panels import as_label
from aqx.report.payload import failures, timeline
from aqx.report.survey import cross_validate, survey
from aqx.search import Record, load_results
from aqx.search.verdict import stored_verdict
from aqx.store import Database
from aqx.store.claims import Wanted
from aqx.store.features import load_features
from aqx.store.trial_rows import Purpose, Status
from aqx.surrogate import PRESETS, Preset, predict
from aqx.surrogate.models import nearest_neighbours

pytestmark = pytest.mark.usefixtures("quick_to_compile", "quick_map")
OPERATORS = ["relu", "tanh", "exp", "square", "negative", "sigmoid", "arctan", "add", "mul", "sub"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which a search and a confirmation have run; functions with exp have failed."""
    path = candidates(tmp_path_factory.mktemp("report") / "found.duckdb", ["binary(unary(x),unary(x))"], OPERATORS)
    study = aqx.Study(path, make_task())
    study.search(budget=30, spectra=0)
    study.confirm(top=2, seeds=3)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- what it says of the search


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("values", [[0.3], [1.0, 2.0], [0.0, 0.0, 1.0, 5.0]])
def test_expected_best_is_the_mean_over_all_draws(values: list[float], sign: int):
    best = max if sign > 0 else min
    wanted = [np.mean([best(draw) for draw in itertools.product(values, repeat=n)]) for n in (1, 2, 3)]
    np.testing.assert_allclose(expected_best(np.array(values), 3, sign), wanted, rtol=1e-12)


@pytest.mark.parametrize(("direction", "best"), [("maximize", [2, 2, 3, 3]), ("minimize", [2, 1, 1, 1])])
def test_best_so_far_never_gets_worse_and_counts_no_baseline(db_path: Path, direction: str, best: list[float]):
    study = aqx.Study(db_path, make_task(direction=direction))
    for name, value in (("sinh(x)", 2.0), ("cosh(x)", 1.0), ("exp(x)", 3.0), ("erf(x)", float("nan"))):
        study.add(name, val_acc=value)
    with study.trial() as trial:
        assert trial.name == "relu(x)"
        trial.report(val_acc=9.0)
    course = best_so_far(load_results(db_path))
    assert course.best.tolist() == best
    assert course.baselines == {"relu(x)": 9.0}
    assert np.isnan(course.values[3])


def test_the_stored_verdict_is_the_studys(searched: Path):
    told = aqx.Study(searched, make_task()).confirm(top=2, seeds=3)  # everything is there: nothing is trained
    assert stored_verdict(load_results(searched)) == told
    assert {row.verdict for row in told.rows} >= {"reference"}


def test_an_unfinished_confirmation_is_judged_by_the_seeds_that_all_had(searched: Path, tmp_path: Path):
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(searched.read_bytes())
    study = aqx.Study(copy, make_task())
    whole = stored_verdict(load_results(copy))
    wanted = Wanted(study.class_id("relu(x)"), "relu(x)", Purpose.CONFIRM, seed=12345)
    (claimed,) = study.queue.claim_these([wanted], 60.0)
    study.tell(claimed.id, val_acc=0.5, test_acc=0.5)
    assert stored_verdict(load_results(copy)) == whole


def test_no_verdict_without_confirmation(db_path: Path):
    aqx.Study(db_path, make_task()).add("relu(x)", val_acc=1.0)
    assert stored_verdict(load_results(db_path)) is None


def test_ranking_is_the_studys(searched: Path):
    assert load_results(searched).ranking == aqx.Study(searched, make_task()).top(10**6)


# ---- the surrogate


def test_a_result_has_no_part_in_its_own_prediction():
    rng = np.random.default_rng(0)
    coordinates = rng.normal(size=(40, 16)).astype(np.float32)
    rows, values = np.arange(30), rng.normal(size=30)
    before = cross_validate(coordinates, rows, values, 1)
    values[7] += 100.0
    after = cross_validate(coordinates, rows, values, 1)
    assert before and after
    assert after.predicted[7] == before.predicted[7]
    assert (after.predicted != before.predicted).any(), "but in others'"


def test_a_smooth_truth_is_predicted_and_directions_mirror():
    line = np.linspace(-1, 1, 60, dtype=np.float32)
    coordinates = np.stack([line, *[np.zeros_like(line)] * 15], axis=1)
    found = cross_validate(coordinates, np.arange(60), 3 * line.astype(float), 1)
    mirrored = cross_validate(coordinates, np.arange(60), -3 * line.astype(float), -1)
    assert found and mirrored
    assert found.correlation > 0.9
    np.testing.assert_allclose(mirrored.predicted, -found.predicted)


def test_few_results_say_nothing():
    assert cross_validate(np.zeros((20, 16), np.float32), np.arange(11), np.arange(11.0), 1) is None


def test_the_survey_matches_the_study(searched: Path):
    results = load_results(searched)
    before = digest(searched)
    surveyed = survey(results)
    assert surveyed.names == sorted(surveyed.names)
    found = {t.name: row for t, row in zip(results.searched, surveyed.rows, strict=True) if row >= 0}
    by_class = {surveyed.names[row] for row in found.values()}
    study = aqx.Study(searched, make_task())
    assert all(study.class_id(name) in {study.class_id(t) for t in by_class} for name in found)
    assert np.isfinite(surveyed.predicted).all()
    assert digest(searched) == before, "looking changes nothing"


@pytest.mark.slow
def test_a_search_is_explained_by_its_own_surrogate(db_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its coordinates depend on the study's seed; the map does not depend on it."""
    shifted = Preset("shifted", lambda features, seed, progress: seed + features.outputs[:, :3], nearest_neighbours)
    candidates(db_path, ["binary(unary(x),unary(x))"], OPERATORS)
    aqx.Study(db_path, make_task(), surrogate=shifted, seed=5).search(budget=20, spectra=0)
    results = load_results(db_path)
    by_default = survey(results)
    monkeypatch.setitem(PRESETS, "shifted", shifted)
    found = survey(results)
    rows = load_features(results.db, results.task.task_id)
    order = np.argsort(np.array(rows.names, np.str_))
    told = [(t.name, np.nan if t.objective is None else t.objective) for t in results.searched]
    at = {trial.name: row for trial, row in zip(results.searched, found.rows.tolist(), strict=True) if row >= 0}
    mean, _ = predict(
        5 + rows.outputs[order, :3],
        [at[name] for name, _ in told if name in at],
        [results.sign * value for name, value in told if name in at],
        np.arange(len(order)),
        preset=shifted,
    )
    np.testing.assert_allclose(found.predicted, results.sign * mean, rtol=1e-6)
    assert not np.allclose(found.predicted, by_default.predicted)
    np.testing.assert_array_equal(found.coordinates, by_default.coordinates)
    assert found.calibration and by_default.calibration
    assert not np.array_equal(found.calibration.predicted, by_default.calibration.predicted)


def test_where_the_study_only_drew_the_default_surrogate_explains(drawn: Path):
    results = load_results(drawn)
    assert survey(results).names and survey(results).coordinates.shape[1] == PRESETS["ensemble"].outputs_alone


# ---- functions, failures, workers


def test_curves_are_the_functions_and_their_derivatives():
    found = curve("mul(x,tanh(x))")
    assert found is not None
    t = np.tanh(POINTS)
    np.testing.assert_allclose(found.values, POINTS * t, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(found.slopes, t + POINTS * (1 - t**2), rtol=2e-5, atol=1e-6)
    assert np.isnan(curve("reciprocal(x)").values[120])  # 1/0
    assert curve("my_operator(x)") is None


def test_the_best_functions_come_first_and_baselines_only_beside_them(searched: Path):
    results = load_results(searched)
    verdict = stored_verdict(results)
    assert verdict is not None
    kinds = {one.name: one.kind for one in curves_of_best(results, verdict)}
    winners = [row.name for row in verdict.rows if row.name not in ("relu(x)", "tanh(x)")]
    assert [name for name, kind in kinds.items() if kind == "found"][: len(winners)] == winners
    assert [name for name, kind in kinds.items() if kind == "usual"] == ["relu(x)", "gelu(x)", "swish(x)"]


def test_failures_are_grouped_by_reason(searched: Path):
    (group,) = failures(load_results(searched).trials)
    assert group["reason"] == "FloatingPointError: overflow in exp"
    assert group["count"] == sum(trial.status == "failed" for trial in load_results(searched).trials)
    assert "FloatingPointError" in group["traceback"]


START = datetime(2026, 1, 1)
spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.sampled_from(["a", "b"])), max_size=12)


@given(spans)
def test_nothing_overlaps_in_a_lane(some: list[tuple[int, int, str]]):
    trials = [
        Record(i, 1, None, "relu(x)", 0, Purpose.SEARCH, Status.DONE, 1.0, None, worker,
               START + timedelta(seconds=begin), None, None, START + timedelta(seconds=begin + length))
        for i, (begin, length, worker) in enumerate(some, 1)
    ]  # fmt: skip
    drawn = timeline(trials)
    assert len(drawn["bars"]) == len(some)
    for lane in range(len(drawn["lanes"])):
        bars = sorted((bar["start"], bar["end"]) for bar in drawn["bars"] if bar["lane"] == lane)
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(bars))


def test_commands_make_it_again(searched: Path):
    told = reproduce.commands(load_results(searched))
    assert told[0].startswith("aqx enumerate found.duckdb --schema 'binary(unary(x),unary(x))'")
    assert told[1:] == [
        "aqx search found.duckdb --task toy --budget 30",
        "aqx confirm found.duckdb --task toy --seeds 3",
    ]


@pytest.mark.parametrize("space", ["paper", "act_bench"])
def test_presets_are_recognised(space: str, monkeypatch: pytest.MonkeyPatch, searched: Path):
    families = {
        (str(schema), reproduce._operators(str(schema), "paper")): 1 for schema in getattr(aqx.Space, space)().schemas
    }
    monkeypatch.setattr(reproduce.functions, "enumerated", lambda db: families)
    assert reproduce.commands(load_results(searched))[0] == f"aqx enumerate found.duckdb --space {space}"


@pytest.fixture
def drawn(db_path: Path) -> Path:
    """A search by another surrogate and seed than by default."""
    candidates(db_path, ["unary(x)"], OPERATORS)
    aqx.Study(db_path, make_task(), surrogate="random", seed=7).search(budget=2, spectra=0)
    return db_path


def test_the_study_is_told_as_it_was(drawn: Path):
    results = load_results(drawn)
    search = "aqx search test.duckdb --task toy --budget 2 --seed 7 --surrogate random"
    assert reproduce.commands(results)[1:] == [search.replace("test.duckdb", drawn.name)]
    assert dict(reproduce.facts(results))["study"] == "seed 7, surrogate random, pruner median"


def test_what_an_earlier_aqx_did_not_store_is_not_guessed(drawn: Path):
    with Database(drawn).transaction() as con:
        con.execute("DELETE FROM studies; UPDATE trials SET study_id = NULL")
    results = load_results(drawn)
    search, note = reproduce.commands(results)[1:]
    assert search == f"aqx search {drawn.name} --task toy --budget 2" and "not known" in note
    assert "study" not in dict(reproduce.facts(results))


# ---- the data


@pytest.mark.usefixtures("quick_map")
@pytest.mark.parametrize("objective", ["$a^{b$", "a$b", r"\frac $x$ \$", "_hidden", "n" * 5000])
def test_figures_write_names_as_they_are(tmp_path: Path, objective: str):
    """Between two dollars matplotlib reads a formula, and raises where it is none."""
    study = aqx.Study(tmp_path / "found.duckdb", make_task(objective=objective, direction="maximize", baselines=()))
    for number in range(3):
        study.add("relu(x)", seed=number, **{objective: 0.5 + 0.1 * number})
    for ending in (".svg", ".png"):
        assert write_figure(study.db, "progress", tmp_path / f"progress{ending}").stat().st_size > 1000
    assert write_report(study.db, tmp_path / "report.html").stat().st_size > 1000
    label = as_label(objective)
    assert not label.replace(r"\$", "").count("$") and label.isprintable() and len(label) < 400
    curves = {objective: np.array([[1.0, 2.0], [0.5, 1.5], [1.5, 2.5]])}
    draw_panels(tmp_path / "panels.svg", [Panel(objective, curves, reference=(1.0, objective))], objective)


@pytest.mark.usefixtures("quick_map")
def test_a_long_reason_is_cut_in_the_report(tmp_path: Path):
    study = aqx.Study(tmp_path / "found.duckdb", make_task(baselines=()))
    study.add("relu(x)", val_acc=0.5)
    study.add("tanh(x)", val_acc=float("nan"))
    write_report(study.db, tmp_path / "report.html")
    with study.db.transaction() as con:
        con.execute("UPDATE trials SET reason = repeat('why ', 1000000) WHERE name = 'tanh(x)'")
    write_report(study.db, tmp_path / "long.html")
    assert (tmp_path / "long.html").stat().st_size < (tmp_path / "report.html").stat().st_size + 10_000


def test_several_tasks_ask_for_a_name(searched: Path, tmp_path: Path):
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(searched.read_bytes())
    aqx.Study(copy, make_task(name="other"))
    with pytest.raises(InputError, match="holds several tasks; name one of toy, other"):
        load_results(copy)
    assert load_results(copy, "toy").task.name == "toy"
    with pytest.raises(InputError, match="no task 'third'; it holds toy, other"):
        load_results(copy, "third")


# ---- single figures


MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
DRAWN = [(figure, ".svg") for figure in FIGURES]
DRAWN += [(figure, ending) for figure in FIGURES if figure not in ("map", "timeline") for ending in (".png", ".pdf")]


@pytest.mark.parametrize(("figure", "ending"), DRAWN)
def test_figures_are_written(searched: Path, tmp_path: Path, figure: str, ending: str):
    out = write_figure(searched, figure, tmp_path / f"figure{ending}")
    assert out.read_bytes().startswith(MAGIC[ending])


def test_the_command_offers_the_figures_there_are():
    assert OFFERED == tuple(FIGURES)


def test_report_and_plot_speak_json_and_say_what_is_wrong_in_one_line(searched: Path, tmp_path: Path):
    def cli(*arguments: str | Path):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    done = cli("report", searched, "-o", tmp_path / "report.html", "--json", "-q")
    file = tmp_path / "report.html"
    assert json.loads(done.stdout) == {"path": str(file), "bytes": file.stat().st_size} and not done.stderr
    done = cli("plot", searched, "verdict", "-o", tmp_path / "verdict.svg", "--json")
    assert json.loads(done.stdout) == {"path": str(tmp_path / "verdict.svg")}
    for arguments in (
        ("report", searched, "-o", tmp_path),
        ("plot", searched, "verdict", "-o", tmp_path / "verdict.gif"),
    ):
        refused = cli(*arguments)
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1, refused.stderr


def test_a_figure_says_what_it_shows(searched: Path, tmp_path: Path):
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = write_figure(searched, "verdict", tmp_path / "verdict.svg").read_text()
    verdict = stored_verdict(load_results(searched))
    assert verdict is not None
    assert all(row.name in text for row in verdict.rows if row.verdict != "reference")
    assert "difference to relu(x)" in text


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("pie", "figure='pie' is none; give one of progress"),
        ("progress", "needs results of a search"),
        ("verdict", "aqx confirm first"),
        ("map", "aqx enumerate first"),
        ("calibration", "needs a dozen results"),
        ("timeline", "needs trials"),
    ],
)
def test_figures_say_what_is_missing(db_path: Path, figure: str, message: str):
    aqx.Study(db_path, make_task())
    with pytest.raises(InputError, match=re.escape(message)):
        write_figure(db_path, figure, db_path.parent / "figure.svg")
