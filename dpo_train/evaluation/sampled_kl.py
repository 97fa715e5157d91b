"""Estimates the KL of a policy from the reference, on answers that the policy samples itself.

`eval/drift` measures on the dataset's answers, which the policy itself may never give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_train import export, model, reference
from dpo_train.config import ModelConfig
from dpo_train.evaluation.test_report import SampledKl
from dpo_train.scoring import logps
from dpo_train.scoring.intervals import mean_interval

PROMPTS = 32
"""Held-out prompts: as many as get greedy answers. The interval is over these prompts."""
SAMPLES = 4
"""Sampled answers to each prompt. The number is even, because answers are scored in pairs."""
MOST_TOKENS = 64
"""Most tokens of one answer. All together have up to twice the tokens of the greedy answers."""
_SEED = 0
"""The seed of sampling, the same for every policy."""
_AT_ONCE = 16
"""Prompts that are answered in one batch."""


def estimate(folder: Path, base: ModelConfig, prepared: Path, device: str) -> SampledKl:
    """Return KL(policy ‖ reference) in nats per answer: the mean over prompts and its interval.

    For each prompt x it is the mean of log π(y|x) − log π_ref(y|x) over SAMPLES answers
    y ~ π(·|x) at temperature 1. The sum is over the answer's tokens and its end. This plain
    Monte-Carlo estimate of E_π[log π/π_ref] is unbiased, and may be below 0 (k1 in Schulman,
    Approximating KL Divergence, 2020). Long answers are cut, so it is the KL of their beginnings,
    which is at most the KL of whole answers.
    """
    data = reference.prepare(prepared)
    rows = data.split("eval")[:]
    first = {key: number for number, key in reversed(list(enumerate(rows["prompt_key"])))}
    chosen = sorted(first.values())[:PROMPTS]
    warm = model.load_base(base, device, prepared)  # loading an adapter uses this base
    policy, tokenizer = export.load(folder, device)
    is_adapter = hasattr(policy, "peft_config")
    inner: Any = policy.get_base_model() if is_adapter else policy
    prompts = [rows["prompt_ids"][number] for number in chosen for _ in range(SAMPLES)]
    answers = sample(inner, tokenizer, prompts)
    # The answers are scored in pairs like those of a split, with the same code for both models.
    pairs = {
        "prompt_ids": prompts[::2],
        "chosen_ids": answers[::2],
        "rejected_ids": answers[1::2],
    }
    policy_logps = logps.score(inner, pairs, data.pad_token_id, device)
    if is_adapter:
        policy.unload()
    untrained = warm.fresh(trained_in_full=False)
    base_logps = logps.score(untrained, pairs, data.pad_token_id, device)
    values = np.subtract(policy_logps, base_logps).mean(axis=0)
    keys = [rows["prompt_key"][number] for number in chosen for _ in range(SAMPLES // 2)]
    return SampledKl(mean=float(values.mean()), interval=mean_interval(values, keys))


def sample(policy: Any, tokenizer: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Sample one answer to each prompt from the policy's distribution; return its token ids.

    The end token is included if the answer came to its end.
    """
    import torch  # slow to import
    from transformers import GenerationConfig  # slow to import

    kept = policy.generation_config
    ends = end_tokens(policy, tokenizer)
    # The model's own configuration may cut the distribution or penalise repetition.
    policy.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=MOST_TOKENS,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            answers = list(generate(policy, tokenizer, prompts))
    finally:
        policy.generation_config = kept
    lengths = [
        next((n for n, token in enumerate(answer, 1) if token in ends), len(answer))
        for answer in answers
    ]
    return [answer[:length] for answer, length in zip(answers, lengths, strict=True)]


def end_tokens(policy: Any, tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that end an answer."""
    ends = policy.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return ends if isinstance(ends, list) else [ends]


def generate(
    policy: Any, tokenizer: Any, prompts: Sequence[list[int]], **options: Any
) -> Iterator[list[int]]:
    """Yield the token ids of one answer to each prompt, with padding after the answer's end."""
    tokenizer.padding_side = "left"
    policy.eval()
    for first in range(0, len(prompts), _AT_ONCE):
        some = {"input_ids": prompts[first : first + _AT_ONCE]}
        inputs = tokenizer.pad(some, return_tensors="pt").to(policy.device)
        output = policy.generate(**inputs, **options)
        yield from output[:, inputs["input_ids"].shape[1] :].tolist()
