"""Compares the memory that `dpo_train.footprint` estimates for a training process with its peak.

    python benchmarks/memory.py [FOLDER OF A MODEL ...] [--only WORD]

Measures the sample, each given folder, and random weights in the shape of Qwen2-0.5B; packed and
with TRL, LoRA and full. Each case has a process of its own, on the CPU, with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from synthetic import write_model, write_pairs

from dpo_train.config import TrainConfig
from dpo_train.config_base import override

os.environ["OMP_NUM_THREADS"] = "1"
CASES: dict[str, dict[str, Any]] = {
    "packed": {"trainer": "packed", "lora": {}},
    "trl, LoRA": {"trainer": "trl", "lora": {}},
    "trl, full": {"trainer": "trl"},
}
KNOBS: dict[str, dict[str, Any]] = {
    "checkpointed": {"optim.activation_checkpointing": True},
    "nf4": {"model.quantization": "nf4"},
    "int8": {"model.quantization": "int8"},
    "nf4, checkpointed": {
        "model.quantization": "nf4",
        "optim.activation_checkpointing": True,
    },
}
"""Settings that save memory, measured for each LoRA case."""
CASES |= {
    f"{kind}, {knob}": {**CASES[kind], **values}
    for knob, values in KNOBS.items()
    for kind in ("packed", "trl, LoRA")
}
TRIALS = 2
"""Trials of a packed engine."""
PAIRS = 2
"""Pairs of each trial in a pass."""
ROWS = 6
"""Four of them are trained in two steps: only the second has the optimizer's moments."""
LENGTHS = {"prompt": (60, 60), "chosen": (50, 50), "rejected": (50, 50)}


def measured(config: TrainConfig, prepared: Path) -> dict[str, float]:
    """Train for a report and return the peaks of resident memory and of its private part."""
    import threading
    import time

    import torch

    from dpo_train.trainers.open import open_session

    torch.set_num_threads(1)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, _status()["RssAnon"])
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    count = TRIALS if config.trainer == "packed" else 1
    sessions = [
        open_session(config.model_copy(update={"seed": n}), prepared, "cpu") for n in range(count)
    ]
    threads = [threading.Thread(target=session.advance) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"private": peak / 1e9, "resident": _status()["VmHWM"] / 1e9}


def _status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        line.split(":")[0]: 1024 * int(line.split()[1])
        for line in lines
        if line.startswith(("VmHWM", "RssAnon"))
    }


def estimated(config: TrainConfig, rows: list[Any]) -> dict[str, float]:
    """Return the estimate of resident and private memory."""
    from dpo_train.footprint import LIBRARIES_BYTES, footprint
    from dpo_train.row_lengths import row_lengths

    lengths = row_lengths(config.model, config.data, rows)
    one = footprint(config, lengths, "cpu")
    if config.trainer == "packed":
        tokens = lengths.largest_pass(TRIALS, config.optim.pairs_at_once)
        private = one.private(TRIALS, tokens)
    else:
        tokens = 2 * lengths.longest_row.row * config.optim.pairs_at_once
        private = one.private(1, tokens)
    shared = LIBRARIES_BYTES + (one.weights if one.is_mapped else 0)
    return {"tokens": tokens, "private": private / 1e9, "resident": (private + shared) / 1e9}


def case(model: str, kind: str, folder: Path) -> None:
    """Print the estimate and the measured values as JSON, from a process of its own."""
    from dpo_train import data, reference

    config = TrainConfig.model_validate(
        {
            "model": {"id": model},
            "data": {"id": str(_pairs(folder))},
            "optim": {"batch_size": PAIRS},
            "eval_every_pairs": 2 * PAIRS,
        }
    )
    config = override(config, CASES[kind])
    pairs = data.load_pairs(config.data)
    # Its data are its own, because the measurement includes the reference pass.
    prepared = reference.plan(config, pairs, folder / kind / Path(model).name, "cpu")
    if os.environ.get("SIDE") == "estimated":
        rows = [row for split in pairs.splits.values() for row in split]
        print(json.dumps(estimated(config, rows)))
    else:
        print(json.dumps(measured(config, prepared)))


def _pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    return path if path.exists() else write_pairs(path, ROWS, LENGTHS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", help="folders of models")
    parser.add_argument("--only", default="", help="only the cases whose line holds this word")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        model, kind, folder = options.case
        case(model, kind, Path(folder))
        return
    with tempfile.TemporaryDirectory() as scratch:
        random = write_model(Path(scratch) / "random-0.5b", "qwen2-0.5b")
        print("| model | trainer | tokens a pass | estimated | measured | ratio | private |")
        print("|---|---|---|---|---|---|---|")
        for model in ("sample", *options.models, str(random)):
            for kind in CASES:
                is_large = model == str(random) and kind == "trl, full"  # 13 GB: by name only
                if options.only in f"{model} {kind}" and (options.only or not is_large):
                    print(_line(model, kind, Path(scratch)), flush=True)


def _line(model: str, kind: str, folder: Path) -> str:
    found = {}
    for side in ("estimated", "measured"):
        done = subprocess.run(
            [sys.executable, __file__, "--case", model, kind, str(folder)],
            env={**os.environ, "SIDE": side},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr)
        found[side] = json.loads(done.stdout.strip().splitlines()[-1])
    estimated, measured = found["estimated"], found["measured"]
    return (
        f"| {Path(model).name} | {kind} | {estimated['tokens']} | {estimated['resident']:.2f} GB | "
        f"{measured['resident']:.2f} GB | {estimated['resident'] / measured['resident']:.2f} | "
        f"{estimated['private']:.2f} / {measured['private']:.2f} = "
        f"{estimated['private'] / measured['private']:.2f} |"
    )


if __name__ == "__main__":
    main()
