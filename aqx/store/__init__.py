"""The store: one DuckDB file that holds functions, their classes, tasks, spectra, trials and embeddings."""

from aqx.store.connection import Database
from aqx.store.embeddings import StoredEmbedding, find_embedding, load_embedding, save_embedding
from aqx.store.outcomes import (
    add_result,
    add_results,
    claim,
    fail,
    finish,
    heartbeat,
    lose,
    prune,
    release,
    remove,
    report,
    retry,
)
from aqx.store.spectra import (
    SpectraClaim,
    add_spectra,
    claim_spectra,
    count_spectra,
    invalid_spectra,
    load_spectra,
    release_spectra_claims,
    renew_spectra_claims,
)
from aqx.store.tasks import TaskRow, find_task, list_tasks, register_task, set_spectra_form, spectra_form
from aqx.store.trial_rows import TrialRow, count_trials, get_trial, list_trials

__all__ = [
    "Database",
    "SpectraClaim",
    "StoredEmbedding",
    "TaskRow",
    "TrialRow",
    "add_result",
    "add_results",
    "add_spectra",
    "claim",
    "claim_spectra",
    "count_spectra",
    "count_trials",
    "fail",
    "find_task",
    "finish",
    "get_trial",
    "heartbeat",
    "invalid_spectra",
    "list_tasks",
    "list_trials",
    "lose",
    "prune",
    "find_embedding",
    "load_embedding",
    "load_spectra",
    "register_task",
    "release",
    "remove",
    "release_spectra_claims",
    "renew_spectra_claims",
    "report",
    "retry",
    "save_embedding",
    "set_spectra_form",
    "spectra_form",
]
