"""Liger's kernels in a model. Triton's interpreter runs them on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from dpo_train import fused_kernels
from dpo_train.errors import InputError
from tests.helpers.small_models import SMALL

ROOT = Path(__file__).parents[2]

SCRIPT = """
import liger_kernel.ops.rms_norm
import triton.language
from triton.runtime.interpreter import InterpretedFunction
from tests.dpo_train.test_fused_kernels import gradients, small_model
from dpo_train.fused_kernels import use_fused_kernels


class Scalar(float):
    def to(self, dtype):  # compiled kernels cast their numbers; the interpreter's have no cast
        return self


def run(self, *args, grid, warmup, **options):
    scalars = {name: Scalar(v) if isinstance(v, float) else v for name, v in options.items()}
    args = [Scalar(v) if isinstance(v, float) else v for v in args]
    return own_run(self, *args, grid=grid, warmup=warmup, **scalars)


# The interpreter has none of CUDA's own functions.
liger_kernel.ops.rms_norm.rsqrt = lambda x: triton.language.rsqrt(x)
own_run, InterpretedFunction.run = InterpretedFunction.run, run
model = small_model()
own = gradients(model)
use_fused_kernels(model)
layer = model.model.layers[0]
for module in (layer.mlp, layer.input_layernorm):
    assert "Liger" in module.forward.__qualname__, module
for name, slope in gradients(model).items():
    assert (slope - own[name]).abs().max() <= 1e-5 * own[name].abs().max(), name
"""


def small_model() -> Any:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**{**SMALL, "vocab_size": 128, "attention_dropout": 0.0}))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    ids = torch.arange(0, 120, 3)[None]
    model(input_ids=ids).logits.logsumexp(-1).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_fused_layers_compute_what_the_model_s_own_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_layers_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, **_: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight.mul_(1.1)

    monkeypatch.setattr("liger_kernel.transformers._apply_liger_kernel_to_instance", wrong)
    monkeypatch.setattr(fused_kernels, "_refused", {})
    with pytest.raises(InputError, match=r"^model.id: liger-kernel changes .* logits \(by 0"):
        fused_kernels.use_fused_kernels(small_model())


def test_a_refusal_holds_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger changes the modules of transformers, so a model that is loaded later has its layers."""
    monkeypatch.setattr(fused_kernels, "_refused", {"qwen2": "0.2"})
    monkeypatch.setattr(
        "liger_kernel.transformers._apply_liger_kernel_to_instance", lambda *_, **__: None
    )
    with pytest.raises(InputError, match=r"changes this model's logits \(by 0.2 of"):
        fused_kernels.use_fused_kernels(small_model())


def test_an_architecture_that_liger_cant_import_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("cannot import name")

    monkeypatch.setattr("liger_kernel.transformers._apply_liger_kernel_to_instance", missing)
    monkeypatch.setattr(fused_kernels, "_refused", {})
    fused_kernels.use_fused_kernels(small_model())


def test_without_the_library_a_model_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_kernels, "find_spec", lambda _: None)
    model = small_model()
    fused_kernels.use_fused_kernels(model)
    assert "forward" not in vars(model.model.layers[0].mlp)
