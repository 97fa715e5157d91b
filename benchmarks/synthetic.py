"""Writes a model with random weights, and preference pairs of a given shape.

Training on them learns nothing but takes as long as on real ones.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from dpo_train.sample import pretrain
from dpo_train.sample.pairs import build_pairs

SHAPES: dict[str, dict[str, Any]] = {
    # 2 layers of width 64, 512 tokens: the shape of the CPU figures.
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 192,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "tie_word_embeddings": True},
    # Qwen2-0.5B.
    "qwen2-0.5b": {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
                   "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                   "rope_theta": 1e6, "tie_word_embeddings": True},
}  # fmt: skip


def write_model(folder: Path, shape: str, dtype: str = "float32", device: str = "cpu") -> Path:
    """Write random weights, drawn on a device, and a tokenizer of 512 tokens like the sample's."""
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
               "bos_token_id": None}  # fmt: skip
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], **special))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path, pairs: int, lengths: dict[str, tuple[int, int]], seed: int = 0) -> Path:
    """Write pairs whose texts have so many words of one token each: (fewest, most)."""
    words, draw = _words(), random.Random(seed)
    lines = []
    for number in range(pairs):
        row = {
            name: " ".join(draw.choices(words, k=draw.randint(*bounds)))
            for name, bounds in lengths.items()
        }
        row["prompt"] = f"{number} {row['prompt']}"  # no two prompts are the same
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def _tokenizer() -> Any:
    return pretrain.build_tokenizer(build_pairs(seed=0), vocabulary=512)


def _words() -> list[str]:
    tokenizer = _tokenizer()
    learned = [token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ")]
    return sorted(w for w in learned if w.isalpha() and len(tokenizer.tokenize(f" {w}")) == 1)
