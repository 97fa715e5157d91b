"""The recorded curves on which search_quality.py compares searches, and how they are recorded.

Trains the embedded model on a grid of learning rate and beta, four seeds each, and keeps what each
held-out pair had at each evaluation in dpo_curves.npz.
"""

import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

CURVES = Path(__file__).with_name("dpo_curves.npz")
RATES = np.geomspace(3e-5, 3e-3, 6)
BETAS = np.array([0.1, 0.4])
SEEDS = 4
TRAIN, EVERY = 240, 60


def record() -> None:
    """Trains the grid in as many processes as there are cores; what is there is kept."""
    from dpo_train import data, reference

    config = grid_config()
    root = Path(CURVES.parent / ".recording")
    pairs = data.load_pairs(config.data)
    prepared = reference.plan(config, pairs, root, "cpu")
    reference.prepare(prepared)
    points = [
        (rate, beta, seed)
        for rate in range(len(RATES))
        for beta in range(len(BETAS))
        for seed in range(SEEDS)
        if not (root / f"{rate}-{beta}-{seed}.npz").exists()
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for point in pool.map(record_one, [prepared] * len(points), points):
            print("recorded", *point, flush=True)
    shape = (len(RATES), len(BETAS), SEEDS)
    there = [np.load(root / f"{'-'.join(map(str, index))}.npz") for index in np.ndindex(*shape)]
    np.savez_compressed(
        CURVES,
        right=np.stack([each["right"] for each in there]).reshape(*shape, -1, there[0]["pairs"]),
        nll=np.stack([each["nll"] for each in there]).reshape(*shape, -1, there[0]["pairs"]),
        pairs_seen=there[0]["pairs_seen"],
    )
    shutil.rmtree(root)


def grid_config() -> Any:
    from dpo_train.config import DataConfig, OptimConfig, TrainConfig

    return TrainConfig(
        data=DataConfig(limit=640, eval_fraction=0.5, test_fraction=0.125),
        optim=OptimConfig(batch_size=8, warmup_pairs=16),
        eval_every_pairs=EVERY,
    )


def record_one(prepared: Path, point: tuple[int, int, int]) -> tuple[int, int, int]:
    from dpo_train.config_base import override
    from dpo_train.trainers.open import open_session

    rate, beta, seed = point
    trial = override(
        grid_config(),
        {
            "optim.learning_rate": float(RATES[rate]),
            "dpo.beta": float(BETAS[beta]),
            "seed": seed,
        },
    )
    session = open_session(trial, prepared, "cpu")
    seen, right, nll = [], [], []
    while not seen or seen[-1] < session.pairs_total:
        seen.append(int(session.advance()["pairs_seen"]))
        right.append(np.array(session.held_out["eval/accuracy"]) * 2)
        nll.append(session.held_out["eval/nll"])
    session.close()
    np.savez(
        prepared.parent / f"{rate}-{beta}-{seed}.npz",
        right=np.array(right, dtype=np.uint8),
        nll=np.array(nll, dtype=np.float16),
        pairs_seen=np.array(seen),
        pairs=len(right[0]),
    )
    return point
