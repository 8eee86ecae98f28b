"""What functions cost: sums over operators, measured here by a clock of the test's own; stored, and used to choose."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pytest
from cli_helpers import aqx_command, check_error
from hypothesis import given
from store_helpers import put
from strategies import trees
from toy import candidates, make_task

import aqx
from aqx import costs
from aqx.cli.searching import show_confirmation
from aqx.errors import Exhausted, InputError
from aqx.evaluation import Batch, precision
from aqx.operators import operator_table
from aqx.search.shown import confirmation_html
from aqx.store import Database
from aqx.store.costs import costs_of, operator_costs, precision_of
from aqx.tree import parse

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OPERATORS = ["relu", "tanh", "abs", "square", "sin"]
# By operator; a function of the test's own "machine" takes 1 ns and what its operators take.
TAKES = {"relu": 1.0, "tanh": 5.0, "abs": 0.5, "square": 0.25, "sin": 9.0, "mul": 0.25}


class Machine:
    """Measures functions as a machine would that is all sums, and counts what it was asked."""

    def __init__(self, factor: float = 1.0):
        self.asked: list[str] = []
        self.factor = factor

    def __call__(self, names: Sequence[str]) -> list[float]:
        self.asked += names
        return [self.factor * (1.0 + sum(TAKES[node.name] for node in parse(name).nodes)) for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return candidates(tmp_path_factory.mktemp("costs") / "made.duckdb", ["unary(x)", "unary(unary(x))"], OPERATORS)


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path / "found.duckdb"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine that `compute_costs` finds where it looks for the real one."""
    one = Machine()
    monkeypatch.setattr(costs, "measure_functions", one)
    return one


def stored(path: Path) -> dict[str, float]:
    """Costs relative to relu, by the name of the class."""
    with duckdb.connect(str(path), read_only=True) as con:
        return dict(con.execute("SELECT name, relative FROM class_costs").fetchall())


# ---- sums

ALL = {operator.name: 0.1 + i for i, operator in enumerate(operator_table().operators)} | {"x": 3.0}


@given(trees())
def test_a_function_costs_at_least_what_its_parts_do(tree: aqx.Tree):
    cost = costs.cost_of(tree, ALL)
    assert cost >= ALL["x"] and cost == costs.cost_of(str(tree), ALL)
    if {"zero", "one"}.isdisjoint(node.name for node in tree.nodes):
        assert all(cost >= costs.cost_of(part, ALL) for part in tree.nodes)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("x", []),
        ("relu(x)", ["relu"]),
        ("mul(x,sigmoid(mul(1.702,x)))", ["mul", "sigmoid", "mul"]),
        ("max_n(x,relu(x),tanh(x),x)", ["relu", "tanh", *["max_n"] * 3]),
        ("sum_n(relu(x))", ["sum_n", "relu"]),
        ("max(x,zero(tanh(x)))", ["max"]),
        ("add(exp(one(x)),mul(0.5,square(2.0)))", []),
        ("add(x,log1p_abs(3.0))", ["add"]),
    ],
)
def test_the_sum_is_over_what_depends_on_x(name: str, parts: list[str]):
    assert costs.cost_of(name, ALL) == pytest.approx(ALL["x"] + sum(ALL[part] for part in parts))


def test_operators_cost_what_they_add():
    found = costs.measure_operators(["tanh", "mul"], Machine())
    assert found == {"x": 1.25, "tanh": 4.75, "mul": 0.25}  # x alone is measured as 0.7·x
    assert costs.measure_operators(["tanh"], lambda names: [3.0, 2.0]) == {"x": 3.0, "tanh": 0.0}


def test_the_median_of_the_quickest_counts():
    """A clock by which round r takes r·1 µs in its quickest call, and longer in the others."""
    calls = itertools.cycle([5, 1, 3, 2, 4])
    state = {"now": 0.0, "call": 0}

    def clock() -> float:
        state["call"] += 1
        if state["call"] % 2 == 0:  # a call ends
            round_ = (state["call"] // 2 - 1) // 5 + 1
            state["now"] += next(calls) * round_ * 1e-6
        return state["now"]

    (found,) = costs.measure_functions(["abs(x)"], clock=clock, elements=1000)
    assert found == pytest.approx(5.0)  # of 1 to 9 µs for 1,000 elements


# ---- stored


def test_all_candidates_have_a_cost_and_asking_again_costs_nothing(path: Path):
    machine = Machine()
    report = costs.compute_costs(str(path), measure=machine)
    assert report.operators == 5 and report.classes == report.looked_at == len(stored(path)) > 10
    assert machine.asked[0] == "mul(0.7,x)" and len(machine.asked) == 6
    found = stored(path)
    assert found["relu(x)"] == 1
    assert found["sin(tanh(x))"] == pytest.approx((1.25 + 8.75 + 4.75) / (1.25 + 0.75))
    with duckdb.connect(str(path), read_only=True) as con:
        (name,) = {device for (device,) in con.execute("SELECT DISTINCT device FROM class_costs").fetchall()}
    assert name == report.device == costs.device_here()
    assert costs.compute_costs(str(path), measure=machine) == costs.CostReport(name, 0, 0, 0)
    assert len(machine.asked) == 6


def test_what_comes_later_is_measured_then(path: Path):
    machine = Machine()
    costs.compute_costs(str(path), measure=machine)
    candidates(path, ["mul(x,unary(x))"], OPERATORS)
    aqx.Study(path, make_task()).add("mul(sin(x),mul(tanh(x),x))", val_acc=0.5)  # never enumerated
    report = costs.compute_costs(str(path), measure=machine)
    assert report.operators == 1 and machine.asked[6:] == ["mul(0.7,x)", "mul(x,mul(0.7,x))"]
    assert {"mul(x,tanh(x))", "mul(sin(x),mul(tanh(x),x))"} <= stored(path).keys()


def test_another_version_or_again_measures_anew(path: Path, monkeypatch: pytest.MonkeyPatch):
    costs.compute_costs(str(path), measure=Machine())
    before = stored(path)
    doubled = Machine(2.0)
    assert costs.compute_costs(str(path), again=True, measure=doubled).operators == 5
    db = Database(path)
    assert operator_costs(db, costs.device_here(), costs.versions_here())["x"] == 2.5
    assert stored(path) == pytest.approx(before)  # relative to relu, which takes twice as long too
    monkeypatch.setattr(costs, "versions_here", lambda: "another")
    assert costs.compute_costs(str(path), measure=doubled).classes == len(before)
    with db.read() as con:
        assert con.execute("SELECT DISTINCT versions FROM operator_costs").fetchall() == [("another",)]


def test_a_database_holds_the_costs_of_several_devices(path: Path, monkeypatch: pytest.MonkeyPatch):
    costs.compute_costs(str(path), measure=Machine())
    here = costs.device_here()
    monkeypatch.setattr(costs, "device_here", lambda: "another GPU")
    costs.compute_costs(str(path), measure=lambda names: [1.0] * len(names))
    class_id = aqx.Study(path, make_task()).class_id("sin(x)")
    known = costs_of(Database(path), [class_id, None])[class_id]
    assert list(known) == ["another GPU", here] and known["another GPU"] == 1.0 and known[here] > 4


def test_a_class_that_gets_a_simpler_name_is_costed_by_it(path: Path):
    other = path.with_name("other.duckdb")
    candidates(other, ["unary(unary(x))"], ["abs", "square"])
    costs.compute_costs(str(other), measure=Machine())
    assert "square(abs(x))" not in stored(other) and "square(square(x))" in stored(other)
    before = stored(other)["abs(abs(x))"]
    candidates(other, ["unary(x)"], ["abs"])
    assert costs.compute_costs(str(other), measure=Machine()).classes == 1
    assert stored(other)["abs(x)"] < before and "abs(abs(x))" not in stored(other)


def test_operators_that_are_not_registered_here_are_left_out(path: Path):
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE class_info SET name = 'of_another_process(x)' WHERE name = 'sin(x)'")
    report = costs.compute_costs(str(path), measure=Machine())
    assert report.unknown == 1 and len(stored(path)) == report.classes > 9
    assert "of_another_process(x)" not in stored(path)
    assert str(report).endswith("; 1 have operators that are not registered here")


def test_a_database_of_before_is_brought_forward(path: Path):
    put(Database(path), "schema_version", "8")
    with duckdb.connect(str(path)) as con:
        con.execute("DROP TABLE operator_costs; DROP TABLE class_costs; DROP TABLE class_precision")
    assert costs.compute_costs(str(path), measure=Machine()).classes == len(stored(path)) > 10


# ---- sixteen bits

FAILS = {
    "exp(x)": "float16 overflows",
    "exp(square(x))": "float16 overflows; bfloat16 overflows",
    "relu(x)": "",
    "gelu(x)": "",
    "sin(exp(x))": "float16 loses digits; bfloat16 loses digits",
    "cosh(x)": "float16 overflows",
    "reciprocal(x)": "",
    "mul(1e5,x)": "float16 overflows",
}


@pytest.mark.parametrize(("name", "said"), FAILS.items(), ids=FAILS)
def test_where_sixteen_bits_fail(name: str, said: str):
    assert (f"16 bit {said}" if said else "float16 and bfloat16 hold its values") in aqx_command("show", name).stdout


@pytest.mark.parametrize("name", ["exp(x)", "sin(exp(x))", "cosh(relu(x))", "tanh(x)", "exp(square(x))"])
def test_the_flags_are_those_of_the_activation_itself(name: str):
    """Each point by itself, through `aqx.activation` on a 16-bit array, against NumPy's float64."""
    import jax.numpy as jnp

    from aqx.evaluation import Batch, precision
    from aqx.evaluation.precision import POINTS

    exact = {"exp(x)": np.exp, "sin(exp(x))": lambda x: np.sin(np.exp(x)), "tanh(x)": np.tanh}
    exact |= {"cosh(relu(x))": lambda x: np.cosh(np.maximum(x, 0)), "exp(square(x))": lambda x: np.exp(x * x)}
    act, found = aqx.activation(name), precision(Batch.of_trees([parse(name)]))
    assert (np.abs(POINTS) <= 30).all() and {-30.0, 0.0, 30.0} <= set(POINTS.tolist())
    with np.errstate(over="ignore"):
        want = exact[name](POINTS)
    for kind in ("float16", "bfloat16"):
        x = jnp.asarray(POINTS, kind)
        assert (np.asarray(x, np.float64) == POINTS).all(), "x itself is exact"
        got = np.asarray(act(x), np.float64)
        overflow = lost = False
        for one, true in zip(got.tolist(), want.tolist(), strict=True):
            overflow |= math.isfinite(true) and not math.isfinite(one)
            lost |= (
                math.isfinite(true) and math.isfinite(one) and abs(true) >= 2**-14 and abs(one - true) >= abs(true) / 2
            )
        assert (bool(found.overflows[kind][0]), bool(found.loses_digits[kind][0])) == (overflow, lost)


def test_a_function_costs_what_its_own_name_says(path: Path):
    """exp(x) is one class with cosh(x) + sinh(x), by which the class is called where only that is enumerated."""
    TAKES.update(cosh=3.0, sinh=3.0, add=0.25, exp=2.0)
    candidates(path, ["binary(unary(x),unary(x))"], ["cosh", "sinh", "add"])
    study = aqx.Study(path, make_task())
    study.add("exp(x)", val_acc=0.5)
    costs.compute_costs(study.db, measure=Machine(), sixteen_bits=False)
    assert stored(path)["add(cosh(x),sinh(x))"] == pytest.approx(3.5)
    assert costs_of(study.db, [study.class_id("exp(x)")]) == costs_of(
        study.db, [study.class_id("add(sinh(x),cosh(x))")]
    )
    here = costs.device_here()
    known = costs.costs_by_name(study.db, ["exp(x)", "add(sinh(x),cosh(x))", "gelu(x)", "of_nobody(x)"])
    assert known["exp(x)"] == {here: pytest.approx((1.25 + 1.75) / 2)}
    assert (
        known["add(sinh(x),cosh(x))"] == {here: pytest.approx(3.5)} and known["gelu(x)"] == known["of_nobody(x)"] == {}
    )


def test_flags_are_stored_beside_the_class(path: Path):
    candidates(path, ["unary(x)"], ["exp"])
    costs.compute_costs(str(path), measure=lambda names: [1.0] * len(names))
    study = aqx.Study(path, make_task())
    exp, tanh = study.class_id("exp(x)"), study.class_id("tanh(x)")
    flags = precision_of(Database(path), [exp, tanh])
    assert flags[exp]["float16_overflows"] and not any(flags[tanh].values())


# ---- the search


def test_a_search_leaves_out_what_costs_too_much(path: Path, machine: Machine):
    study = aqx.Study(path, make_task(baselines=("relu(x)", "sin(x)")), surrogate="random")
    finished = study.search(5, spectra=0, runs=0, max_cost=3)
    names = {record.name for record in finished}
    assert {"relu(x)", "sin(x)"} <= names, "baselines are trained whatever they cost"
    cheap = {name for name, cost in stored(path).items() if cost <= 3}
    assert len(names) == 7 and names - {"sin(x)"} <= cheap
    assert not any("sin" in name for name in names - {"sin(x)"})
    dear = sum(cost > 3 for cost in stored(path).values())
    assert study.left_out()["cost more than 3 times relu"] == dear > 3


def test_the_limit_is_of_one_search(path: Path, machine: Machine):
    study = aqx.Study(path, make_task(), surrogate="random")
    study.search(2, spectra=0, runs=0, max_cost=1.2)
    assert "cost more than 1.2 times relu" in study.left_out()
    study.search(30, spectra=0, runs=0)
    assert any("sin" in record.name for record in study.records()) and len(study.left_out()) == 3


def test_a_limit_that_nothing_meets_is_said_before_anything_is_trained(path: Path, machine: Machine):
    study = aqx.Study(path, make_task(), surrogate="random")
    with pytest.raises(Exhausted, match="max_cost=0.1: every candidate costs more, the cheapest 0"):
        study.search(2, spectra=0, runs=0, max_cost=0.1)
    assert not study.records()


@pytest.mark.parametrize("max_cost", [0, -1, math.nan, math.inf, True])
def test_what_is_no_cost(path: Path, max_cost: float):
    with pytest.raises(InputError, match="max_cost=.* is not a cost; give a number above 0"):
        aqx.Study(path, make_task()).search(1, max_cost=max_cost)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "dear", ""])
def test_what_is_no_cost_in_the_shell(path: Path, text: str):
    check_error(aqx_command("search", path, "--task", "mnist1d", f"--max-cost={text}"), "--max-cost", "above 0")


# ---- what people see


def test_the_command_line_shows_costs(path: Path, machine: Machine):
    study = aqx.Study(path, make_task())
    study.add("tanh(x)", val_acc=0.7)
    study.add("exp(abs(x))", val_acc=0.6)
    TAKES["exp"] = 2.0
    result = aqx_command("top", path, "--cost")
    assert "cost" not in result.stdout and f"do so: aqx cost {path}" in result.stderr
    done = aqx_command("cost", path, "-q")
    assert done.exit_code == 0 and "operators measured on" in done.stdout, done.output
    result = aqx_command("top", path, "--cost")
    heads, rows = result.stdout.splitlines()[1].split(), result.stdout.splitlines()[3:]
    assert heads == ["name", "objective", "trials", "cost", "in", "16", "bits"]
    assert rows[0].split() == ["tanh(x)", "0.7000", "1", "3"] and "float16 overflows" in rows[1]
    first = json.loads(aqx_command("top", path, "--json").stdout)[0]
    assert first["costs"] == {costs.device_here(): pytest.approx(3.0)}
    assert f"cost   3 times relu's on {costs.device_here()}" in aqx_command("show", path, "tanh(x)").stdout
    table = aqx_command("cost", path, "--fn", "sin(square(x))", "--fn", "relu", "-q").stdout
    assert "sin(square(x))" in table and "5" in table
    listed = json.loads(aqx_command("cost", path, "--fn", "relu", "-q", "--json").stdout)
    assert listed[0]["cost"] == 1 and not any(listed[0]["precision"].values())


def test_verdicts_have_a_column_of_costs(path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]):
    study = aqx.Study(path, make_task())
    study.add("abs(x)", val_acc=0.7)
    costs.compute_costs(study.db)
    found = study.confirm(top=1, seeds=2, functions=["abs(x)"])
    here = costs.device_here()
    assert {row.name: row.costs.get(here) for row in found.rows} == {
        "abs(x)": pytest.approx(0.75),
        "relu(x)": 1.0,
        "tanh(x)": pytest.approx(3.0),
    }
    assert f"cost on {here}" in confirmation_html(found)
    show_confirmation(found, 2, as_json=False)
    heads = capsys.readouterr().out.splitlines()[1]
    assert heads.split()[-1] == "cost" or " cost " in heads


def test_functions_of_two_inputs_have_costs_and_flags_too(tmp_path: Path):
    known = {"x": 0.4, "swish": 2.0, "mul": 0.1}
    assert costs.cost_of("mul(swish(x),y)", known) == pytest.approx(0.6 + 2.1)
    assert costs.cost_of("y", known) > costs.cost_of("x", known)
    found = precision(Batch.of_trees([parse("mul(swish(x),y)"), parse("mul(exp(x),y)")]))
    assert found.overflows["float16"].tolist() == [False, True]
    db = Database(candidates(tmp_path / "both.duckdb", ["unary(x)", "mul(unary(x),y)"], ["relu", "tanh"]))
    assert costs.compute_costs(db, measure=Machine()).classes == 4
