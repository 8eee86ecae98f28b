"""The store: one DuckDB file that holds functions, their classes, tasks, spectra, trials and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aqx.lazy import on_demand
from aqx.store.claims import claim, heartbeat, lose, release, retry
from aqx.store.connection import Database
from aqx.store.outcomes import add_result, add_results, fail, finish, prune, remove, report
from aqx.store.spectra import (
    SpectraClaim,
    add_spectra,
    any_valid,
    claim_spectra,
    count_spectra,
    invalid_spectra,
    load_spectra,
    operators_of_classes,
    release_spectra_claims,
    renew_spectra_claims,
)
from aqx.store.studies import StudySettings, list_studies
from aqx.store.subjects import enter_subject, remove_spectra
from aqx.store.tasks import TaskRow, find_task, list_tasks, register_task, set_spectra_form, spectra_form
from aqx.store.trial_rows import Purpose, Status, TrialRow
from aqx.store.trials import count_trials, get_trial, list_trials

if TYPE_CHECKING:
    from aqx.store.features import StoredEmbedding, find_embedding, load_embedding, save_embedding

__all__ = [
    "Database",
    "Purpose",
    "SpectraClaim",
    "Status",
    "StoredEmbedding",
    "StudySettings",
    "TaskRow",
    "TrialRow",
    "add_result",
    "add_results",
    "add_spectra",
    "any_valid",
    "claim",
    "claim_spectra",
    "count_spectra",
    "count_trials",
    "enter_subject",
    "fail",
    "find_embedding",
    "find_task",
    "finish",
    "get_trial",
    "heartbeat",
    "invalid_spectra",
    "list_studies",
    "list_tasks",
    "list_trials",
    "load_embedding",
    "load_spectra",
    "lose",
    "operators_of_classes",
    "prune",
    "register_task",
    "release",
    "release_spectra_claims",
    "remove",
    "remove_spectra",
    "renew_spectra_claims",
    "report",
    "retry",
    "save_embedding",
    "set_spectra_form",
    "spectra_form",
]

# Arrays of features bring NumPy, and who looks at trials needs none of it.
on_demand(__name__, {"aqx.store.features": ("StoredEmbedding", "find_embedding", "load_embedding", "save_embedding")})
