"""What a packed pass on a CPU gains where trials are not padded to the longest of the pass.

    python benchmarks/padding.py [--pairs FILE] [--model FOLDER] [--trials 4] [--at-once 4]

One engine trains the same trials with padding and without, a step of each in turn, in one process
with one thread: CPU seconds a pair. The model is that of `make real`, the pairs are the sample's
unless a file is given.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import smollm2
import torch

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.trainers.packed import rows
from dpo_train.trainers.packed.engine import PackedEngine

ROUNDS = 4
BATCH = 8


def trial(model: str, pairs: str, at_once: int, seed: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "trainer": "packed",
            "model": {"id": model},
            "data": {"id": pairs, "limit": 80},
            "lora": {"r": 16, "alpha": 32},
            "optim": {"batch_size": BATCH, "micro_batch_size": at_once, "epochs": 100},
            "eval_every_pairs": 10**6,
            "seed": seed,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", default="sample", help="a file of preference pairs")
    parser.add_argument("--model", help="a folder of the model, in place of that of `make real`")
    parser.add_argument("--trials", type=int, default=4, help="trials in a pass")
    parser.add_argument("--at-once", type=int, default=4, help="pairs of each trial in a pass")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = options.model or str(smollm2.model_folder(smollm2.models_folder()))
    configs = [trial(model, options.pairs, options.at_once, seed) for seed in range(options.trials)]
    with tempfile.TemporaryDirectory() as scratch:
        pairs = data.load_pairs(configs[0].data)
        prepared = reference.plan(configs[0], pairs, Path(scratch), "cpu")
        engine = PackedEngine(configs[0].model, prepared, "cpu")
        # All trials in one pass, without trying whether fewer are faster.
        engine.pack_size._most = engine.pack_size._tried_for = options.trials
        trials = [engine.join(config) for config in configs]
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * ROUNDS):
            is_padded = number % 2 == 0
            rows._IS_PADDED_TO_LONGEST["cpu"] = is_padded
            began, pairs_before = time.process_time(), trials[0].pairs_seen
            while trials[0].pairs_seen < pairs_before + BATCH:
                engine.step(trials)
            taken = time.process_time() - began
            seconds[is_padded].append(taken / (BATCH * len(trials)))
        engine.close()
    padded, ragged = median(seconds[True]), median(seconds[False])
    print(
        f"{options.trials} trials, {options.at_once} pairs each in a pass, CPU seconds a pair: "
        f"{padded:.3f} padded, {ragged:.3f} without, a ratio of {ragged / padded:.3f}"
    )


if __name__ == "__main__":
    main()
