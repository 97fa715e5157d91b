"""Compares the trials per hour of our search with B1, the same search written the usual way.

Both sides run one after the other on this machine, with the same rows, points, seeds, rungs and
thread limits. The cold start is counted. There are two shapes of full fine-tuning, the quickstart's
24 trials and four trials of ten times the pairs, and `packed`: 64 LoRA trials of a tiny model, ours
packed. `--only` runs a part. RESULTS.md has the measurements.
"""

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PYTHONPATH"] = str(ROOT)

from dpo_train import data  # noqa: E402
from dpo_train.model_source import local_folder  # noqa: E402
from tune.config.load import load_search  # noqa: E402
from tune.config.schema import SearchConfig  # noqa: E402

SHAPES = {"short": (1, 24), "long": (10, 4)}
"""How often the quickstart's pairs, and trials: 24 long ones would take hours on two cores."""
WORKERS = os.cpu_count() or 1


def shaped(factor: int, trials: int) -> tuple[SearchConfig, list[dict[str, Any]]]:
    """Return the quickstart with `factor` times the pairs, and points drawn for both sides."""
    config = load_search(ROOT / "searches" / "quickstart.yaml", {"eval_every_pairs": 128 * factor,
        "stopping.grace_pairs": 128 * factor, "stopping.metric": "eval/margin"})  # fmt: skip
    return config, draw_points(trials, [4, 8, 16], factor)


def packed_shape(folder: Path) -> tuple[SearchConfig, list[dict[str, Any]]]:
    """Return 64 LoRA trials of 2 layers of width 64, rows of 31 tokens, batches of 2 to 8."""
    from synthetic import write_model, write_pairs

    lengths = {"prompt": (6, 6), "chosen": (12, 12), "rejected": (12, 12)}
    model = write_model(folder / "model", "tiny")
    rows = write_pairs(folder / "rows.jsonl", 700, lengths)
    config = load_search(ROOT / "searches" / "quickstart.yaml", {
        "model.id": str(model), "data.id": str(rows), "trainer": "packed",
        "lora": {"r": 8, "alpha": 16}, "eval_every_pairs": 64, "stopping.grace_pairs": 64,
        "stopping.metric": "eval/margin",
        "space": {**BOUNDS, "optim.batch_size": {"choice": [2, 4, 8]},
                  "optim.epochs": {"int": [1, 2]}},
        "points": [],
    })  # fmt: skip
    return config, draw_points(64, [2, 4, 8])


def draw_points(trials: int, batch_sizes: list[int], factor: int = 1) -> list[dict[str, Any]]:
    """Draw points for both sides."""
    draw = random.Random(0)
    return [
        {
            "optim.learning_rate": 10 ** draw.uniform(-5, -3),
            "optim.batch_size": draw.choice(batch_sizes),
            "optim.epochs": draw.choice([1, 2]) * factor,
            "dpo.beta": 10 ** draw.uniform(-1.5, -0.3),
        }
        for _ in range(trials)
    ]


BOUNDS = {
    "optim.learning_rate": {"log_uniform": [1e-5, 1e-3]},
    "dpo.beta": {"log_uniform": [0.03, 0.51]},
}
"""The ranges of points for both sides."""


def ours(config: SearchConfig, points: list[dict[str, Any]]) -> dict[str, float]:
    """Run our search and return its numbers."""
    content = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    del content["points"]
    with tempfile.TemporaryDirectory() as folder:
        content |= {"runs_dir": folder, "points": points, "name": "ours", "trials": len(points)}
        content["wandb"] = {"mode": "disabled"}  # neither side logs
        epochs = [point["optim.epochs"] for point in points]
        content["space"] |= {**BOUNDS, "optim.epochs": {"int": [min(epochs), max(epochs) + 1]}}
        yaml = Path(folder) / "ours.yaml"
        yaml.write_text(json.dumps(content))  # JSON is YAML
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tune", "run", str(yaml)], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        seconds = time.perf_counter() - began
        results = json.loads((Path(folder) / "ours" / "results.json").read_text())
        lines = (Path(folder) / "ours" / "places.jsonl").read_text().splitlines()
    curves = [trial["curve"] for trial in results["trials"]]
    return {
        "seconds": seconds,
        "trials": len(curves),
        "pairs": sum(curve[-1]["pairs_seen"] for curve in curves),
        "step_seconds": sum(point["train_seconds"] for curve in curves for point in curve),
        "evaluation_seconds": sum(point["eval_seconds"] for curve in curves for point in curve),
        "outside": outside_of_ours(results["trials"]),
        "handover": handover(results["trials"], [json.loads(line) for line in lines]),
    }


def handover(trials: list[dict[str, Any]], placements: list[dict[str, Any]]) -> float:
    """Return the median seconds from a trial's end to the next one's beginning in the same process;
    NaN if all began at once."""
    process = {placement["trial"]: placement["pid"] for placement in placements}
    last: dict[int, float] = {}
    seconds = []
    for trial in sorted(trials, key=lambda trial: trial["began"]):
        if (pid := process[trial["id"]]) in last:
            seconds.append(trial["began"] - last[pid])
        last[pid] = trial["ended"]
    return median(seconds) if seconds else math.nan


def outside_of_ours(trials: list[dict[str, Any]]) -> float:
    """Return the seconds per trial outside of steps and evaluations, for trials in warm processes.

    The time is from the end of the worker's previous trial to the end of this one, so it includes
    Tune's share. The first trial of each worker belongs to the cold start, since it imports.
    Without a second one there is no number.
    """
    lanes: list[float] = []
    spent: list[float] = []
    for trial in sorted(trials, key=lambda trial: trial["began"]):
        free = [end for end in lanes if end <= trial["began"]]
        if free:
            used = sum(point["train_seconds"] + point["eval_seconds"] for point in trial["curve"])
            spent.append(trial["ended"] - max(free) - used)
            lanes.remove(max(free))
        lanes.append(trial["ended"])
    return sum(spent) / len(spent) if spent else math.nan


def stock(config: SearchConfig, points: list[dict[str, Any]]) -> dict[str, float]:
    """Run the stock search and return its numbers."""
    pairs = data.load_pairs(config.data)
    lora = config.lora and {"r": config.lora.r, "lora_alpha": config.lora.alpha}
    request = {
        "shared": {
            "model": str(local_folder(config.model)),
            "lora": lora,
            "warmup_pairs": config.optim.warmup_pairs,
            "eval_every_pairs": config.eval_every_pairs,
            "rows": {
                name: [row.as_json() for row in pairs.splits[name]] for name in ("train", "eval")
            },
        },
        "points": [
            {path.rpartition(".")[2]: value for path, value in point.items()} for point in points
        ],
        "grace_pairs": config.stopping.grace_pairs,
        "reduction": config.stopping.reduction,
        "max_pairs": 10**9,
    }
    numbers: dict[str, float] = json.loads(_child("stock_search.py", json.dumps(request)))
    return numbers


def steps() -> dict[str, float]:
    """Return the median seconds of one step of 8 pairs, ours and stock, three times in turn."""
    rounds: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(3):
        for side in rounds:
            rounds[side].append(float(_child("one_step.py", side)))
    return {side: median(seconds) for side, seconds in rounds.items()}


def _child(script: str, request: str) -> str:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / script)], input=request,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*SHAPES, "packed", "step"], help="run one part")
    only = parser.parse_args().only
    libraries = ("torch", "transformers", "trl", "ray", "optuna")
    print(f"{platform.machine()}, {WORKERS} cores, no GPU;",
          ", ".join(f"{name} {version(name)}" for name in libraries))  # fmt: skip
    for shape, size in SHAPES.items():
        if only in (None, shape):
            config, points = shaped(*size)
            show(shape, ours(config, points), stock(config, points))
    if only in (None, "packed"):
        with tempfile.TemporaryDirectory() as folder:
            config, points = packed_shape(Path(folder))
            show("packed", ours(config, points), stock(config, points))
    if only in (None, "step"):
        seconds = steps()
        ratio = seconds["ours"] / seconds["stock"]
        print(
            f"\none step of 8 pairs: ours {1000 * seconds['ours']:.1f} ms, "
            f"stock {1000 * seconds['stock']:.1f} ms, ratio {ratio:.2f}"
        )


def show(shape: str, a: dict[str, float], b: dict[str, float]) -> None:
    """Print the comparison."""

    def row(name: str, left: float, right: float) -> None:
        print(f"{name:44} {left:10.2f} {right:10.2f} {left / right:8.2f}", flush=True)

    def outside(side: dict[str, float]) -> float:
        used = side["step_seconds"] + side["evaluation_seconds"]
        return side.get("outside", (WORKERS * side["seconds"] - used) / side["trials"])

    print(f"\n{shape:44} {'ours':>10} {'B1':>10} {'ratio':>8}")
    row("trials per hour", *(3600 * side["trials"] / side["seconds"] for side in (a, b)))
    row("pairs per second", *(side["pairs"] / side["seconds"] for side in (a, b)))
    row("seconds, cold start and end counted", a["seconds"], b["seconds"])
    row("pairs trained on", a["pairs"], b["pairs"])
    print(f"{'seconds for a process to take its next trial':44} {a['handover']:10.2f}")
    if shape == "packed":
        return  # trials share their steps
    row("seconds in steps, per 1,000 pairs",
        *(1000 * side["step_seconds"] / side["pairs"] for side in (a, b)))  # fmt: skip
    row("seconds in evaluations, per trial",
        *(side["evaluation_seconds"] / side["trials"] for side in (a, b)))  # fmt: skip
    row("seconds per trial outside both", outside(a), outside(b))


if __name__ == "__main__":
    main()
