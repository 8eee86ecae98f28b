"""How to make again what a report shows: the commands, and with what the trials were trained."""

from __future__ import annotations

import shlex
from collections import Counter

from aqx.evaluation import Family
from aqx.operators import SETS
from aqx.search import Ledger
from aqx.space import Space
from aqx.store import functions
from aqx.store.spectra import count_spectra
from aqx.store.trial_rows import Purpose
from aqx.surrogate import DEFAULT, PRESETS
from aqx.tree import parse_schema


def commands(results: Ledger) -> list[str]:
    """Return the commands that enumerate and search alike, as far as the database knows them."""
    db, task = shlex.quote(results.db.path.name), shlex.quote(results.task.name)
    lines = _enumerations(results, db)
    settings = results.settings
    budget = sum(trial.purpose is Purpose.SEARCH for trial in results.trials)
    if budget:
        given = f" --seed {settings.seed}" if settings and settings.seed else ""
        if settings and settings.surrogate != DEFAULT:
            given += f" --surrogate {shlex.quote(settings.surrogate)}"
            given += "" if settings.surrogate in PRESETS else "  # a preset of a script's"
        lines.append(f"aqx search {db} --task {task} --budget {budget}{given}")
    confirmed = {trial.seed for trial in results.trials if trial.purpose is Purpose.CONFIRM}
    if confirmed:
        lines.append(f"aqx confirm {db} --task {task} --seeds {len(confirmed)}")
    added = sum(trial.purpose is Purpose.ADDED for trial in results.trials)
    if added:
        lines.append(f"# {added:,} results were added by hand or imported: aqx tell, aqx import")
    if settings is None and budget:
        lines.append("# its seed and surrogate are not known: the database is of an aqx that did not store them")
    return lines


def _enumerations(results: Ledger, db: str) -> list[str]:
    stored = {key for key, done in functions.enumerated(results.db).items() if done}
    lines = []
    for name, space in {name: Space.preset(name) for name in ("paper", "act_bench", "gated")}.items():
        families = {(str(schema), _operators(str(schema), "paper")) for schema in space.schemas}
        if families <= stored:
            lines.append(f"aqx enumerate {db} --space {name}")
            stored -= families
    for schema, listed in sorted(stored):
        family = Family.of_key(schema, listed)
        operators = ",".join(family.operators_used)
        sets = [name for name in SETS if _operators(schema, name) == operators]
        chosen = f" --operators {sets[0]}" if sets and sets[0] != "paper" else ""
        chosen += f" --constants {','.join(family.constants)}" if family.constants else ""
        lines.append(
            f"aqx enumerate {db} --schema {shlex.quote(schema)}{chosen}" + ("" if sets else "  # other operators")
        )
    if not lines:
        lines.append(f"# {db} holds single functions: aqx enumerate {db} --fn NAME, or a sample")
    return lines


def _operators(schema: str, operators: str) -> str:
    """The operators of a set that a schema's functions hold, as the database keeps them."""
    return ",".join(Family(parse_schema(schema), SETS[operators]).operators_used)


def facts(results: Ledger) -> list[tuple[str, str]]:
    """Return what else one needs to know: what was searched, and versions, devices and code of the trainings."""
    stored, spectra = functions.count_functions(results.db), count_spectra(results.db, results.task_id)
    lines = [
        ("database", results.db.path.name),
        (
            "functions",
            f"{stored['functions']:,} in {stored['classes']:,} classes, {stored['usable']:,} of them candidates",
        ),
        (
            "left out",
            f"{stored['not finite']:,} classes not finite, {stored['constant']:,} constant, "
            f"{spectra['invalid']:,} break the model",
        ),
        ("Fisher spectra", f"{spectra['valid']:,}"),
    ]
    if settings := results.settings:
        lines.append(("study", f"seed {settings.seed}, surrogate {settings.surrogate}, pruner {settings.pruner}"))
    form = results.task.spectra_form
    if form:
        lines.append(
            ("their form", ", ".join(f"{key} {form[key]}" for key in ("fisher", "sharing", "examples") if key in form))
        )
    environments: dict[str, Counter[str]] = {}
    for trial in results.trials:
        for key, value in trial.environment.items():
            environments.setdefault(key, Counter())[value] += 1
    for key, values in environments.items():
        alone = len(values) == 1
        lines.append(
            (key, ", ".join(value if alone else f"{value} ({n:,} trials)" for value, n in values.most_common(8)))
        )
    return lines
