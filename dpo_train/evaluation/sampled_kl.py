"""How far a policy lies from the reference where it speaks: KL, estimated on answers it samples.

`eval/drift` looks at given answers, which the policy itself may never give.
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
"""Held-out prompts, over which the interval is: as many as greedy answers are measured of."""
SAMPLES = 4
"""Answers to each; an even number, for they are scored two by two."""
MOST_TOKENS = 64
"""Of one answer: all together twice the tokens that the greedy answers may have."""
_SEED = 0
"""The same noise for every policy."""
_AT_ONCE = 16


def estimate(folder: Path, base: ModelConfig, prepared: Path, device: str) -> SampledKl:
    """KL(policy ‖ reference) in nats an answer: its mean over prompts and that one's 95 % interval.

    For each prompt x the mean of log π(y|x) − log π_ref(y|x), summed over the answer's tokens and
    its end, over SAMPLES answers y ~ π(·|x) at temperature 1: the plain Monte-Carlo estimate of
    E_π[log π/π_ref], unbiased, and below 0 at times (k1 in Schulman, Approximating KL Divergence,
    2020). An answer that is cut counts up to there, so it is the KL of beginnings, which is no
    more than that of whole answers.
    """
    data = reference.prepare(prepared)
    rows = data.split("eval")[:]
    first = {key: number for number, key in reversed(list(enumerate(rows["prompt_key"])))}
    chosen = sorted(first.values())[:PROMPTS]
    warm = model.load_base(base, device, prepared)  # before an adapter's own load, which uses it
    policy, tokenizer = export.load(folder, device)
    is_adapter = hasattr(policy, "peft_config")
    inner: Any = policy.get_base_model() if is_adapter else policy
    prompts = [rows["prompt_ids"][number] for number in chosen for _ in range(SAMPLES)]
    answers = sample(inner, tokenizer, prompts)
    # Scored two by two as the pairs of a split are, so that both models are asked alike.
    pairs = {
        "prompt_ids": prompts[::2],
        "chosen_ids": answers[::2],
        "rejected_ids": answers[1::2],
    }
    ours = logps.score(inner, pairs, data.pad_token_id, device)
    if is_adapter:
        policy.unload()
    untrained = warm.fresh(trained_in_full=False)
    theirs = logps.score(untrained, pairs, data.pad_token_id, device)
    values = np.subtract(ours, theirs).mean(axis=0)
    keys = [rows["prompt_key"][number] for number in chosen for _ in range(SAMPLES // 2)]
    return SampledKl(mean=float(values.mean()), interval=mean_interval(values, keys))


def sample(policy: Any, tokenizer: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """One answer to each prompt, from the policy's own distribution: its tokens, the end included
    if it came to one."""
    import torch  # slow to import
    from transformers import GenerationConfig  # slow to import

    kept = policy.generation_config
    ends = end_tokens(policy, tokenizer)
    # In place of the model's own, which may cut the distribution or punish repetition.
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
    """The ids of the tokens that end an answer."""
    ends = policy.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return ends if isinstance(ends, list) else [ends]


def generate(
    policy: Any, tokenizer: Any, prompts: Sequence[list[int]], **options: Any
) -> Iterator[list[int]]:
    """The tokens of one answer to each prompt; behind an answer's end stands padding."""
    tokenizer.padding_side = "left"
    policy.eval()
    for first in range(0, len(prompts), _AT_ONCE):
        some = {"input_ids": prompts[first : first + _AT_ONCE]}
        inputs = tokenizer.pad(some, return_tensors="pt").to(policy.device)
        output = policy.generate(**inputs, **options)
        yield from output[:, inputs["input_ids"].shape[1] :].tolist()
