"""The stages of `gpu.py`."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gpu_bench import (
    RANK,
    Bench,
    Box,
    device,
    mfu_percent,
    peak_gb,
    relative,
    timed,
    wait,
    weights,
)
from safetensors.torch import load_file

from dpo_train import fused_kernels, model, reference
from dpo_train.config_base import override
from dpo_train.device_errors import is_device_failure
from dpo_train.scoring import logps
from dpo_train.trainers.open import open_session
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


def stage_card(bench: Bench, _: Box) -> None:
    """Which card, and its own ceilings."""
    names = ("torch", "transformers", "trl", "peft")
    versions = {name: version(name) for name in names}
    bench.row("card", cores=os.cpu_count(), python=sys.version.split()[0], **versions)
    if device() == "cpu":
        return
    asked = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    told = subprocess.run(["nvidia-smi", *asked], capture_output=True, text=True).stdout.strip()
    bench.row("card", card=told, capability=torch.cuda.get_device_capability())
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


def stage_reference(bench: Bench, _: Box) -> None:
    """The reference pass, with everything that its first call does, and warm."""
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
    """Passes of so many trials with so many pairs each."""
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
    """The pass of 16 trials with 8 pairs with one part after the other switched off."""
    size = (4, 4) if bench.tiny else (16, 8)

    def measure(what: str) -> None:
        if box.is_open():
            engine = bench.engine()
            bench.packed_step(engine, 2, 4)
            bench.row("parts", what=what, **bench.packed_step(engine, *size))
            engine.close()

    by_torch: Any = SimpleNamespace(can_run=lambda _: False)
    measure("all")
    forward.kernels = by_torch
    measure("the head's softmax by torch")
    linear.kernels = by_torch
    measure("and the adapters' wide products by cuBLAS")
    rows._TOKENS_MULTIPLE = dict.fromkeys(rows._TOKENS_MULTIPLE, 1)
    rows._LENGTH_MULTIPLE = dict.fromkeys(rows._LENGTH_MULTIPLE, 1)
    measure("and rows of any length")
    forward.kernels, linear.kernels = kernels, kernels
    model.forget_base()
    fused_kernels.find_spec = lambda _: None  # type: ignore[assignment]
    measure("without Liger, and rows of any length")


def stage_profile(bench: Bench, _: Box) -> None:
    """Where a pass spends the device's time."""
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


def stage_stock(bench: Bench, box: Box) -> None:
    """TRL by its documentation, LoRA, with batches of 4: one trainer, then four at once."""
    for count in (1, 4):
        children = [_fork(lambda: _stock_trainer(bench, count)) for _ in range(count)]  # noqa: B023
        for child in children:
            os.waitpid(child, 0)
        if not box.is_open():
            return


def _fork(act: Any) -> int:
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            act()
        os._exit(0)
    return child


def _stock_trainer(bench: Bench, at_once: int) -> None:
    import peft
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            ends.append(time.monotonic())

    peak_gb(reset=True)
    scratch = tempfile.mkdtemp()
    given = load_dataset("json", data_files=str(bench.pairs), split="train", cache_dir=scratch)
    dtype = torch.bfloat16 if device() == "cuda" else torch.float32
    policy = AutoModelForCausalLM.from_pretrained(bench.model, dtype=dtype).to(device())
    trainer = DPOTrainer(
        model=policy,
        args=DPOConfig(
            output_dir=scratch,
            activation_checkpointing=False,
            bf16=device() == "cuda",
            use_cpu=device() == "cpu",
            max_steps=24,
            per_device_train_batch_size=4,
            dataloader_pin_memory=device() == "cuda",
            save_strategy="no",
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=given,
        processing_class=AutoTokenizer.from_pretrained(bench.model),
        peft_config=peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", r=RANK, lora_alpha=2 * RANK
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    step = median(later - end for end, later in pairwise(ends[6:]))
    bench.row("stock", at_once=at_once, batch=4, step_ms=round(1e3 * step), peak_gb=peak_gb())


def stage_trl(bench: Bench, box: Box) -> None:
    """Our `trl` session, LoRA, the reference prepared."""
    for batch in (4, 8, 16):
        if not box.is_open():
            return
        changes = {"trainer": "trl", "optim.batch_size": batch, "eval_every_pairs": 8 * batch}
        config = bench.config(**changes)
        session = open_session(config, bench.prepared(config), device())
        reports = [session.advance() for _ in range(3)]
        step = min(report["train_seconds"] for report in reports[1:]) / 8
        bench.row("trl", batch=batch, step_ms=round(1e3 * step), peak_gb=peak_gb())
        session.close()


def stage_full(bench: Bench, box: Box) -> None:
    """All weights: float32 in memory, computed in bfloat16."""
    for batch in (8, 16):
        if not box.is_open():
            return
        changes = {"trainer": "trl", "lora": None, "model.dtype": "float32"}
        changes |= {"optim.batch_size": batch, "eval_every_pairs": 6 * batch}
        config = bench.config(**changes)
        session = open_session(config, bench.prepared(config), device())
        reports = [session.advance() for _ in range(3)]
        step = min(report["train_seconds"] for report in reports[1:]) / 6
        bench.row("full", batch=batch, step_ms=round(1e3 * step), peak_gb=peak_gb())
        session.close()


def stage_numerics(bench: Bench, box: Box) -> None:
    """Packed against `trl`, beside `trl` against itself with another attention kernel."""
    changes = {"optim.batch_size": 8, "eval_every_pairs": 8, "optim.warmup_pairs": 8}
    asked = bench.config(**changes)
    curves, halves = {}, {}
    for name in ("trl", "packed", "trl, eager attention"):
        config = override(asked, {"trainer": name.split(",")[0]})
        session: Any = open_session(config, bench.prepared(config), device())
        if "eager" in name:
            session._trainer.model.get_base_model().set_attn_implementation("eager")
        curves[name] = [session.advance() for _ in range(8)]
        exported = bench.work / f"end of {name}"
        session.export(exported)
        session.close()
        tensors = load_file(exported / "adapter_model.safetensors")
        b = [tensors[key].double().flatten() for key in sorted(tensors) if "lora_B" in key]
        halves[name] = torch.cat(b)
        model.forget_base()
        if not box.is_open():
            break
    right = curves.pop("trl")
    for name, curve in curves.items():
        for metric in ("train/loss", "eval/loss"):
            apart = relative([x[metric] for x in curve], [x[metric] for x in right])
            bench.row("numerics", what=f"{name} to trl, {metric}", steps=apart)
        cosine = torch.nn.functional.cosine_similarity(halves[name], halves["trl"], dim=0)
        bench.row("numerics", what=f"{name} to trl, all B after 8 steps", cosine=float(cosine))
    engine = bench.engine()
    ends = []
    for count in (1, 8):
        joined = bench.join(engine, count, 8)
        for _ in range(10):
            engine.step(joined)
        ends.append(joined[0].own_weights.double())
    apart_by = float((ends[0] - ends[1]).norm() / ends[0].norm())
    bench.row("numerics", what="a trial alone and among 8, weights", relative=f"{apart_by:.2g}")


def stage_memory(bench: Bench, _: Box) -> None:
    """A quarter of the card's memory, 16 trials with 16 pairs: the passes get smaller."""
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


def stage_broken(bench: Bench, _: Box) -> None:
    """An assert on the device: known as a failure of the device, and over in the next process."""
    if device() == "cpu":
        return
    os.waitpid(_fork(lambda: _break(bench)), 0)
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


def stage_serve(bench: Bench, box: Box) -> None:
    """The server's engine without HTTP, greedy and sampled, beside `generate`."""
    from transformers import AutoTokenizer

    from serve.engine import GenerationRequest
    from serve.model_source import Checkpoint
    from serve.models import load_weights
    from serve.sampling import SamplingParams
    from serve.slot_engine import SlotEngine

    most = 16 if bench.tiny else 48
    tokenizer = AutoTokenizer.from_pretrained(bench.model)
    served = load_weights(Checkpoint(str(bench.model)), {})
    served.generation_config.eos_token_id = None
    draw = np.random.default_rng(0)
    prompts = [draw.integers(20, 400, draw.integers(24, 96)).tolist() for _ in range(64)]
    engine = SlotEngine(served, tokenizer, 64, 512, 256)
    engine._end_token_ids = set()

    def ask(count: int, temperature: float) -> list[GenerationRequest]:
        ended = threading.Semaphore(0)

        def send(chunk: Any) -> None:
            if chunk.finish_reason:
                ended.release()

        requests = [
            GenerationRequest(
                prompt, SamplingParams(most, temperature, seed=n), send, is_streamed=False
            )
            for n, prompt in enumerate(prompts[:count])
        ]
        for request in requests:
            engine.submit(request)
        for _ in requests:
            ended.acquire()
        return requests

    ask(2, 0.0)
    for count, temperature in ((1, 0.0), (16, 0.0), (64, 0.0), (16, 0.8)):
        if box.is_open():
            began = time.monotonic()
            ask(count, temperature)
            rate = count * most / (time.monotonic() - began)
            what = f"{count} clients, temperature {temperature}"
            bench.row("serve", what=what, tokens_s=round(rate))
    greedy = [request.output_ids for request in ask(16, 0.0)]
    engine.close()
    served.set_attn_implementation("sdpa")
    tokenizer.padding_side = "left"
    given = tokenizer.pad({"input_ids": prompts[:16]}, return_tensors="pt").to(device())
    options = {"do_sample": False, "max_new_tokens": most, "min_new_tokens": most}
    with torch.inference_mode():
        served.generate(**given, **options)
        began = time.monotonic()
        made = served.generate(**given, **options)[:, given["input_ids"].shape[1] :].tolist()
    rate = 16 * most / (time.monotonic() - began)
    equal = np.mean(np.array(made) == np.array(greedy))
    bench.row("serve", what="generate, 16 rows", tokens_s=round(rate), equal_tokens=f"{equal:.3f}")
