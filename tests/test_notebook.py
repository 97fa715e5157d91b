"""A notebook can do all that the command line does."""

import os
import re
from pathlib import Path

import nbclient
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

CELL = f"""
from tune import load_results, run
results = run(
    {str(ROOT / "searches" / "quickstart.yaml")!r},
    {{"trainer": "simulated", "trials": 3, "name": "from-a-cell", "wandb.mode": "disabled"}},
)
assert load_results("from-a-cell").winner == results.winner
results.winner.trial.split("-")[1]
"""


# nbclient's own event loop handling warns on Python 3.11 and later
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_quickstart_runs_from_a_notebook_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = new_notebook(cells=[new_code_cell(CELL)])
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env=dict(os.environ))
    shown = [o["data"]["text/plain"] for o in notebook.cells[0].outputs if "data" in o]
    assert re.fullmatch(r"'00[012]'", shown[-1])
    assert (tmp_path / "runs" / "from-a-cell" / "results.json").exists()
