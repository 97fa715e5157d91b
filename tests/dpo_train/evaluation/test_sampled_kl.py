"""The KL on sampled answers, compared with values that can be computed exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_train import export, model, reference
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.evaluation import sampled_kl
from dpo_train.trainers.open import open_session


def base(config: TrainConfig) -> Any:
    return model.load_base(config.model, "cpu").fresh(trained_in_full=False).eval()


def test_the_base_has_none_from_itself(
    small_config: TrainConfig, small_prepared: Path, tmp_path: Path
) -> None:
    tokenizer = model.load_base(small_config.model, "cpu").tokenizer
    export.write(base(small_config), tokenizer, small_config, tmp_path / "base")
    estimate = sampled_kl.estimate(tmp_path / "base", small_config.model, small_prepared, "cpu")
    assert estimate.mean == pytest.approx(0, abs=1e-6)
    assert estimate.interval == pytest.approx([0, 0], abs=1e-6)


def test_it_is_the_kl_that_enumerating_all_answers_gives(
    small_config: TrainConfig,
    small_prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warm = model.load_base(small_config.model, "cpu")
    export.write(base(small_config), warm.tokenizer, small_config, tmp_path)
    policy, tokenizer = export.load(tmp_path, "cpu")
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for weight in policy.parameters():
            weight += 0.1 * weight.std() * torch.randn_like(weight)
    # The model's own sampling settings must not matter: the policy itself is measured.
    policy.generation_config.update(do_sample=True, top_k=2, repetition_penalty=3.0)
    export.write(policy, tokenizer, small_config, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["top_k"] == 2

    # There are too many answers of more than two tokens to enumerate them.
    for name, value in (("MOST_TOKENS", 2), ("PROMPTS", 2), ("SAMPLES", 1024), ("_AT_ONCE", 512)):
        monkeypatch.setattr(sampled_kl, name, value)
    estimate = sampled_kl.estimate(tmp_path, small_config.model, small_prepared, "cpu")
    rows = reference.prepare(small_prepared).split("eval")[:]
    assert len(set(rows["prompt_key"][:2])) == 2
    exact = [
        enumerated(policy, base(small_config), prompt, tokenizer.eos_token_id)
        for prompt in rows["prompt_ids"][:2]
    ]
    assert exact[0] > 0.05
    # A log-ratio with a small mean has a standard deviation of about the root of twice its mean.
    # The interval of two prompts reaches from one prompt's value to the other's.
    mean = sum(exact) / 2
    assert estimate.mean == pytest.approx(mean, abs=4 * (2 * mean / 2048) ** 0.5)
    for bound, wanted in zip(estimate.interval, sorted(exact), strict=True):
        assert bound == pytest.approx(wanted, abs=4 * (2 * wanted / 1024) ** 0.5)


def enumerated(policy: Any, other: Any, prompt: list[int], end: int) -> float:
    """Return the KL of answers of up to two tokens: the first token's KL, plus the second token's
    KL after each first token that does not end the answer, weighted by its probability."""
    with torch.no_grad():
        first = [each(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
                 for each in (policy, other)]  # fmt: skip
        kl = (first[0].exp() * (first[0] - first[1])).sum()
        after = torch.tensor([[*prompt, token] for token in range(len(first[0]))])
        for rows in after.split(256):
            second = [each(rows).logits[:, -1].double().log_softmax(-1) for each in (policy, other)]
            weights = first[0].exp()[rows[:, -1]].masked_fill(rows[:, -1] == end, 0)
            kl += weights @ (second[0].exp() * (second[0] - second[1])).sum(-1)
    return float(kl)


def test_an_adapter_is_measured_against_its_base_and_leaves_it_alone(
    small_config: TrainConfig,
    small_prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampled_kl, "PROMPTS", 4)
    before = {name: weight.clone() for name, weight in base(small_config).state_dict().items()}
    settings = base(small_config).generation_config.to_dict()
    lora = {"lora": {"r": 4}, "optim.learning_rate": 1e-2, "optim.warmup_pairs": 8}
    session = open_session(override(small_config, lora), small_prepared, "cpu")
    session.advance()
    session.export(tmp_path)
    session.close()
    first, again = (
        sampled_kl.estimate(tmp_path, small_config.model, small_prepared, "cpu") for _ in range(2)
    )
    assert first == again
    assert first.mean > 0.01
    assert first.interval[0] <= first.mean <= first.interval[1]
    after = base(small_config)
    assert after.generation_config.to_dict() == settings
    assert all(torch.equal(weight, before[name]) for name, weight in after.state_dict().items())
