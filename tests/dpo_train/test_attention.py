"""Another implementation of attention gives the same numbers, or is refused."""

from pathlib import Path
from typing import Any

import pytest

from dpo_train import data, extras, model, reference
from dpo_train.config import ModelConfig, TrainConfig
from dpo_train.config_base import override
from dpo_train.errors import InputError
from dpo_train.pass_memory import pass_bytes
from dpo_train.row_lengths import PairLength
from dpo_train.trainers.open import open_session
from tests.dpo_train.test_footprint import architecture


def test_eager_attention_gives_the_numbers_of_sdpa(
    small_config: TrainConfig, tmp_path: Path
) -> None:
    reports = []
    for attention in (None, "eager"):
        trial = override(small_config, {"model.attention": attention, "optim.learning_rate": 1e-3})
        folder = reference.plan(trial, data.load_pairs(trial.data), tmp_path, "cpu")
        reference.prepare(folder)
        session: Any = open_session(trial, folder, "cpu")
        assert session._trainer.model.config._attn_implementation == (attention or "sdpa")
        reports.append(session.advance().report)
        session.close()
    assert len(list(tmp_path.iterdir())) == 2  # its reference is not the other's
    for name in ("train/loss", "eval/loss", "eval/margin", "eval/nll"):
        assert reports[1][name] == pytest.approx(reports[0][name], rel=1e-5, abs=1e-5), name


def test_the_estimate_knows_what_eager_attention_keeps() -> None:
    pair, trial = PairLength(prompt=200, chosen=50, rejected=50), TrainConfig()
    eager = override(trial, {"model.attention": "eager"})
    sdpa, own = (pass_bytes(architecture(), each, pair, 1, "cpu").kept for each in (trial, eager))
    heads = architecture().num_attention_heads
    scores = 2 * 2 * heads * 250**2 * 4  # of two layers and two rows
    assert sdpa + 0.7 * scores < own < sdpa + 2 * scores


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu", "flash_attention_2 needs a GPU; type `attention: sdpa`"),
        ("cuda", "needs the package flash_attn, which is not installed; install it"),
    ],
)
def test_flash_attention_is_refused_where_it_can_not_run(
    device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=message):
        model.load_base(ModelConfig(attention="flash_attention_2"), device)
