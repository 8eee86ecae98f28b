"""The report as a file and in a real browser: whole, quiet, without a network, at both sizes and in both themes."""

from __future__ import annotations

import base64
import dataclasses
import functools
import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import PHONE, WIDE, Seen, browser_pages
from toy import candidates, make_task, train

import aqx
from aqx.errors import StoreError
from aqx.evaluation import Family
from aqx.operators import SETS
from aqx.report import write_report
from aqx.report.html import _plotly, render
from aqx.report.overview import look_over
from aqx.report.payload import as_json, spread_out
from aqx.search import load_results
from aqx.tree import parse_schema

pytestmark = pytest.mark.usefixtures("quick_to_compile", "quick_map")
OPERATORS = ["relu", "tanh", "exp", "square", "negative", "sigmoid", "arctan", "add", "mul", "sub"]
HOSTILE = '</script><img src=x onerror="window.hacked=1">'
Open = Callable[..., Seen]


def hostile_train(act, seed: int) -> dict[str, float]:
    """As the toy task trains, but what goes wrong is said in markup."""
    if "square" in act.name:
        raise ValueError(HOSTILE)
    return train(act, seed)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search and a confirmation of a task with a hostile name, some of whose trainings failed."""
    path = candidates(tmp_path_factory.mktemp("page") / "found.duckdb", ["binary(unary(x),unary(x))"], OPERATORS)
    study = aqx.Study(path, make_task(name=HOSTILE, train=hostile_train))
    study.search(budget=40, spectra=0)
    study.confirm(top=2, seeds=3)
    return path


@pytest.fixture(scope="module")
def report(searched: Path, quick_map: None) -> Path:
    before = hashlib.sha256(searched.read_bytes()).hexdigest()
    out = write_report(searched, searched.parent / "report.html")
    assert hashlib.sha256(searched.read_bytes()).hexdigest() == before, "looking changes nothing"
    return out


@pytest.fixture(scope="module")
def pages() -> Iterator[Open]:
    with browser_pages() as opened:
        yield opened


@pytest.fixture
def opened(pages: Open, report: Path) -> Open:
    return functools.partial(pages, report)


@pytest.fixture(scope="module")
def wide(pages: Open, report: Path) -> Seen:
    """One window for the tests that leave it as it is."""
    return pages(report)


# ---- the file


def test_it_is_one_file_that_holds_everything(report: Path, searched: Path):
    text = report.read_text()
    body = text.replace(re.search(r"<script>.*?plotly\.js.*?</script>", text, re.S)[0], "")
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"' >]""", body.replace("src=x onerror", ""))
    assert "default-src 'none'" in body
    names = gzip.decompress(base64.b64decode(re.search(r'id="names">(.*?)<', body)[1])).decode().split("\n")
    with aqx.store.Database(searched).read() as con:
        stored = con.execute("SELECT name FROM class_info WHERE finite AND NOT constant ORDER BY name").fetchall()
    assert names == [name for (name,) in stored]
    assert not list(report.parent.glob(".report*"))


@pytest.mark.parametrize(
    ("target", "said"), [("missing/report.html", "missing is not a folder"), (".", "it is a folder")]
)
def test_a_path_that_cannot_be_written_is_named(searched: Path, tmp_path: Path, target: str, said: str):
    with pytest.raises(StoreError, match=f"^path=.* cannot be written: .*{said}.*a folder that exists"):
        write_report(searched, tmp_path / target)


def test_a_failure_leaves_the_old_report(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "report.html"
    out.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="No space left"):
        write_report(searched, out)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] and out.read_text() == "old"


def test_json_cannot_leave_its_element():
    text = as_json({"reason": "</script><script>alert(1)</script><!--", "name": "a&b"})
    assert not re.search("[<>&]", text)
    assert json.loads(text)["reason"] == "</script><script>alert(1)</script><!--"


def test_spread_out_keeps_the_order():
    places = np.array([[0.0, 5.0], [1.0, 4.0], [1000.0, 3.0]])
    spread = spread_out(places)
    assert (np.argsort(spread, axis=0) == np.argsort(places, axis=0)).all()
    assert spread.min() == 0 and spread.max() == 1
    assert spread[1, 0] > 0.25, "one far group does not crowd the others"


# ---- in a browser


def on_map(seen: Seen, row: int) -> tuple[float, float]:
    """Where a candidate is in the window; the map is scrolled into sight."""
    seen.page.locator("#map").scroll_into_view_if_needed()
    return tuple(
        seen.page.evaluate(
            """row => { const v = view(), box = byId("map").getBoundingClientRect(), x = box.left + MARGIN.l;
            return [x + (atlas.x[row] - v.x0) * v.sx, box.top + MARGIN.t + (v.y1 - atlas.y[row]) * v.sy]; }""",
            row,
        )
    )


def trained_row(seen: Seen) -> int:
    """A trained candidate with no other one near."""
    return seen.page.evaluate(
        """() => { const rows = [...atlas.trials.keys()], away = r => Math.min(...rows.filter(s => s !== r).map(
        s => Math.hypot(atlas.x[r] - atlas.x[s], atlas.y[r] - atlas.y[s])));
        return rows.sort((a, b) => away(b) - away(a))[0]; }"""
    )


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        pytest.param(WIDE, "light", id="wide-light"),
        pytest.param(PHONE, "dark", id="phone-dark"),
        pytest.param(WIDE, "dark", id="wide-dark", marks=pytest.mark.slow),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.slow),
    ],
)
def test_it_opens_quietly_and_fits(opened: Open, size: tuple[int, int], scheme: str):
    seen = opened(size, scheme)
    assert not seen.messages and not seen.requests
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing sticks out sideways"
    assert seen.page.evaluate("document.documentElement.dataset.theme") == scheme
    back, ink = (seen.page.evaluate(f"getComputedStyle(document.body).{key}") for key in ("backgroundColor", "color"))
    light = {key: sum(map(int, re.findall(r"\d+", value)[:3])) for key, value in (("back", back), ("ink", ink))}
    assert (light["back"] > light["ink"]) == (scheme == "light")


def test_every_part_is_drawn(wide: Seen):
    page = wide.page
    for chart in ("verdict", "progress", "map", "functions", "calibration", "timeline"):
        assert page.locator(f"#{chart}-section").is_visible()
        assert page.locator(f"#{chart} .main-svg").count() > 0, chart
    assert page.locator("#progress .scatterlayer .point").count() == 40
    assert page.locator("#map .layer-below image, #map .imagelayer image").count() == 1
    assert page.locator("#failures tbody tr").count() == 2
    assert page.locator("#verdict-table tbody tr").count() == 4
    assert "aqx search" in page.locator("#commands").inner_text()


def test_hostile_strings_stay_text(wide: Seen):
    seen = wide
    assert seen.page.locator("h1").inner_text().startswith(HOSTILE)
    assert HOSTILE in seen.page.locator("#failures").inner_text()
    seen.page.locator("#timeline .point").first.hover(force=True)
    assert seen.page.evaluate("window.hacked === undefined")
    assert seen.page.locator("img").count() == 0
    assert not seen.messages and not seen.requests


def test_markup_in_the_objective_is_shown_as_it_is(pages: Open, tmp_path: Path):
    objective = "<b>acc</b> &lt; $x^{$ _1"
    study = aqx.Study(tmp_path / "found.duckdb", make_task(objective=objective, direction="maximize", baselines=()))
    for number, name in enumerate(("relu(x)", "tanh(x)", "sin(x)")):
        study.add(name, **{objective: 0.5 + 0.1 * number})
    seen = pages(write_report(study.db, tmp_path / "report.html"))
    seen.page.wait_for_selector("#progress .ytitle")
    assert seen.page.locator("#progress .ytitle").text_content() == objective


def test_hovering_shows_a_candidate_and_a_click_pins_it(opened: Open):
    seen = opened()
    page, row = seen.page, trained_row(seen)
    page.mouse.move(*on_map(seen, row))
    page.wait_for_selector("#card h3")
    name = page.evaluate("row => atlas.names[row]", row)
    assert page.locator("#card h3").inner_text() == name
    assert "val_acc" in page.locator("#card").inner_text()
    page.wait_for_selector("#card .mini .js-line")
    page.mouse.click(*on_map(seen, row))
    assert page.locator("#pinned h3").all_inner_texts() == [name]
    page.mouse.click(*on_map(seen, row))
    assert page.locator("#pinned h3").count() == 1, "pinned once"
    page.locator("#pinned button").click()
    assert page.locator("#pinned h3").count() == 0
    assert not seen.messages


def test_a_tap_pins_on_a_phone(opened: Open):
    seen = opened(PHONE, touch=True)
    row = trained_row(seen)
    seen.page.touchscreen.tap(*on_map(seen, row))
    seen.page.wait_for_selector("#pinned h3")
    assert seen.page.locator("#pinned h3").inner_text() == seen.page.evaluate("row => atlas.names[row]", row)
    assert not seen.messages


def test_zoom_paints_anew_and_the_whole_map_comes_back(opened: Open):
    seen = opened()
    page = seen.page
    picture = "byId('map').layout.images[0].source"
    whole, before = page.evaluate("byId('map').layout.xaxis.range"), page.evaluate(picture)
    page.mouse.move(*on_map(seen, trained_row(seen)))
    page.mouse.wheel(0, -400)
    page.wait_for_function(f"before => {picture} !== before", arg=before)
    zoomed = page.evaluate("byId('map').layout.xaxis.range")
    assert zoomed[1] - zoomed[0] < whole[1] - whole[0]
    page.locator("#map-reset").click()
    page.wait_for_function("whole => byId('map').layout.xaxis.range[0] === whole[0]", arg=whole)
    assert not seen.messages


def test_find_pins_by_name(wide: Seen):
    page = wide.page
    page.locator("#map-find").fill("mul(relu(x), tanh(x))")
    assert page.locator("#pinned h3").all_inner_texts() == ["mul(relu(x),tanh(x))"]
    page.locator("#map-find").fill("arctan(")
    assert page.locator("#map-names option").count() == 12
    page.locator("#pinned button").click()


def column(seen: Seen, number: int) -> list[str]:
    return seen.page.locator(f"#trials tbody tr td:nth-child({number})").all_inner_texts()


def test_trials_sort_and_filter(opened: Open, searched: Path):
    seen = opened()
    page, trials = seen.page, load_results(searched).trials
    page.locator("#trials-more").click()
    assert len(column(seen, 1)) == len(trials)
    page.locator("#trials th[data-column=objective] button").click()
    values = [float(text) for text in column(seen, 5) if text]
    assert values == sorted(values, reverse=True), "the best first"
    assert not any(column(seen, 5)[len(values) :]), "those without a result last"
    page.locator("#trials th[data-column=objective] button").click()
    values = [float(text) for text in column(seen, 5) if text]
    assert values == sorted(values)
    assert page.locator("#trials th[aria-sort=ascending]").inner_text().startswith("val_acc")
    page.locator("#trials-status").select_option("failed")
    failed = [trial for trial in trials if trial.status == "failed"]
    assert set(column(seen, 1)) == {str(trial.id) for trial in failed}
    page.locator("#trials-filter").fill("overflow")
    assert len(column(seen, 1)) == sum("overflow" in (trial.reason or "") for trial in failed)
    page.locator("#trials-status").select_option("")
    page.locator("#trials-filter").fill("no such function")
    assert page.locator("#trials-count").inner_text() == f"0 of {len(trials)}"
    assert not seen.messages


def test_a_trial_is_shown_on_the_map(opened: Open):
    page = opened().page
    row = page.locator("#trials tr.onmap").first
    name = row.locator("td.name").inner_text()
    row.click()
    assert page.evaluate(
        "name => [...byId('pinned').children].some(c => atlas.trials.get(c.row).some(t => t.name === name))", name
    )


def test_the_theme_can_be_switched(opened: Open):
    seen = opened(scheme="light")
    before = seen.page.evaluate("byId('progress').layout.font.color")
    seen.page.locator("#theme").click()
    seen.page.wait_for_function("before => byId('progress').layout.font.color !== before", arg=before)
    assert seen.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not seen.messages


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "max(relu(x),cosh(elu(x)))",
        "sum_n(x,erf(x),bessel_i1e(x))",
        "pow(square(x),sigmoid(x))",
        "min_n(x)",
        "max(mul(-0.5,x),1e-05)",
    ],
)
def test_curves_in_the_page_are_the_functions(wide: Seen, name: str):
    points = np.linspace(-4, 4, 33)
    drawn = wide.page.evaluate("([name, xs]) => xs.map(compiled(name))", [name, points.tolist()])
    np.testing.assert_allclose(drawn, aqx.activation(name)(np.float32(points)), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["my_operator(x)", "relu(", "constructor(x)", "relu(y)", ""])
def test_what_is_no_function_here_has_no_curve(wide: Seen, name: str):
    assert wide.page.evaluate("name => curveOf(name)", name) is None


@pytest.mark.slow
def test_400_000_candidates_open(pages: Open, searched: Path, tmp_path: Path):
    """As many names as there are classes in the paper's space: the file stays small, and the map works."""
    overview = look_over(load_results(searched))
    found = overview.survey
    family = Family(parse_schema("unary(unary(unary(unary(x))))"), SETS["paper"])
    rng = np.random.default_rng(0)
    some = family.names(np.sort(rng.choice(family.size, 400_000 - len(found.names), replace=False)))
    many = dataclasses.replace(
        overview,
        places=np.concatenate([overview.places, rng.normal(size=(len(some), 2)).astype(np.float32)]),
        survey=dataclasses.replace(
            found,
            names=[*found.names, *some],
            coordinates=np.zeros((400_000, 1), np.float32),
            predicted=np.concatenate([found.predicted, rng.normal(0.5, 0.1, len(some))]),
        ),
    )
    path = tmp_path / "many.html"
    path.write_text(render(many, _plotly()))
    assert path.stat().st_size <= 15e6
    seen = pages(path)
    assert seen.page.evaluate("atlas.names.length") == 400_000
    seen.page.mouse.move(*on_map(seen, 399_999))
    seen.page.wait_for_selector("#card .mini .js-line")
    assert not seen.messages and not seen.requests
