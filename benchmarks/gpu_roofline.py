"""The least that one packed step can take on a GPU, counted on tensors without data.

    python benchmarks/gpu_roofline.py [TRIALS] [PAIRS] [--layers N]     # 16, 8 and 24; needs no GPU

The packed engine's own step over Qwen2-0.5B's shape runs under torch's FakeTensorMode. All shapes,
types and saved tensors are those of a GPU in bfloat16, but nothing is computed. The fake tensors
are on the CPU, because torch has no backward on fake tensors of a GPU that it was not built for. So
the project's tables by kind of device get the GPU's entries, and operations for which a GPU has
another kernel (attention, Triton's kernels, products summed in float32) count as one read of their
inputs and one write of their outputs.

An operation takes max(operations / rate, bytes / bandwidth, a kernel's start). This is a bound and
no forecast. `--out FILE` writes the counts by kind of operation as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from counted_kernels import Counted, flash_attention, ligers, ours
from synthetic import SHAPES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from dpo_train import fused_kernels, model, reference
from dpo_train.config import ModelConfig, TrainConfig
from dpo_train.model import WarmBase
from dpo_train.trainers.packed import (
    adapters,
    engine,
    forward,
    kernels,
    linear,
    rows,
    stacked_layers,
)
from dpo_train.trainers.packed.adapters import Layer
from dpo_train.trainers.packed.engine import PackedEngine
from dpo_train.trainers.packed.trial import PackedTrial

_SHAPE = "qwen2-0.5b"
_PAIRS = 512
_MEDIAN_TOKENS = {"prompt_ids": 60, "chosen_ids": 120, "rejected_ids": 120}


@contextmanager
def as_on_a_gpu(counted: Counted, is_fused: bool) -> Iterator[None]:
    """Run the project's own code as it would run on a GPU, with or without the fused kernels."""

    def product(total: Tensor, left: Tensor, right: Tensor) -> None:
        operations = 2.0 * left.numel() * right.shape[-1]
        counted.add("adapters' products", [left, right, total], [total], operations)

    by_device: tuple[dict[str, Any], ...] = (
        forward.AUTOCAST,
        forward._LOGITS_PER_CHUNK,
        rows._TOKENS_MULTIPLE,
        rows._LENGTH_MULTIPLE,
        rows._IS_PADDED_TO_LONGEST,
        engine._MOST_TOKENS,
    )
    before = [dict(table) for table in by_device]
    for table in by_device:
        table["cpu"] = table["cuda"]
    try:
        with (
            patch.object(kernels, "can_run", lambda _: is_fused),
            patch.object(kernels, "_kernels", lambda: ours(counted)),
            patch.object(linear, "_add_product", product),
            patch.object(forward, "scaled_dot_product_attention", flash_attention(counted)),
            # Functions that read numbers, which fake tensors do not have.
            patch.object(engine, "compare_with_reference", lambda *_: None),
            patch.object(stacked_layers, "check_once", lambda *_: None),
            patch.object(PackedEngine, "_measure", lambda *_: True),
            patch.object(adapters, "adapted_layers", adapted_layers),
            patch.object(PackedTrial, "_draw_batches", drawn_batches),
            patch.dict(fused_kernels._refused, {"qwen2": ""}),
            ligers(counted),
        ):
            yield
    finally:
        for table, own in zip(by_device, before, strict=True):
            table.clear()
            table.update(own)


def adapted_layers(base: Any, _: Any) -> tuple[Layer, ...]:
    """Return the layers that PEFT finds for `all-linear`: it can't wrap a base without weights."""
    head = base.get_output_embeddings()
    return tuple(
        Layer(name, module.in_features, module.out_features)
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )


def drawn_batches(trial: PackedTrial, *_: int) -> Iterator[list[int]]:
    """Yield batches without torch's permutation, which holds no numbers here."""
    pairs, draw = trial.config.optim.batch_size, np.random.default_rng(trial.config.seed)
    while True:
        order = draw.permutation(_PAIRS).tolist()
        yield from (order[at : at + pairs] for at in range(0, _PAIRS - pairs + 1, pairs))


def made_pairs() -> dict[str, list[Any]]:
    """Return a prepared split in which only the number of tokens matters."""
    draw = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {
        name: [
            list(range(5, 5 + count))
            for count in np.clip(draw.lognormal(np.log(median), 0.35, _PAIRS), 5, 400).astype(int)
        ]
        for name, median in _MEDIAN_TOKENS.items()
    }
    logps = dict.fromkeys(("ref_chosen_logps", "ref_rejected_logps"), [-50.0] * _PAIRS)
    return {**columns, **logps}


def opened(is_fused: bool, layers: int) -> PackedEngine:
    """Return an engine over a base without weights."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        base = Qwen2ForCausalLM(Qwen2Config(**{**SHAPES[_SHAPE], "num_hidden_layers": layers}))
    finally:
        torch.set_default_dtype(torch.float32)
    if is_fused:
        fused_kernels.use_fused_kernels(base)
    split = _Split(made_pairs())
    data = SimpleNamespace(computed_pairs=0, split=lambda _: split)
    with (
        patch.object(reference, "prepare", lambda _: data),
        patch.object(model, "load_base", lambda *_: WarmBase(base, None, None)),  # type: ignore[arg-type]
    ):
        return PackedEngine(ModelConfig(dtype="bfloat16"), Path(), "cpu")


class _Split:
    """A split like those of prepared data: `split[:]` returns its columns."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self._columns = columns

    def __getitem__(self, _: slice) -> dict[str, list[Any]]:
        return self._columns


def measure(trials: int, pairs: int, layers: int, is_fused: bool) -> dict[str, Any]:
    """Count the second step of so many trials with so many pairs each; the first builds the
    pack."""
    counted, kept = Counted(SHAPES[_SHAPE]["vocab_size"]), Kept()
    content = {
        "trainer": "packed",
        "lora": {"r": 16, "alpha": 32},
        "model": {"dtype": "bfloat16"},
        "optim": {"batch_size": pairs, "epochs": 100},
        "eval_every_pairs": 10**9,
    }
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_a_gpu(counted, is_fused):
        packed = opened(is_fused, layers)
        configs = [TrainConfig.model_validate({**content, "seed": n}) for n in range(trials)]
        joined = [packed.join(config) for config in configs]
        packed.step(joined)
        for each in (counted.launches, counted.operations, counted.bytes, counted.seconds):
            each.clear()
        with counted, torch.autograd.graph.saved_tensors_hooks(kept.note, lambda x: x):
            packed.step(joined)
    return {
        "trials": trials,
        "pairs": pairs,
        "kernels": "fused" if is_fused else "torch's own",
        "launches": counted.launches.total(),
        "teraoperations": counted.operations.total() / 1e12,
        "gigabytes_moved": counted.bytes.total() / 1e9,
        "gigabytes_kept": sum(kept.storages.values()) / 1e9,
        "milliseconds": 1e3 * sum(counted.seconds.values()),
        "launches_by_kind": dict(counted.launches),
        "milliseconds_by_kind": {k: 1e3 * v for k, v in counted.seconds.most_common()},
        "gigabytes_by_kind": {k: v / 1e9 for k, v in counted.bytes.most_common()},
    }


class Kept:
    """Collects the tensors that a pass keeps for its backward, except weights."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

    def note(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            self.storages[storage._cdata] = storage.nbytes()
        return tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", type=int, nargs="?", default=16)
    parser.add_argument("pairs", type=int, nargs="?", default=8)
    parser.add_argument("--layers", type=int, default=SHAPES[_SHAPE]["num_hidden_layers"])
    parser.add_argument("--out", type=Path, help="file for all counts, as JSON")
    options = parser.parse_args()
    sizes = (options.trials, options.pairs, options.layers)
    found = [measure(*sizes, is_fused) for is_fused in (False, True)]
    for each in found:
        print(
            "{kernels}: {milliseconds:.0f} ms, {launches:,} launches, {teraoperations:.1f} "
            "teraoperations, {gigabytes_moved:.0f} GB moved, {gigabytes_kept:.1f} GB kept".format(
                **each
            )
        )
        print("   ms:", ", ".join(f"{k} {v:.0f}" for k, v in each["milliseconds_by_kind"].items()))
        print("   GB:", ", ".join(f"{k} {v:.0f}" for k, v in each["gigabytes_by_kind"].items()))
    before, after = found
    for name in ("milliseconds", "gigabytes_moved", "gigabytes_kept", "launches"):
        print(f"{name}: {100 * after[name] / before[name]:.0f} % of it with the fused kernels")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
