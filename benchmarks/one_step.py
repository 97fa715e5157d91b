"""Prints the median seconds of one training step of 8 pairs, of our session or of stock TRL.

Reads `ours` or `stock` from stdin. Only training steps count, no evaluation.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback

torch.set_num_threads(1)
STEPS, WARM_UP = 60, 10


class Clock(TrainerCallback):
    """Measures a step from its beginning, after its batch was collated, to its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        control.should_training_stop = state.global_step >= STEPS


def ours(clock: Clock) -> None:
    """Return the seconds of our steps."""
    from dpo_train import data, reference
    from dpo_train.config import TrainConfig
    from dpo_train.trainers.trl_session import TrlSession

    config = TrainConfig(eval_every_pairs=10**6)
    with tempfile.TemporaryDirectory() as folder:
        prepared = reference.plan(config, data.load_pairs(config.data), Path(folder), "cpu")
        session = TrlSession(config, prepared, "cpu")
        session._trainer.add_callback(clock)
        session._trainer.train()


def stock(clock: Clock) -> None:
    """Return the seconds of a stock trainer's steps."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from dpo_train import data, sample
    from dpo_train.config import DataConfig

    rows = data.load_pairs(DataConfig()).splits["train"]
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=8,
        learning_rate=1e-5,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        save_strategy="no",
        report_to=[],
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(sample.MODEL, dtype="float32"),
        args=arguments,
        train_dataset=Dataset.from_list([row.as_json() for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(sample.MODEL),
        callbacks=[clock],
    )
    trainer.train()


if __name__ == "__main__":
    clock = Clock()
    {"ours": ours, "stock": stock}[sys.stdin.read().strip()](clock)
    print(f"\n{median(clock.seconds[WARM_UP:])}")
