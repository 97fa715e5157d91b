"""What an exported model is worth in the end: the test split's numbers, and greedy answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpo_train import export, metrics, model, reference
from dpo_train.config import ModelConfig


def judge(
    folder: Path, base: ModelConfig, prepared: Path, device: str, answers: int = 5
) -> dict[str, Any]:
    """`test`: metrics on the untouched split, with the 95 % interval of `ranking` over prompts.
    `answers`: greedy ones of base and winner to the first test prompts, beside the chosen."""
    data = reference.prepare(prepared)
    rows = data.split("test")[:]
    prompts = [json.loads(prompt) for prompt in rows["prompt"][:answers]]
    warm = model.load_base(base, device)
    untrained = warm.fresh(trained_in_full=False).eval()
    base_answers = [_answer(untrained, warm.tokenizer, prompt) for prompt in prompts]

    # From here on the base may carry the winner's adapter.
    policy, tokenizer = export.load(folder, device)
    winner_answers = [_answer(policy, tokenizer, prompt) for prompt in prompts]
    is_adapter = hasattr(policy, "peft_config")
    forward = reference.forward_pass(policy.get_base_model() if is_adapter else policy, device)
    collated = reference.batches(rows, data.pad_token_id, device)
    pairs = reference.pair_logps(
        rows, *reference.score_batches(collated, len(rows["prompt"]), forward)
    )
    return {
        "test": {
            **metrics.pair_metrics(pairs),
            "interval": metrics.bootstrap_interval(metrics.ranking(pairs), rows["prompt_key"]),
            "pairs": len(rows["prompt"]),
        },
        "answers": [
            {"prompt": prompt[-1]["content"], "base": ours, "winner": theirs, "chosen": chosen}
            for prompt, ours, theirs, chosen in zip(
                prompts, base_answers, winner_answers, rows["chosen"][:answers], strict=True
            )
        ],
    }


def _answer(policy: Any, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(policy.device)
    output = policy.generate(**inputs, do_sample=False, max_new_tokens=96)
    new = output[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()
