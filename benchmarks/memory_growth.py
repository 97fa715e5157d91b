"""Measures whether a warm process grows: it trains trials of changing shapes for some minutes.

    python benchmarks/memory_growth.py packed|trl [MINUTES]

Prints the private resident memory after each closed trial. The comparison leaves out the first
trials, because they include what is allocated only once.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from dpo_train import data, reference
from dpo_train.config import DataConfig, TrainConfig
from dpo_train.config_base import override
from dpo_train.memory import own_bytes
from dpo_train.trainers.open import open_session

FIRST_TRIALS = 5


def main(trainer: str, minutes: float) -> None:
    base = TrainConfig.model_validate(
        {"data": DataConfig(limit=300), "trainer": trainer, "lora": {}, "eval_every_pairs": 100}
    )
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        prepared = reference.plan(base, data.load_pairs(base.data), Path(folder), "cpu")
        reference.prepare(prepared)
        held: list[int] = []
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until or len(held) <= FIRST_TRIALS:
            shape = {
                "optim.batch_size": draw.choice([1, 3, 8, 20, 50, 100]),
                "lora.r": draw.choice([2, 8, 32, 64]),
                "optim.learning_rate": 1e-4,
            }
            session = open_session(override(base, shape), prepared, "cpu")
            session.advance()
            session.close()
            held.append(own_bytes())
    settled = held[FIRST_TRIALS:]
    quarter = max(1, len(settled) // 4)
    first, last = max(settled[:quarter]), max(settled[-quarter:])
    print(
        f"{trainer}: {len(held)} trials in {minutes:g} minutes; private memory at most "
        f"{first / 1e6:.0f} MB in the first quarter, {last / 1e6:.0f} MB in the last "
        f"({last / first - 1:+.1%})"
    )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 60)
