"""Records the curves on which search_quality.py and winner_rules.py replay searches.

    python benchmarks/record_curves.py sample|losses
    python benchmarks/record_curves.py easy --pairs FILE
    python benchmarks/record_curves.py real --model FOLDER --pairs FILE

Each training is saved when it ends, so an interrupted recording can go on. The last step packs all
into curves/<set>.npz. `real` takes hours on two cores, the others minutes.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from curves import FOLDER, SETS  # noqa: E402

RATES = np.geomspace(3e-5, 3e-3, 6)
BETAS = np.array([0.1, 0.4])
SEEDS = 4
TRAIN, EVERY = 240, 60


def grid(rates: Any, betas: Any, seeds: int) -> list[dict[str, Any]]:
    """Return the points seed by seed, so that a few recordings cover the whole grid."""
    return [
        {"optim.learning_rate": float(rate), "dpo.beta": float(beta), "seed": seed}
        for seed in range(seeds)
        for beta in betas
        for rate in rates
    ]


def points_of(name: str) -> list[dict[str, Any]]:
    """Return the points of a set in the order of training."""
    if name == "sample":
        # search_quality.py expects the order rate by rate.
        points = grid(RATES, BETAS, SEEDS)
        return sorted(points, key=lambda p: (p["optim.learning_rate"], p["dpo.beta"], p["seed"]))
    if name == "real":
        return grid((2e-4, 8e-4, 1e-4, 4e-4, 3e-5, 2e-3), BETAS, 2)
    if name == "easy":
        return grid(np.geomspace(1e-4, 1e-2, 6), BETAS, 2)
    draw = np.random.default_rng(5)
    return [
        {
            "dpo.loss": ("sigmoid", "ipo", "hinge")[number % 3],
            "optim.learning_rate": float(np.exp(draw.uniform(np.log(2e-4), np.log(1e-2)))),
            "dpo.beta": float(np.exp(draw.uniform(np.log(0.02), np.log(1.0)))),
            "optim.batch_size": int(draw.choice([4, 8, 16])),
            "seed": int(draw.integers(1000)),
        }
        for number in range(60)
    ]


def config_of(name: str, model: str, pairs: str) -> Any:
    """Return the configuration of a training."""
    from dpo_train.config import DataConfig, LoraConfig, ModelConfig, OptimConfig, TrainConfig

    packed = {"trainer": "packed", "lora": LoraConfig()}
    kinds: dict[str, dict[str, Any]] = {
        "sample": {
            "data": DataConfig(limit=640, eval_fraction=0.5, test_fraction=0.125),
            "eval_every_pairs": EVERY,
        },
        "losses": {
            "data": DataConfig(limit=800, eval_fraction=0.5, test_fraction=0.1),
            "eval_every_pairs": 80,
            **packed,
        },
        "easy": {
            "data": DataConfig(id=pairs, eval_fraction=0.5, test_fraction=0.05),
            "eval_every_pairs": 32,
            **packed,
        },
        "real": {
            "model": ModelConfig(id=model),
            "data": DataConfig(id=pairs, limit=510, eval_fraction=0.47, test_fraction=0.05),
            "eval_every_pairs": 64,
            "trainer": "packed",
            "lora": LoraConfig(r=16, alpha=32),
        },
    }
    optim = OptimConfig(batch_size=8, warmup_pairs=16)
    return TrainConfig(optim=optim, **kinds[name])


def record_one(config: Any, prepared: Path, point: dict[str, Any], file: Path) -> str:
    """Train one point and save its curve."""
    from dpo_train.config_base import override
    from dpo_train.trainers.open import open_session

    session = open_session(override(config, point), prepared, "cpu")
    seen: list[int] = []
    kept: dict[str, list[Any]] = {"margin": [], "drift": [], "ranking": []}
    while not seen or seen[-1] < session.pairs_total:
        evaluation = session.advance()
        seen.append(evaluation.pairs_seen)
        for column in ("margin", "ranking"):
            kept[column].append(evaluation.held_out[f"eval/{column}"])
        kept["drift"].append(evaluation.report["eval/drift"])
    session.close()
    unfinished = file.with_suffix(".part.npz")
    np.savez(
        unfinished,
        pairs_seen=np.array(seen),
        rates=point["optim.learning_rate"],
        betas=point["dpo.beta"],
        **{column: np.array(values) for column, values in kept.items()},  # type: ignore[arg-type]
    )
    unfinished.replace(file)
    accuracy = np.mean(np.array(kept["margin"]) > 0, axis=-1).round(3).tolist()
    return f"{file.stem} {point} accuracy {accuracy}"


def record(name: str, model: str, pairs: str) -> None:
    """Train in as many processes as there are cores; existing recordings are kept."""
    from dpo_train import data, model_source, reference

    folder = FOLDER / f".{name}"
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(name, model, pairs)
    config = config.model_copy(update={"model": model_source.resolve(config.model)})
    rows = data.load_pairs(config.data)
    print(rows.summary(), flush=True)
    prepared = reference.plan(config, rows, folder, "cpu")
    reference.prepare(prepared)
    points = points_of(name)
    files = [folder / f"{number:03d}.npz" for number in range(len(points))]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        waiting = [
            pool.submit(record_one, config, prepared, point, file)
            for point, file in zip(points, files, strict=True)
            if not file.exists()
        ]
        for done in waiting:
            print(done.result(), flush=True)
    pack(name, files)


def pack(name: str, files: list[Path]) -> None:
    """Write all existing recordings into one small file. Half precision keeps a margin's sign."""
    recorded = [dict(np.load(file)) for file in files if file.exists()]
    stacked = {column: np.stack([each[column] for each in recorded]) for column in recorded[0]}
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        margin=stacked["margin"].astype(np.float16),
        drift=stacked["drift"].astype(np.float32),
        ranking=stacked["ranking"].astype(np.float16),
        pairs_seen=stacked["pairs_seen"][0],
        rates=stacked["rates"],
        betas=stacked["betas"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--model", default="", help="folder of SmolLM2-135M-Instruct, for `real`")
    parser.add_argument("--pairs", default="", help="file of preference pairs, for real and easy")
    options = parser.parse_args()
    record(options.set, options.model, options.pairs)


if __name__ == "__main__":
    main()
