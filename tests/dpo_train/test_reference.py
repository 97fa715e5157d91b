"""The prepared data of a search: what decides its key, and its content."""

from pathlib import Path

import pytest

from dpo_train import data, model, model_source, reference
from dpo_train.__main__ import Progress
from dpo_train.config import DataConfig, ModelConfig, TrainConfig
from dpo_train.config_base import override
from dpo_train.data import Row
from dpo_train.errors import InputError
from dpo_train.reference_pass.chat_template import ChatTemplate
from dpo_train.reference_pass.tokenise import Tokeniser


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


@pytest.mark.timeout(60)
def test_a_folder_without_a_plan_is_said(small_config: TrainConfig, tmp_path: Path) -> None:
    folder = plan(small_config, tmp_path)
    (folder / "plan.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"plan\.json"):
        reference.prepare(folder)


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


def test_progress_says_how_much_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 50.0, 55.0, 200.0])
    progress = Progress(lambda: next(times))
    progress.begin(Path(), [100, 200, 300], {0})
    for shard in (1, 1, 2):
        progress.done(shard)
    assert capsys.readouterr().err.splitlines() == [
        "reference log-probs of 600 pairs, 100 of them computed before",
        "reference log-probs 300 of 600 (1 min 15 s left)",
        "reference log-probs 600 of 600 (0 s left)",
    ]


def test_rows_that_only_a_tokenizer_can_refuse_are_counted() -> None:
    def row(chosen: str, rejected: str) -> Row:
        messages = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        return Row([{"role": "user", "content": "Why?"}], *messages)

    tokenizer = model.load_tokenizer(ModelConfig())
    template = ChatTemplate(tokenizer, "sample")
    rows = [row("yes", "no"), row("yes " * 90, "no"), row("yes", "yes")]
    short, long, same = Tokeniser(tokenizer, 64).encode([template.render(each) for each in rows])
    assert not isinstance(short, str)
    assert long == "longer than 64 tokens"
    assert same == "identical after tokenising"


def test_nothing_left_after_tokenising_is_said(tmp_path: Path) -> None:
    config = TrainConfig(data=DataConfig(limit=10, max_length_tokens=8))
    with pytest.raises(
        InputError, match=r"after tokenising; left out: longer than 8 tokens \(\d+\)"
    ):
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
