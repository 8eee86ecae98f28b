"""Every step of aqx under settings of JAX that people have for their own work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SETTINGS = {
    "as it comes": "",
    "jax_debug_nans": "jax.config.update('jax_debug_nans', True)",
    "jax_debug_infs": "jax.config.update('jax_debug_infs', True)",
    "jax_numpy_rank_promotion": "jax.config.update('jax_numpy_rank_promotion', 'raise')",
    "jax_numpy_dtype_promotion": "jax.config.update('jax_numpy_dtype_promotion', 'strict')",
    "jax_transfer_guard": "jax.config.update('jax_transfer_guard', 'disallow')",
    "jax_enable_x64 half-way": "half_way = lambda on: jax.config.update('jax_enable_x64', on)",
    "jax_default_matmul_precision": "jax.config.update('jax_default_matmul_precision', 'bfloat16')",
    "jax_disable_jit": "jax.config.update('jax_disable_jit', True)",
}
FAST = ("jax_debug_nans",)
STEPS = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="(optuna|umap|numba|plotly|sklearn).*")
import sys, jax
half_way = lambda on: None
SETTING
import flax.linen as nn, numpy as np
import aqx
from aqx.enumeration import enumerate_space
from aqx.export import source
from aqx.spectra import compute_spectra
from aqx.store import Database, count_spectra, load_spectra

folder, whole = sys.argv[1], sys.argv[2] == "whole"
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(6, 4)).astype(np.float32), np.arange(6) % 3
task = aqx.Task(
    "t", lambda act: nn.Sequential([nn.Dense(5), act, nn.Dense(3)]), lambda: (X, Y), aqx.losses.softmax_cross_entropy,
    train=lambda act, seed: {"val_acc": float(len(act.name))}, baselines=("relu(x)", "tanh(x)"),
)
path = folder + "/found.duckdb"
db = Database(path, create=True)
space = aqx.Space(["unary(x)", "div(x,unary(x))"], ["relu", "tanh", "sin", "negative", "exp"])
report = enumerate_space(db, space, points=32)
print("classes", report.classes if hasattr(report, "classes") else report.added_classes)
half_way(True)
compute_spectra(db, task, names=["relu(x)", "tanh(x)", "sin(x)", "div(x,exp(x))"])
half_way(False)
study = aqx.Study(db, task)
print("search", [record.status for record in study.search(budget=2)])
half_way(True)
trial = study.ask()
trial.activation(X)
print("told", study.tell(trial, val_acc=0.5).status)
print("spectra", count_spectra(db, study.task_id)["valid"] >= 4, np.isfinite(load_spectra(db, study.task_id)[1]).all())
act = aqx.activation("add(relu(x),swish(x))", normalize=True)
print("normalize", [round(float(constant), 9) for constant in act.constants], act(X).dtype)
names = {}
exec(source("div(x,cosh(x))", "numpy"), names)
print("source", sorted(name for name in names if callable(names[name]))[:1] != [])
if whole:
    import optuna
    from aqx.optuna import AqxSampler
    from aqx.report import write_report

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = optuna.create_study(sampler=AqxSampler(seed=0))
    choices = ["relu(x)", "tanh(x)", "sin(x)", "exp(x)", "div(x,exp(x))", "div(x,sin(x))", "cosh(x)"]
    search.optimize(lambda trial: len(trial.suggest_categorical("activation", choices)), n_trials=7)
    print("sampler", len({trial.params["activation"] for trial in search.trials}))
    write_report(path, folder + "/report.html")
    print("report", True)
    aqx.tasks.check_task(task)
    study.confirm(top=1, seeds=2)
print("end")
"""
NO_CPU = """
real = jax.devices
def devices(backend=None):
    if backend == "cpu":
        raise RuntimeError("Unknown backend: 'cpu' requested, but no platforms that are instances of cpu are present.")
    return real(backend)
jax.devices = devices
"""


def ran(folder: Path, setting: str, how_much: str) -> subprocess.CompletedProcess[str]:
    code = STEPS.replace("SETTING", setting)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, str(folder), how_much]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def check_steps(folder: Path, setting: str, how_much: str) -> None:
    result = ran(folder, setting, how_much)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert lines[-1] == "end"
    expected = {
        "search": "['done', 'done', 'done', 'done']",
        "told": "done",
        "spectra": "True True",
        "normalize": "[0.605563245, 0.876657374] float32",
        "source": "True",
    }
    found = dict(line.split(" ", 1) for line in lines if " " in line)
    assert {name: found[name] for name in expected} == expected
    if how_much == "whole":
        assert found["report"] == "True" and found["sampler"] == "7"


@pytest.mark.parametrize("name", FAST)
def test_settings_of_others_change_nothing(name: str, tmp_path: Path):
    check_steps(tmp_path, SETTINGS[name], "part")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_others_change_nothing_of_any_step(name: str, tmp_path: Path):
    check_steps(tmp_path, SETTINGS[name], "whole")


def test_without_a_cpu_it_is_said_what_to_add(tmp_path: Path):
    result = ran(tmp_path, NO_CPU, "part")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("aqx.errors.InputError: aqx computes values of functions on the CPU") and "add it" in last
