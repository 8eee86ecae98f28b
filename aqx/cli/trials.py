"""Commands about single trials: claim and tell from any framework; list, repeat and delete."""

from __future__ import annotations

import contextlib
import json

import click

from aqx.cli import options
from aqx.cli.commands import main
from aqx.cli.options import LARGEST, MOST_SEEDS, Count, Hours, open_results, open_study
from aqx.cli.screen import columns_of, say, show_result, show_rows
from aqx.text import printable

_NEWEST = 20


@main.command(
    needs="functions in the database: aqx enumerate.",
    examples=[
        "aqx claim found.duckdb --task train.py:task",
        'read -r name trial seed token <<<"$(aqx claim found.duckdb --task train.py:task --token)"',
    ],
)
@options.db
@options.task_if_needed
@click.option("--hours", type=Hours(), default=24.0, show_default=True, help="Its lease.")
@click.option("--confirm", is_flag=True, help="One of aqx confirm's: a winner or a baseline on a fresh seed.")
@click.option("--top", type=Count(), metavar="K", help="With --confirm: of the best K; default 5.")
@click.option("--seeds", type=Count(2, MOST_SEEDS), metavar="S", help="With --confirm: seeds of each; default 10.")
@options.surrogate
@options.seed
@click.option(
    "--token", "with_token", is_flag=True, help="Print the claim's token as a fourth word, for aqx tell --token."
)
@options.as_json
def claim(
    db: str,
    task: str | None,
    hours: float,
    confirm: bool,
    top: int | None,
    seeds: int | None,
    surrogate: str | None,
    seed: int,
    with_token: bool,
    as_json: bool,
) -> None:
    """Claim a function, to train it in any framework.

    It is what study.ask() is in Python, and aqx tell is study.tell(). Prints the function's name, the trial's id and
    its seed. Answer with aqx tell DB --task T --trial ID METRIC=NUMBER. One that brings the claim's token, too, cannot
    land on another trial of this id after the database was restored from a copy. A claim without an answer lapses after
    its lease; a later answer is accepted all the same.
    """
    choice = {key: value for key, value in {"top": top, "seeds": seeds}.items() if value is not None}
    if choice and not confirm:
        raise click.UsageError(f"--{next(iter(choice))} goes with --confirm", click.get_current_context())
    trial = open_study(db, task, surrogate, seed, code="left").ask(hours * 3600, confirm=confirm, **choice)
    known = {"name": trial.name, "trial": trial.id, "seed": trial.seed, "token": trial.token}
    words = list(known.values())[: 4 if with_token else 3]
    say(json.dumps(known) if as_json else printable(" ".join(map(str, words))))


@main.command(
    needs="a trial that aqx claim gave out, or a function that was trained elsewhere.",
    examples=[
        "aqx tell found.duckdb --task mnist1d --trial 17 val_acc=0.61",
        'aqx tell found.duckdb --task mnist1d --trial 18 --failed "out of memory"',
        'aqx tell found.duckdb --task mnist1d "relu(x)" val_acc=0.61',
    ],
)
@options.db
@options.task_if_needed
@click.argument("words", nargs=-1, metavar="[NAME] METRIC=NUMBER…")
@click.option("--trial", "trial_id", type=Count(most=LARGEST), metavar="ID", help="Answer to aqx claim; no NAME then.")
@click.option("--token", metavar="TOKEN", help="With --trial: from the claim, so that no other trial is answered.")
@click.option("--failed", "reason", metavar="REASON", help="With --trial: it failed, and why.")
@click.option("--seed", type=Count(-LARGEST - 1, LARGEST), help="Seed of a training that was not claimed; default 0.")
@options.as_json
def tell(
    db: str,
    task: str | None,
    words: tuple[str, ...],
    trial_id: int | None,
    token: str | None,
    reason: str | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Record the result of a claim, or of another training."""
    names = [word for word in words if "=" not in word]
    metrics = dict(_metric(word) for word in words if "=" in word)
    if len(names) != (trial_id is None):
        raise click.UsageError("give a function's NAME, or --trial ID instead of one", click.get_current_context())
    if (reason is None) != bool(metrics) or (reason is not None and trial_id is None):
        raise click.UsageError("give METRIC=NUMBER, or --trial with --failed REASON", click.get_current_context())
    if token is not None and trial_id is None:
        raise click.UsageError("--token belongs to --trial", click.get_current_context())
    if trial_id is not None and seed is not None:
        raise click.UsageError("--seed belongs to a NAME; a trial has its own", click.get_current_context())
    from aqx.simplify import full_name
    from aqx.store.outcomes import failure, result

    ledger = open_results(db, task)
    if trial_id is None:
        record = ledger.add(full_name(names[0]), seed or 0, metrics)
    else:
        if reason is None:
            ending = result(ledger.goal.of(metrics), metrics, token=token)
        else:
            ending = failure(reason, token=token)
        record = ledger.close(trial_id, ending)
    show_result(record, f"recorded {printable(record.name)} as trial {record.id}: {record.status}", as_json)


def _metric(text: str) -> tuple[str, float]:
    key, _, value = text.partition("=")
    if key in ("name", "seed"):  # as a metric it would most often be a mistake
        what = "function as NAME" if key == "name" else "seed as --seed"
        raise click.UsageError(f"{text!r} is no metric; give the {what}", click.get_current_context())
    with contextlib.suppress(ValueError):
        if key:
            return key, float(value)
    raise click.UsageError(f"{text!r} is not METRIC=NUMBER", click.get_current_context())


@main.command(
    "trials",
    needs="a database in which something was trained.",
    examples=["aqx trials found.duckdb --task mnist1d", "aqx trials found.duckdb --task mnist1d --status failed"],
)
@options.db
@options.task_if_needed
@click.option(
    "--status", type=click.Choice(["queued", "running", "stale", "done", "pruned", "failed"]), help="Only these."
)
@options.as_json
@click.option(
    "-n", "count", type=options.Whole(1, LARGEST), metavar="N", help="The N newest; default 20, with --json all."
)
def trials_(db: str, task: str | None, status: str | None, as_json: bool, count: int | None) -> None:
    """List what was trained where, and what came of it.

    The newest come first; with --json alone, all in the order of their numbers.
    """
    columns = columns_of("id", "name", "purpose", "status", "objective", "seconds", "worker", "version", "reason")
    records = open_results(db, task).records(status=status)
    wanted = records if as_json and count is None else records[::-1][: count or _NEWEST]
    show_rows(wanted, columns, as_json, drop=("version", "worker", "seconds", "purpose"))
    if not as_json and len(wanted) < len(records):
        say(f"the {len(wanted):,} newest of {len(records):,} trials; -n {len(records)} lists all", error=True)


@main.command(
    needs="trials that have ended; aqx trials lists them.",
    examples=["aqx retry found.duckdb --task mnist1d", "aqx retry found.duckdb --task mnist1d --trial 17"],
)
@options.db
@options.task_if_needed
@click.option(
    "--trial", "trial_ids", type=Count(most=LARGEST), multiple=True, metavar="ID", help="This one; repeatable."
)
@options.as_json
def retry(db: str, task: str | None, trial_ids: tuple[int, ...], as_json: bool) -> None:
    """Queue functions to be trained once more.

    Default those that failed or were lost. What is stored of them stays.
    """
    queued = open_study(db, task, code="left").retry(*trial_ids)
    names = ", ".join(printable(record.name) for record in queued[:5]) + (", …" if len(queued) > 5 else "")
    text = f"{len(queued)} queued; the next search or claim takes them first" + (f": {names}" if names else "")
    show_result({"queued": queued}, text, as_json)


@main.command(
    needs="a database; a copy of it first is wise: aqx backup.",
    examples=["aqx reset found.duckdb --task mnist1d --keep-done", "aqx reset found.duckdb --task mnist1d --yes"],
)
@options.db
@options.task_if_needed
@click.option("--keep-done", is_flag=True, help="Keep the trials that have a result.")
@click.option("--yes", is_flag=True, help="Delete results too.")
@click.option("--spectra", is_flag=True, help="Delete the task's Fisher spectra, and trials only if asked to as well.")
@click.option("--runs", is_flag=True, help="Delete the task's short runs, and trials only if asked to as well.")
@options.as_json
def reset(db: str, task: str | None, keep_done: bool, yes: bool, spectra: bool, runs: bool, as_json: bool) -> None:
    """Delete a task's trials, spectra or short runs, for good.

    Those that are running stay, and so do functions; spectra and short runs are deleted with --spectra and --runs
    alone, and can be computed again.
    """
    study = open_study(db, task, code="left")
    removed = {"spectra": study.reset_spectra()} if spectra else {}
    if runs:
        removed["short runs"] = study.reset_runs()
    if removed and not keep_done and not yes:
        show_result(removed, ", ".join(f"{count:,} {what} deleted" for what, count in removed.items()), as_json)
        return
    results = sum(record.status in ("done", "pruned") for record in study.records())
    if results and not keep_done and not yes:
        raise click.UsageError(
            f"this would delete {results:,} results; add --yes to do so, or --keep-done", click.get_current_context()
        )
    deleted = study.reset(keep_done=keep_done)
    text = "".join(f"{count:,} {what} deleted, " for what, count in removed.items()) + f"{deleted:,} trials deleted"
    show_result({"deleted": deleted, **removed}, text, as_json)
