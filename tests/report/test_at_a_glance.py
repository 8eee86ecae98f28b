"""What a report shows at a glance: nothing is cut on a phone, curves of training, operators, names on the map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PHONE, WIDE, Seen, browser_pages
from toy import candidates, make_task

import aqx
from aqx.costs import compute_costs
from aqx.report import write_report

pytestmark = pytest.mark.usefixtures("quick_to_compile", "quick_map")
OPERATORS = ["relu", "tanh", "bessel_i1e", "log_sigmoid", "square", "hard_sigmoid", "add", "mul", "sub"]
LONG = "FloatingPointError: the loss is not finite at step 117 of 400, after " + "a_word_without_any_end_" * 8

# Texts of charts that stick out of their chart, elements that stick out of the window, tables that must be scrolled.
CUT = """() => {
  const found = [], sticks = (r, box) => r.width > 0 && (r.left < box.left - 1 || r.right > box.right + 1
    || r.top < box.top - 1 || r.bottom > box.bottom + 1);
  for (const chart of document.querySelectorAll("section:not([hidden]) .chart"))
    for (const text of chart.querySelectorAll("svg text"))
      if (text.textContent.trim() && sticks(text.getBoundingClientRect(), chart.getBoundingClientRect()))
        found.push(chart.id + ": " + text.textContent);
  for (const element of document.querySelectorAll("h1, h2, p, td, th, button, input, select, span, .tile, pre")) {
    const r = element.getBoundingClientRect();
    if (r.width && !element.closest(".chart, .js-plotly-plot") && (r.left < -1 || r.right > window.innerWidth + 1))
      found.push(element.tagName + " " + element.textContent.slice(0, 60));
  }
  for (const box of document.querySelectorAll("section:not([hidden]) .scroll"))
    if (box.scrollWidth > box.clientWidth + 1) found.push("scrolls: " + box.firstElementChild.id);
  return found;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, quick_map: None) -> Path:
    path = tmp_path_factory.mktemp("glance") / "found.duckdb"
    study = aqx.Study(candidates(path, ["binary(unary(x),unary(x))"], OPERATORS), make_task())
    study.search(budget=14, spectra=0)
    for trial_number in range(3):
        with study.trial() as trial:
            for step in range(1, 6):
                trial.report(val_acc=0.1 * step + 0.01 * trial_number, step=step)
            if trial_number:
                trial.report(val_acc=0.6)
            else:
                raise aqx.Pruned
    study.fail(study.ask(), LONG)
    study.confirm(top=2, seeds=2)
    compute_costs(str(path), measure=lambda names: [1.0 + len(name) / 9 for name in names])
    return write_report(path, path.parent / "report.html")


@pytest.fixture(scope="module")
def seen(report: Path) -> Iterator[dict[tuple[int, int], Seen]]:
    with browser_pages() as opened:
        yield {size: opened(report, size) for size in (WIDE, PHONE)}


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_cut(seen: dict[tuple[int, int], Seen], size: tuple[int, int]):
    assert seen[size].page.evaluate(CUT) == []
    assert not seen[size].messages


def test_curves_of_training_and_what_was_stopped(seen: dict[tuple[int, int], Seen]):
    page = seen[WIDE].page
    assert page.locator("#learning-section").is_visible()
    assert page.locator("#learning .scatterlayer .js-line").count() == 3
    assert page.locator("#learning .scatterlayer .point").count() == 1, "a cross where one was pruned"


def test_operators_are_ordered_by_what_they_give(seen: dict[tuple[int, int], Seen]):
    page = seen[WIDE].page
    assert page.locator("#operators .point").count() >= 3
    shown = page.locator("#operators .ytick").all_text_contents()
    assert {"tanh", "relu"} <= set(shown) <= set(OPERATORS)
    effects = page.evaluate("report.operators.map(one => one.effect)")
    assert effects == sorted(effects, reverse=True) and effects[0] > effects[-1]


def test_baselines_and_the_winner_have_names_on_the_map(seen: dict[tuple[int, int], Seen]):
    page = seen[WIDE].page
    labels = page.locator("#map .textpoint").all_text_contents()
    assert any(label.startswith("◆ ") for label in labels)
    known = page.evaluate("report.map.labels.map(one => one.found)")
    assert len(labels) == len(known) and known.count(True) == 1


def test_find_answers_where_it_finds_nothing(seen: dict[tuple[int, int], Seen]):
    page = seen[WIDE].page
    page.locator("#map-find").fill("gelu(gelu(x))")
    assert "no candidate's name has this in it" in page.locator("#map-found").inner_text()
    page.locator("#map-find").fill("square(")
    assert "names have this in them" in page.locator("#map-found").inner_text()


def test_the_newest_trials_come_first(seen: dict[tuple[int, int], Seen]):
    page = seen[WIDE].page
    numbers = [int(text) for text in page.locator("#trials tbody tr td:nth-child(1)").all_inner_texts()]
    assert len(numbers) == 25 and numbers == sorted(numbers, reverse=True)
    assert numbers[0] == page.evaluate("Math.max(...report.trials.map(one => one.id))")


def test_short_trials_stay_visible_and_times_are_whole(seen: dict[tuple[int, int], Seen]):
    for page in (seen[WIDE].page, seen[PHONE].page):
        page.locator("#timeline-section").scroll_into_view_if_needed()
        widths = page.evaluate(
            """[...document.querySelectorAll('#timeline .point path')].map(
            p => p.getBoundingClientRect().width + parseFloat(getComputedStyle(p).strokeWidth))"""
        )
        assert widths and min(widths) >= 1
        ticks = page.locator("#timeline .xtick").all_text_contents()
        assert ticks and all(tick.count(":") == 2 for tick in ticks), ticks


def test_untrained_candidates_are_seen_in_the_dark(seen: dict[tuple[int, int], Seen]):
    page = seen[PHONE].page
    if page.evaluate("document.documentElement.dataset.theme") != "dark":
        page.locator("#theme").click()
    dust, back = page.evaluate("[colour('dust'), colour('sheet')]")
    sheet = [int(back[at : at + 2], 16) for at in (1, 3, 5)]
    assert sum(map(int, dust.split(","))) - sum(sheet) > 300
