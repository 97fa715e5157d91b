"""The stages of `gpu.py` that compare: stock trainers, our other trainers, the server."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu_bench import RANK, Bench, Box, device, fork, peak_gb, relative, wait
from safetensors.torch import load_file

from dpo_train import model
from dpo_train.config_base import override
from dpo_train.trainers.open import open_session


def stage_stock(bench: Bench, box: Box) -> None:
    """Measure TRL as documented, LoRA with batches of 4: one trainer, then four at once."""
    for count in (1, 4):
        children = [fork(lambda: _stock_trainer(bench, count)) for _ in range(count)]  # noqa: B023
        for child in children:
            os.waitpid(child, 0)
        if not box.is_open():
            return


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
    """Measure our `trl` session with LoRA and a prepared reference."""
    _time_session(bench, box, "trl", (4, 8, 16))


def stage_full(bench: Bench, box: Box) -> None:
    """Measure full fine-tuning: weights in float32, computed in bfloat16."""
    _time_session(bench, box, "full", (8, 16), **{"lora": None, "model.dtype": "float32"})


def _time_session(
    bench: Bench, box: Box, stage: str, batches: Sequence[int], **changes: Any
) -> None:
    for batch in batches:
        if not box.is_open():
            return
        sizes = {"optim.batch_size": batch, "eval_every_pairs": 8 * batch}
        config = bench.config(trainer="trl", **sizes, **changes)
        session = open_session(config, bench.prepared(config), device())
        reports = [session.advance().report for _ in range(3)]
        step = min(report["train_seconds"] for report in reports[1:]) / 8
        bench.row(stage, batch=batch, step_ms=round(1e3 * step), peak_gb=peak_gb())
        session.close()


def stage_numerics(bench: Bench, box: Box) -> None:
    """Compare packed with `trl`, and `trl` with itself under another attention kernel."""
    changes = {"optim.batch_size": 8, "eval_every_pairs": 8, "optim.warmup_pairs": 8}
    base = bench.config(**changes)
    curves, halves = {}, {}
    for name in ("trl", "packed", "trl, eager attention"):
        config = override(base, {"trainer": name.split(",")[0]})
        session: Any = open_session(config, bench.prepared(config), device())
        if "eager" in name:
            session._trainer.model.get_base_model().set_attn_implementation("eager")
        curves[name] = [session.advance().report for _ in range(8)]
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


def stage_serve(bench: Bench, box: Box) -> None:
    """Compare the server's engine, without HTTP, greedy and sampled, with `generate`."""
    from transformers import AutoTokenizer

    from serve.engine import GenerationRequest
    from serve.model_source import Checkpoint
    from serve.models import load_weights
    from serve.sampling_params import SamplingParams
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
