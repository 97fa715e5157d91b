"""A dataset on the Hub with names of its own, read from a server on loopback."""

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

READ = """
import json, sys
from dpo_train.config import DataConfig
from dpo_train.data import load_pairs

pairs = load_pairs(DataConfig(**json.loads(sys.argv[1])))
rows = [row.as_json() for split in pairs.splits.values() for row in split]
print(json.dumps({"read_as": pairs.read_as, "rows": rows}))
"""


@pytest.mark.slow
def test_truthful_qas_form_is_read_as_it_is(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    (dataset / "generation").mkdir(parents=True)
    rows = [
        {
            "type": "Adversarial",
            "question": f"What happens {n} times?",
            "best_answer": f"It happens {n} times.",
            "correct_answers": [f"It happens {n} times."],
            "incorrect_answers": [f"It never happens {n} times.", "It does."],
        }
        for n in range(12)
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), dataset / "generation/validation-00000-of-00001.parquet"
    )
    (dataset / "README.md").write_text(
        "---\nconfigs:\n- config_name: generation\n  data_files:\n  - split: validation\n"
        "    path: generation/validation-*\n---\n"
    )
    columns = {"prompt": "question", "chosen": "best_answer", "rejected": "incorrect_answers[0]"}
    asked = {"id": "acme/truthful_qa", "config": "generation", "split": "validation"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    with HubServer({"datasets/acme/truthful_qa": dataset}) as hub:
        environment = {**kept, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url,
                       "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}  # fmt: skip

        def read(**options: object) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", READ, json.dumps({**asked, **options})],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip

        done = read(columns=columns)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["read_as"] == "prompt + answers, 12 rows; not read: correct_answers, type"
        (row,) = (row for row in said["rows"] if " 7 times?" in row["prompt"][0]["content"])
        assert row == {
            "prompt": [{"role": "user", "content": "What happens 7 times?"}],
            "chosen": [{"role": "assistant", "content": "It happens 7 times."}],
            "rejected": [{"role": "assistant", "content": "It never happens 7 times."}],
        }
        without = read()
        assert "data.columns.rejected=incorrect_answers[0]" in without.stderr
