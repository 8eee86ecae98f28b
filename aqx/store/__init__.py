"""The store: one DuckDB file that holds functions, their classes, tasks, spectra, trials and embeddings."""

from aqx.store.connection import Database
from aqx.store.embeddings import load_embedding, save_embedding
from aqx.store.spectra import add_spectra, classes_without_spectra, count_spectra, invalid_spectra, load_spectra
from aqx.store.tasks import TaskRow, find_task, list_tasks, register_task, set_spectra_form, spectra_form
from aqx.store.trial_rows import TrialRow, count_trials, get_trial, list_trials
from aqx.store.trials import add_result, claim, fail, finish, heartbeat, release, report

__all__ = [
    "Database",
    "TaskRow",
    "TrialRow",
    "add_result",
    "add_spectra",
    "claim",
    "classes_without_spectra",
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
    "load_embedding",
    "load_spectra",
    "register_task",
    "release",
    "report",
    "save_embedding",
    "set_spectra_form",
    "spectra_form",
]
