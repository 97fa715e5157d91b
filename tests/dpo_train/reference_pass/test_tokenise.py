"""Rows become the tokens that TRL trains on."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dpo_train import data, model, reference
from dpo_train.config import DataConfig, ModelConfig
from dpo_train.reference_pass.chat_template import ChatTemplate, Rendered
from dpo_train.reference_pass.tokenise import TokenIds, Tokeniser


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
    # A word-level tokenizer that is loaded as Qwen2Tokenizer turns every text into no tokens.
    tokenizer = model.load_tokenizer(ModelConfig())
    text = "Are you in Paris? No: I'm software, 100 % – naïve Zürich."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def _whole(row: Rendered, tokenizer: Any) -> TokenIds:
    prompt, chosen, rejected = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (row.prompt, row.chosen, row.rejected)
    )
    start = 0
    shortest = min(len(prompt), len(chosen), len(rejected))
    while start < shortest and prompt[start] == chosen[start] == rejected[start]:
        start += 1
    return TokenIds(prompt[:start], chosen[start:], rejected[start:])


def test_a_common_prefix_that_is_encoded_once_gives_the_same_tokens() -> None:
    tokenizer = model.load_tokenizer(ModelConfig())
    template = ChatTemplate(tokenizer, "sample")
    rows = data.load_pairs(DataConfig(limit=200)).splits["train"]
    texts = [template.render(row) for row in rows]
    tokeniser = Tokeniser(tokenizer, 4096)
    assert tokeniser.encode(texts) == [_whole(text, tokenizer) for text in texts]
    assert tokeniser._special is not None


@pytest.mark.parametrize("kind", ["strips what follows", "marks the first word"])
def test_a_tokenizer_that_looks_past_a_special_token_is_given_whole_texts(kind: str) -> None:
    raw = Tokenizer(models.BPE())
    end = AddedToken("<end>", special=True, rstrip=kind == "strips what follows")
    if kind == "marks the first word":
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        ["Who is it? It is me. No one."] * 9,
        trainers.BpeTrainer(vocab_size=300, show_progress=False),
    )
    raw.add_special_tokens([end])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    space = " " if kind == "strips what follows" else ""
    begun = [f"Who{n}<end>{space}is" for n in range(60)]
    texts = [Rendered(text, f"{text} it? It is me.", f"{text} it? No one.") for text in begun]
    tokeniser = Tokeniser(tokenizer, 4096)
    assert tokeniser.encode(texts) == [_whole(text, tokenizer) for text in texts]
    assert tokeniser._special is None
