"""A notebook: a task of its own cells, searched, shown, and read by the command line afterwards."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cli_helpers import aqx_command

CELLS = [
    "import aqx, jax.numpy as jnp, numpy as np\nfrom flax import linen as nn",
    """
class Net(nn.Module):
    act: object
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.act(nn.Dense(5)(x)))

def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 4)).astype("float32"), rng.integers(3, size=16)

def train(act, seed):
    x = np.linspace(-2, 2, 41, dtype=np.float32)
    return {"val_acc": 1 - float(jnp.mean(jnp.abs(act(x) - jnp.sin(x)))) + 1e-3 * np.random.default_rng(seed).normal()}

task = aqx.Task("notebook", Net, batch, aqx.losses.softmax_cross_entropy, train=train, baselines=("relu(x)", "tanh(x)"))
""",
    """
study = aqx.Study("found.duckdb", task, space=aqx.Space(["unary(x)"]))
study.search(budget=4, spectra=0, progress=True);
""",
    "study",
    "study.confirm(top=1, seeds=3, progress=True)",
    "study.best().activation",
    "study.report()",
]


@pytest.mark.slow
def test_a_notebook_from_its_cells_to_the_verdict(tmp_path: Path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        "".join(str(output.get("data", {}).get("text/html", "")) for output in cell.outputs) for cell in notebook.cells
    ]
    assert "notebook in found.duckdb" in shown[3] and "6 done" in shown[3]
    assert "relu(x)" in shown[4] and "reference" in shown[4]
    assert "<polyline" in shown[5]
    assert "<iframe srcdoc=" in shown[6]
    text = "".join(output.get("text", "") for output in notebook.cells[2].outputs)
    assert "search" in text + shown[2]
    # The command line reads it by its name.
    path = tmp_path / "found.duckdb"
    assert aqx_command("top", path, "--task", "notebook").exit_code == 0
    assert aqx_command("suggest", path, "-n", "1").exit_code == 0
    assert "tanh(x)" in aqx_command("trials", path).stdout
