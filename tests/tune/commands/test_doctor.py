"""`dpo-tune doctor` checks model, data, tokens and one pair before a search."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_train.data import load_pairs
from dpo_train.errors import InputError
from dpo_train.reference_pass import preview as previews
from dpo_train.reference_pass.preview import preview
from tests.conftest import ROOT
from tune.commands.doctor import examine
from tune.config.load import load_search
from tune.config.schema import SearchConfig

ROWS = [
    {"prompt": f"Which number follows {n}?", "chosen": f"It is {n + 1}.", "rejected": "None."}
    for n in range(60)
]


def search(folder: Path, rows: list[Any], **changes: Any) -> SearchConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"id": str(path), **changes.pop("data", {})}
    content = {"name": "x", "trials": 2, "space": {"dpo.beta": {"uniform": [0.1, 0.2]}}}
    content |= {"runs_dir": str(folder / "runs"), "data": data, **changes}
    return SearchConfig.model_validate(content)


def looked_at(config: SearchConfig) -> str:
    return "\n".join(examine(config))


def test_it_says_what_the_tokenizer_makes_of_the_data(tmp_path: Path) -> None:
    output = looked_at(search(tmp_path, ROWS))
    assert "data         " in output
    assert "read as prompt + answers, 60 rows; 40 train, 10 eval, 10 test pairs" in output
    assert "tokens, with a chat template" in output
    assert "left out, longer than data.max_length_tokens (1,024): none" in output
    assert output.endswith("ready        yes")


def test_one_pair_is_shown_as_it_is_trained(tmp_path: Path) -> None:
    config = search(tmp_path, ROWS)
    pair = preview(config.model, config.data, load_pairs(config.data)).example
    assert pair.prompt.endswith("assistant\n")
    assert pair.chosen.startswith("It is ")
    output = looked_at(config)
    chosen = pair.chosen.partition("\n")[0]
    assert f"one pair     {pair.place}, as it is trained" in output
    assert f"    | ▶{chosen}\n" in output
    assert "    | ▶None." in output
    assert f"  chosen, {pair.tokens[1]} tokens:" in output


def test_control_characters_of_a_dataset_reach_no_terminal(tmp_path: Path) -> None:
    rows = [{**row, "chosen": f"It is \x1b[2J{row['chosen']}"} for row in ROWS]
    output = looked_at(search(tmp_path, rows))
    assert "\x1b" not in output
    assert r"▶It is \x1b[2J" in output


def test_it_counts_what_is_left_out_and_shows_the_first_bad_rows(tmp_path: Path) -> None:
    long = {"prompt": "Why?", "chosen": "Because. " * 200, "rejected": "So."}
    rows = [*ROWS, long, ROWS[0], {"prompt": "Why?", "chosen": None, "rejected": "So."}]
    output = looked_at(search(tmp_path, rows, data={"on_bad_row": "skip", "max_length_tokens": 64}))
    assert "left out: no chosen (1), duplicates (1)" in output
    assert f"             left out: {tmp_path}/rows.jsonl line 63: chosen is null" in output
    assert "left out, longer than data.max_length_tokens (64): 1 (1.6%)" in output


def test_only_a_sample_of_many_rows_is_tokenised_and_reported_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "_MOST_ROWS", 20)
    assert "measured on 20 of the 60 pairs, drawn at random" in looked_at(search(tmp_path, ROWS))


def test_a_split_whose_pairs_are_all_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pair is left for train after tokenising"):
        looked_at(search(tmp_path, ROWS, data={"max_length_tokens": 8}))


def test_the_worst_mistake_is_reported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 8 can't be shared out among 512 GPUs either, and the data don't exist."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = search(tmp_path, ROWS, resources={"gpus": 512}, data={"id": "nowhere.jsonl"})
    lines = examine(config)
    assert next(lines) == "search       x: 2 trials, 1 CPU and 512 GPU each"
    with pytest.raises(InputError, match="a trial wants 512, this machine has"):
        list(lines)


def test_a_folder_in_which_run_would_fail_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        looked_at(search(tmp_path, ROWS))


def test_the_first_line_is_there_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("trials: 2\nspace: {dpo.beta: {uniform: [0.1, 0.2]}}\n")
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from tune.commands.doctor import examine\nfrom tune.config.load import load_new_search\n"
        "print(next(examine(load_new_search(Path('x.yaml')))))\n"
        "heavy = {'torch', 'ray', 'transformers', 'datasets', 'optuna', 'wandb', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "search       x: 2 trials, 1 CPU and 0 GPU each\n[]\n", done.stderr


def test_without_a_search_it_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = examine(None)
    assert first.startswith("this machine, with Python ")
    assert any(line.startswith("CPUs ") for line in others)
    assert capsys.readouterr().out == ""


def test_every_search_to_copy_is_understood() -> None:
    for path in (ROOT / "searches").glob("*.yaml"):
        assert next(examine(load_search(path))).startswith("search       ")
