"""Measures how long the server takes to draw the next token of 16 answers, by their settings.

The logits are those of `--model` for 16 prompts. They are extended to `--vocabulary` values by
copies of all of them, each lowered by five nats, so that the tail is longer and the peak is the
same. Each row is the smallest CPU time of `--rounds` on one core, in milliseconds. The rows take
turns, so that their ratios hold on a busy machine too.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_train import sample
from serve.sampling import sample_next_tokens
from serve.sampling_params import SamplingParams, SamplingState

ANSWERS = 16
BIAS = {token: -5.0 for token in range(100)}
MIXES: dict[str, list[dict[str, Any]]] = {
    "greedy": [{"temperature": 0.0}],
    "temperature 0.8": [{"temperature": 0.8}],
    "top_p 0.9": [{"temperature": 0.8, "top_p": 0.9}],
    "top_k 50": [{"temperature": 0.8, "top_k": 50}],
    "top_k 20, top_p 0.8, min_p 0.05": [{"top_k": 20, "top_p": 0.8, "min_p": 0.05}],
    "min_p 0.05": [{"min_p": 0.05}],
    "penalties, bias": [
        {"temperature": 0.8, "repetition_penalty": 1.1, "presence_penalty": 0.5,
         "frequency_penalty": 0.5, "logit_bias": BIAS},
    ],
    "temperature 0.8, 5 log-probs": [{"temperature": 0.8, "logprobs": 5}],
    "top_p 0.9, 20 log-probs": [{"temperature": 0.8, "top_p": 0.9, "logprobs": 20}],
    "all of it": [
        {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1, "presence_penalty": 0.5,
         "frequency_penalty": 0.5, "logit_bias": BIAS, "logprobs": 20},
    ],
    "a mix": [
        {"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 0.8, "top_p": 0.9},
        {"top_k": 50, "logprobs": 5}, {"min_p": 0.05, "repetition_penalty": 1.1},
        {"top_p": 0.95, "presence_penalty": 0.5, "logprobs": 20}, {"logit_bias": BIAS},
    ],
}  # fmt: skip


def real_logits(model: Path, vocabulary: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Return logits of shape (answers, vocabulary), and the prompts' token ids."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rows = [json.loads(line)["prompt"] for line in sample.PAIRS.read_text().splitlines()]
    prompts = [tokenizer(row)["input_ids"] for row in rows[:ANSWERS]]
    with torch.inference_mode():
        own = torch.cat([weights(torch.tensor([ids])).logits[:, -1] for ids in prompts])
    copies = -(-vocabulary // own.shape[1])
    longer = torch.cat([own - 5 * number for number in range(copies)], dim=1)
    return longer[:, :vocabulary].contiguous(), prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=sample.MODEL)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logits, prompts = real_logits(options.model, options.vocabulary)
    best = dict.fromkeys(MIXES, float("inf"))
    for _ in range(options.rounds):
        for name, mix in MIXES.items():
            settings = [{"max_tokens": 1, "seed": n, **mix[n % len(mix)]} for n in range(ANSWERS)]
            states = [
                SamplingState(SamplingParams(**given), ids)
                for given, ids in zip(settings, prompts, strict=True)
            ]
            for state, ids in zip(states, prompts, strict=True):
                for token in ids * 5:  # an answer of some length
                    state.append(token)
            began = time.process_time()
            sample_next_tokens(logits, states)
            best[name] = min(best[name], time.process_time() - began)
    for name, seconds in best.items():
        print(f"{name:34}{1000 * seconds:7.1f} ms")


if __name__ == "__main__":
    main()
