"""Compares our trainers and our search with stock TRL and Ray on SmolLM2-135M-Instruct.

    python benchmarks/real_model.py [--pairs FILE] [--part trainers|search] [--out FILE.json]

`trainers` runs full fine-tuning and LoRA with `trl` and LoRA with `packed`, and a stock DPOTrainer
with its own reference, over the same 64 pairs. They run one after the other, in a process with one
thread each. It compares losses step by step, seconds, tokens and memory. `search` runs eight LoRA
trials with `dpo-tune run` and as Ray's documentation does (stock_search.py), over the same rows,
points, rungs and cores. Prints Markdown for RESULTS.md. The pairs are the sample's unless a file is
given. The model is that of `make real`, which smollm2.py makes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from search_throughput import ROOT, draw_points, ours, stock

sys.path.insert(0, str(ROOT))

import smollm2

from dpo_train.config import TrainConfig
from dpo_train.config_base import override, parse_overrides
from dpo_train.data import load_pairs
from tune.config.load import load_search

BATCH = 8
TRAINERS_PAIRS = {"train": 64, "eval": 2, "test": 2}
"""Hardly any pairs are held out: only steps matter, and ours is evaluated after each."""
SEARCH_PAIRS = {"train": 128, "eval": 24, "test": 24}
TRIALS, RUNG = 8, 64
"""Size of the search: one or two epochs, evaluated every 64 pairs, rungs at 64 and 192."""
LORA = {"r": 16, "alpha": 32}
STOCK_LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
RATES = {"full": 1e-5, "LoRA": 4e-4}
TRAINERS: dict[str, dict[str, Any]] = {
    "trl, full": {"trainer": "trl", "lora": None},
    "trl, LoRA": {"trainer": "trl", "lora": LORA},
    "packed, LoRA": {"trainer": "packed", "lora": LORA},
}
TOLERANCE = 1e-4
"""The largest allowed difference of a step's loss."""


# The data of both parts.


def write_splits(pairs: str, sizes: dict[str, int], folder: Path) -> Path:
    """Write the first rows of each split as a dataset that has these splits."""
    changes = parse_overrides(smollm2.changes(pairs, Path()))
    splits = load_pairs(load_search(smollm2.SEARCH, changes).data).splits
    folder.mkdir()
    for name, size in sizes.items():
        rows = splits[name][:size]
        if len(rows) < size:
            sys.exit(f"error: {pairs} has {len(rows)} rows for {name}, and {size} are needed")
        lines = [json.dumps(row.as_json()) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


# The trainers.


def trial(model: str, data: Path, kind: str) -> TrainConfig:
    """Return a trial that is evaluated after every step, which gives each step's loss and time."""
    rate = RATES["LoRA" if TRAINERS[kind]["lora"] else "full"]
    base = TrainConfig(eval_every_pairs=BATCH)
    return override(base, {
        "model.id": model, "data.id": str(data), "data.eval_split": "eval",
        "data.test_split": "test", "optim.batch_size": BATCH, "optim.learning_rate": rate,
        "optim.schedule": "constant", **TRAINERS[kind],
    })  # fmt: skip


def our_side(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train with one of our trainers, with the reference pass that a search does once."""
    from dpo_train import reference
    from dpo_train.trainers.open import open_session

    began = time.perf_counter()
    pairs = load_pairs(config.data)
    prepared = reference.plan(config, pairs, folder, "cpu")
    reference.prepare(prepared)
    reference_seconds = time.perf_counter() - began
    session = open_session(config, prepared, "cpu")
    reports = [session.advance().report]
    while reports[-1]["pairs_seen"] < session.pairs_total:
        reports.append(session.advance().report)
    return {
        "losses": [report["train/loss"] for report in reports],
        "seconds": [report["train_seconds"] for report in reports],
        "reference_seconds": reference_seconds,
    }


def stock_side(config: TrainConfig) -> dict[str, Any]:
    """Train with a stock DPOTrainer, which computes the reference in every step."""
    from one_step import Clock

    from tests.helpers.stock_dpo import train

    splits = load_pairs(config.data).splits
    clock = Clock()
    result = train(
        {
            "model": config.model.id,
            "train": [row.as_json() for row in splits["train"]],
            "eval": [row.as_json() for row in splits["eval"]],
            "lora": STOCK_LORA if config.lora else None,
            "arguments": {
                "per_device_train_batch_size": BATCH,
                "num_train_epochs": 1,
                "learning_rate": config.optim.learning_rate,
                "lr_scheduler_type": "constant",
                "beta": config.dpo.beta,
                "seed": config.seed,
                "activation_checkpointing": False,
                "dataloader_pin_memory": False,
            },
        },
        [clock],
    )
    ids = result["ids"]
    tokens = sum(len(each) for name in ids for each in ids[name])
    return {"losses": result["losses"], "seconds": clock.seconds, "tokens": tokens}


def side(request: dict[str, Any]) -> dict[str, Any]:
    """Train one side in a process of its own."""
    import torch

    torch.set_num_threads(1)
    config = TrainConfig.model_validate(request["config"])
    folder = Path(request["folder"])
    found = stock_side(config) if request["stock"] else our_side(config, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux says kilobytes
    return {**found, "peak_bytes": peak}


def trainers(model: str, data: Path, folder: Path) -> dict[str, Any]:
    """Run all trainers."""
    found: dict[str, Any] = {}
    for kind in TRAINERS:
        config = trial(model, data, kind)
        if stock_of(kind) not in found:
            found[stock_of(kind)] = in_a_process(config, folder, stock=True)
        found[kind] = in_a_process(config, folder / kind.replace(", ", "-"))
    return found


def stock_of(kind: str) -> str:
    """Return the stock side with which one of ours is compared."""
    return kind.replace(kind.split(", ")[0], "stock")


def in_a_process(config: TrainConfig, folder: Path, stock: bool = False) -> dict[str, Any]:
    """Run one side in a process."""
    request = {"config": config.model_dump(mode="json"), "folder": str(folder), "stock": stock}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--side"],
        input=json.dumps(request), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**found, "whole_seconds": time.perf_counter() - began}


def trainers_table(found: dict[str, Any]) -> list[str]:
    """Print the table of the trainers."""
    lines = [
        "| trainer | losses apart by at most | seconds a step of 8 pairs: ours, stock, ratio "
        "| tokens a second: ours, stock | memory at most: ours, stock |",
        "|---|---|---|---|---|",
    ]
    for kind in TRAINERS:
        a, b = found[kind], found[stock_of(kind)]
        step, theirs = median(a["seconds"]), median(b["seconds"])
        tokens = b["tokens"] / sum(a["seconds"]), b["tokens"] / sum(b["seconds"])
        lines.append(
            f"| {kind} | {largest_difference(a, b):.1e} "
            f"| {step:.2f}, {theirs:.2f}, {step / theirs:.2f} "
            f"| {tokens[0]:.0f}, {tokens[1]:.0f} "
            f"| {a['peak_bytes'] / 1e9:.2f} GB, {b['peak_bytes'] / 1e9:.2f} GB |"
        )
    pairs, reference = TRAINERS_PAIRS["train"], found["packed, LoRA"]["reference_seconds"]
    return [
        *lines,
        "",
        f"{pairs} pairs in {len(found['packed, LoRA']['losses'])} steps, one thread. Tokens are "
        "those of prompt, chosen and rejected, each once, without padding. Stock computes the "
        "reference in every step; ours once before, here with reading the data in "
        f"{reference:.0f} s for {sum(TRAINERS_PAIRS.values())} pairs.",
    ]


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Return the largest difference of a step's loss."""
    pairs = list(zip(a["losses"], b["losses"], strict=True))
    return max(abs(float(mine - theirs)) for mine, theirs in pairs)


# The search.


def search(model: str, data: Path) -> dict[str, Any]:
    """Run both searches."""
    config = load_search(smollm2.SEARCH, {
        "model.id": model, "data": {"id": str(data), "eval_split": "eval", "test_split": "test"},
        "eval_every_pairs": RUNG, "stopping.grace_pairs": RUNG, "stopping.metric": "eval/margin",
        "constraints": {}, "objective": "eval/accuracy", "points": [],
        "space": {"optim.batch_size": {"choice": [BATCH]}, "optim.epochs": {"int": [1, 2]}},
    })  # fmt: skip
    points = draw_points(TRIALS, [BATCH])
    sides = {"ours": ours(config, points), "stock": stock(config, points)}
    # Our side has no number for warm processes, because all its trials begin at once.
    return {
        name: {what: value for what, value in side.items() if value == value}
        for name, side in sides.items()
    }


def search_table(found: dict[str, Any]) -> list[str]:
    """Print the table of the searches."""
    a, b = found["ours"], found["stock"]
    rows = {
        "trials an hour": [3600 * each["trials"] / each["seconds"] for each in (a, b)],
        "pairs a second": [each["pairs"] / each["seconds"] for each in (a, b)],
        "seconds, from the command to the end": [a["seconds"], b["seconds"]],
        "pairs trained on": [a["pairs"], b["pairs"]],
    }
    lines = ["| what | ours | Ray's documentation and stock TRL | ratio |", "|---|---|---|---|"]
    lines += [f"| {name} | {x:,.4g} | {y:,.4g} | {x / y:.2f} |" for name, (x, y) in rows.items()]
    return [
        *lines,
        "",
        f"On both sides {TRIALS} trials of LoRA over {SEARCH_PAIRS['train']} pairs, one or two "
        f"epochs, evaluated on {SEARCH_PAIRS['eval']} at each {RUNG} and compared at {RUNG} and "
        f"{3 * RUNG}: smaller than `make real`, so that stock ends within half an hour. Ours also "
        f"compares the winner with the base on {SEARCH_PAIRS['test']} pairs and writes a report.",
    ]


# Both.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", default="sample", help="a file of preference pairs")
    parser.add_argument("--model", help="a folder of the model, in place of that of `make real`")
    parser.add_argument("--part", choices=["trainers", "search"], help="run one part")
    parser.add_argument("--out", type=Path, help="a file for what was measured, as JSON")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print("\n" + json.dumps(side(json.load(sys.stdin))))
        return
    model = options.model or str(smollm2.model_folder(smollm2.models_folder()))
    libraries = ("torch", "transformers", "trl", "peft", "ray")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; {versions}; {options.pairs}\n", flush=True
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if options.part in (None, "trainers"):
            data = write_splits(options.pairs, TRAINERS_PAIRS, Path(scratch) / "of-trainers")
            found["trainers"] = trainers(model, data, Path(scratch))
            print("\n".join(trainers_table(found["trainers"])), flush=True)
        if options.part in (None, "search"):
            data = write_splits(options.pairs, SEARCH_PAIRS, Path(scratch) / "of-search")
            found["search"] = search(model, data)
            print("\n".join(["", *search_table(found["search"])]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    for kind in TRAINERS if "trainers" in found else ():
        each = found["trainers"]
        if largest_difference(each[kind], each[stock_of(kind)]) > TOLERANCE:
            sys.exit(f"{kind}: a step's loss is further than {TOLERANCE:g} from stock TRL's")


if __name__ == "__main__":
    main()
