"""The example search reads TruthfulQA, in the form that the Hub has, from a server on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.conftest import ROOT
from tests.helpers.hub_server import HubServer
from tune.config.load import load_search

READ = """
import json, sys
from dpo_train.config import DataConfig
from dpo_train.data import load_pairs

pairs = load_pairs(DataConfig(**json.loads(sys.argv[1])))
rows = [row.as_json() for split in pairs.splits.values() for row in split]
print(json.dumps({"read_as": pairs.read_as, "rows": rows}))
"""


QUESTIONS = 12


def write_dataset(folder: Path) -> None:
    """Write rows, parquet files and card in the form of truthfulqa/truthful_qa."""
    rows = [
        {
            "type": "Adversarial",
            "category": "Misconceptions",
            "question": f"What happens {n} times?",
            "best_answer": f"It happens {n} times.",
            "correct_answers": [f"It happens {n} times.", f"It happens {n} times in a row."],
            "incorrect_answers": [f"It never happens {n} times.", "It does."],
            "source": "https://example.org/times",
        }
        for n in range(QUESTIONS)
    ]
    choices = [{"question": "Why?", "mc1_targets": {"choices": ["So."], "labels": [1]}}]
    for config, table in (("generation", rows), ("multiple_choice", choices)):
        (folder / config).mkdir(parents=True)
        file = folder / config / "validation-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), file)
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: generation\n  data_files:\n  - split: validation\n"
        "    path: generation/validation-*\n"
        "- config_name: multiple_choice\n  data_files:\n  - split: validation\n"
        "    path: multiple_choice/validation-*\n---\n"
    )


@pytest.mark.slow
def test_truthful_qa_is_read_as_the_search_to_copy_says(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset")
    data = load_search(ROOT / "searches" / "truthfulqa_smollm2.yaml").data.model_dump()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    with HubServer({"datasets/truthfulqa/truthful_qa": tmp_path / "dataset"}) as hub:
        environment = {**kept, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url,
                       "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}  # fmt: skip

        def read(data: dict[str, object]) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", READ, json.dumps(data)],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip

        done = read(data)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["read_as"] == (
            f"prompt + answers, {QUESTIONS} rows; not read: category, correct_answers, source, type"
        )
        assert len(result["rows"]) == QUESTIONS
        (row,) = (row for row in result["rows"] if " 7 times?" in row["prompt"][0]["content"])
        assert row == {
            "prompt": [{"role": "user", "content": "What happens 7 times?"}],
            "chosen": [{"role": "assistant", "content": "It happens 7 times."}],
            "rejected": [{"role": "assistant", "content": "It never happens 7 times."}],
        }
        without = read({**data, "columns": {}})
        assert "data.columns.rejected=incorrect_answers[0]" in without.stderr
