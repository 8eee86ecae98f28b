"""Replayed searches: against plain loops, from the same starts, on tables of other people, and as a command."""

from __future__ import annotations

import json
import pickle
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from cli_helpers import aqx_command, check_error
from click.testing import Result
from sklearn.neighbors import KNeighborsRegressor

from aqx.benchmark import (
    Curves,
    Landscape,
    ResultTable,
    landscape_of,
    load_table,
    mean_interval,
    median_interval,
    replay,
    replay_policies,
    score,
)
from aqx.errors import InputError, UnsupportedError
from aqx.report import Panel, check_plot, draw_panels
from aqx.surrogate import PRESETS, Features, Preset, as_preset
from aqx.surrogate.models import nearest_neighbours
from aqx.tasks import load_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def outputs_themselves(features: Features, seed: int, progress) -> np.ndarray:
    return features.outputs


NEAREST = Preset("nearest", outputs_themselves, nearest_neighbours)


def plane(classes: int, seed: int = 0) -> tuple[Features, np.ndarray]:
    """Classes at random places of a square, and their true values: the nearer to a corner, the better."""
    places = np.random.default_rng(seed).random((classes, 2)).astype(np.float32)
    return Features([f"f{i}" for i in range(classes)], places), -np.hypot(*(places - 0.9).T).astype(np.float64)


def noisy(values: np.ndarray, trainings: int, failing: float = 0.1, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    results = values[:, None] + rng.normal(scale=0.1, size=(len(values), trainings))
    return np.where(rng.random(results.shape) < failing, rng.choice([np.nan, np.inf], results.shape), results)


def followed(curves: Curves, values: np.ndarray, present: np.ndarray, maximize: bool) -> list[tuple[set, set, set]]:
    """What must come out, by plain loops: after each evaluation which incumbents, values and ranks are possible.

    A search sees one of the trainings of each class, and the loops do not know which; so this holds only for tables
    whose trainings of one class are equal, or have one training.
    """
    truths = []
    for row, trained in zip(values.tolist(), present, strict=True):
        results = [value for value, there in zip(row, trained, strict=True) if there]
        finite = [value for value in results if abs(value) < np.inf]
        truths.append(statistics.fmean(finite) if finite and 2 * len(finite) >= len(results) else None)
    known = [value for value in truths if value is not None]
    best, worst = (max(known), min(known)) if maximize else (min(known), max(known))
    expected = []
    for order in curves.evaluated.tolist():
        incumbent = None
        steps = []
        for row in order:
            value = truths[row]
            beats = incumbent is None or (value is not None and (value > truths[incumbent]) == maximize)
            if value is not None and beats and (incumbent is None or value != truths[incumbent]):
                incumbent = row
            shown = worst if incumbent is None else truths[incumbent]
            better = sum((value > shown) == maximize and value != shown for value in known)
            steps.append((incumbent, shown, abs(best - shown), 1 + (len(known) if incumbent is None else better)))
        expected.append(steps)
    return expected


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("policy", ["random", NEAREST], ids=["random", "nearest"])
def test_curves_are_what_plain_loops_say(direction: str, policy):
    features, values = plane(40)
    values = np.round(values, 1)  # many ties
    values[::4] = np.nan
    values[1::7] = -1e33 if direction == "maximize" else 1e33
    curves = replay(features, values, policy, seeds=12, evaluations=30, start=3, direction=direction)
    expected = followed(curves, values[:, None], np.ones((40, 1), bool), direction == "maximize")
    assert any(step[0] is None for steps in expected for step in steps), "a failed start was not tried"
    for n, steps in enumerate(expected):
        assert len(set(curves.evaluated[n].tolist())) == 30
        for k, (incumbent, shown, regret, rank) in enumerate(steps):
            assert curves.incumbents[n, k] == (-1 if incumbent is None else incumbent)
            assert curves.best[n, k] == shown
            assert curves.regret[n, k] == pytest.approx(regret, abs=1e-12)
            assert curves.rank[n, k] == rank
    assert curves.optimum == (np.nanmax(values) if direction == "maximize" else np.nanmin(values))


def test_a_search_sees_one_training_and_is_judged_by_the_mean():
    features, values = plane(30)
    results = noisy(values, 3)
    present = np.arange(3) < np.random.default_rng(5).integers(1, 4, 30)[:, None]
    seeds = 40
    curves = replay(features, results, "random", seeds=seeds, evaluations=30, start=1, present=present)
    truth = np.full(30, np.nan)
    for c in range(30):
        finite = [v for v in results[c, present[c]] if np.isfinite(v)]
        if finite and len(finite) * 2 >= present[c].sum():
            truth[c] = np.mean(finite)
    worst = np.nanmin(truth)
    wins = set()
    for n in range(seeds):
        for incumbent, best in zip(curves.incumbents[n], curves.best[n], strict=True):
            expected = worst if incumbent < 0 or np.isnan(truth[incumbent]) else truth[incumbent]
            assert best == pytest.approx(expected)
        wins.add(int(curves.incumbents[n, -1]))
        # Some training of the winner is at least as good as the worst finite training of any other class.
        mine = np.nanmax(np.where(present & np.isfinite(results), results, np.nan)[curves.incumbents[n, -1]])
        for c in range(30):
            everything = results[c, present[c]]
            if np.isfinite(everything).all():
                assert mine >= everything.min()
    assert len(wins) > 1, "every search saw the same trainings"


def test_padding_is_not_a_training():
    features, values = plane(20)
    padded = np.stack([values, np.full(20, np.nan), np.full(20, np.nan)], axis=1)
    present = np.zeros((20, 3), bool)
    present[:, 0] = True
    alone, filled = (
        replay(features, table, "random", seeds=3, evaluations=20, present=mask)
        for table, mask in ((values, None), (padded, present))
    )
    np.testing.assert_array_equal(alone.best, filled.best)
    assert filled.rank[:, -1].tolist() == [1, 1, 1]


def test_a_sensible_surrogate_beats_chance():
    features, values = plane(300)
    curves = {
        policy: replay(features, noisy(values, 2, 0.02), policy, seeds=8, evaluations=40)
        for policy in ("random", NEAREST)
    }
    random, near = (curve.regret[:, -1].mean() for curve in curves.values())
    assert near < 0.5 * random
    assert np.median(curves[NEAREST].rank[:, -1]) < np.median(curves["random"].rank[:, -1])


def test_same_seeds_same_curves_and_same_starts():
    features, values = plane(60)
    results = noisy(values, 2)
    policies = ["random", NEAREST, Preset("farthest", outputs_themselves, nearest_neighbours, exploration=-1.0)]
    curves = [replay(features, results, policy, seeds=[3, 11], evaluations=20, start=6) for policy in policies]
    for one in curves:
        np.testing.assert_array_equal(one.evaluated[:, :6], curves[0].evaluated[:, :6])
        np.testing.assert_array_equal(one.best[:, :6], curves[0].best[:, :6])
        assert len({tuple(row) for row in one.evaluated.tolist()}) == 2
    again = replay(features, results, NEAREST, seeds=[11], evaluations=20, start=6)
    np.testing.assert_array_equal(again.evaluated[0], curves[1].evaluated[1])
    np.testing.assert_array_equal(again.best[0], curves[1].best[1])


def test_unusable_classes_are_judged_but_never_evaluated():
    features, values = plane(30)
    usable = np.ones(30, bool)
    usable[np.argmax(values)] = False
    for policy in ("random", NEAREST):
        curves = replay(features, values, policy, seeds=4, evaluations=29, usable=usable)
        assert np.argmax(values) not in curves.evaluated
        assert curves.rank[:, -1].tolist() == [2] * 4
        assert curves.regret[:, -1] == pytest.approx(values.max() - np.sort(values)[-2])


@pytest.mark.slow
def test_a_batch_is_chosen_before_any_of_it_is_known():
    features, values = plane(60)
    settings = {"seeds": 1, "evaluations": 14, "start": 5}
    for batch, known in ((1, 6), (4, 9)):
        before = replay(features, values, NEAREST, batch=batch, **settings).evaluated[0]
        assert len(set(before.tolist())) == 14
        changed = values.copy()
        changed[before[5]] = 10.0  # from now on the best by far, as soon as it is known
        after = replay(features, changed, NEAREST, batch=batch, **settings).evaluated[0]
        assert (after[:known] == before[:known]).all() and (after[known:] != before[known:]).any()
    whole = replay(features, values, NEAREST, batch=99, **settings)
    assert whole.evaluated.shape == (1, 14) and len(set(whole.evaluated[0].tolist())) == 14


@pytest.mark.slow
def test_processes_change_nothing():
    features, values = plane(80)
    preset = Preset("outputs", PRESETS["random"].embed, nearest_neighbours)
    settings = {"seeds": 3, "evaluations": 20, "embedding": features.outputs}
    alone, together = (replay(features, values, preset, workers=workers, **settings) for workers in (1, 2))
    np.testing.assert_array_equal(alone.evaluated, together.evaluated)


@pytest.mark.parametrize(
    "preset", [*PRESETS.values(), as_preset(KNeighborsRegressor())], ids=lambda preset: preset.name
)
def test_presets_travel_to_other_processes(preset: Preset):
    assert pickle.loads(pickle.dumps(preset)).name == preset.name


def test_what_does_not_pickle_runs_alone():
    features, values = plane(30)
    preset = Preset("odd", lambda features, seed, progress: features.outputs, nearest_neighbours)
    assert replay(features, values, preset, seeds=2, evaluations=12).rank.shape == (2, 12)
    with pytest.raises(InputError, match=r"policy='odd' cannot be sent to other processes .*use workers=1"):
        replay(features, values, preset, seeds=2, evaluations=12, workers=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluations": 31}, "evaluations=31, but only 30 classes"),
        ({"start": 0}, "start=0"),
        ({"start": 21}, "start=21 must be from 1 to evaluations=20"),
        ({"seeds": []}, "seeds="),
        ({"seeds": [-1]}, "seeds="),
        ({"workers": 0}, "workers=0"),
        ({"batch": 0}, "batch=0"),
        ({"direction": "up"}, "direction='up'"),
        ({"policy": "oracle"}, "ensemble, paper, random"),
        ({"values": np.zeros(29)}, r"values has the shape \(29,\)"),
        ({"values": np.full(30, np.nan)}, "every class failed"),
        ({"usable": np.ones(29, bool)}, "usable has the shape"),
        ({"present": np.zeros((30, 1), bool)}, "present must have the shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_replayed(changes: dict, message: str):
    features, values = plane(30)
    settings = {"values": values, "policy": "random", "seeds": 2, "evaluations": 20} | changes
    with pytest.raises(InputError, match=message):
        replay(features, settings.pop("values"), settings.pop("policy"), **settings)


# --- scores


def test_evaluations_to_the_top():
    ranks = np.array([[300, 20, 11, 10, 1], [300, 300, 300, 300, 300], [9, 2, 2, 2, 2]])
    nothing = np.zeros((3, 5))
    curves = Curves("p", np.arange(3), ranks, ranks, nothing, nothing, ranks, 0.0, 1000, 0.1)
    assert curves.evaluations_to(0.01).tolist() == [4, np.inf, 1]
    assert curves.evaluations_to(0.001).tolist() == [5, np.inf, np.inf]
    found = score(curves)
    assert (found.to_top_1_percent.value, found.to_top_1_percent.high) == (4, np.inf)
    assert found.to_top_01_percent.value == np.inf
    assert list(found.regret) == [5]


@pytest.mark.parametrize("searches", [6, 20, 35])
def test_intervals_cover(searches: int):
    """Of skewed samples: at least 95 % of the medians' intervals, and about as many of the means'."""
    samples = np.random.default_rng(0).exponential(size=(searches, 2000))
    _, low, high = median_interval(samples)
    assert np.mean((low <= np.log(2)) & (np.log(2) <= high)) > 0.94
    middle, low, high = mean_interval(samples[:, :300])
    np.testing.assert_allclose(middle, samples[:, :300].mean(axis=0))
    assert np.mean((low <= 1) & (high >= 1)) > (0.75 if searches == 6 else 0.85)
    assert (low < middle).all() and (middle < high).all()


def test_medians_of_what_is_never_reached():
    column = np.array([4.0, 30.0, np.inf, 7.0, np.inf, np.inf, np.inf])[:, None]
    assert median_interval(column).ravel().tolist() == [np.inf, 4.0, np.inf]


# --- tables


FOREIGN = """name,epoch,val_acc,val_loss
relu(x),1,0.60,0.9
relu( x ),1,0.62,1.1
"max(x,zero(x))",1,nan,inf
tanh(x),1,0.5,1e33
sigmoid(x),1,,nan
zero(x),1,0.1,2.3
reciprocal(relu(x)),1,0.1,2.2
"add(x,",1,0.99,0
wobble(x),1,0.99,0
elu(x),1,inf,-inf
selu(x),1,0.65,0.7
swish(x),1,0.7,0.6
softplus(x),1,0.61,0.8
"""


TOY = f"{toy.__file__}:task"


@pytest.fixture(scope="module")
def foreign_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "foreign.csv"
    path.write_text(FOREIGN)
    return path


@pytest.fixture(scope="module")
def foreign(foreign_csv: Path) -> ResultTable:
    return load_table(foreign_csv)


@pytest.fixture(scope="module")
def features_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features") / "features.duckdb"


@pytest.fixture(scope="module")
def landscape(foreign: ResultTable, features_db: Path) -> Landscape:
    presets = (PRESETS["ensemble"], PRESETS["random"])
    return landscape_of(foreign, load_task(TOY), objective="val_loss", presets=presets, features=features_db)


def test_a_foreign_table_becomes_classes(landscape: Landscape):
    assert landscape.direction == "minimize"
    assert set(landscape.features.names) == {
        "elu(x)",
        "relu(x)",
        "selu(x)",
        "sigmoid(x)",
        "softplus(x)",
        "swish(x)",
        "tanh(x)",
    }
    assert landscape.left_out == {"do not parse": 2, "constant": 1, "not finite": 1}
    assert landscape.features.has_spectrum.all() and landscape.usable.all()
    results = dict(zip(landscape.features.names, zip(landscape.values, landscape.present, strict=True), strict=True))
    assert results["relu(x)"][0].tolist() == [0.9, 1.1, np.inf]
    assert results["tanh(x)"][0][0] == 1e33 and results["tanh(x)"][1].tolist() == [True, False, False]
    assert "2 do not parse" in str(landscape) and "val_loss is minimized" in str(landscape)

    (curves,) = replay_policies(landscape, ["random"], seeds=5, evaluations=7, start=2)
    assert curves.optimum == 0.6
    assert curves.rank[:, -1].tolist() == [1] * 5  # all was seen
    assert curves.best.max() == 1e33


def test_a_second_replay_computes_nothing(
    landscape: Landscape, foreign: ResultTable, features_db: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("enumerate_space", "compute_spectra"):
        monkeypatch.setattr(sys.modules["aqx.benchmark.landscape"], name, None)
    monkeypatch.setattr("aqx.surrogate.embed", None)
    again = landscape_of(foreign, load_task(TOY), presets=(PRESETS["ensemble"],), features=features_db)
    np.testing.assert_array_equal(again.features.spectra, landscape.features.spectra)
    np.testing.assert_array_equal(again.embeddings["ensemble"], landscape.embeddings["ensemble"])
    assert (again.objective, again.direction) == ("val_acc", "maximize")


def test_an_embedding_of_another_kind_is_not_mistaken_for_the_stored_one(foreign: ResultTable, features_db: Path):
    odd = Preset("ensemble", outputs_themselves, nearest_neighbours)
    found = landscape_of(foreign, load_task(TOY), presets=(odd,), features=features_db)
    assert found.embeddings["ensemble"].shape == found.features.outputs.shape


def test_an_objective_that_the_table_lacks(foreign: ResultTable):
    with pytest.raises(
        InputError, match="objective='f1' is not in the table; its metrics are epoch, val_acc, val_loss"
    ):
        landscape_of(foreign, load_task(TOY), objective="f1")


# --- the command


def command(*arguments: str | Path) -> Result:
    return aqx_command("bench", "replay", *arguments)


@pytest.fixture(scope="module")
def small_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    names = "relu elu selu swish softplus tanh sigmoid erf arctan arcsinh abs square sinh cosh expm1 exp".split()
    rows = [f"{name}(x),{seed},{0.5 + 0.01 * n + 0.003 * seed}" for n, name in enumerate(names) for seed in (0, 1)]
    path.write_text("\n".join(["name,seed,val_acc", *rows, "gone(x),0,0.9"]) + "\n")
    return path


def test_the_command(landscape: Landscape, features_db: Path, foreign_csv: Path, tmp_path: Path):
    plot = tmp_path / "curves.svg"
    arguments = ["--table", foreign_csv, "--task", TOY, "--features", features_db, "--objective", "val_loss"]
    arguments += [
        "--seeds",
        3,
        "--evaluations",
        6,
        "--start",
        5,
        "--policy",
        "random",
        "--policy",
        "ensemble",
        "--quiet",
    ]
    result = command(*arguments, "--json", "--plot", plot)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["policy"], row["searches"], row["classes"]) for row in rows] == [("random", 3, 7), ("ensemble", 3, 7)]
    assert rows[0]["regret"]["6"]["high"] >= rows[0]["regret"]["6"]["low"] >= 0
    assert result.stderr == f"{landscape}\n"
    assert plot.read_text().count("random") and "<svg" in plot.read_text()

    again = command(*arguments)
    assert again.exit_code == 0, again.output
    for word in ("policy", "median rank", "mean regret @6", "to top 1 %", "to top 0.1 %", "random", "ensemble"):
        assert word in again.stdout


def test_the_command_replays_in_batches(features_db: Path, foreign_csv: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def replayed(*args, batch: int, **settings):
        seen.append(batch)
        return replay_policies(*args, batch=batch, **settings)

    monkeypatch.setattr("aqx.benchmark.replay_policies", replayed)
    arguments = ["--table", foreign_csv, "--task", TOY, "--features", features_db, "--objective", "val_loss", "--quiet"]
    arguments += ["--seeds", 1, "--evaluations", 6, "--start", 3, "--policy", "random"]
    assert command(*arguments, "--batch", 2).exit_code == 0 and command(*arguments).exit_code == 0
    assert seen == [2, 1]


@pytest.mark.slow
def test_the_command_on_a_builtin_task(small_table: Path, tmp_path: Path):
    """In a process of its own, as the shape checks of this one would refuse the built-in task's annotation."""
    plot = tmp_path / "curves.png"
    command = [sys.executable, "-m", "aqx", "bench", "replay", "--table", str(small_table), "--task", "mnist1d", "-q"]
    command += ["--policy", "ensemble", "--seeds", "3", "--evaluations", "10", "--json", "--plot", str(plot)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert (row["policy"], row["searches"], row["classes"]) == ("ensemble", 3, 16)
    assert result.stderr.startswith("16 classes with 32 trainings; val_acc is maximized; functions left out: 1 do not")
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objective", "f1"], ["'f1'", "its metrics are val_acc"]),
        (["--policy", "oracle"], ["'oracle'", "ensemble, paper, random"]),
        (["--task", "mnist2d"], ["mnist2d"]),
        (["--table", "none.csv"], ["none.csv"]),
        (["--plot", "curves.bmp"], [".png, .svg, .pdf"]),
        (["--plot", "no-such-folder/curves.png"], ["no-such-folder"]),
        (["--start", "5", "--evaluations", "4"], ["--start 5"]),
        (["--seeds", "0"], ["--seeds"]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_mistakes_are_one_line(arguments: list[str], words: list[str], small_table: Path):
    check_error(command("--table", small_table, "--task", "mnist1d", "--quiet", *arguments), *words)


def test_a_table_that_is_too_small(landscape: Landscape):
    with pytest.raises(InputError, match="evaluations=100, but only 7 classes can be evaluated"):
        replay_policies(landscape)


def test_a_table_of_nothing_usable():
    table = ResultTable(("zero(x)", "nope("), np.zeros(2, np.int64), {"val_acc": np.zeros(2)}, (None, None))
    with pytest.raises(InputError, match="no function to search among"):
        landscape_of(table, toy.task)


# --- plots


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("SVG", b"<?xml"), ("pdf", b"%PDF")])
def test_plots_have_the_format_of_their_ending(tmp_path: Path, ending: str, start: bytes):
    path = tmp_path / f"curves.{ending}"
    curve = np.array([[1e30, 3.0, 2.0], [1e30, 2.5, 1.0], [1e30, 3.5, np.inf]])
    draw_panels(path, [Panel("loss", {"a": curve, "b": curve + 1}, reference=(1.0, "best"), first=2)], "title")
    assert path.read_bytes().startswith(start)


def test_a_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'aqx\[report\]'"):
        check_plot("curves.png")
