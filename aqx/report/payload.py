"""An overview as what the page reads: one JSON object, and the candidates of the map in packed arrays."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import Float

from aqx.report import reproduce
from aqx.report.cost import result_and_cost
from aqx.report.curves import POINTS
from aqx.report.overview import Overview
from aqx.search import Ledger, Record
from aqx.simplify import simplest
from aqx.store.trial_rows import Purpose, Status
from aqx.text import clipped

_METRICS = 6  # columns of the table of trials beside the objective, at most
_REASON = 2000  # characters that are shown of one
_CURVES, _STEPS = 150, 200  # learning curves, and points of one, at most
_FEWEST = 8  # candidates with an operator, below which nothing is said of it
_OPERATOR = re.compile(r"[^\W\d]\w*(?=\()")
_PLACES = 65535  # the map's extent in each direction


def describe_page(overview: Overview, version: str) -> dict[str, Any]:
    """Return what the page shows, in numbers, strings, lists and dicts; nan and inf are None.

    Args:
        overview: of the search.
        version: of aqx.
    """
    results, survey = overview.results, overview.survey
    rows = {trial.trial_id: int(row) for trial, row in zip(results.searched, survey.rows, strict=True)}
    metrics = _metric_names(results.trials, results.objective)
    aim = "higher" if results.sign > 0 else "lower"
    note = "The best of many noisy results looks better than it is; the verdict comes from fresh seeds."
    if len(overview.random):
        note += " Random search is an estimate, by the surrogate's predictions of all candidates and its errors."
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    page = {
        "title": f"{results.task.name}: activation functions",
        "subtitle": f"{results.objective}, {aim} is better · {results.db.path.name} · {made} · aqx {version}",
        "objective": results.objective,
        "sign": results.sign,
        "metrics": metrics,
        "tiles": _tiles(overview),
        "progress": {
            "names": [trial.name for trial in overview.course.trials],
            "status": [trial.status for trial in overview.course.trials],
            "values": overview.course.values.tolist(),
            "best": overview.course.best.tolist(),
            "baselines": dict(overview.course.baselines),
            "random": overview.random.tolist(),
            "note": note,
        },
        "map": _map(overview),
        "functions": _functions(overview),
        "calibration": _calibration(overview),
        "confirmation": _confirmation(overview),
        "learning": _learning(results),
        "operators": _operators(overview),
        "cost": result_and_cost(results),
        "failures": failures(results.trials),
        "timeline": timeline(results.trials),
        "trials": [_trial(trial, rows.get(trial.trial_id, -1), metrics) for trial in results.trials],
        "reproduce": {"commands": reproduce.commands(results), "facts": reproduce.facts(results)},
    }
    return _plain(page)


def pack_candidates(overview: Overview) -> dict[str, str]:
    """Return names, places and predictions of all candidates, gzipped and in base64.

    Names by line; places as 16-bit numbers, first all x, then all y; predictions as bytes, 0 where there is none.
    """
    survey = overview.survey
    places = np.round(spread_out(overview.places) * _PLACES).T.astype("<u2")
    least, most = _range(survey.predicted)
    shares = (survey.predicted - least) / max(most - least, 1e-300)
    steps = np.where(np.isfinite(shares), 1 + np.round(254 * np.nan_to_num(shares)), 0).astype(np.uint8)
    packed = {"names": "\n".join(survey.names).encode(), "places": places.tobytes(), "predictions": steps.tobytes()}
    return {key: base64.b64encode(gzip.compress(data, 9, mtime=0)).decode() for key, data in packed.items()}


def spread_out(places: Float[np.ndarray, "C 2"]) -> Float[np.ndarray, "C 2"]:
    """Scale each direction to [0, 1], half by rank, so that a few far groups do not crowd the others."""
    if not len(places):
        return places
    low, high = places.min(axis=0), places.max(axis=0)
    ranks = places.argsort(axis=0).argsort(axis=0) / max(len(places) - 1, 1)
    return 0.5 * ranks + 0.5 * (places - low) / np.maximum(high - low, 1e-9)


def failures(trials: Iterable[Record]) -> list[dict[str, Any]]:
    """Group the trials without a result by their reason, the most frequent first."""
    groups: dict[str, list[Record]] = {}
    for trial in trials:
        if trial.status in (Status.FAILED, Status.STALE):
            reason = trial.reason or ("its process fell silent" if trial.status is Status.STALE else "no reason given")
            groups.setdefault(reason, []).append(trial)
    return [
        {
            "reason": clipped(reason, _REASON),
            "count": len(group),
            "names": list(dict.fromkeys(trial.name for trial in group))[:8],
            "traceback": next((t.metrics["traceback"] for t in group if "traceback" in t.metrics), None),
        }
        for reason, group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def timeline(trials: Iterable[Record]) -> dict[str, Any]:
    """Return a bar for each trial that a worker claimed, in lanes: what one worker did at a time lies side by side."""
    ended: dict[str, list[float]] = {}  # when each lane of a worker is free again
    lanes: dict[tuple[str, int], int] = {}
    bars = []
    for trial in sorted(trials, key=lambda t: _span(t)[0]):
        if trial.worker is None or trial.purpose is Purpose.ADDED or trial.status is Status.QUEUED:
            continue
        start, end = _span(trial)
        free = ended.setdefault(trial.worker, [])
        number = next((i for i, until in enumerate(free) if until <= start), len(free))
        free[number : number + 1] = [end]
        lane = lanes.setdefault((trial.worker, number), len(lanes))
        bars.append({"lane": lane, "start": start, "end": end, "status": trial.status, "name": trial.name})
    total = sum(bar["end"] - bar["start"] for bar in bars)
    names = [worker if number == 0 else f"{worker} +{number}" for worker, number in lanes]
    workers = len({worker for worker, _ in lanes})
    plural = "" if workers == 1 else "s"
    note = f"{workers:,} worker{plural}, {total / 3600:.2f} hours of training, confirmations included."
    return {"lanes": names, "bars": bars, "note": note}


def _span(trial: Record) -> tuple[float, float]:
    """Begin and end in seconds since 1970, UTC; a claim may have waited for its training."""
    end = trial.finished_at or trial.heartbeat_at or trial.started_at
    start = trial.started_at.replace(tzinfo=UTC).timestamp()
    stop = end.replace(tzinfo=UTC).timestamp()
    return max(start, stop - trial.seconds) if trial.seconds is not None else start, stop


def _tiles(overview: Overview) -> list[dict[str, str]]:
    results, counts = overview.results, {}
    for trial in results.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    others = ", ".join(f"{n:,} {status}" for status, n in counts.items() if status is not Status.DONE)
    tiles = [
        {"value": f"{len(overview.survey.names):,}", "label": "candidates, each a class of equal functions"},
        {"value": f"{counts.get('done', 0):,}", "label": "trials done" + (f"; {others}" if others else "")},
    ]
    if results.ranking:
        best = results.ranking[0]
        tiles.append(
            {"value": f"{best.objective:.4f}", "label": f"best of the search, optimistic: {simplest(best.name)}"}
        )
    if overview.confirmation:
        better = [row for row in overview.confirmation.rows if row.verdict == "better"]
        label = f"confirmed: better than {overview.confirmation.reference}"
        best_row = better[0] if better else None
        value = f"{best_row.difference:+.4f}" if best_row else "none"
        tiles.append({"value": value, "label": f"{label}: {simplest(best_row.name)}" if best_row else label})
        best = overview.confirmation.best_baseline
        found = next((row for row in overview.confirmation.rows if not row.is_baseline), None)
        if best not in (None, overview.confirmation.reference) and found is not None:
            known = f"{simplest(found.name)} against the best baseline, {best}: {found.to_best_verdict}"
            tiles.append({"value": "" if math.isnan(found.to_best) else f"{found.to_best:+.4f}", "label": known})
    else:
        tiles.append({"value": "not yet", "label": "confirmed on fresh seeds (aqx confirm)"})
    return tiles


def _map(overview: Overview) -> dict[str, Any]:
    survey = overview.survey
    low, high = _range(survey.predicted)
    note = (
        f"{len(survey.names):,} candidates; similar functions lie near each other (UMAP of what the surrogate sees "
        "of their outputs). Ringed ones were trained; the brighter, the better."
    )
    missing = len({trial.name for trial, row in zip(overview.results.searched, survey.rows, strict=True) if row < 0})
    if missing:
        note += f" {missing:,} trained functions are not among the candidates."
    return {"count": len(survey.names), "low": low, "high": high, "note": note, "labels": _labels(overview)}


def _labels(overview: Overview) -> list[dict[str, Any]]:
    """The baselines and the winner, which are named on the map."""
    results, rows = overview.results, overview.survey.rows.tolist()
    row_of = {trial.class_id: row for trial, row in zip(results.searched, rows, strict=True) if row >= 0}
    by_name = {trial.name: trial.class_id for trial in results.trials}
    named = [(name, class_id, False) for class_id, name in results.baselines.items()]
    confirmed = overview.confirmation.rows if overview.confirmation else []
    found = next((row.name for row in confirmed if not row.is_baseline), None)
    found = found or next((one.name for one in results.ranking if one.class_id not in results.baselines), None)
    if found is not None:
        named.append((found, by_name.get(found), True))
    return [
        {"name": simplest(name), "row": row_of[class_id], "found": is_found}
        for name, class_id, is_found in named
        if class_id in row_of
    ]


def _learning(results: Ledger) -> list[dict[str, Any]]:
    """The objective by step of the newest trials that reported it so."""
    curves = []
    for trial in reversed(results.trials):
        points = trial.metrics.get(f"{results.objective}_by_step")
        if isinstance(points, list) and len(points) > 1 and len(curves) < _CURVES:
            every = -(-len(points) // _STEPS)
            points = [*points[:-1:every], points[-1]]
            values = [value if isinstance(value, int | float) else None for _, value in points]
            steps = [step for step, _ in points]
            curves.append({"name": trial.name, "status": trial.status, "steps": steps, "values": values})
    return curves[::-1]


def _operators(overview: Overview) -> list[dict[str, Any]]:
    """By how much the predictions of candidates with an operator differ from those of the others, on average."""
    names, predicted = overview.survey.names, overview.survey.predicted
    known = np.flatnonzero(np.isfinite(predicted))
    holders: dict[str, list[int]] = {}
    for row in known.tolist():
        for operator in set(_OPERATOR.findall(names[row])):
            holders.setdefault(operator, []).append(row)
    total, effects = float(predicted[known].sum()), list[dict[str, Any]]()
    for operator, rows in holders.items():
        if _FEWEST <= len(rows) <= len(known) - _FEWEST:
            inside = float(predicted[rows].sum())
            effect = inside / len(rows) - (total - inside) / (len(known) - len(rows))
            effects.append({"name": operator, "effect": effect, "candidates": len(rows)})
    return sorted(effects, key=lambda one: -overview.results.sign * one["effect"])


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _functions(overview: Overview) -> dict[str, Any]:
    of = "confirmation" if overview.confirmation else "search"
    shown = [
        {
            "name": simplest(one.name),
            "kind": one.kind,
            "result": one.result,
            "y": _rounded(one.values),
            "dy": _rounded(one.slopes),
        }
        for one in overview.curves
    ]
    note = f"f(x) and its derivative, beside ReLU, GELU and Swish, with their mean results in the {of}."
    return {"x": _rounded(POINTS), "list": shown, "note": note}


def _calibration(overview: Overview) -> dict[str, Any] | None:
    found = overview.survey.calibration
    if found is None:
        return None
    note = "Each result, predicted by a surrogate fitted to nine tenths of the others."
    if math.isfinite(found.correlation):
        note += (
            f" Rank correlation {found.correlation:.2f} over {len(found.rows):,} functions: 1 is perfect, 0 is chance."
        )
    return {
        "observed": found.observed.tolist(),
        "predicted": found.predicted.tolist(),
        "names": [overview.survey.names[row] for row in found.rows],
        "note": note,
    }


def _confirmation(overview: Overview) -> dict[str, Any] | None:
    found = overview.confirmation
    if found is None:
        return None
    seeds = max(row.seeds + row.failed for row in found.rows)
    note = (
        f"Retrained on {seeds} fresh seeds that no search has seen. The intervals of the differences to "
        f"{found.reference} hold together with 95 % confidence."
    )
    if found.best_baseline not in (None, found.reference):
        note += f" Those to {found.best_baseline}, the best baseline, allow for that the best of several is lucky."
    if found.lacking:
        note += (
            f" Judged by {found.metric}, which results of these lack: {', '.join(map(simplest, found.lacking[:8]))}."
        )
    shown = asdict(found)
    for row in shown["rows"]:
        row["name"] = simplest(row["name"])
        row["cost"] = next(iter(row.pop("costs").values()), None)  # on the device that was measured last
    return {**shown, "note": note}


def _trial(trial: Record, row: int, metrics: list[str]) -> dict[str, Any]:
    return {
        "id": trial.trial_id,
        "name": trial.name,
        "purpose": trial.purpose,
        "status": trial.status,
        "objective": trial.objective,
        "metrics": {name: value for name in metrics if isinstance(value := trial.metrics.get(name), int | float)},
        "seconds": trial.seconds,
        "worker": trial.worker,
        "started": f"{trial.started_at:%Y-%m-%d %H:%M:%S}",
        "reason": trial.reason and clipped(trial.reason, _REASON),
        "row": row,
    }


def _metric_names(trials: Iterable[Record], objective: str) -> list[str]:
    names = dict.fromkeys(
        name
        for trial in trials
        for name, value in trial.metrics.items()
        if name != objective and isinstance(value, int | float)
    )
    return list(names)[:_METRICS]


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def as_json(page: dict[str, Any]) -> str:
    """Write JSON that cannot end the element of the page that holds it, whatever its strings are."""
    text = json.dumps(page, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
