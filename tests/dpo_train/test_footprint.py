"""The estimate of a training process's memory matches what sessions and engines measure."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoConfig, MistralConfig

from dpo_train import data, memory, reference, sample
from dpo_train.config import LoraConfig, TrainConfig
from dpo_train.config_base import override
from dpo_train.footprint import MOST_TOKENS, SCORED_TOKENS, footprint
from dpo_train.pass_memory import pass_bytes
from dpo_train.row_lengths import PairLength, RowLengths, row_lengths, unknown_lengths
from dpo_train.scoring import logps
from dpo_train.trainers.open import open_session
from dpo_train.trainers.packed import engine

KINDS: dict[str, dict[str, Any]] = {
    "packed": {"trainer": "packed", "lora": {}},
    "trl with LoRA": {"lora": {}},
    "trl in full": {},
}
AGAIN = {"optim.activation_checkpointing": True}
KINDS |= {f"{kind}, checkpointed": {**values, **AGAIN} for kind, values in KINDS.items()}
PAIR = PairLength(prompt=20, chosen=12, rejected=9)


def architecture(layers: int = 2) -> Any:
    config = AutoConfig.from_pretrained(sample.MODEL)
    config.layer_types = ["full_attention"] * layers
    config.num_hidden_layers = layers
    return config


def median_pair(rows: Dataset, kind: str) -> PairLength:
    """Return the pair with which a session or an engine measures."""
    pairs = [
        PairLength(*(len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")))
        for row in rows
    ]
    length = (lambda pair: pair.packed) if kind.startswith("packed") else (lambda pair: pair.row)
    return sorted(pairs, key=length)[len(pairs) // 2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_keeps_as_many_bytes_as_the_estimate_without_weights(
    kind: str, small_config: TrainConfig, small_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    count = memory.kept_bytes

    def noted(*given: Any) -> Any:
        result, kept = count(*given)
        counted.append(kept)
        return result, kept

    monkeypatch.setattr(memory, "kept_bytes", noted)
    trial = override(small_config, KINDS[kind])
    session = open_session(trial, small_prepared, "cpu")
    session.close()
    rows = reference.prepare(small_prepared).split("train")
    estimate = pass_bytes(architecture(), trial, median_pair(rows, kind), 1, "cpu")
    kept, slack = estimate.kept, 0.0
    if "checkpointed" in kind:
        # A session counts one of the two layers without checkpoints.
        plain = override(trial, {"optim.activation_checkpointing": False})
        whole = pass_bytes(architecture(), plain, median_pair(rows, kind), 1, "cpu").kept
        kept = (kept + whole) // 2
        # A checkpoint also keeps the rotary embeddings, though not as a saved tensor.
        slack = 0.15 * counted[0]
    assert 0.97 * counted[0] - slack <= kept <= 1.03 * counted[0] + slack


@pytest.mark.parametrize("kind", KINDS)
def test_many_layers_lie_on_the_line_through_a_few(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = override(TrainConfig(), KINDS[kind])
    through_few = pass_bytes(architecture(6), trial, PAIR, 2, "cpu")
    monkeypatch.setattr("dpo_train.pass_memory._FEW", (2, 6))
    assert vars(through_few) == vars(pass_bytes(architecture(6), trial, PAIR, 2, "cpu"))


def test_a_full_fine_tuning_takes_copies_gradients_and_moments() -> None:
    lengths = RowLengths((PAIR,), (PAIR,), rows=60)
    full = footprint(TrainConfig(), lengths, "cpu")
    adapter = footprint(TrainConfig(lora=LoraConfig()), lengths, "cpu")
    assert full.own_weights == full.trial == 2 * full.weights
    assert full.gradients > full.weights  # the embedding, which is also the head, has two
    assert adapter.own_weights == adapter.gradients == 0
    assert 0 < adapter.trial < full.trial
    assert full.private(1, 100) > adapter.private(1, 100)


def test_tokens_that_fit_are_those_whose_pass_takes_what_is_left() -> None:
    lengths = RowLengths((PAIR,), (PAIR,), rows=60)
    one = footprint(override(TrainConfig(), KINDS["packed"]), lengths, "cpu")
    share = one.fixed(4) + 10**9
    tokens = one.tokens_that_fit(share, trials=4)
    # The last layer's backward needs more for a moment. With only two layers that is a large share.
    assert 10**9 <= one.of_pass(tokens) < 1.4 * 10**9
    assert one.tokens_that_fit(one.process, trials=4) == 0


def test_bounds_are_those_of_engine_and_reference_pass() -> None:
    assert engine._MOST_TOKENS == MOST_TOKENS
    assert logps._tokens_per_batch == SCORED_TOKENS


def test_lengths_are_those_of_the_prepared_rows(
    small_config: TrainConfig, small_prepared: Path
) -> None:
    pairs = data.load_pairs(small_config.data)
    rows = [row for split in pairs.splits.values() for row in split]
    found = row_lengths(small_config.model, small_config.data, rows)
    prepared = reference.prepare(small_prepared)
    longest = max(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for split in data.SPLITS
        for row in prepared.split(split)
    )
    assert found.longest_row.row == longest
    assert found.mean.row <= longest
    assert found.largest_pass(trials=2, pairs_each=3) <= 2 * 3 * found.longest_packed


def test_where_rows_are_too_long_one_may_be_as_long_as_is_allowed(
    small_config: TrainConfig,
) -> None:
    pairs = data.load_pairs(small_config.data)
    short = small_config.data.model_copy(update={"max_length_tokens": 24})
    found = row_lengths(small_config.model, short, pairs.splits["train"])
    assert found.longest_row.row == unknown_lengths(short).longest_row.row == 24


@pytest.mark.slow
def test_a_7b_model_fits_a_card_of_24_gb_in_4_bits_with_checkpoints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = MistralConfig(num_key_value_heads=8, intermediate_size=14336)  # of 32 layers
    monkeypatch.setattr("dpo_train.model_source.architecture", lambda _: shape)
    pair = PairLength(prompt=512, chosen=512, rejected=512)
    lengths = RowLengths((pair,), (pair,), rows=600)
    plain = override(TrainConfig(), {"lora.r": 16, "model.dtype": "bfloat16"})
    knobs = override(plain, {"model.quantization": "nf4", **AGAIN})
    with_knobs, without = (footprint(each, lengths, "cuda") for each in (knobs, plain))
    assert with_knobs.weights < 0.3 * without.weights
    assert with_knobs.private(1, 2 * 1024) < 15e9
    assert without.private(1, 2 * 1024) > 24e9
