"""The GPU kernels of the packed pass, run on a CPU by Triton's interpreter.

The interpreter multiplies bfloat16 wrongly, so the product is tested with float16. Benchmarks run
the compiled kernels on a GPU (benchmarks/gpu.py).
"""

from __future__ import annotations

import pytest
import torch

from dpo_train.trainers.packed import kernels


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize(("tokens", "words"), [(5, 1000), (3, 5000), (2, 9000)])
def test_log_probs_and_their_gradients(
    dtype: torch.dtype, rounding: float, tokens: int, words: int
) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(tokens, words)).to(dtype)
    targets = torch.randint(0, words, (tokens,))
    scores = torch.log_softmax(logits.double(), dim=-1)
    is_target = torch.nn.functional.one_hot(targets, words)
    logps = torch.empty(tokens)
    untouched = logits.clone()
    kernels.to_logps_(untouched, targets, logps, False)
    assert torch.equal(untouched, logits)
    kernels.to_logps_(logits, targets, logps, True)
    expected = scores.gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(logps.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.double(), is_target - scores.exp(), atol=rounding, rtol=0)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize("shape", [(2, 70, 300, 16), (1, 64, 256, 4), (3, 130, 40, 33)])
def test_a_product_of_low_rank_is_added_in_place(
    dtype: torch.dtype, rounding: float, shape: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    k, tokens, width, rank = shape
    total = torch.randn(k, tokens, width).to(dtype)
    low = torch.randn(k, rank, tokens).to(dtype)
    # A strided view, as an adapter's matrix is one of its trial's vector.
    matrix = torch.randn(k, 64 + rank * width).to(dtype)[:, 64:].unflatten(-1, (rank, width))
    expected = total.double() + low.double().transpose(1, 2) @ matrix.double()
    assert kernels.add_low_rank_(total, low, matrix) is total
    torch.testing.assert_close(total.double(), expected, atol=rounding, rtol=rounding)


def test_a_cpu_computes_with_torch() -> None:
    assert not kernels.can_run(torch.zeros(1))
