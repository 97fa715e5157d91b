"""The example notebook runs, on fewer pairs: a notebook can do all that the command line does."""

import json
import os
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import tune
from tests.conftest import ROOT

NOTEBOOK = ROOT / "searches" / "quickstart.ipynb"


def texts(outputs: list[Any], kind: str) -> str:
    """Return what a cell shows as one kind of content."""
    return "\n".join(each["data"].get(kind, "") for each in outputs if "data" in each)


# nbclient's own event loop handling warns on Python 3.11 and later
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_example_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    text = NOTEBOOK.read_text()
    assert r"\"limit\": 200" in text
    notebook = nbformat.reads(text.replace(r"\"limit\": 200", r"\"limit\": 60"), as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env=dict(os.environ))
    searched, shown, frame, ranking, grown, answer = (
        cell.outputs for cell in notebook.cells if cell.cell_type == "code"
    )
    # The last state of the live display.
    assert " of 3 trials" in texts(searched, "text/html")
    assert "<th>pairs trained</th>" in texts(shown, "text/html")
    assert "pairs_trained" in texts(frame, "text/html")
    assert texts(ranking, "text/plain").startswith("(0.")
    assert texts(grown, "text/html").count("<tr>") == 5
    assert len(texts(answer, "text/plain")) > 10
    results = json.loads((tmp_path / "runs" / "notebook" / "results.json").read_text())
    assert len(results["trials"]) == 4


def test_an_interpreter_completes_what_the_package_offers() -> None:
    assert {"run", "resume", "load_results", "load_search", "replay"} <= set(dir(tune))


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
