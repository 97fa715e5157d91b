"""`make real`, without the download and the search of twenty minutes."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_train.config_base import parse_overrides
from tests.conftest import ROOT
from tune.config.load import load_search
from tune.config.searchable import check_space

SCRIPT = ROOT / "benchmarks" / "smollm2.py"


@pytest.fixture
def smollm2() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def make_real(data: Path) -> subprocess.CompletedProcess[str]:
    """Run `make real` with a Python that has no packages, as before anything is installed."""
    return subprocess.run(
        ["make", "real", f"DATA={data}", f"PYTHON={sys.executable} -S", f"VENV={data.parent}/venv"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_missing_file_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    done = make_real(tmp_path / "pairs.jsonl")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert f"DATA={tmp_path}/pairs.jsonl: there is no such file" in lines[0]
    assert not (tmp_path / "venv").exists()


def test_rows_that_cannot_be_read_are_refused_before_the_model_is_got(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Why?", "better": "So.", "worse": "No."}) + "\n")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(pairs)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "data.columns" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("data", ["sample", "my pairs: 2.jsonl"])
def test_its_search_is_a_whole_one(smollm2: dict[str, Any], data: str) -> None:
    changes = parse_overrides(smollm2["changes"](data, Path("runs/.models/model")))
    config = load_search(smollm2["SEARCH"], changes)
    check_space(config.space, config.base_trial())
    assert config.data.id == data
    assert config.model.id == "runs/.models/model"
    assert config.data.columns.prompt == "prompt"


def test_a_model_that_was_only_partly_made_does_not_count(
    smollm2: dict[str, Any], tmp_path: Path
) -> None:
    def broken(_: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise RuntimeError("the disk is full")

    model_folder = smollm2["model_folder"]
    model_folder.__globals__.update(install=lambda _: None, convert=broken)
    with pytest.raises(RuntimeError, match="disk is full"):
        model_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_made_once(smollm2: dict[str, Any], tmp_path: Path) -> None:
    made: list[Path] = []

    def convert(_: Path, folder: Path) -> None:
        folder.mkdir()
        made.append(folder)

    model_folder = smollm2["model_folder"]
    model_folder.__globals__.update(install=lambda _: None, convert=convert)
    assert model_folder(tmp_path) == model_folder(tmp_path)
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["SmolLM2-135M-Instruct"]
