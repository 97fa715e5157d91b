"""Trains one trial as in TRL's documentation: DPOTrainer with PEFT, in its own process, no Ray.

Reads {model, pairs, device, arguments, lora} as JSON from stdin.
"""

import json
import sys
import tempfile
from typing import Any


def train(request: dict[str, Any]) -> None:
    """Train one trial."""
    import peft
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(1)
    on_gpu = request["device"] == "cuda"
    dtype = "bfloat16" if on_gpu else "float32"
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(request["model"], dtype=dtype),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            activation_checkpointing=False,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            save_strategy="no",
            disable_tqdm=True,
            report_to=[],
            **request["arguments"],
        ),
        train_dataset=load_dataset("json", data_files=request["pairs"], split="train"),
        processing_class=AutoTokenizer.from_pretrained(request["model"]),
        peft_config=peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", **request["lora"]
        ),
    )
    trainer.train()


if __name__ == "__main__":
    train(json.load(sys.stdin))
