"""Endings: how trainings end, and how that is stored inside a transaction, once for each trial."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aqx.errors import InputError
from aqx.metrics import clean_reason, clean_text, decode_metrics, encode_metrics
from aqx.store.driver import duckdb
from aqx.store.trial_rows import Status, TrialRow, change_one, check_unfinished, select_one


@dataclass(frozen=True)
class Ending:
    """How a training ended; see `result`, `failure` and `stop`, which make it.

    Attributes:
        status: done, pruned or failed.
        objective: the number that the search optimises; None where there is none.
        reason: why it failed.
        metrics: added to what was reported before.
        seconds: how long the training took; None where nobody measured.
        environment: where and with what it ran.
        name: the function that was trained, which must be the trial's; None where nobody says.
        token: of the trial that was claimed, which must be this one's; None where nobody says.
    """

    status: Status
    objective: float | None
    reason: str | None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | int | None = None
    environment: Mapping[str, str] | None = None
    name: str | None = None
    token: str | None = None


def result(objective: float | int, metrics: Mapping[str, Any], **circumstances: Any) -> Ending:
    """Return the ending of a training that gave a result; nan and infinity are failures, so that they never win.

    Args:
        objective: the number that the search optimises.
        metrics: all of them.
        **circumstances: `seconds`, `environment`, `name` and `token` of an `Ending`.
    """
    doubt = why_none(objective)
    return Ending(Status.FAILED if doubt else Status.DONE, float(objective), doubt, metrics, **circumstances)


def stop(objective: float | int | None, metrics: Mapping[str, Any], **circumstances: Any) -> Ending:
    """Return the ending of a training that was stopped early, with the last value of its objective; see `result`.

    A value that is missing or not finite makes the trial a failed one.
    """
    doubt = "stopped before the objective was seen" if objective is None else why_none(objective)
    return Ending(Status.FAILED if doubt else Status.PRUNED, objective, doubt, metrics, **circumstances)


def failure(reason: str, metrics: Mapping[str, Any] | None = None, **circumstances: Any) -> Ending:
    """Return the ending of a training that failed, and why; see `result`."""
    return Ending(Status.FAILED, None, reason or "no reason given", metrics or {}, **circumstances)


def why_none(objective: float | int) -> str | None:
    """Return why a number is no result, or None if it is one."""
    return None if math.isfinite(objective) else f"objective is {float(objective)}"


Encoded = dict[str, Any]  # the attributes of an `Ending` as they are stored


def encoded(ending: Ending) -> Encoded:
    """Return an ending as it is stored.

    Raises:
        InputError: a metric cannot be stored.
    """
    return {
        "status": str(ending.status),
        # A failed trial keeps no objective: in SQL, nan is greater than every number and would be the maximum.
        "objective": None if ending.status is Status.FAILED else ending.objective,
        "reason": ending.reason and clean_reason(ending.reason),
        "metrics": encode_metrics(ending.metrics),
        "seconds": ending.seconds,
        "environment": None if ending.environment is None else clean_text(json.dumps(dict(ending.environment))),
        "name": ending.name,
        "token": ending.token,
    }


def store_ending(
    con: duckdb.DuckDBPyConnection,
    task_id: int | None,
    trial_id: int,
    ending: Encoded,
    finished_at: datetime,
    from_file: bool = False,
) -> TrialRow:
    """Store how a trial ended, inside the caller's transaction; return the trial as it is then.

    Args:
        con: the connection.
        task_id: the task that the trial must belong to; None for any.
        trial_id: of the trial.
        ending: from `encoded`.
        finished_at: when the training ended.
        from_file: whether it was written down, so that somebody may have stored it before who died before saying so:
            one with the same time is this one, and not stored again.

    Raises:
        InputError: no such trial of this task, for this function or of this claim, or it has another result already.
    """
    ending = {"token": None, **ending}  # notes of before have none
    # At one go where nothing was reported before: workers wait for each other here.
    if closed := _update(con, task_id, trial_id, ending, finished_at, _OPEN):
        return closed
    trial = select_one(con, trial_id, None)
    if from_file and trial.finished_at == finished_at:
        return trial
    check_unfinished(trial)
    if task_id not in (None, trial.task_id):
        raise InputError(f"trial {trial_id} ({trial.name[:60]}) belongs to another task; name that task")
    if ending["name"] not in (None, trial.name):
        raise InputError(
            f"trial {trial_id} is of {trial.name[:60]} in this database, not of {ending['name'][:60]}: it was restored "
            "from a copy since the trial was claimed; record the result as one trained elsewhere"
        )
    if trial.token is not None and ending["token"] not in (None, trial.token):
        raise InputError(
            f"trial {trial_id} ({trial.name[:60]}) was not claimed with token {ending['token'][:20]!r}: this database, "
            "or the one of the claim, was restored from a copy since; record the result as one trained elsewhere"
        )
    metrics = encode_metrics({**trial.metrics, **decode_metrics(ending["metrics"])})
    closed = _update(con, task_id, trial_id, {**ending, "metrics": metrics}, finished_at, _ITS_OWN)
    assert closed is not None
    return closed


_ITS_OWN = """
    task_id = coalesce($task, task_id) AND name = coalesce($name, name) AND coalesce(token = $token, true)
"""
_OPEN = f"status IN ('queued', 'running') AND metrics = '{{}}' AND {_ITS_OWN}"


def _update(
    con: duckdb.DuckDBPyConnection,
    task_id: int | None,
    trial_id: int,
    ending: Encoded,
    finished_at: datetime,
    condition: str,
) -> TrialRow | None:
    return change_one(
        con,
        f"""
        UPDATE trials
        SET status = $status, objective = $objective, metrics = $metrics, reason = $reason, finished_at = $finished_at,
            seconds = $seconds, environment = $environment
        WHERE trial_id = $trial AND {condition}
        """,
        **ending,
        finished_at=finished_at,
        task=task_id,
        trial=trial_id,
    )
