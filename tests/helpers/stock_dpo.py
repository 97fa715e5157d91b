"""Trains with a stock DPOTrainer and its own reference model; knows nothing of this project.

Reads [{rows, model, arguments, lora}] from stdin and writes [{losses, eval, ids}] to stdout. Tests
compare the TRL session with it. It has its own process, because ours patches two names in TRL.
"""

import json
import sys
import tempfile

import peft
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Keep(TrainerCallback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args, state, control, logs=None, **_):  # type: ignore[no-untyped-def]
        if "loss" in logs:
            self.losses.append(logs["loss"])


def train(case: dict, callbacks: list[TrainerCallback] | None = None) -> dict:  # type: ignore[type-arg]
    """Train a case and return the result."""
    keep = Keep()
    lora = case["lora"]
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(case["model"], dtype="float32"),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_eval_batch_size=len(case["eval"]),
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            max_length=None,
            **case["arguments"],
        ),
        train_dataset=Dataset.from_list(case["train"]),
        eval_dataset=Dataset.from_list(case["eval"]),
        processing_class=AutoTokenizer.from_pretrained(case["model"]),
        peft_config=peft.LoraConfig(task_type="CAUSAL_LM", **lora) if lora else None,
        callbacks=[keep, *(callbacks or [])],
    )
    trainer.train()
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    ids = {name: list(trainer.train_dataset[name]) for name in names}
    return {"losses": keep.losses, "eval": trainer.evaluate(), "ids": ids}


if __name__ == "__main__":
    answers = [train(case) for case in json.load(sys.stdin)]
    print("\n" + json.dumps(answers))
