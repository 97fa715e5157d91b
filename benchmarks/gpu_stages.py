"""The stages of `gpu.py`."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from importlib.metadata import version
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from gpu_bench import (
    Bench,
    Box,
    device,
    fork,
    mfu_percent,
    peak_gb,
    timed,
    wait,
    weights,
)

from dpo_train import fused_kernels, model, reference
from dpo_train.device_errors import is_device_failure
from dpo_train.scoring import logps
from dpo_train.trainers.packed import forward, kernels, linear, rows

CELLS = [
    (16, 8),
    (16, 4),
    (1, 4),
    (8, 8),
    (1, 8),
    (32, 4),
    (32, 8),
    (8, 4),
    (4, 4),
    (16, 16),
    (8, 16),
]


def stage_card(bench: Bench, _box: Box) -> None:
    """Write the name of the card and the rates that it reaches."""
    names = ("torch", "transformers", "trl", "peft")
    versions = {name: version(name) for name in names}
    bench.row("card", cores=os.cpu_count(), python=sys.version.split()[0], **versions)
    if device() == "cpu":
        return
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    card = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True).stdout.strip()
    bench.row("card", card=card, capability=torch.cuda.get_device_capability())
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = median(timed(lambda: a @ b, 10, warm=3))
    bench.row("card", what="product of 8192", tflops=round(2 * n**3 / seconds / 1e12))
    large = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    copy = torch.empty_like(large)
    seconds = median(timed(lambda: copy.copy_(large), 10, warm=1))
    bench.row("card", what="copy", tb_s=round(2 * large.nbytes / seconds / 1e12, 2))
    one = torch.zeros(1, device="cuda")
    wait()
    began = time.perf_counter()
    for _ in range(1000):
        one.add_(1)
    microseconds = 1e3 * (time.perf_counter() - began)
    bench.row("card", what="start of a tiny kernel", microseconds=round(microseconds, 1))


def stage_reference(bench: Bench, _box: Box) -> None:
    """Measure the reference pass, at its first call and warm."""
    config = bench.config()
    folder = bench.prepared(config)
    began = time.monotonic()
    made = reference.prepare(folder)
    seconds = time.monotonic() - began
    what = "with the model's load and the kernels' build"
    bench.row("reference", what=what, pairs=made.computed_pairs, seconds=round(seconds, 1))
    columns = made.split("train")[:]
    warm = model.load_base(config.model, device())
    score = logps.forward_pass(warm.fresh(trained_in_full=False), device())
    batches = list(logps.batches(columns, made.pad_token_id, device()))
    count = len(columns["prompt_ids"])
    (seconds,) = timed(lambda: logps.score_batches(batches, count, score), 1, warm=1)
    tokens = sum(int(batch["attention_mask"].sum()) for _, batch in batches)
    bench.row(
        "reference",
        what="warm, the train rows",
        tokens_s=round(tokens / seconds),
        mfu_percent=mfu_percent(2 * weights(warm.model) * tokens, seconds),
    )


def stage_packed(bench: Bench, box: Box) -> None:
    """Measure passes for several numbers of trials and pairs."""
    engine = bench.engine()
    bench.packed_step(engine, 2, 4)
    for trials, batch in CELLS:
        if not box.is_open():
            bench.row("packed", trials=trials, batch=batch, skipped="no time was left")
            continue
        bench.row("packed", **bench.packed_step(engine, trials, batch))
    engine.close()
    if box.is_open() and device() == "cuda":
        wide = bench.engine(**{"model.dtype": "float32"})
        bench.row("packed", what="float32 base", **bench.packed_step(wide, 8, 8))


def stage_parts(bench: Bench, box: Box) -> None:
    """Measure the pass of 16 trials with 8 pairs, with one part after the other switched off."""
    size = (4, 4) if bench.tiny else (16, 8)

    def measure(what: str) -> None:
        if box.is_open():
            engine = bench.engine()
            bench.packed_step(engine, 2, 4)
            bench.row("parts", what=what, **bench.packed_step(engine, *size))
            engine.close()

    by_torch: Any = SimpleNamespace(can_run=lambda _: False)
    measure("all")
    forward.kernels = by_torch  # type: ignore[attr-defined]
    measure("the head's softmax by torch")
    linear.kernels = by_torch  # type: ignore[attr-defined]
    measure("and the adapters' wide products by cuBLAS")
    rows._TOKENS_MULTIPLE = dict.fromkeys(rows._TOKENS_MULTIPLE, 1)
    rows._LENGTH_MULTIPLE = dict.fromkeys(rows._LENGTH_MULTIPLE, 1)
    measure("and rows of any length")
    forward.kernels = kernels  # type: ignore[attr-defined]
    linear.kernels = kernels  # type: ignore[attr-defined]
    model.forget_base()
    fused_kernels.find_spec = lambda _: None  # type: ignore
    measure("without Liger, and rows of any length")


def stage_profile(bench: Bench, _box: Box) -> None:
    """Write where a pass spends the device's time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    engine = bench.engine()
    kinds = [ProfilerActivity.CUDA] if device() == "cuda" else [ProfilerActivity.CPU]
    joined = bench.join(engine, 16, 8)
    for _ in range(3):
        engine.step(joined)
    wait()
    with profiler(activities=kinds) as seen:
        engine.step(joined)
        wait()
    spent = {each.key: each.self_device_time_total / 1e3 for each in seen.key_averages()}
    launched = sum(each.count for each in seen.key_averages() if "LaunchKernel" in each.key)
    bench.row("profile", device_ms=round(sum(spent.values()), 1), launches=launched)
    for name in sorted(spent, key=spent.__getitem__, reverse=True)[:24]:
        bench.row("profile", kernel=name[:80], ms=round(spent[name], 1))


def stage_memory(bench: Bench, _box: Box) -> None:
    """Train 16 trials with 16 pairs in a quarter of the card's memory: the passes get smaller."""
    if device() == "cpu":
        return
    torch.cuda.set_per_process_memory_fraction(0.22)
    engine = bench.engine()
    joined = bench.join(engine, 16, 16)
    for _ in range(40):
        engine.step(joined)
        if joined[0].step == 2:
            break
    losses = [float(loss) for trial in joined for loss in trial._losses]
    bench.row(
        "memory",
        limit_gb=round(0.22 * torch.cuda.get_device_properties(0).total_memory / 1e9, 1),
        tokens_a_pass=engine.tokens_at_once,
        steps=joined[0].step,
        losses=len(losses),
        are_finite=all(map(math.isfinite, losses)),
        peak_gb=peak_gb(),
    )


def stage_broken(bench: Bench, _box: Box) -> None:
    """Cause an assert on the device: it is known as a failure, and the next process trains."""
    if device() == "cpu":
        return
    os.waitpid(fork(lambda: _break(bench)), 0)
    engine = bench.engine()
    joined = bench.join(engine, 1, 4)
    engine.step(joined)
    bench.row("broken", what="the next process trains", loss=float(joined[0]._losses[-1]))


def _break(bench: Bench) -> None:
    engine = bench.engine()
    joined = bench.join(engine, 1, 4)
    for pair in engine.train.pairs:
        pair.targets[:] = 10**8
    for what in ("the trial that broke", "the next in its process"):
        try:
            engine.step(joined)
            wait()
        except Exception as error:
            kind = f"{type(error).__name__}: {str(error)[:60]}"
            bench.row("broken", what=what, error=kind, is_known=is_device_failure(error))
