"""Trains tiny models with a stock DPOTrainer and an explicit reference; never imports the project.

Reads {cases, adapted} as JSON from stdin, as tests/helpers/architectures.py writes it, and prints
for each case a list with one result for each of `adapted`.
"""

import gc
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from tests.helpers.architectures import (
    BATCH_SIZE,
    BETA,
    LEARNING_RATE,
    SEED,
    Case,
    Failure,
    Result,
    held_out_logps,
    read_rows,
)


class KeepLosses(TrainerCallback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def train(case: Case, adapted: str | None) -> Result:
    """Train a case and return the result."""
    lora = case.lora(adapted)
    adapter = None
    if lora is not None:
        lora["lora_alpha"] = lora.pop("alpha")
        adapter = peft.LoraConfig(task_type="CAUSAL_LM", **lora)
    with tempfile.TemporaryDirectory() as scratch:
        base = without_noise(Path(case.folder, "model"), Path(scratch, "base"))
        policy, reference = (
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) for _ in range(2)
        )
        before = held_out_logps(case, reference)
        keep = KeepLosses()
        trainer = DPOTrainer(
            model=policy,
            ref_model=reference,
            args=DPOConfig(
                output_dir=str(Path(scratch, "out")),
                per_device_train_batch_size=BATCH_SIZE,
                num_train_epochs=case.epochs,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                beta=BETA,
                seed=SEED,
                max_length=None,
                activation_checkpointing=False,
                bf16=False,
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(read_rows(case, "train")),
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=adapter,
            callbacks=[keep],
        )
        trainer.train()
    trained: Any = trainer.model
    after = held_out_logps(case, trained)
    matrices = peft.get_peft_model_state_dict(trained, save_embedding_layers=False) if lora else []
    return Result(keep.losses, after.tolist(), (after - before).tolist(), sorted(matrices))


def without_noise(folder: Path, copy: Path) -> Path:
    """Copy the model and remove dropout and router noise from its configuration. TRL only switches
    off layers of the class Dropout; dropout given as a number would make the training random.

    PhiMoE's jitter is a threshold and no noise: its router needs it outside of training too.
    """
    path = copy / "config.json"
    shutil.copytree(folder, copy)
    config = json.loads(path.read_text())
    noise = ("drop",) if config["model_type"] == "phimoe" else ("drop", "jitter")

    def emptied(values: dict[str, Any]) -> dict[str, Any]:
        quiet = dict(values)
        for name, value in values.items():
            if isinstance(value, dict):
                quiet[name] = emptied(value)
            elif isinstance(value, float) and any(word in name for word in noise):
                quiet[name] = 0.0
        return quiet

    path.write_text(json.dumps(emptied(config)))
    return copy


def attempt(case: Case, adapted: str | None) -> dict[str, Any]:
    """Train a case and return the result or the failure, for JSON."""
    try:
        return asdict(train(case, adapted))
    except Exception as error:  # one architecture failed; the others go on
        return asdict(Failure.of(error))


if __name__ == "__main__":
    gc.freeze()  # accelerate collects after each training; this skips the libraries
    request = json.load(sys.stdin)
    cases = [Case(**case) for case in request["cases"]]
    answers = [[attempt(case, each) for each in request["adapted"]] for case in cases]
    print("\n" + json.dumps(answers))
