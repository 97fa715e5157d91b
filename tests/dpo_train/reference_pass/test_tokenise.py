import json
from pathlib import Path

from dpo_train import model, reference
from dpo_train.config import ModelConfig


def test_tokens_are_trls_own(small_prepared: Path) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [json.loads(line) for line in (small_prepared / "rows.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.pop("split") == "train"]
    tokenizer = model.load_tokenizer(ModelConfig())
    stub = object.__new__(DPOTrainer)
    stub._tokenizer = tokenizer
    config = DPOConfig(
        output_dir="unused",
        max_length=None,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
    )
    theirs = DPOTrainer._prepare_dataset(stub, Dataset.from_list(rows), tokenizer, config, "train")
    ours = reference.prepare(small_prepared).split("train")
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert ours[column] == theirs[column]


def test_the_tokenizer_gives_back_what_it_was_given() -> None:
    # A word-level tokenizer loaded as Qwen2Tokenizer turns every text into nothing, silently.
    tokenizer = model.load_tokenizer(ModelConfig())
    text = "Are you in Paris? No: I'm software, 100 % – naïve Zürich."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
