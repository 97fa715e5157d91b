import json
import multiprocessing
from collections import Counter
from pathlib import Path

import pytest

from dpo_train import data, model, model_source, reference
from dpo_train.config import DataConfig, ModelConfig, TrainConfig
from dpo_train.config_base import override
from dpo_train.data import Pairs, Row
from dpo_train.errors import InputError


def plan(config: TrainConfig, root: Path) -> Path:
    return reference.plan(config, data.load_pairs(config.data), root, "cpu")


def test_the_reference_is_computed_once(small_config: TrainConfig, tmp_path: Path) -> None:
    folder = plan(small_config, tmp_path)
    first, second = reference.prepare(folder), reference.prepare(plan(small_config, tmp_path))
    assert first.computed_pairs == 60
    assert second.computed_pairs == 0
    assert first.base == second.base


def test_the_key_holds_what_decides_the_numbers_and_nothing_else(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    def key(**changes: object) -> str:
        values = {path.replace("__", "."): value for path, value in changes.items()}
        return plan(override(small_config, values), tmp_path).name

    same = key()
    assert key(dpo__beta=0.5, optim__learning_rate=1e-3, seed=7, lora__r=4) == same
    assert key(data__split_seed=1) != same
    assert key(data__limit=59) != same
    assert key(data__max_length_tokens=512) != same
    assert key(lora__r=4, model__dtype="bfloat16") != same


def test_other_weights_are_another_reference(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    source = model_source.local_folder(ModelConfig())
    assert source is not None
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert model_source.fingerprint(ModelConfig(id=str(copy))) == model_source.fingerprint(
        ModelConfig()
    )
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert model_source.fingerprint(ModelConfig(id=str(copy))) != model_source.fingerprint(
        ModelConfig()
    )


@pytest.mark.parametrize("damage", ["manifest", "cut", "gone"])
def test_an_incomplete_folder_is_rebuilt(
    small_config: TrainConfig, tmp_path: Path, damage: str
) -> None:
    folder = plan(small_config, tmp_path)
    before = reference.prepare(folder)
    match damage:
        case "manifest":
            (folder / "manifest.json").unlink()
        case "cut":
            content = (folder / "eval.arrow").read_bytes()
            (folder / "eval.arrow").write_bytes(content[:-8])
        case "gone":
            (folder / "train.arrow").unlink()
    after = reference.prepare(folder)
    assert after.computed_pairs == 60
    assert after.base == before.base
    assert len(after.split("train")) == 40


def _prepare_in_a_process(folder: Path) -> int:
    return reference.prepare(folder).computed_pairs


@pytest.mark.slow
def test_two_processes_at_once_compute_it_once(small_config: TrainConfig, tmp_path: Path) -> None:
    folder = plan(small_config, tmp_path)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.map(_prepare_in_a_process, [folder, folder], chunksize=1)
    assert sorted(counts) == [0, 60]


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


def test_rows_that_only_a_tokenizer_can_refuse_are_counted() -> None:
    def row(chosen: str, rejected: str) -> Row:
        messages = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        return Row([{"role": "user", "content": "Why?"}], *messages)

    dropped: Counter[str] = Counter()
    tokenizer = model.load_tokenizer(ModelConfig())
    kept = reference._tokenise([row("yes", "no"), row("yes " * 90, "no")], tokenizer, 64, dropped)
    assert len(kept["prompt_ids"]) == 1
    assert dropped == {"longer than 64 tokens": 1}


def test_nothing_left_after_tokenising_is_said(tmp_path: Path) -> None:
    config = TrainConfig(data=DataConfig(limit=10, max_length_tokens=8))
    with pytest.raises(InputError, match=r"after tokenising \(\d+ longer than 8 tokens\)"):
        reference.prepare(plan(config, tmp_path))


def test_reference_log_probs_are_the_models_own(small_prepared: Path) -> None:
    import torch

    warm = model.load_base(ModelConfig(), "cpu")
    base = warm.fresh(trained_in_full=False).eval()
    for row in reference.prepare(small_prepared).split("eval").select(range(3)):
        ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
        with torch.no_grad():
            log_probs = base(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        start = len(row["prompt_ids"]) - 1
        expected = log_probs[start:].gather(1, ids[0, start + 1 :, None]).sum()
        assert row["ref_chosen_logps"] == pytest.approx(float(expected), rel=1e-4)


def test_an_unsplit_pair_set_keeps_its_counts() -> None:
    assert Pairs({"train": [], "eval": [], "test": []}, {"x": 2}).summary().endswith("out: 2 x")
