"""Code that the stages of `gpu.py` share: model and rows, the clock, the rows of the table."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from synthetic import write_model, write_pairs

from dpo_train import data, reference
from dpo_train.config import TrainConfig
from dpo_train.config_base import override
from dpo_train.trainers.packed.engine import PackedEngine
from dpo_train.trainers.packed.pack_size import PackSize
from dpo_train.trainers.packed.trial import PackedTrial

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 rates from the vendor's datasheets. Other cards get no MFU."""
RANK = 16
WORDS = {"prompt": (20, 100), "chosen": (40, 200), "rejected": (40, 200)}
"""About 70 + 120 + 120 tokens with the template; a completion has up to 200."""
TINY_WORDS = {"prompt": (3, 8), "chosen": (4, 10), "rejected": (4, 10)}


class Box:
    """The time limit of a stage. It is open while another cell like the last one would fit."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._last = time.monotonic()

    def is_open(self) -> bool:
        """Return whether another cell fits into the time."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        return now + 0.7 * took < self._end


class _AllAtOnce(PackSize):
    """Trains all trials of a cell together, without searching for the best pack size."""

    is_trying = False

    def trials_per_pass(self, trials: int) -> int:
        return trials


class Bench:
    """The folder, the model and the data of a check."""

    def __init__(self, out: Path, work: Path, tiny: bool) -> None:
        self.out, self.work, self.tiny = out, work, tiny
        self._began = time.monotonic()
        (out / "rows.jsonl").unlink(missing_ok=True)

    def row(self, stage: str, **values: Any) -> None:
        """Write a row. Values that are no numbers are written as text."""
        made = {"stage": stage, "at": round(time.monotonic() - self._began, 1), **values}
        with (self.out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(made, default=str) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows that were written."""
        return [json.loads(line) for line in (self.out / "rows.jsonl").read_text().splitlines()]

    @property
    def model(self) -> Path:
        """Return the model folder, written once."""
        folder = self.work / "model"
        if not (folder / "config.json").exists():
            dtype = "float32" if device() == "cpu" else "bfloat16"
            write_model(folder, "tiny" if self.tiny else "qwen2-0.5b", dtype, device())
        return folder

    @property
    def pairs(self) -> Path:
        """Return the file of pairs, written once."""
        file = self.work / "rows.jsonl"
        if not file.exists():
            write_pairs(file, 90 if self.tiny else 700, TINY_WORDS if self.tiny else WORDS)
        return file

    def config(self, **changes: Any) -> TrainConfig:
        """Return a config: LoRA over a frozen base, evaluated only at the end; changes by path."""
        base = TrainConfig.model_validate(
            {
                "model": {
                    "id": str(self.model),
                    "dtype": "bfloat16" if device() == "cuda" else "float32",
                },
                "data": {"id": str(self.pairs)},
                "trainer": "packed",
                "lora": {"r": RANK, "alpha": 2 * RANK},
                "optim": {"learning_rate": 1e-4, "warmup_pairs": 16, "epochs": 200},
                "eval_every_pairs": 10**9,
            }
        )
        return override(base, changes)

    def prepared(self, config: TrainConfig) -> Path:
        """Return prepared data of a config."""
        return reference.plan(config, data.load_pairs(config.data), self.work / "data", device())

    def engine(self, **changes: Any) -> PackedEngine:
        """Open a packed engine."""
        config = self.config(**changes)
        engine = PackedEngine(config.model, self.prepared(config), device())
        engine.pack_size = _AllAtOnce()
        return engine

    def packed_step(
        self, engine: PackedEngine, trials: int, batch: int, passes: int = 5
    ) -> dict[str, Any]:
        """Measure a cell: so many trials with so many pairs each, after two passes to warm up. A
        pass may hold only a part of each batch; only pairs that it computed are counted."""
        peak_gb(reset=True)
        joined = self.join(engine, trials, batch)
        for _ in range(2):
            engine.step(joined)
        before = _computed_pairs(joined)
        times = timed(lambda: engine.step(joined), passes)
        pairs = (_computed_pairs(joined) - before) / len(times)
        tokens, seconds = pairs * engine.train.mean_length, median(times)
        return {
            "trials": trials,
            "batch": batch,
            "pass_ms": round(1e3 * seconds, 1),
            "pairs_a_pass": round(pairs),
            "useful_tokens_s": round(tokens / seconds),
            "mfu_percent": mfu_percent(4 * weights(engine.base) * tokens, seconds),
            "peak_gb": peak_gb(),
        }

    def join(self, engine: PackedEngine, trials: int, batch: int) -> list[PackedTrial]:
        """Let trials join an engine, each with its own seed."""
        configs = [self.config(**{"optim.batch_size": batch, "seed": n}) for n in range(trials)]
        return [engine.join(config) for config in configs]


def device() -> str:
    """Return the device of the check."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fork(act: Any) -> int:
    """Return the id of a forked process that calls a function and ends."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            act()
        os._exit(0)
    return child


def wait() -> None:
    """Wait until the device is done."""
    if device() == "cuda":
        torch.cuda.synchronize()


def timed(act: Any, times: int, warm: int = 0, seconds: float = 5.0) -> list[float]:
    """Return the seconds of each call, until the device is done; fewer calls if slow."""
    for _ in range(warm):
        act()
    wait()
    taken: list[float] = []
    while len(taken) < times and sum(taken) < seconds:
        began = time.perf_counter()
        act()
        wait()
        taken.append(time.perf_counter() - began)
    return taken


def peak_gb(reset: bool = False) -> float:
    """Return the largest GPU memory in GB."""
    if device() != "cuda":
        return 0.0
    if reset:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return round(torch.cuda.max_memory_allocated() / 1e9, 1)


def weights(model: Any) -> int:
    """Return the number of weights of a model."""
    return sum(weight.numel() for weight in model.parameters())


def _computed_pairs(trials: Sequence[PackedTrial]) -> int:
    return sum(trial.pairs_seen + trial.computed for trial in trials)


def mfu_percent(flops: float, seconds: float) -> float | None:
    """Return the percentage of the card's dense bfloat16 rate that is used. Tokens count each
    prompt once and no padding. A frozen base takes 4 operations per weight and token."""
    name = torch.cuda.get_device_name() if device() == "cuda" else ""
    for kind, most in PEAK_FLOPS.items():
        if kind in name:
            return round(100 * flops / seconds / most, 1)
    return None


def relative(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the relative differences of two lists."""
    return [
        float(f"{abs(a - b) / max(1e-9, abs(b)):.2g}") for a, b in zip(ours, theirs, strict=True)
    ]


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Format the rows as a table."""
    lines = []
    for row in rows:
        rest = "  ".join(f"{k} {v}" for k, v in row.items() if k not in ("stage", "at"))
        lines.append(f"{row['at']:6.1f}  {row['stage']:10} {rest}\n")
    return "".join(lines)
