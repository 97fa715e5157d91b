"""What a packed pass on a CPU gains where trials are not padded to the longest of the pass.

    python benchmarks/padding.py [--pairs FILE] [--model FOLDER] [--trials 4] [--at-once 4]

One engine computes the same passes with padding and without, in turn, in one process with one
thread: CPU seconds a pair. The model is that of `make real`, the pairs are the sample's
unless a file is given.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import smollm2
import torch

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.trainers.packed import rows
from dpo_train.trainers.packed.engine import PackedEngine
from dpo_train.trainers.packed.forward import completion_logps
from dpo_train.trainers.packed.pack import Pack

ROUNDS = 8


def trial(model: str, pairs: str, at_once: int, seed: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "trainer": "packed",
            "model": {"id": model},
            "data": {"id": pairs, "limit": 80},
            "lora": {"r": 16, "alpha": 32},
            "optim": {"batch_size": at_once, "epochs": 100},
            "eval_every_pairs": 10**6,
            "seed": seed,
        }
    )


def one_pass(
    engine: PackedEngine, pack: Pack, drawn: Sequence[Sequence[rows.Pair]], is_padded: bool
) -> float:
    """Return the CPU seconds of a forward and backward over these pairs of each trial."""
    rows._IS_PADDED_TO_LONGEST["cpu"] = is_padded
    began = time.process_time()
    laid_out = rows.collate(drawn, "cpu")
    engine._install(pack, laid_out.token_counts)
    completion_logps(engine.base, laid_out).sum().backward()
    return time.process_time() - began


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
        pack = Pack([engine.join(config) for config in configs])
        draw = random.Random(0)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(ROUNDS):
            drawn = [draw.sample(engine.train.pairs, options.at_once) for _ in configs]
            for is_padded in (True, False):
                seconds[is_padded].append(one_pass(engine, pack, drawn, is_padded))
        engine.close()
    padded, ragged = (sum(seconds[each]) / ROUNDS / options.at_once / len(configs)
                      for each in (True, False))  # fmt: skip
    print(
        f"{options.trials} trials, {options.at_once} pairs each in a pass, CPU seconds a pair: "
        f"{padded:.3f} padded, {ragged:.3f} without, a ratio of {ragged / padded:.3f}"
    )


if __name__ == "__main__":
    main()
