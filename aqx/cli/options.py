"""Arguments and options that several commands share: what the Tab key offers for them, and what they open."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.shell_completion import CompletionItem

from aqx.cli.screen import prints_to_stderr
from aqx.duration import seconds_of
from aqx.errors import InputError
from aqx.tasks.reading import tasks_in_source
from aqx.text import clipped

if TYPE_CHECKING:
    from aqx.search import Ledger, Study
    from aqx.space import Space
    from aqx.store import Database
    from aqx.tasks import Task

# Of a task that the database knows: it must be found, it would be of use, it is not looked for.
Code = Literal["needed", "useful", "left"]
AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
_PACKAGE = Path(__file__).parent.parent


class Count(click.IntRange):
    """A whole number from `least` on; what is beyond `most` is a slip, or more than there can be.

    The help shows the lower end alone: nobody comes near the other.
    """

    def __init__(self, least: int = 1, most: int = 10**9):
        super().__init__(least)
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number."""
        if len(str(value)) > 40:  # nor does a message have room for it
            self.fail(f"{str(value)[:20]}… is not a number of fewer than 40 characters", param, ctx)
        number = super().convert(value, param, ctx)
        if number > self.most:
            self.fail(f"{number} is more than {self.most:,}", param, ctx)
        return number


class Hours(click.FloatRange):
    """A time in hours, up to ten years."""

    def __init__(self):
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number."""
        hours = super().convert(value, param, ctx)
        if not hours <= _MOST_HOURS:  # nor nan
            self.fail(f"{hours} is not a number up to {_MOST_HOURS:,} hours, ten years", param, ctx)
        return hours


_MOST_HOURS = 87_600
LARGEST = 2**63 - 1  # that the database holds
MOST_WORKERS = 512  # each is a process, which takes some hundred megabytes
MOST_SEEDS = 10_000


# What the Tab key offers must be there at once, so nothing that imports JAX is imported for it.
def complete_files(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete the name of a file."""
    return [CompletionItem(incomplete, type="file")]


def complete_tasks(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the built-in tasks, and those in Python files; else have the shell complete a file's name."""
    found = [name for name in built_in_tasks() if name.startswith(incomplete)]
    path = incomplete.partition(".py:")[0] + ".py" if ".py:" in incomplete else incomplete
    for file in sorted(glob.glob(glob.escape(path) + "*")):
        if file.endswith(".py") and os.path.isfile(file):
            references = [f"{file}:{name}" for name in tasks_in_source(file)] or [file]
            found += [reference for reference in references if reference.startswith(incomplete)]
    return [CompletionItem(name) for name in found] or complete_files(ctx, parameter, incomplete)


def complete_presets(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the surrogates' presets."""
    return [CompletionItem(name) for name in preset_names() if name.startswith(incomplete)]


def built_in_tasks() -> list[str]:
    """Read the names of the built-in tasks from the table's source, as to import it takes a second."""
    table = (_PACKAGE / "tasks" / "loading.py").read_text().partition("ON_DOWNLOADS")[0]
    return re.findall(r'^    "([\w-]+)": "aqx\.tasks\.', table, re.M)


def preset_names() -> list[str]:
    """Read the names of the presets from the table's source, as to import it takes a second."""
    return re.findall(r'\bPreset\(\s*"(\w+)"', (_PACKAGE / "surrogate" / "presets.py").read_text())


db = click.argument("db", shell_complete=complete_files)
task = click.option(
    "--task",
    required=True,
    metavar="T",
    help="A built-in task, path/to/file.py:name, or a name in the database.",
    shell_complete=complete_tasks,
)
# Where something was trained already, the database knows the task.
task_if_needed = click.option(
    "--task",
    metavar="T",
    help="A built-in task, path/to/file.py:name, or a name in the database; default the only one with trials.",
    shell_complete=complete_tasks,
)
quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else on stdout.")
workers = click.option(
    "--workers", type=Count(most=MOST_WORKERS), default=1, show_default=True, help="Trainings at a time."
)
together = click.option(
    "--together",
    type=Count(),
    metavar="K",
    help="Functions of one shape that one program trains; default 8 on a GPU and 1, none together, on a CPU.",
)


class _Time(click.ParamType[float]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else seconds_of(value)
        except InputError as error:
            self.fail(str(error), param, ctx)


time_limit = click.option(
    "--time-limit",
    type=_Time(),
    metavar="TIME",
    help="End a training that takes longer, e.g. 90s, 30m or 2h: it has failed. Default the task's limit.",
)


class Whole(click.ParamType[int]):
    """A whole number from `least` to `most`, of a command that has nothing else to count."""

    name = "integer"

    def __init__(self, least: int = 1, most: int = LARGEST):
        self._range = Count(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number."""
        return self._range.convert(value, param, ctx)


every = click.option("--every", type=_Time(), default=2.0, metavar="TIME", help="Between two looks; default 2s.")
timeout = click.option(
    "--timeout", type=_Time(), metavar="TIME", help="Begin no training after this time, e.g. 90m or 2h."
)
retry = click.option(
    "--retry", type=Count(0, 100), metavar="N", help="Train a function that failed up to N more times; default 0."
)
pruner = click.option(
    "--pruner",
    type=click.Choice(["median", "halving", "never"]),
    default="median",
    show_default=True,
    help="Which trials stop early, where the training asks.",
)
surrogate = click.option(
    "--surrogate", metavar="PRESET", help="What predicts, e.g. ensemble or paper.", shell_complete=complete_presets
)


class Times(click.ParamType[float]):
    """How many times something: a number above 0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"{clipped(str(value), 40)!r} is not a number above 0", param, ctx)
        return number


max_cost = click.option(
    "--max-cost",
    type=Times(),
    metavar="C",
    help="Leave candidates out that cost more than C times what relu does on this device; see aqx cost.",
)
accept_changed = click.option(
    "--accept-changed", is_flag=True, help="Results of the task's code as it was before count as those of now."
)
seed = click.option("--seed", type=Count(0, LARGEST), default=0, show_default=True, help="Seed of the study.")


def functions(command: AnyCommand) -> AnyCommand:
    """Add the options that say which functions: --space, --schema, --fn, --operators and --sample."""
    for option in reversed(_FUNCTIONS):
        command = option(command)
    return command


_FUNCTIONS = (
    click.option("--space", type=click.Choice(["paper", "act_bench", "gated"]), help="A preset."),
    click.option("--schema", "schemas", multiple=True, metavar="S", help="E.g. 'unary(unary(x))'; repeatable."),
    click.option("--fn", "functions", multiple=True, metavar="NAME", help="A single function; repeatable."),
    click.option("--operators", type=click.Choice(["paper", "aquasurf", "extended"]), help="Operators of --schema."),
    click.option("--constants", metavar="C,…", help="What c in a --schema stands for, e.g. 0.25,0.5,2."),
    click.option("--sample", type=Count(), metavar="N", help="Only N functions, drawn at random."),
)


def open_task(reference: str) -> Task:
    """Load a task; what its file prints is no result of the command."""
    from aqx.tasks import load_task

    with prints_to_stderr():
        return load_task(reference)


def open_study(
    db: str,
    task: str | None,
    surrogate: str | None = None,
    seed: int = 0,
    *,
    code: Code = "needed",
    accept_changed: bool = False,
    pruner: str = "median",
    failed: int | None = None,
) -> Study:
    """Open the study of an existing database; only `enumerate` makes one.

    A task that the database knows by its name need not bring its code where nothing is trained or described.

    Nothing is stored of a new task before something is trained or described: a command that only looks, or fails,
    leaves the database as it was.
    """
    from aqx.search import RetryPolicy, Study
    from aqx.store import Database
    from aqx.surrogate import DEFAULT

    task = named_task(db, task)
    database = Database(db)  # what is wrong with it shows before the task is imported
    chosen = task_of(database, task, code)
    return Study(
        database,
        chosen,
        seed=seed,
        surrogate=surrogate or DEFAULT,
        retry=RetryPolicy(failed=failed or 0),
        pruner=pruner,
        enter=False,
        accept_changed=accept_changed,
    )


def task_of(db: str | Database, reference: str, code: Code = "needed") -> Task:
    """Load a task by its file, by a built-in name, or by the name that the database has it by.

    Of one that is known by its name alone the code is looked for where it was. Without its code, looking, claiming and
    telling can be done with a task.
    """
    from aqx.store import Database
    from aqx.store.tasks import find_task, read_notes
    from aqx.tasks.loading import is_built_in
    from aqx.tasks.stored import without_code

    db = db if isinstance(db, Database) else Database(db)
    stored = None if reference.endswith(".py") or ".py:" in reference else find_task(db, reference)
    if stored is None or (code != "left" and is_built_in(reference)):
        return open_task(reference)
    notes = read_notes(db, stored.task_id)
    place = notes.get("code", "")
    is_there = code != "left" and (is_built_in(place) or os.path.isfile(place.rpartition(":")[0]))
    if is_there and (found := open_task(place)).name == stored.name:
        return found
    if code == "needed":
        missing = f"the code of task {stored.name!r} is not here" + (f"; it was {place}" if place else "")
        raise click.UsageError(f"{missing}; give --task FILE.py:NAME", click.get_current_context())
    return without_code(stored.name, stored.identity, notes.get("baselines") or _known_baselines(db, stored.name))


def _known_baselines(db: Database, task: str) -> list[str]:
    from aqx.search import load_results

    return list(load_results(db, task).baselines.values())


def named_task(db: str | Database, task: str | None) -> str:
    """Return the task that is meant: the given one, else the only one of the database, or the only one with trials."""
    from aqx.search.ledger import only_task
    from aqx.store import Database, list_tasks

    if task is not None:
        return task
    if not isinstance(db, Database) and not os.path.exists(db):
        raise click.UsageError(f"which task? {db} does not exist; give --task", click.get_current_context())
    database = db if isinstance(db, Database) else Database(db)
    if (found := only_task(database)) is not None:
        return found
    names = ", ".join(row.name for row in list_tasks(database))
    held = f"{database.path} holds several: {names}" if names else f"{database.path} holds none yet"
    raise click.UsageError(f"which task? {held}; give --task", click.get_current_context())


def open_results(db: str, task: str | None) -> Ledger:
    """Read what an existing database holds of a task.

    The task's code, which needs JAX, is loaded only where the database does not know it, or where its file's text does
    not tell which one it is.
    """
    from aqx.search import load_results
    from aqx.store import Database, list_tasks
    from aqx.tasks.reading import identity_in_source

    if task is None:
        task = named_task(db, task)
    database = Database(db)
    with database.read():  # once, for both
        known = {row.name: row.identity for row in list_tasks(database)}
        if task in known:
            return load_results(database, task)
        identity = identity_in_source(task) or {}
        if identity and known.get(str(identity["name"])) == identity:
            return load_results(database, str(identity["name"]))
    return open_study(db, task).ledger


def check_filled(db: str) -> None:
    """Refuse a database that has no functions to work on yet."""
    from aqx.store import Database
    from aqx.store.functions import count_functions

    if not count_functions(Database(db))["functions"]:
        raise click.UsageError(
            f"{db} holds no functions yet; fill it: aqx enumerate {db} --space act_bench", click.get_current_context()
        )


def space_of(
    preset: str | None,
    schemas: Sequence[str],
    functions: Sequence[str],
    operators: str | None,
    constants: str | None = None,
) -> Space:
    """Return the space that one of --space, --schema and --fn stands for."""
    from aqx.simplify import full_name
    from aqx.space import Space
    from aqx.tree import parse

    functions = tuple(map(full_name, functions))
    if sum(map(bool, (preset, schemas, functions))) != 1:
        raise click.UsageError("give one of --space, --schema and --fn", click.get_current_context())
    if operators and not schemas and preset != "gated":
        raise click.UsageError("--operators goes with --schema only", click.get_current_context())
    if constants and not schemas:
        raise click.UsageError("--constants goes with --schema only", click.get_current_context())
    if preset:
        return Space.gated(operators or "paper") if preset == "gated" else Space.preset(preset)
    numbers = [text.strip() for text in constants.split(",") if text.strip()] if constants else []
    return Space([*schemas, *map(parse, functions)], operators=operators or "paper", constants=numbers)
