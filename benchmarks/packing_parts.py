"""The parts of `packing.py`; each returns its numbers."""

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

BEGAN = time.perf_counter()
ROOT = Path(__file__).parent.parent
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONPATH"] = str(ROOT)
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from synthetic import write_model, write_pairs  # noqa: E402

from dpo_train import data, reference  # noqa: E402
from dpo_train.config import TrainConfig  # noqa: E402
from dpo_train.config_base import override  # noqa: E402
from dpo_train.trainers.packed.pack_size import PackSize  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEVICE_NAME = torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU"


@dataclass(frozen=True)
class Size:
    """The size of the training on one kind of device."""

    shape: str
    pairs: int
    trials: int
    train_pairs: int
    """Training pairs of each trial."""
    batches: list[int]
    lengths: dict[str, tuple[int, int]]
    """Fewest and most words of prompt, chosen and rejected; the chat template adds more."""


SIZE = {
    # Rows of 31 tokens.
    "cpu": Size("tiny", 700, 64, 64, [2, 4, 8],
                {"prompt": (6, 6), "chosen": (12, 12), "rejected": (12, 12)}),
    # truthy-dpo's lengths: short questions, some with a system prompt, answers of 20 to 100 tokens.
    "cuda": Size("qwen2-0.5b", 1000, 48, 256, [4, 8, 16],
                 {"prompt": (15, 60), "chosen": (20, 100), "rejected": (20, 100)}),
}[DEVICE]  # fmt: skip
LORA = {"r": 8, "alpha": 16} if DEVICE == "cpu" else {"r": 16, "alpha": 32}
BATCHES, PACKS = [2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32]
BASELINE_TRIALS = 8


def prepared(
    folder: Path, lengths: dict[str, tuple[int, int]], name: str
) -> tuple[TrainConfig, Path]:
    """Return the config of a trial and the prepared data, made once in the folder."""
    model, rows = folder / "model", folder / f"{name}.jsonl"
    dtype = "bfloat16" if DEVICE == "cuda" else "float32"
    if not model.exists():
        write_model(model, SIZE.shape, dtype)
    if not rows.exists():
        write_pairs(rows, SIZE.pairs, lengths)
    config = TrainConfig.model_validate(
        {
            "model": {"id": str(model), "dtype": dtype},
            "data": {"id": str(rows)},
            "trainer": "packed",
            "lora": LORA,
            "optim": {"learning_rate": 1e-4, "warmup_pairs": 16, "epochs": 100},
            "eval_every_pairs": 10**9,
        }
    )
    planned = reference.plan(config, data.load_pairs(config.data), folder / "prepared", DEVICE)
    reference.prepare(planned)
    return config, planned


def points(trials: int) -> list[dict[str, Any]]:
    """Draw points for trials."""
    draw = random.Random(0)
    return [
        {
            "optim.learning_rate": 10 ** draw.uniform(-5, -3),
            "optim.batch_size": draw.choice(SIZE.batches),
            "dpo.beta": 10 ** draw.uniform(-1.5, -0.3),
            "seed": number,
        }
        for number in range(trials)
    ]


def stock_trials(folder: Path, at_once: int) -> dict[str, float]:
    """Measure B1 or B2: plain processes, including their start."""
    prepared(folder, SIZE.lengths, "rows")

    def run(point: dict[str, Any]) -> None:
        size = point["optim.batch_size"]
        request = {
            "model": str(folder / "model"),
            "pairs": str(folder / "rows.jsonl"),
            "device": DEVICE,
            "lora": {"r": LORA["r"], "lora_alpha": LORA["alpha"]},
            "arguments": {
                "per_device_train_batch_size": size,
                "max_steps": SIZE.train_pairs // size,
                "learning_rate": point["optim.learning_rate"],
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": -(-16 // size),
                "beta": point["dpo.beta"],
                "seed": point["seed"],
            },
        }
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "stock_trial.py")], check=True,
                       input=json.dumps(request), stdout=subprocess.DEVNULL, text=True)  # fmt: skip

    if DEVICE == "cuda":
        run(points(1)[0])  # warm-up: files in the cache
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(run, points(BASELINE_TRIALS)))
    return {"trials_per_hour": 3600 * BASELINE_TRIALS / (time.perf_counter() - began)}


def warm_trials(folder: Path) -> dict[str, Any]:
    """Measure B3, one warm session after another: training alone, and with opening and closing."""
    config, planned = prepared(folder, SIZE.lengths, "rows")

    def run(point: dict[str, Any]) -> tuple[float, float]:
        return warm_trial(override(config, point), planned)

    run(points(1)[0])
    trials = points(SIZE.trials if DEVICE == "cpu" else BASELINE_TRIALS)
    began = time.perf_counter()
    done = [run(point) for point in trials]
    wall = time.perf_counter() - began
    rates = {}
    for size in BATCHES:
        point = {**points(1)[0], "optim.batch_size": size}
        steps, seconds = run(point)
        rates[size] = steps * size / seconds
    return {
        "trials_per_hour": 3600 * len(trials) / wall,
        "steps_per_second": sum(s for s, _ in done) / sum(t for _, t in done),
        "pairs_per_second": rates,
    }


def warm_trial(trial: TrainConfig, planned: Path) -> tuple[float, float]:
    """Return the number of steps, and their seconds."""
    from dpo_train.trainers.open import open_session

    every = {"trainer": "trl", "eval_every_pairs": SIZE.train_pairs}
    session = open_session(override(trial, every), planned, DEVICE)
    report = session.advance().report
    session.close()
    return report["step"], report["train_seconds"]


def train_packed(
    engine: Any, trials: list[TrainConfig], at_once: int, pairs: int
) -> tuple[int, float]:
    """Return trial-steps and seconds. A trial leaves after `pairs` pairs, and another joins."""
    waiting, running = list(trials), list[Any]()
    steps, began = 0, time.perf_counter()
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(engine.join(waiting.pop(0)))
        engine.step(running)
        steps += sum(trial.step for trial in running if trial.pairs_seen >= pairs)
        running = [trial for trial in running if trial.pairs_seen < pairs]
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return steps, time.perf_counter() - began


def packed_trials(folder: Path) -> dict[str, Any]:
    """Measure E: up to 32 trials at once, and the table of batch and pack sizes."""
    from dpo_train.trainers.packed.engine import PackedEngine

    config, planned = prepared(folder, SIZE.lengths, "rows")
    engine = PackedEngine(config.model, planned, DEVICE)
    found_by_trying, engine.pack_size = engine.pack_size, _All()
    opening = time.perf_counter() - BEGAN

    def train(points_of_pack: list[dict[str, Any]], at_once: int, pairs: int) -> tuple[int, float]:
        return train_packed(engine, [override(config, p) for p in points_of_pack], at_once, pairs)

    pairs = SIZE.train_pairs
    train(points(4), 4, 16)
    alone = train(points(BASELINE_TRIALS), 1, pairs)
    steps, seconds = train(points(SIZE.trials), 32, pairs)
    engine.pack_size = found_by_trying
    tried = train(points(SIZE.trials), 32, pairs)
    found = engine.pack_size.trials_per_pass(32)
    again = train(points(SIZE.trials), 32, pairs)
    engine.pack_size = _All()
    rates = {}
    for size in BATCHES:
        for pack in PACKS:
            pack_points = [{**p, "optim.batch_size": size} for p in points(pack)]
            each = max(size, min(64, 256 // pack) // size * size)
            _, spent = train(pack_points, pack, each)
            rates[f"{size} {pack}"] = pack * each / spent
    return {
        "trials_per_hour": 3600 * SIZE.trials / (seconds + opening),
        "steps_per_second": steps / seconds,
        "steps_per_second_alone": alone[0] / alone[1],
        "steps_per_second_tried": tried[0] / tried[1],
        "steps_per_second_found": again[0] / again[1],
        "pack_size_found": found,
        "pairs_per_second": rates,
        "utilisation": utilisation(engine, pairs * SIZE.trials / seconds),
    }


class _All(PackSize):
    """Puts all trials into one pass, however slow, as the table requires."""

    is_trying = False

    def trials_per_pass(self, trials: int) -> int:
        return trials


def utilisation(engine: Any, pairs_per_second: float) -> float | None:
    """Return model FLOPs over useful tokens (each prompt once), divided by the GPU's peak in
    bfloat16. A frozen base costs 4 per weight and token, forward and backward."""
    peaks = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
    peak = next((flops for kind, flops in peaks.items() if kind in DEVICE_NAME), None)
    if peak is None:
        return None
    pairs = engine.train.pairs
    tokens = sum(len(pair.ids) for pair in pairs) / len(pairs)
    weights: int = sum(weight.numel() for weight in engine.base.parameters())
    return 4 * weights * tokens * pairs_per_second / peak


def prefix(folder: Path) -> dict[str, float]:
    """Compare a step that has each prompt once with one that has it twice, three times in turn."""
    from dpo_train.trainers.packed.engine import PackedEngine
    from dpo_train.trainers.packed.rows import lay_out_all

    lengths = {"prompt": (21, 21), "chosen": (14, 14), "rejected": (14, 14)}
    config, planned = prepared(folder, lengths, "long-prompts")
    engine = PackedEngine(config.model, planned, DEVICE)
    columns = reference.prepare(planned).split("train")[:]
    layouts = {"shared": engine.train.pairs, "plain": lay_out_all(columns, shared=False)}
    best = dict.fromkeys(layouts, float("inf"))
    for _ in range(3):
        for name, pairs in layouts.items():
            engine.train.pairs = pairs
            trials = [engine.join(override(config, {"optim.batch_size": 4, "seed": n}))
                      for n in range(8)]  # fmt: skip
            for step in range(15):
                if step == 5:
                    began = time.perf_counter()
                engine.step(trials)
            best[name] = min(best[name], (time.perf_counter() - began) / 10)
    ids = columns["prompt_ids"][0], columns["chosen_ids"][0]
    return {**best, "prompt_tokens": len(ids[0]), "completion_tokens": len(ids[1])}


def embedded(folder: Path) -> dict[str, float]:
    """Measure trial-steps per second of sixteen trials of the embedded model: eight at once, and
    one after another in a warm `trl` session."""
    from dpo_train.trainers.packed.engine import PackedEngine

    config = TrainConfig.model_validate(
        {"trainer": "packed", "lora": LORA, "data": {"limit": 600}, "eval_every_pairs": 10**9,
         "optim": {"warmup_pairs": 16, "epochs": 100}}
    )  # fmt: skip
    planned = reference.plan(config, data.load_pairs(config.data), folder / "prepared", DEVICE)
    trials = [override(config, point) for point in points(17)]
    warm_trial(trials[0], planned)
    done = [warm_trial(trial, planned) for trial in trials[1:]]
    engine = PackedEngine(config.model, planned, DEVICE)
    train_packed(engine, trials[:1], 1, SIZE.train_pairs)
    steps, seconds = train_packed(engine, trials[1:], 8, SIZE.train_pairs)
    return {"E": steps / seconds, "B3": sum(s for s, _ in done) / sum(t for _, t in done)}


def quality(folder: Path) -> dict[str, Any]:
    """Return the best eval/accuracy of six trials of the sample, E's minus the `trl` session's,
    with the same points, for five seeds. A test compares the `trl` session with a stock trainer."""
    from dpo_train.trainers.open import open_session
    from dpo_train.trainers.packed.engine import PackedEngine

    config = TrainConfig.model_validate(
        {"trainer": "packed", "lora": LORA, "data": {"limit": 600}, "eval_every_pairs": 160,
         "optim": {"warmup_pairs": 16}}
    )  # fmt: skip
    planned = reference.plan(config, data.load_pairs(config.data), folder / "prepared", DEVICE)
    found: dict[str, list[float]] = {"E": [], "trl": []}
    for seed in range(5):
        draw = random.Random(seed)
        configs = [
            override(config, {"optim.learning_rate": 10 ** draw.uniform(-3.5, -2), "seed": seed,
                              "optim.batch_size": draw.choice([4, 8]),
                              "dpo.beta": 10 ** draw.uniform(-1.5, -0.3)})
            for _ in range(6)
        ]  # fmt: skip
        best = 0.0
        for trial in configs:
            session = open_session(override(trial, {"trainer": "trl"}), planned, DEVICE)
            best = max(best, session.advance().report["eval/accuracy"])
            session.close()
        found["trl"].append(best)
        engine = PackedEngine(config.model, planned, DEVICE)
        trials = [engine.join(trial) for trial in configs]
        while running := [trial for trial in trials if not trial.is_due]:
            engine.step(running)
        held_out = engine.evaluate(trials)
        engine.close()
        found["E"].append(max(float(values["accuracy"].mean()) for values in held_out if values))
    apart = [e - b for e, b in zip(found["E"], found["trl"], strict=True)]
    half = 2.776 * stdev(apart) / 5**0.5  # Student's t, 4 degrees of freedom
    return {**found, "difference": mean(apart), "half_interval": half}


PARTS = {
    "B1": lambda folder: stock_trials(folder, 1),
    "B2": lambda folder: stock_trials(folder, 4),
    "B3": warm_trials,
    "E": packed_trials,
    "prefix": prefix,
    "embedded": embedded,
    "quality": quality,
}
